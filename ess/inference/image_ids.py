"""The id of each picture in run-length results: the number in its name if that is unique, otherwise its name."""

import os
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import PurePath

ImageId = int | str

_LARGEST = 2**63 - 1
"""The largest id that fits the 64 bits that readers use."""


def number_of(file: str | PurePath) -> int | None:
    """The number in a file's name, such as 139 for 000000000139.jpg; None if the name is not a number of at most 63 bits."""
    stem = PurePath(file).stem
    if not re.fullmatch(r"[0-9]{1,100}", stem) or int(stem) > _LARGEST:
        return None
    return int(stem)


def image_ids(names: Mapping[str, str]) -> dict[str, ImageId]:
    """File -> unique id, for files with their names below the folder that was given.

    An id is the file's number if no other file has it, otherwise its name if no other file has that, otherwise the file itself.
    """
    possible = {file: (number_of(file), name, file, os.path.abspath(file)) for file, name in names.items()}
    claims = Counter(one for several in possible.values() for one in {*several})
    return {
        file: next((one for one in several if one is not None and claims[one] == 1), file) for file, several in possible.items()
    }
