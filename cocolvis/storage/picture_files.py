"""Reads the pictures of a data set that stores only their paths."""

from pathlib import Path

from cocolvis.disk import reading
from cocolvis.disk.files import reason, regular_file
from cocolvis.errors import DamagedImage, DataError
from cocolvis.limits import MAX_PICTURE
from cocolvis.text import one_line

_LONGEST_PATH = 1000


def read_picture(root: Path, path: str) -> bytes:
    """Return the bytes of the picture ``path`` below the folder ``root``.

    Raises DamagedImage if the path leaves the folder, or if the file is missing, unreadable or too large; DataError if the disk
    fails, which says nothing about this one picture.
    """
    if path.startswith("/") or ".." in path.split("/") or "\0" in path or len(path) > _LONGEST_PATH:
        raise DamagedImage(f"{root}: picture {one_line(repr(path))} is not a path inside the folder")
    file = root / path
    try:
        regular_file(file, MAX_PICTURE)
        return file.read_bytes()
    except DataError as error:
        kind = DamagedImage if _concerns_one_file(error.__cause__) else DataError
        raise kind(str(error)) from None
    except OSError as error:
        kind = DamagedImage if _concerns_one_file(error) else DataError
        raise kind(f"{file}: cannot be read: {reason(error)}") from None


def _concerns_one_file(error: BaseException | None) -> bool:
    return not isinstance(error, OSError) or reading.system_reason(error) is None
