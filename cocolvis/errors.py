"""The one exception that users see: a fault of their data or arguments, told in one line."""


class DataError(Exception):
    """A fault of data or arguments, not of the program.

    The message is one line that says what is wrong, where, which value was found and what would be right, and names the
    next command where there is one. The command lines print it without a traceback and exit with 1.
    """
