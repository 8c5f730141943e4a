"""One digest for what a data set means: a Merkle tree over its images, whatever the shards, their compression and their HDF5.

A leaf is an image with everything that is stored of it. Trees are those of RFC 6962: leaves and inner nodes are told apart by
their first byte, and an odd one out moves up a level unchanged.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence

LENGTH = 32
"""Bytes of a digest: SHA-256."""


def leaf(fields: Iterable[bytes | bytearray | memoryview]) -> bytes:
    """The digest of one image: SHA-256 of 0 and each field, preceded by its length (8 bytes, little-endian)."""
    found = hashlib.sha256(b"\0")
    for field in fields:
        found.update(len(field).to_bytes(8, "little"))
        found.update(field)
    return found.digest()


def root(leaves: Sequence[bytes]) -> bytes:
    """The Merkle root of leaves in order; the SHA-256 of nothing when there are none."""
    level = list(leaves)
    while len(level) > 1:
        pairs = [hashlib.sha256(b"\1" + a + b).digest() for a, b in zip(level[::2], level[1::2], strict=False)]
        level = pairs + level[len(pairs) * 2 :]
    return level[0] if level else hashlib.sha256().digest()


def of_dataset(splits: Mapping[str, Sequence[bytes]], vocabulary: str) -> str:
    """The digest of a data set in hexadecimal: SHA-256 over the vocabulary's digest, and name, size and root of each split."""
    fields = [b"cocolvis", vocabulary.encode()]
    for name, leaves in sorted(splits.items()):
        fields += [name.encode(), len(leaves).to_bytes(8, "little"), root(leaves)]
    return leaf(fields).hex()
