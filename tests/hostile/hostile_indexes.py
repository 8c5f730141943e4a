"""Named ways to make dataset.json or referenced pictures hostile, and the message that opening or reading must give."""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from hostile_shards import Case, first_shard
from shard_damage import Outside, instead, linked, replaced

INDEX = "dataset.json"
REMOVE = object()
"""In place of a value: remove the key."""

DEEP = "[" * 100_000 + "]" * 100_000


def _changed(keys: tuple, value: Any) -> Callable[[dict], object]:
    """Put a value at the end of a path of keys."""

    def change(index: dict) -> None:
        for key in keys[:-1]:
            index = index[key]
        if value is REMOVE:
            del index[keys[-1]]
        else:
            index[keys[-1]] = value

    return change


def _index(name: str, change: Callable[[dict], object], message: str, **settings: Any) -> Case:
    def apply(folder: Path, outside: Outside) -> None:
        index = json.loads((folder / INDEX).read_text())
        found = change(index)
        (folder / INDEX).write_text(json.dumps(index if found is None else found))

    return Case(name=f"index: {name}", change=apply, message=message, recorded=False, **settings)


def _text(name: str, change: Callable[[str], str | bytes], message: str) -> Case:
    def apply(folder: Path, outside: Outside) -> None:
        found = change((folder / INDEX).read_text())
        (folder / INDEX).write_bytes(found if isinstance(found, bytes) else found.encode())

    return Case(name=f"text: {name}", change=apply, message=message, recorded=False)


def _place(name: str, change: Callable[[Path, Outside], object], message: str) -> Case:
    def apply(folder: Path, outside: Outside) -> None:
        change(folder / INDEX, outside)

    return Case(name=f"index is a {name}", change=apply, message=message, recorded=False)


def _picture(name: str, path: str, message: str, change: Callable[[Path, Outside], object] = lambda p, o: None) -> Case:
    """A data set that stores only paths: change the path of the first picture, or the file there."""

    def apply(folder: Path, outside: Outside) -> None:
        with h5py.File(first_shard(folder), "r+") as file:
            offsets, before = file["path/offsets"][()], file["path/bytes"][()].tobytes()
            text = (path.encode("utf-8", "surrogateescape") if path else before[: int(offsets[1])]).replace(
                b"$", bytes(outside)
            )
            offsets[1:] += np.array(len(text) - int(offsets[1])).astype(np.uint64)  # wraps where the path gets shorter
            values = text + before[-int(offsets[-1] - offsets[1]) :]
            replaced(file, "path/offsets", offsets)
            replaced(file, "path/bytes", np.frombuffer(values, np.uint8))
        change(outside / "coco" / "train2017" / "000000000001.jpg", outside)

    return Case(name=f"picture: {name}", change=apply, message=message, images="path")


def _huge(path: Path, outside: Outside) -> None:
    """Make a file a terabyte long without using disk space."""
    with path.open("r+b") as file:
        file.truncate(2**40)


_FILE = ("shards", 0, "file")
FILES = ("../secret", "shards/../../secret", "/etc/passwd", "/dev/zero", "", ".", "/", "..", "a\\..\\b", "a\0b", "a\n\x1b[2J")
VALUES = {
    ("splits", "train", "images"): (-1, "5", 5.5, None, True, 2**60, 10**30),
    ("splits", "train", "shards"): (-1, "1", REMOVE),
    ("splits", "train"): (5, [], REMOVE),
    ("splits", "../../outside"): ({"images": 0, "shards": 0},),
    ("splits", ""): ({"images": 0, "shards": 0},),
    ("splits", "a\n"): ({"images": 0, "shards": 0},),
    ("splits",): ([], None, REMOVE),
    ("shards",): ({}, "shards", None, REMOVE, [5], [None], [[]]),
    _FILE: (5, None, ["a"], REMOVE),
    ("shards", 0, "split"): (5, "test", "", REMOVE),
    ("shards", 0, "images"): (-5, "5", 2**60, REMOVE),
    ("shards", 0, "bytes"): (-1, "many", 1e300, REMOVE),
    ("shards", 0, "checksum"): ("0", "G" * 64, "0" * 64 + "\n", 5, None, REMOVE),
    ("options",): ([], None, "first", {}, REMOVE),
    ("options", "images"): ("all", 5, REMOVE),
    ("options", "overlap"): ("last", None, REMOVE),
    ("options", "compat"): ("other", False, REMOVE),
    ("options", "limit"): (-1, "5", REMOVE),
    ("options", "image_root"): (5, ["a"]),
    ("instances",): ("yes", 1, None, []),
    ("inputs",): ([], None, {"a": 5}, {"a": "hash"}, REMOVE),
    ("report",): ([], None, REMOVE),
    ("report", "counts"): ([], {"a": -1}, {"a": "5"}, {str(i): 1 for i in range(101)}, REMOVE),
    ("report", "faults"): ({}, [5], [{}], REMOVE),
    ("digest",): (5, None, "", "0" * 63, REMOVE),
    ("vocabulary",): (None, [], "words", {}, REMOVE),
    ("vocabulary", "classes"): (None, 5, {}, [5], [None], [{}], REMOVE),
    ("vocabulary", "classes", 3, "class"): (3, 5, "4", None, 4.5, 10**4000, REMOVE),
    ("vocabulary", "classes", 3, "name"): (5, None, ["a"], "", "a\nb", "\x1b[2J", "\ud800", "aerosol_can", REMOVE),
    ("vocabulary", "classes", 3, "kind"): (5, None, "other", REMOVE),
    ("vocabulary", "classes", 3, "group"): (5, None, "other", REMOVE),
    ("vocabulary", "classes", 3, "synset"): (5, [], "other.n.01", REMOVE),
    ("vocabulary", "classes", 3, "sources"): (5, None, [], {"lvis": "4"}, {"lvis": 5}, {"lvis": [4]}, REMOVE),
    ("vocabulary", "classes", 3, "images"): ("5", []),
    ("vocabulary", "ignored"): (5, None, [], {"stuff": 5}, {"stuff": {"a": "b"}}, {"stuff": {"183": 5}}, {}, REMOVE),
    ("vocabulary", "digest"): (5, None, "0" * 64, REMOVE),
    ("format",): ("cocolvis2", 5, None, REMOVE, "x" * 10**6),
    ("version",): (1, 2, 4, "3", None, [2], REMOVE, 10**4000),
}
"""Place in dataset.json -> wrong values for it."""

TEXTS = {
    "empty": (lambda text: "", "is not JSON"),
    "cut": (lambda text: text[: len(text) // 2], "is not JSON"),
    "two objects": (lambda text: text + text, "is not JSON"),
    "an array": (lambda text: f"[{text}]", "format and version are None"),
    "a number": (lambda text: "5", "format and version are None"),
    "null": (lambda text: "null", "format and version are None"),
    "NaN": (lambda text: text.replace('"images": 5', '"images": NaN'), "is not JSON"),
    "not UTF-8": (lambda text: text.encode().replace(b"aerosol", b"\xff\xfe"), "is not JSON"),
    "deep nesting": (lambda text: DEEP, "is not JSON"),
    "deep nesting in an unused key": (lambda text: text.replace("{", f'{{"note": {DEEP},', 1), "is not JSON"),
    "a key twice": (lambda text: text[: text.rindex("}")] + ', "version": 7}', r"'cocolvis', 7\), .*; build it again"),
    "a number of 5000 digits": (lambda text: text.replace('"images": 5', f'"images": {"9" * 5000}'), "dataset.json: "),
}

NO_FILE = "dataset.json: is a folder, a pipe or a device"
PLACES = {
    "folder": (instead(Path.mkdir), NO_FILE),
    "pipe": (instead(os.mkfifo), NO_FILE),
    "link to a pipe": (linked("pipe"), NO_FILE),
    "link to a device": (linked("/dev/zero"), NO_FILE),
    "link to nothing": (linked("absent"), "dataset.json: does not exist"),
    "link to itself": (lambda p, o: linked(str(p))(p, o), "dataset.json: cannot be read: Too many levels"),
    "link to a secret": (linked("secret"), "dataset.json: is not JSON"),
    "sparse terabyte": (_huge, "dataset.json: has 1099511627776 bytes"),
}

_OUT = "is not a path inside the folder"
PICTURES = [
    _picture("above the folder", "../secret", _OUT),
    _picture("above the folder on the way", "train2017/../../secret", _OUT),
    _picture("absolute", "$/secret", _OUT),
    _picture("with NUL", "train2017/\0.jpg", _OUT),
    _picture("the folder itself", "train2017", "is a folder, a pipe or a device"),
    _picture("empty path", ".", "is a folder, a pipe or a device"),
    _picture("of a long name", "a" * 500, "cannot be read: File name too long"),
    _picture("of a longer name", "a" * 5000, _OUT),
    _picture("that is not UTF-8", "train2017/\udcff.jpg", "does not exist"),
    _picture("absent", "", "does not exist; pass the folder of the images with --image-root", lambda p, o: p.unlink()),
    _picture("that is a pipe", "", "is a folder, a pipe or a device", instead(os.mkfifo)),
    _picture("that never ends", "", "is a folder, a pipe or a device", linked("/dev/zero")),
    _picture("of a terabyte", "", "has 1099511627776 bytes; at most", _huge),
]


def _short(value: Any) -> str:
    text = "absent" if value is REMOVE else ascii(value) if not isinstance(value, int) or value < 10**50 else "a large number"
    return text if len(text) < 40 else f"{text[:20]}... of {len(text)} characters"


def _values() -> list[Case]:
    cases = []
    for keys, values in VALUES.items():
        for value in values:
            where = ".".join(map(ascii, keys))
            cases.append(_index(f"{where} is {_short(value)}", _changed(keys, value), "dataset.json: "))
    return cases


def _signed(key: str, value: Any) -> Callable[[dict], object]:
    """Give class 4 another value, and make the digest of the vocabulary match it."""

    def change(index: dict) -> None:
        words = index["vocabulary"]
        words["classes"][3][key] = value
        meaning = [
            [c[k] for k in ("class", "name", "kind", "group", "synset")] + [sorted(c["sources"].items())]
            for c in words["classes"]
        ]
        ignored = [[source, sorted((int(i), n) for i, n in names.items())] for source, names in words["ignored"].items()]
        words["digest"] = hashlib.sha256(json.dumps([meaning, ignored]).encode()).hexdigest()

    return change


def _again(index: dict) -> None:
    index["shards"] *= 2


def _alias(index: dict) -> None:
    index["shards"].append(index["shards"][0] | {"file": "./shards//train-00000.h5"})


CASES = [_index(f"file {_short(name)}", _changed(_FILE, name), "is not a path inside the folder") for name in FILES]
CASES += [
    _index("file of a long name", _changed(_FILE, "a" * 5000), "Expected `str` of length <= 1000"),
    _index("a shard twice", _again, "shard shards/train-00000.h5 is listed twice"),
    _index("a shard twice under two names", _alias, "is listed twice"),
    _index("one image more", _changed(("shards", 0, "images"), 6), "holds 5 images, dataset.json says 6"),
    _index("another digest", _changed(("digest",), "0" * 64), "its digest is 000", found="verify"),
    _index("other totals", _changed(("splits", "train", "images"), 7), "split train is .*'images': 7", found="verify"),
]
CASES += _values() + PICTURES
for _key, _value in (
    ("kind", "other"),
    ("group", "other"),
    ("name", ""),
    ("name", "a\nb"),
    ("name", "\x1b[2J"),
    ("name", "\u202eb"),
):
    _name = f"{_key} {_value!a} with a matching digest"
    CASES.append(_index(_name, _signed(_key, _value), "dataset.json: malformed vocabulary: class 4 has kind"))
CASES += [
    _index("a name twice with a matching digest", _signed("name", "aerosol_can"), "class names must be unique"),
    _index("a class twice with a matching digest", _signed("class", 3), "class ids must be 1, 2, ... without gaps"),
    _index(
        "a synset that differs with a matching digest",
        _signed("synset", "b"),
        "was built with a vocabulary other than|its vocab",
    ),
]
CASES += [_text(name, *what) for name, what in TEXTS.items()] + [_place(name, *what) for name, what in PLACES.items()]
