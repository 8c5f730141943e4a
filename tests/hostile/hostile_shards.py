"""Named ways to make a shard hostile, and the message that opening or reading it must give."""

import os
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
from shard_damage import (
    Outside,
    assigned,
    attribute,
    compact,
    created,
    declared,
    excluded,
    external,
    instead,
    linked,
    many_present,
    mask_chunk,
    more_runs_than_pixels,
    not_text,
    offsets,
    old_format,
    overflowing_runs,
    put,
    replaced,
    retyped,
    sparse,
    unix_socket,
    unknown_filter,
    virtual,
    zeros,
)

CHUNKS = "/mask/class is stored in chunks, expected one contiguous block"


@dataclass(frozen=True, kw_only=True)
class Case:
    """``change`` makes the data set in a folder hostile; ``message`` is a pattern that the refusal must match.

    ``found`` is "verify" if only ``cocolvis verify`` can notice. With ``recorded``, dataset.json is updated to the size and
    hash of the changed shard. ``images`` is the option that the data set was built with.
    """

    name: str
    message: str
    change: Callable[[Path, Outside], object]
    found: str = "reading"
    recorded: bool = True
    images: str = "embed"


def first_shard(folder: Path) -> Path:
    """The shard that the cases change."""
    return folder / "shards" / "train-00000.h5"


def _case(group: str, name: str, change: Callable, message: str, **settings) -> Case:
    def on_file(folder: Path, outside: Outside) -> None:
        with h5py.File(first_shard(folder), "r+") as file:
            change(file, outside)

    def on_place(folder: Path, outside: Outside) -> None:
        change(first_shard(folder), outside)

    return Case(name=f"{group}: {name}", change=on_place if group == "place" else on_file, message=message, **settings)


LINKS = {
    "external storage": (external, "/image/bytes points at another file"),
    "external storage of ids": (lambda f, o: external(f, o, "id", "int64"), "/id points at another file"),
    "virtual data set": (virtual, "/image/bytes points at another file"),
    "external link": (
        lambda f, o: replaced(f, "image/bytes", h5py.ExternalLink(o / "other.h5", "data")),
        "/image/bytes points at",
    ),
    "external link to a group": (
        lambda f, o: replaced(f, "mask", h5py.ExternalLink(o / "other.h5", "/")),
        "/mask/offsets points",
    ),
    "external link to a pipe": (
        lambda f, o: replaced(f, "mask", h5py.ExternalLink(o / "pipe", "/")),
        "/mask/offsets points at",
    ),
    "external link to the file itself": (
        lambda f, o: replaced(f, "id", h5py.ExternalLink(f.filename, "/size")),
        "/id points at",
    ),
    "soft link": (put("mask/class", h5py.SoftLink("/neg/class")), "/mask/class points at another file or place"),
    "soft link to itself": (put("id", h5py.SoftLink("/id")), "/id points at another file or place"),
    "soft link to a group": (put("path", h5py.SoftLink("/image")), "/path/offsets points at another file or place"),
    "soft link that dangles": (put("size", h5py.SoftLink("/gone")), "/size points at another file or place"),
    "group that is the root": (lambda f, o: replaced(f, "mask", f["/"]), "/mask/offsets is missing"),
    "group that holds itself": (lambda f, o: replaced(f, "mask/class", f["mask"]), "/mask/class is not a data set"),
    "group where a data set belongs": (lambda f, o: replaced(f, "id", f["mask"]), "/id is not a data set"),
    "data set where a group belongs": (put("mask", np.zeros(3)), "/mask is not a group"),
    "named type where a data set belongs": (put("id", np.dtype("int64")), "/id is not a data set"),
    "no data set": (lambda f, o: f.__delitem__("id"), "/id is missing"),
    "no group": (lambda f, o: f.__delitem__("neg"), "/neg/offsets is missing"),
}

TYPES = {
    "compound": (retyped("id", [("a", "int32"), ("b", "int32")]), r"/id is \[\('a', '<i4'\)"),
    "fixed text": (retyped("path/bytes", "S1"), r"/path/bytes is \|S1"),
    "variable-length text": (put("id", ["a"] * 5, dtype=h5py.string_dtype()), "/id is object"),
    "variable-length integers": (created("id", (5,), h5py.vlen_dtype("int64")), "/id is object"),
    "references": (lambda f, o: replaced(f, "id", [f.ref] * 5, dtype=h5py.ref_dtype), "/id is object"),
    "opaque": (retyped("id", "V8"), r"/id is \|V8"),
    "opaque of a megabyte": (lambda f, o: declared(f, "id", (5,), "V1000000"), r"/id is \|V1000000"),
    "big-endian": (retyped("mask/class", ">u2"), "/mask/class is >u2"),
    "big-endian offsets": (offsets(lambda v: v.astype(">u8")), "/mask/offsets is >u8"),
    "floating point": (retyped("id", "float64"), "/id is float64"),
    "floating point lengths": (retyped("mask/length", "float32"), "/mask/length is float32"),
    "boolean": (retyped("neg/class", "bool"), "/neg/class is bool"),
    "complex": (retyped("size", "complex128"), "/size is complex128"),
    "signed": (retyped("mask/class", "int16"), "/mask/class is int16"),
    "array": (put("id", np.zeros((5, 2), "int64")), r"/id is int64 \(5, 2\), expected int64 \(N,\)"),
    "offsets of 32 bits": (offsets(lambda v: v.astype(np.uint32)), "/mask/offsets is uint32"),
}

INSTANCES = {
    "signed": (retyped("present/instances", "int32"), "/present/instances is int32"),
    "floating point": (retyped("present/instances", "float32"), "/present/instances is float32"),
    "too few": (
        put("present/instances", np.ones(3, np.uint32)),
        r"/present/instances is uint32 \(3,\), expected uint32 \(10,\)",
    ),
    "too many": (put("present/instances", np.ones(11, np.uint32)), r"/present/instances is uint32 \(11,\), expected"),
    "a group": (lambda f, o: replaced(f, "present/instances", f["mask"]), "/present/instances is not a data set"),
    "external link": (
        lambda f, o: replaced(f, "present/instances", h5py.ExternalLink(o / "other.h5", "data")),
        "/present/instances points at another file",
    ),
    "link to nothing": (put("present/instances", h5py.SoftLink("/gone")), "/present/instances points at another file or place"),
    "gzip": (
        lambda f, o: replaced(f, "present/instances", np.ones(10, np.uint32), compression="gzip"),
        "/present/instances is stored in chunks",
    ),
    "missing": (lambda f, o: f.__delitem__("present/instances"), "does not record instances, dataset.json says otherwise"),
    "absurd": (assigned("present/instances", 3, 2**32 - 1), "/present/instances holds 4294967295, expected at most 134217728"),
    "of more classes than there are": (
        many_present,
        "/present lists 2000 classes, the vocabulary has 1284|/present does not match the classes",
    ),
}

SHAPES = {
    "scalar": (put("id", np.int64(1)), r"/id is int64 \(\)"),
    "null": (put("id", h5py.Empty("int64")), "/id is int64 None"),
    "null offsets": (put("mask/offsets", h5py.Empty("uint64")), "/mask/offsets is uint64 None"),
    "no images but masks": (put("id", np.zeros(0, np.int64)), r"/size is uint32 \(5, 2\), expected uint32 \(0, 2\)"),
    "size of three": (put("size", np.ones((5, 3), np.uint32)), r"/size is uint32 \(5, 3\)"),
    "digest too short": (put("digest", np.ones((5, 31), np.uint8)), r"/digest is uint8 \(5, 31\)"),
    "2^40 elements": (
        lambda f, o: declared(f, "id", (2**40,), "int64", chunk=2**20),
        "/id is stored in chunks",
    ),
    "2^40 elements in one piece": (lambda f, o: declared(f, "id", (2**40,), "int64"), "/id declares 8796093022208 bytes"),
    "2^63 elements": (lambda f, o: declared(f, "id", (2**60,), "int64", chunk=2**20), "/id is stored in chunks"),
    "2^40 runs": (
        lambda f, o: (
            offsets(lambda v: v.__setitem__(-1, 2**40))(f, o),
            declared(f, "mask/class", (2**40,), "uint16", chunk=4096),
        ),
        CHUNKS,
    ),
    "huge fill value": (lambda f, o: declared(f, "mask/class", (5,), "V60000"), r"/mask/class is \|V60000"),
    "chunks of a gigabyte": (mask_chunk(b"x", 2**29, chunk=2**29), CHUNKS),
    "8 GiB of ids in a sparse file": (
        lambda f, o: sparse(f, "id", 2**30, "int64"),
        "/id holds 8589934592 bytes, expected at most",
    ),
    "a picture of 512 MiB in a sparse file": (
        lambda f, o: (
            offsets(lambda v: np.array([0, 2**29, 2**29, 2**29, 2**29, 2**29], np.uint64), "image")(f, o),
            sparse(f, "image/bytes", 2**29, "uint8"),
        ),
        "has a picture of more than 268435456 bytes",
    ),
}

VALUES = {
    "offsets that descend": (offsets(lambda v: v.__setitem__(1, v[2] + 1)), "/mask/offsets does not ascend"),
    "offsets that do not begin at 0": (offsets(lambda v: v.__setitem__(0, 1)), "/mask/offsets does not ascend from 0"),
    "offsets beyond the data": (offsets(lambda v: v.__setitem__(-1, v[-1] + 1)), r"/mask/class is uint16 \(\d+,\), expected"),
    "offsets that overflow": (offsets(lambda v: v.__setitem__(-1, 2**64 - 1)), r"expected uint16 \(18446744073709551615,\)"),
    "offsets that overflow on the way": (offsets(lambda v: v.__setitem__(2, 2**64 - 1)), "/mask/offsets does not ascend"),
    "offsets that are negative": (offsets(lambda v: v.__setitem__(1, 2**63), "path"), "/path/offsets does not ascend"),
    "one offset too few": (offsets(lambda v: v[:-1]), r"/mask/offsets is uint64 \(5,\), expected uint64 \(6,\)"),
    "no offsets": (offsets(lambda v: v[:0]), r"/mask/offsets is uint64 \(0,\)"),
    "runs that overflow 32 bits": (overflowing_runs, f"runs cover {70_000 * 65_535} pixels, expected 512 x 512"),
    "runs of the largest length": (assigned("mask/length", ..., 2**16 - 1), r"mask of image 1 \(.*\): runs cover"),
    "runs that cover nothing": (assigned("mask/length", ..., 0), "runs cover 0 pixels"),
    "more runs than pixels": (more_runs_than_pixels, "has more runs than pixels"),
    "class beyond the vocabulary": (
        assigned("mask/class", 0, 65535),
        r"mask of image 1 \(.*\): holds class 65535, the vocabulary has 1..1284",
    ),
    "present class beyond the vocabulary": (
        assigned("present/class", 0, 1285),
        r"holds classes \d+..1285, the vocabulary has 1..1284",
    ),
    "present class 0": (assigned("present/class", 0, 0), "holds classes 0.."),
    "size 0": (assigned("size", 0, 0), "image 1 of 0 x 0 is not in 1..134217728 pixels"),
    "height 0": (assigned("size", (0, 0), 0), "image 1 of 0 x 8 is not in"),
    "size 2^31": (assigned("size", 1, 2**31), "image 2 of 2147483648 x 2147483648 is not in"),
    "size that overflows": (assigned("size", 1, 2**32 - 1), "image 2 of 4294967295 x 4294967295 is not in"),
    "one line too long": (assigned("size", 4, (1, 2**27 + 1)), "image 5 of 1 x 134217729 is not in"),
    "negative id": (assigned("id", 0, -1), "image -1 of 8 x 8 has a negative id"),
}

FILTERS = {
    "ids in their header": (lambda f, o: compact(f, "id"), "/id is stored in its header, expected one contiguous block"),
    "masks in their header": (
        lambda f, o: compact(f, "mask/class"),
        "/mask/class is stored in its header, expected one contiguous block",
    ),
    "gzip on ids": (lambda f, o: replaced(f, "id", f["id"][()], compression="gzip"), "/id is stored in chunks"),
    "chunks of ids": (created("id", (5,), "int64", chunks=(5,), fillvalue=1), "/id is stored in chunks"),
    "chunks of ids that are there": (
        put("id", np.zeros(5, "int64"), chunks=(5,)),
        "/id is stored in chunks, expected one contiguous block",
    ),
    "gzip twice": (mask_chunk(zlib.compress(zlib.compress(bytes(8192))), filters=2), CHUNKS),
    "lzf": (lambda f, o: replaced(f, "mask/class", f["mask/class"][()], compression="lzf"), CHUNKS),
    "checksums": (lambda f, o: replaced(f, "mask/class", f["mask/class"][()], fletcher32=True), CHUNKS),
    "filter that no library has": (unknown_filter, CHUNKS),
    "4 GiB in one chunk": (mask_chunk(zeros(2**32)), CHUNKS),
    "16 GiB in one chunk of 100 KB": (mask_chunk(zlib.compress(zeros(2**34), 1), filters=2), CHUNKS),
    "gzip bomb of pictures": (
        lambda f, o: declared(f, "image/bytes", f["image/bytes"].shape, "uint8", chunk=1024, filters=1, stream=zeros(2**26)),
        "/image/bytes is stored in chunks",
    ),
    "chunk that breaks off": (mask_chunk(zlib.compress(os.urandom(8192))[:100]), CHUNKS),
}

NO_FORMAT, OTHER_WORDS = "format and version are", "was built with a vocabulary other than|its vocabulary is"
ATTRIBUTES = {
    "no format": (lambda f, o: f.attrs.__delitem__("format"), r"format and version are \(None, 2\)"),
    "no version": (lambda f, o: f.attrs.__delitem__("version"), r"format and version are \('cocolvis-shard', None\)"),
    "another format": (attribute("format", np.bytes_("other")), r"format and version are \('other', 2\), expected"),
    "an older version": (attribute("version", 1), r"format and version are \('cocolvis-shard', 1\)"),
    "version as text": (attribute("version", np.bytes_("2")), r"format and version are \('cocolvis-shard', '2'\)"),
    "version as a fraction": (attribute("version", 2.0), NO_FORMAT),
    "version as an array": (attribute("version", [2, 2]), NO_FORMAT),
    "version as an array of one": (attribute("version", [2]), NO_FORMAT),
    "format of variable length": (attribute("format", "cocolvis-shard"), r"are \(Ellipsis, 2\)"),
    "format of variable length that is not UTF-8": (not_text("format"), r"are \(Ellipsis, 2\)"),
    "format that is not UTF-8": (attribute("format", np.bytes_(b"\xff\n\x1b[2J")), NO_FORMAT),
    "format of 60 KB": (attribute("format", np.bytes_("x" * 60000)), NO_FORMAT),
    "format null": (attribute("format", h5py.Empty("S1")), r"are \(Ellipsis, 2\)"),
    "format as a reference": (lambda f, o: f.attrs.__setitem__("format", f.ref), r"are \(Ellipsis, 2\)"),
    "split as a number": (attribute("split", 7), "the attribute split is not a text"),
    "split of variable length": (attribute("split", "train"), "the attribute split is not a text"),
    "vocabulary that is not UTF-8": (attribute("vocabulary", np.bytes_(b"\xff" * 64)), OTHER_WORDS),
    "another split": (attribute("split", np.bytes_("val")), "belongs to another split than train|its split is 'val'"),
    "another vocabulary": (attribute("vocabulary", np.bytes_("0" * 64)), OTHER_WORDS + " '000"),
    "no vocabulary": (lambda f, o: f.attrs.__delitem__("vocabulary"), OTHER_WORDS + " None"),
}

NO_FILE, NO_SHARD = "is a folder, a pipe or a device", "is not a readable shard: "
PLACES = {
    "empty file": (lambda p, o: p.write_bytes(b""), NO_SHARD),
    "signature alone": (lambda p, o: p.write_bytes(p.read_bytes()[:8]), NO_SHARD),
    "cut in the middle": (lambda p, o: p.write_bytes(p.read_bytes()[: p.stat().st_size // 2]), NO_SHARD),
    "one byte short": (lambda p, o: p.write_bytes(p.read_bytes()[:-1]), NO_SHARD),
    "header of zeros": (lambda p, o: p.write_bytes(bytes(512) + p.read_bytes()[512:]), NO_SHARD),
    "text": (lambda p, o: p.write_text("not a shard at all\n" * 100), NO_SHARD),
    "older format": (old_format, "not an HDF5 file of format 1.10"),
    "user block": (lambda p, o: p.write_bytes(bytes(512) + p.read_bytes()), "not an HDF5 file of format 1.10"),
    "no file": (lambda p, o: p.unlink(), "does not exist"),
    "folder": (instead(Path.mkdir), NO_FILE),
    "pipe": (instead(os.mkfifo), NO_FILE),
    "socket": (instead(unix_socket), NO_FILE),
    "link to a pipe": (linked("pipe"), NO_FILE),
    "link to a device": (linked("/dev/zero"), NO_FILE),
    "link to nothing": (linked("absent"), "does not exist"),
    "link to itself": (lambda p, o: linked(str(p))(p, o), "cannot be read: Too many levels of symbolic links"),
    "link to a secret": (linked("secret"), NO_SHARD),
}

SUBTLE = {
    "another picture": (assigned("image/bytes", 100, 7), "image 1 has the digest"),
    "another class": (assigned("mask/class", 0, 7), "image 1: /present does not match the classes of its mask"),
    "another count": (assigned("present/pixels", 0, 7), "image 1: /present does not match the classes of its mask"),
    "another digest": (assigned("digest", 0, 7), "image 1 has the digest"),
    "a thing without instances": (
        assigned("present/instances", 0, 0),
        "1 numbers of instances are impossible, the first: image 1 has 0 of class 1, which is thing",
    ),
    "stuff with instances": (
        assigned("present/instances", slice(3, 6, 2), 7),
        r"2 numbers of instances are impossible, the first: image 2 has 7 of class 12\d\d, which is stuff",
    ),
    "an id twice": (assigned("id", 0, 2), "1 image ids occur more than once, the first: 2"),
    "excluded class 0": (excluded, "/neg and /not_exhaustive hold classes 0..0, the vocabulary has"),
}

GROUPS = {
    "link": LINKS,
    "type": TYPES,
    "instances": INSTANCES,
    "shape": SHAPES,
    "value": VALUES,
    "filter": FILTERS,
    "attribute": ATTRIBUTES,
    "place": PLACES,
}
CASES = [_case(group, name, *what) for group, cases in GROUPS.items() for name, what in cases.items()]
CASES += [_case("subtle", name, *what, found="verify") for name, what in SUBTLE.items()]
CASES += [
    _case("hash", "a picture's byte", assigned("image/bytes", 100, 7), "has the digest", found="verify", recorded=False),
    _case("hash", "an instance", assigned("present/instances", 0, 77), "has checksum", found="verify", recorded=False),
    _case("hash", "a byte more", attribute("note", "x" * 3000), "bytes, dataset.json says", found="verify", recorded=False),
]
