"""Which id each picture has among run lengths: the number that is its name where no other one has it, else its name."""

import os
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import PurePath

ImageId = int | str

_LARGEST = 2**63 - 1
"""What readers hold in 64 bits."""


def number_of(file: str | PurePath) -> int | None:
    """The number that is a file's name, such as 139 for 000000000139.jpg; None where it is none, or has more than 63 bits."""
    stem = PurePath(file).stem
    if not re.fullmatch(r"[0-9]{1,100}", stem) or int(stem) > _LARGEST:
        return None
    return int(stem)


def image_ids(names: Mapping[str, str]) -> dict[str, ImageId]:
    """File -> id, of files with the names that they have below the folder they came from; no two are equal.

    An id is the file's number if no other file has it, else its name if no other has that, else the file itself.
    """
    possible = {file: (number_of(file), name, file, os.path.abspath(file)) for file, name in names.items()}
    claims = Counter(one for several in possible.values() for one in {*several})
    return {
        file: next((one for one in several if one is not None and claims[one] == 1), file) for file, several in possible.items()
    }
