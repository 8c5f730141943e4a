"""The exceptions that users see: faults of their data or arguments, told in one line."""


class DataError(Exception):
    """A fault of data or arguments, not of the program.

    The message is one line that says what is wrong, where, which value was found and what would be right, and names the
    next command where there is one. The command lines print it without a traceback and exit with 1.
    """


class DamagedImage(DataError):
    """A fault of one image of a data set, which says nothing of the others: training and evaluation can leave it out.

    Its picture is missing, not decodable or of another size than its mask, or its mask's runs do not fill it. A disk that
    fails is no such fault, nor is memory that runs out, nor are file handles.
    """
