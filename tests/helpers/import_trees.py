"""Miniature data sets in the layouts of their distributions, with the masks that an import must make of them.

The tables from labels to classes were typed from the documents of the data sets, independently of those of the importers.
"""

import struct
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

CITYSCAPES = dict(zip((7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33), range(1, 20), strict=True))
"""labelIds that are evaluated -> class; a train id is the class less 1."""


@dataclass
class Made:
    """A tree: how to import it, and what that must result in: split -> image id -> (path of the picture, mask)."""

    name: str
    src: Path
    classes: int
    options: tuple[str, ...] = ()
    images: dict[str, dict[int, tuple[str, np.ndarray]]] = field(default_factory=dict)
    pictures: dict[int, Path] = field(default_factory=dict)
    labels: dict[int, Path] = field(default_factory=dict)

    def arguments(self, out: Path, *more: object) -> list[object]:
        """The arguments of the command that imports the tree to ``out``."""
        return ["import", self.name, self.src, "--out", out, *self.options, *more]

    def expect(
        self, split: str, image_id: int, picture: Path, labels: Path, mask: np.ndarray, root: Path | None = None
    ) -> None:
        """Expect an image; its path is relative to ``root``, or to ``src`` if there is no ``root``."""
        self.images.setdefault(split, {})[image_id] = (str(picture.relative_to(root or self.src)), mask.astype(np.uint16))
        self.pictures[image_id], self.labels[image_id] = picture, labels


def make_picture(path: Path, size: tuple[int, int], seed: int) -> Path:
    """Write a picture of (height, width); some are grayscale, and some have an EXIF orientation."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    exif = Image.Exif()
    if seed % 3 == 1:
        image = image.convert("L")
    if seed % 3 == 2:
        exif[0x0112] = 6
    if path.suffix.lower() in (".jpg", ".jpeg"):
        image.save(path, exif=exif, quality=90)
    else:
        image.save(path)
    return path


def write_labels(path: Path, labels: np.ndarray, palette: bool = False) -> Path:
    """Write a PNG of 8 or 16 bits; with ``palette`` its pixels are indices into random colours."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(labels)
    if palette:
        image = image.convert("L")
        image.putpalette(np.random.default_rng(0).integers(0, 256, 768, dtype=np.uint8).tolist())
    image.save(path)
    return path


def write_matlab(path: Path, labels: np.ndarray, compressed: bool = True, order: Literal["<", ">"] = "<") -> Path:
    """Write a MATLAB 5 file with a text, S, and another matrix, following the published description of the format."""

    def element(kind: int, body: bytes) -> bytes:
        return struct.pack(order + "II", kind, len(body)) + body + bytes(-len(body) % 8)

    def matrix(name: bytes, values: np.ndarray) -> bytes:
        kind, number = {"u1": (2, 9), "u2": (4, 11), "f8": (9, 6)}[values.dtype.str[1:]]
        flags = element(6, struct.pack(order + "II", number, 0))
        numbers = element(kind, values.astype(values.dtype.newbyteorder(order)).tobytes(order="F"))
        return element(14, flags + element(5, struct.pack(order + "ii", *values.shape)) + element(1, name) + numbers)

    kind, size = element(6, struct.pack(order + "II", 4, 0)), element(5, struct.pack(order + "ii", 1, 2))
    text = element(14, kind + size + element(1, b"captions") + element(16, b"hi"))
    parts = [text, matrix(b"S", labels), matrix(b"regionMapStuff", labels)]
    if compressed:
        parts = [struct.pack(order + "II", 15, len(packed)) + packed for packed in map(zlib.compress, parts)]
    header = b"MATLAB 5.0 MAT-file".ljust(124) + struct.pack(order + "H", 0x0100) + (b"IM" if order == "<" else b"MI")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(header + b"".join(parts))
    return path


def _sizes(seed: int) -> tuple[int, int]:
    return 40 + 3 * seed, 50 - 2 * seed


def _blocks(seed: int, labels: list[int], dtype: str = "u1") -> np.ndarray:
    """(H, W) labels in blocks of 5 pixels."""
    height, width = _sizes(seed)
    rng = np.random.default_rng(seed)
    small = rng.choice(np.array(labels, dtype), (-(-height // 5), -(-width // 5)))
    return np.repeat(np.repeat(small, 5, 0), 5, 1)[:height, :width]


def ade20k(root: Path) -> Made:
    made = Made("ade20k", root / "ADEChallengeData2016", 150)
    for number, (split, folder, name) in enumerate(
        [("train", "training", f"ADE_train_{n:08d}") for n in (1, 2, 3)]
        + [("val", "validation", f"ADE_val_{n:08d}") for n in (1, 2)],
        1,
    ):
        labels = _blocks(number, [0, 1, 2, 13, 75, 149, 150])
        picture = make_picture(made.src / f"images/{folder}/{name}.jpg", labels.shape, number)
        file = write_labels(made.src / f"annotations/{folder}/{name}.png", labels)
        made.expect(split, number, picture, file, labels)
    (made.src / "images/training/.DS_Store").write_bytes(b"\0")
    (made.src / "images/training/._ADE_train_00000001.jpg").write_bytes(b"\0")
    return made


def cityscapes(root: Path, train_ids: bool = False) -> Made:
    made = Made("cityscapes", root / "cityscapes", 19)
    images = [
        ("train", "aachen", 0),
        ("train", "aachen", 1),
        ("train", "zurich", 0),
        ("val", "lindau", 0),
        ("val", "lindau", 7),
    ]
    for number, (split, city, frame) in enumerate(images, 1):
        labels = _blocks(number, list(range(34)))
        mask = np.vectorize(lambda label: CITYSCAPES.get(label, 0))(labels)
        name = f"{city}/{city}_{frame:06d}_000019"
        picture = make_picture(made.src / f"leftImg8bit/{split}/{name}_leftImg8bit.png", labels.shape, number)
        file = made.src / f"gtFine/{split}/{name}_gtFine_labelIds.png"
        write_labels(file.with_name(file.name.replace("labelIds", "instanceIds")), labels.astype("u2") * 1000)
        if train_ids:
            file, labels = file.with_name(file.name.replace("labelIds", "labelTrainIds")), np.where(mask, mask - 1, 255)
        made.expect(split, number, picture, write_labels(file, labels.astype("u1")), mask)
    make_picture(made.src / "leftImg8bit/test/berlin/berlin_000000_000019_leftImg8bit.png", (8, 8), 0)
    return made


def cityscapes_train_ids(root: Path) -> Made:
    return cityscapes(root, train_ids=True)


def voc(root: Path, augmented: bool = False) -> Made:
    made = Made("voc", root / "VOCdevkit", 21, ("--augmented",) if augmented else ())
    year = made.src / "VOC2012"
    lists = {"train": ["2007_000032", "2011_003276", "2007_000039"], "val": ["2007_000033", "2008_000162"]}
    extra = ["2008_000002"]
    for number, (split, name) in enumerate([(s, n) for s, names in lists.items() for n in names] + [("extra", extra[0])], 1):
        labels = _blocks(number, [0, 1, 15, 20, 255])
        picture = make_picture(year / f"JPEGImages/{name}.jpg", labels.shape, number)
        file = year / f"SegmentationClass/{name}.png"
        if split == "extra" or (augmented and name == "2011_003276"):  # SBD's masks are gray
            write_labels(file, np.zeros_like(labels), palette=True)
            file = write_labels(year / f"SegmentationClassAug/{name}.png", labels)
        else:
            write_labels(file, labels, palette=True)
        if split != "extra" or augmented:
            mask = np.where(labels == 255, 0, labels.astype(int) + 1)
            made.expect("val" if split == "val" else "train", int(name.replace("_", "")), picture, file, mask, year)
    make_picture(year / "JPEGImages/2012_000001.jpg", (9, 9), 0)  # in no list
    (year / "ImageSets/Segmentation").mkdir(parents=True)
    for split, names in (lists | {"trainval": lists["train"] + lists["val"]}).items():
        (year / f"ImageSets/Segmentation/{split}.txt").write_text("\n".join(names) + "\n")
    pairs = [f"/JPEGImages/{name}.jpg /SegmentationClassAug/{name}.png" for name in lists["train"] + extra]
    (year / "ImageSets/Segmentation/train_aug.txt").write_text("\n".join(pairs))
    made.src = year if augmented else made.src
    return made


def voc_augmented(root: Path) -> Made:
    return voc(root, augmented=True)


def cocostuff10k(root: Path) -> Made:
    made = Made("cocostuff10k", root / "cocostuff-10k-v1.1", 182)
    lists = {"train": ["train2014_000000000077", "val2014_000000001700", "train2014_000000581921"]}
    lists["test"] = ["train2014_000000000154", "train2014_000000000165"]
    for number, (split, name) in enumerate([(s, n) for s, names in lists.items() for n in names]):
        labels = _blocks(number, [0, 1, 90, 92, 182], "f8" if number == 2 else "u2")
        picture = make_picture(made.src / f"images/COCO_{name}.jpg", labels.shape, number)
        file = made.src / f"annotations/COCO_{name}.mat"
        if number == 1:
            write_labels(file.with_suffix(".png"), labels.astype("u1"))
        else:
            write_matlab(file, labels, compressed=number % 2 == 0, order=">" if number == 3 else "<")
        made.expect("val" if split == "test" else "train", int(name[-12:]), picture, file, labels)
    (made.src / "imageLists").mkdir()
    for split, names in lists.items():
        (made.src / f"imageLists/{split}.txt").write_text("".join(f"COCO_{name}\r\n" for name in names))
    return made


def folder(root: Path) -> Made:
    """16-bit masks that count classes from 0, two ignored labels; pictures of three formats, one in a folder of its own."""
    made = Made("folder", root / "mine", 300, ("--first-label", "0", "--ignore", "65535", "--ignore", "300"))
    images = {"train": ["a.jpg", "b.png", "deep/c.JPEG"], "val": ["a.jpg", "e.png"]}
    for number, (split, name) in enumerate([(s, n) for s, names in images.items() for n in names], 1):
        labels = _blocks(number, [0, 1, 255, 256, 299, 300, 65535], "u2")
        picture = make_picture(made.src / f"images/{split}/{name}", labels.shape, number)
        file = write_labels(made.src / f"masks/{split}/{Path(name).with_suffix('.png')}", labels)
        made.expect(split, number, picture, file, np.where(labels < 300, labels.astype(int) + 1, 0))
    (made.src / "classes.txt").write_text("".join(f"class {n}\n" for n in range(300)))
    return made


def folder_of_export(root: Path) -> Made:
    """8-bit masks that count classes from 1, a table of classes with kinds."""
    made = Made("folder", root / "mine", 3)
    for number, split in enumerate(("train", "train", "train", "val", "val"), 1):
        labels = _blocks(number, [0, 1, 2, 3])
        picture = make_picture(made.src / f"images/{split}/{number}.jpg", labels.shape, number)
        made.expect(split, number, picture, write_labels(made.src / f"masks/{split}/{number}.png", labels), labels)
    (made.src / "classes.csv").write_text('name,kind\nsky,stuff\n"cat, tame",thing\nhill,\n')
    return made


TREES = (ade20k, cityscapes, cityscapes_train_ids, voc, voc_augmented, cocostuff10k, folder, folder_of_export)
