"""The exceptions that users see: faults of their data or arguments, reported in one line."""


class DataError(Exception):
    """A fault of the data or the arguments, not of the program.

    The message is one line that says what is wrong, where, which value was found and what would be right, and that suggests
    the next command if there is one. The command lines print it without a traceback and exit with code 1.
    """


class DamagedImage(DataError):
    """A fault of a single image of a data set, which training and evaluation can leave out.

    The picture is missing, cannot be decoded or differs in size from its mask, or the runs of the mask do not cover it. Disk
    errors, running out of memory and running out of file handles are not faults of a single image.
    """
