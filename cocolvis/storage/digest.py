"""One digest for the content of a data set: a Merkle tree over its images, independent of shards, compression and HDF5.

A leaf covers everything that is stored about one image. The trees follow RFC 6962: a first byte distinguishes leaves from inner
nodes, and a node without a partner moves up one level unchanged.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence

LENGTH = 32
"""Bytes of a digest: SHA-256."""

_JOINED = 2**15
"""Shorter fields, in bytes, are hashed together: the calls take longer than a copy."""


def leaf(fields: Iterable[bytes | bytearray | memoryview]) -> bytes:
    """The digest of one image: SHA-256 of a zero byte and all fields, each preceded by its length (8 bytes, little-endian)."""
    found = hashlib.sha256()
    small: list[bytes | bytearray | memoryview] = [b"\0"]
    for field in fields:
        small.append(len(field).to_bytes(8, "little"))
        if len(field) < _JOINED:
            small.append(field)
        else:  # a picture, which is not copied
            found.update(b"".join(small))
            found.update(field)
            small = []
    found.update(b"".join(small))
    return found.digest()


def root(leaves: Sequence[bytes]) -> bytes:
    """The Merkle root of the leaves, in order; the SHA-256 of nothing if there are none."""
    level = list(leaves)
    while len(level) > 1:
        pairs = [hashlib.sha256(b"\1" + a + b).digest() for a, b in zip(level[::2], level[1::2], strict=False)]
        level = pairs + level[len(pairs) * 2 :]
    return level[0] if level else hashlib.sha256().digest()


def of_dataset(splits: Mapping[str, Sequence[bytes]], vocabulary: str) -> str:
    """The digest of a data set in hexadecimal.

    It is the leaf over the vocabulary's digest and, for each split in order of name, its name, number of images and root.
    """
    fields = [b"cocolvis", vocabulary.encode()]
    for name, leaves in sorted(splits.items()):
        fields += [name.encode(), len(leaves).to_bytes(8, "little"), root(leaves)]
    return leaf(fields).hex()
