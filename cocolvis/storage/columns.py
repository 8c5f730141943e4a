"""The columns of a shard, in the order in which they are written and hashed; docs/format.md describes them."""

from functools import cache
from typing import Any

import numpy as np

from cocolvis.storage import digest

FORMAT = "cocolvis-shard"
VERSION = 2

PER_IMAGE = {"id": ("int64", ()), "size": ("uint32", (2,)), "digest": ("uint8", (digest.LENGTH,))}
"""Columns with one row per image: name -> dtype and shape of a row. ``digest`` covers the others and those of PACKED."""

PACKED = {
    "path": {"bytes": "uint8"},
    "image": {"bytes": "uint8"},
    "mask": {"class": "uint16", "length": "uint16"},
    "present": {"class": "uint16", "pixels": "uint32"},
    "neg": {"class": "uint16"},
    "not_exhaustive": {"class": "uint16"},
}
"""Columns with any number of values per image: group -> column -> dtype.

The images follow one another without gaps; ``offsets[i]:offsets[i + 1]`` of the group selects the values of image i.
"""

INSTANCES, INSTANCES_TYPE = "present/instances", "uint32"
"""The column that a shard may lack, with a value for each one of /present/class. The digest of an image does not cover it."""


def to_little_endian(values: Any, dtype: str) -> bytes:
    """The bytes of values as a shard stores them; bytes are returned unchanged."""
    return values if isinstance(values, bytes) else np.asarray(values, stored_type(dtype)).tobytes()


@cache
def stored_type(dtype: str) -> np.dtype:
    """A type as shards store it: little-endian."""
    return np.dtype(dtype).newbyteorder("<")
