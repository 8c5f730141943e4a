"""Mutated annotation files, and the check of what a build makes of them; as a program, a batch of mutated inputs.

python tests/hostile/fuzzed_files.py FOLDER SEED SEGMENTATIONS FILES
"""

import json
import sys
from pathlib import Path
from random import Random
from typing import BinaryIO
from unittest.mock import patch

import numpy as np
from fuzzed_segmentations import NASTY, Json, assert_refused_or_painted, mutated, segmentation
from trees import Tree, five_images, rle

from cocolvis.building.build import Mode, build
from cocolvis.building.coco_lvis import CocoLvisOptions
from cocolvis.errors import DataError
from cocolvis.storage.shard_reader import ShardReader
from cocolvis.vocabulary import Vocabulary

FILES = ("lvis_v1_train", "stuff_train2017")
LISTS = ("images", "annotations")


class Playground:
    """A tree of five images, one annotation file of which is replaced for each check."""

    def __init__(self, root: Path):
        self._tree = five_images(Tree(root))
        blob = np.arange(64).reshape(8, 8) % 3 == 0
        for image_id, compressed in ((1, True), (2, False)):
            self._tree.stuff(image_id, 110, rle(~blob, compressed))
            self._tree.thing(image_id, 9, rle(blob, compressed))
        for file in FILES:
            _vary(self._tree.json[file]["images"])
        self._tree.write()
        self.contents = {file: self._tree.path(file).read_bytes() for file in FILES}
        self._clean = self.masks(self._build())

    def _build(self) -> dict:
        with patch.object(Vocabulary, "to_json", lambda vocabulary: {}):  # it would take most of the time
            return build(
                self._tree.sources(), self._tree.root / "data", CocoLvisOptions(), mode=Mode.OVERWRITE, allow_missing=True
            )

    def masks(self, index: dict) -> dict[int, np.ndarray]:
        readers = [ShardReader(self._tree.root / "data" / shard["file"]) for shard in index["shards"]]
        found = {i: reader.runs(row).mask() for reader in readers for row, i in enumerate(reader.image_ids().tolist())}
        for reader in readers:
            reader.close()
        return found

    def check(self, file: str, content: bytes) -> bool:
        """Build with ``content`` as ``file``; returns whether a data set was built.

        It must end in a DataError, or in a data set in which images with unchanged records have unchanged masks.
        """
        self._write(file, content)
        try:
            return self._check(file, content)
        finally:
            self._write(file, self.contents[file])

    def _write(self, file: str, content: bytes) -> None:
        """Replace a file under a new inode, because the old one may still be mapped."""
        self._tree.path(file).unlink()
        self._tree.path(file).write_bytes(content)

    def _check(self, file: str, content: bytes) -> bool:
        try:
            found = _Content(content)
        except RecursionError:  # nested too deeply for Python's json
            found = None
        try:
            sources = self._tree.sources()
            sources.things("train") if file.startswith("lvis") else sources.stuff("train2017")
            index = self._build()
        except DataError as error:
            assert found is None or not found.usable, f"one record costs the whole file: {error}"
            assert str(error).strip() and len(str(error).splitlines()) == 1, f"the reason is {error}"
            return False
        assert found is None or found.usable or found.doubtful, "is accepted"
        for fault in index["report"]["faults"]:
            assert {type(fault["image_id"]), type(fault["annotation_id"])} <= {int, type(None)}, fault
            assert fault["reason"].strip() and len(fault["reason"].splitlines()) == 1, fault
        if found is not None and found.usable:
            masks, before = self.masks(index), _Content(self.contents[file])
            for image_id, mask in self._clean.items():
                if found.records(image_id) == before.records(image_id):
                    assert image_id in masks and np.array_equal(masks[image_id], mask), f"the mask of image {image_id} differs"
        return True


def _vary(images: list[dict]) -> None:
    """Give image 4 a file name with its folder and image 5 one without, in place of the URL."""
    for image, folder in zip(images[3:], ("train2017/", ""), strict=True):
        image["file_name"] = folder + image.pop("coco_url").rpartition("/")[2]


class _Content:
    """An annotation file as Python's json reads it.

    ``usable`` means that it has the two lists and no categories, ``doubtful`` that JSON readers may disagree about it.
    """

    def __init__(self, content: bytes):
        try:
            read = Json(content)
        except ValueError:
            self.usable = self.doubtful = False
            return
        self._value = read.value if isinstance(read.value, dict) else {}
        self.usable = all(isinstance(self._value.get(key), list) for key in LISTS) and "categories" not in self._value
        self.doubtful = read.doubtful

    def records(self, image_id: int) -> list[str] | None:
        """All records of an image; None if another record has the id of one of them."""
        images, annotations = ([r for r in self._value[key] if isinstance(r, dict)] for key in LISTS)
        images = [r for r in images if _is(r.get("id"), image_id)]
        own = [r for r in annotations if _is(r.get("image_id"), image_id)]
        if any(sum(_is(r.get("id"), mine.get("id")) for r in annotations) != 1 for mine in own):
            return None
        return [json.dumps(record) for record in images + own]


def _is(value: object, number: object) -> bool:
    return {type(value), type(number)} <= {int, float} and value == number


def annotation_file(random: Random, contents: dict[str, bytes]) -> tuple[str, bytes]:
    """(name, content) of one of the files, mutated in its records or in its bytes."""
    file = random.choice(list(contents))
    if random.randrange(3) == 0:
        return file, mutated(random, contents[file], list(contents.values()))
    lists = {key: [json.dumps(r) for r in json.loads(contents[file])[key]] for key in LISTS}
    for _ in range(random.randint(1, 3)):
        _change_record(random, lists[random.choice(LISTS)])
    return file, _text(random, lists).encode("utf-8", "surrogateescape")


def _text(random: Random, lists: dict[str, list[str]]) -> str:
    parts = [f'"{key}": [{", ".join(records)}]' for key, records in lists.items()]
    parts += ['"info": {"note": NaN}'] if random.randrange(3) == 0 else []  # the lenient reader
    return "{" + ", ".join(parts if random.randrange(2) else parts[::-1]) + "}"


def _change_record(random: Random, records: list[str]) -> None:
    if not records:
        return
    at = random.randrange(len(records))
    change = random.choice([_set, _set, _set, _set, _add, _renumber, "copy", "nasty", "drop"])
    if callable(change):
        records[at] = change(random, records[at])
    elif change == "copy":
        records.insert(random.randint(0, len(records)), records[at])
    elif change == "nasty":
        records.insert(at, random.choice(NASTY))
    else:
        del records[at]


def _value(random: Random) -> str:
    return str(random.randint(-1, 12)) if random.randrange(3) == 0 else random.choice(NASTY)


def _set(random: Random, record: str) -> str:
    """Change the value of a key, or rename a key."""
    parts = _parts(record)
    if not parts:
        return record
    key = random.choice(list(parts))
    value = parts.pop(key)
    parts[key if random.randrange(6) else f"no {key}"] = _value(random) if random.randrange(6) else value
    return _joined(parts)


def _add(random: Random, record: str) -> str:
    """Add a key that is not read, or one that exists already."""
    parts = _parts(record)
    key = random.choice([*parts, "area", "note"])
    return f'{{"{key}": {_value(random)}, ' + _joined(parts)[1:] if parts else record


def _renumber(random: Random, record: str) -> str:
    """Change a number somewhere, mostly in the segmentation."""
    content = record.encode("utf-8", "surrogateescape")
    return mutated(random, content, [content], most=1).decode("utf-8", "surrogateescape")


def _parts(record: str) -> dict[str, str]:
    """Key -> JSON of its value; empty if the record is no longer an object."""
    try:
        parsed = json.loads(record)
    except (ValueError, RecursionError):
        return {}
    return {key: json.dumps(value) for key, value in parsed.items()} if isinstance(parsed, dict) else {}


def _joined(parts: dict[str, str]) -> str:
    return "{" + ", ".join(f"{json.dumps(key)}: {value}" for key, value in parts.items()) + "}"


def batch(folder: Path, seed: int, segmentations: int, files: int) -> str:
    """Check so many inputs of each kind; the file ``input`` holds the current one, see :func:`under_way`."""
    painted = built = 0
    ground = Playground(folder / "tree")
    with (folder / "input").open("wb", buffering=0) as note:
        for number in range(segmentations):
            content, height, width = segmentation(Random(f"{seed}-{number}"))
            _note(note, f"segmentation {number} of seed {seed}, {height} x {width}", content)
            painted += assert_refused_or_painted(content, height, width)
        for number in range(files):
            file, content = annotation_file(Random(f"{seed}-file-{number}"), ground.contents)
            _note(note, f"file {number} of seed {seed}, {file}", content)
            built += ground.check(file, content)
    return f"{painted} of {segmentations} segmentations painted, {built} of {files} files built"


def _note(file: BinaryIO, what: str, content: bytes) -> None:
    file.seek(0)
    file.write(f"{what}, {len(content)} bytes\n".encode() + content)


def under_way(folder: Path) -> str:
    """The input that a batch was checking when it ended."""
    note = folder / "input"
    if not note.exists() or not note.stat().st_size:
        return "its start"
    what, _, content = note.read_bytes().partition(b"\n")
    size = int(what.split()[-2])
    return f"{what.decode()}: {content[: min(size, 3000)]!r}"


if __name__ == "__main__":
    print(batch(Path(sys.argv[1]), *map(int, sys.argv[2:])))
