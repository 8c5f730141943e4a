"""Tiny hand-made COCO + LVIS trees: a few boxes in 8 x 8 pictures, to which tests add all kinds of faults."""

import json
from pathlib import Path

import cv2
import numpy as np
from pycocotools import mask as coco_mask

from cocolvis.building.build import Mode, build
from cocolvis.building.coco_lvis import CocoLvisOptions
from cocolvis.sources.inputs import Sources
from cocolvis.storage.dataset import Dataset
from cocolvis.vocabulary import coco_lvis

FILES = ("stuff_train2017", "stuff_val2017", "lvis_v1_train", "lvis_v1_val")


def box(x: int, y: int, width: int, height: int) -> list[list[float]]:
    """A polygon that covers exactly these pixels."""
    return [[x, y, x + width, y, x + width, y + height, x, y + height]]


def art(text: str, classes: dict[str, int]) -> np.ndarray:
    """The (H, W) uint16 mask that is drawn in letters, one line for each row; "." is 0."""
    rows = text.split()
    return np.array([[classes.get(letter, 0) for letter in row] for row in rows], dtype=np.uint16)


def rle(mask: np.ndarray, compressed: bool = True) -> dict:
    """The run lengths of an (H, W) bool mask, as COCO writes them."""
    if compressed:
        found = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
        return {"size": list(found["size"]), "counts": found["counts"].decode()}
    flat = mask.ravel(order="F")
    bounds = np.concatenate(([0], np.flatnonzero(flat[1:] != flat[:-1]) + 1, [flat.size]))
    return {"size": list(mask.shape), "counts": [0] * int(flat[0]) + np.diff(bounds).tolist()}


class Tree:
    """A tree under construction; ``json`` holds the content of the four annotation files until :meth:`write`."""

    def __init__(self, root: Path):
        self.coco, self.lvis, self.root = root / "coco", root / "lvis", root
        self.json: dict[str, dict[str, list]] = {name: {"images": [], "annotations": []} for name in FILES}
        self._annotations = 0

    def image(self, image_id: int, split: str = "train", folder: str = "train2017", *, listed: bool = True, size=(8, 8)) -> int:
        """Add an image to LVIS, to the stuff file when ``listed``, and its picture."""
        record = {"id": image_id, "height": size[0], "width": size[1], "coco_url": f"http://x/{folder}/{image_id:012d}.jpg"}
        self.json[f"lvis_v1_{split}"]["images"].append(record)
        if listed:
            self.json[f"stuff_{folder}"]["images"].append(dict(record))
        self.picture(image_id, folder).parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(image_id).integers(0, 256, (*size, 3), dtype=np.uint8)
        cv2.imwrite(str(self.picture(image_id, folder)), pixels)
        return image_id

    def stuff(self, image_id: int, category: int, segmentation, folder: str = "train2017") -> int:
        """Add a stuff annotation; its id."""
        return self._annotate(f"stuff_{folder}", image_id, category, segmentation)

    def thing(self, image_id: int, category: int, segmentation, split: str = "train") -> int:
        """Add an LVIS annotation; its id."""
        return self._annotate(f"lvis_v1_{split}", image_id, category, segmentation)

    def _annotate(self, file: str, image_id: int, category: int, segmentation) -> int:
        self._annotations += 1
        record = {"id": self._annotations, "image_id": image_id, "category_id": category, "segmentation": segmentation}
        self.json[file]["annotations"].append(record)
        return self._annotations

    def picture(self, image_id: int, folder: str = "train2017") -> Path:
        return self.coco / folder / f"{image_id:012d}.jpg"

    def path(self, name: str) -> Path:
        """The path of one of ``FILES``."""
        return (self.coco / "annotations" if name.startswith("stuff") else self.lvis) / f"{name}.json"

    def write(self) -> "Tree":
        """Write the four annotation files."""
        for name, content in self.json.items():
            self.path(name).parent.mkdir(parents=True, exist_ok=True)
            self.path(name).write_text(json.dumps(content))
        return self

    def sources(self) -> Sources:
        """The sources of a build of this tree."""
        return Sources(self.coco, self.lvis, coco_lvis())

    def build(self, out: str = "data", *, workers: int = 1, strict: bool = False, allow_missing=False, **options) -> Dataset:
        """Write the annotation files and build; the data set."""
        self.write()
        how = {"workers": workers, "strict": strict, "allow_missing": allow_missing, "mode": Mode.OVERWRITE}
        build(self.sources(), self.root / out, CocoLvisOptions(**options), **how)
        return Dataset.open(self.root / out)

    def mask(self, image_id: int, **options) -> np.ndarray:
        """Build without pictures; one image's mask."""
        return self.build(images="none", **options).find(image_id).mask


def five_images(tree: Tree) -> Tree:
    """Add images 1..5, each with its own stuff and thing annotation."""
    for image_id in range(1, 6):
        tree.image(image_id)
        tree.stuff(image_id, 90 + 2 * image_id, box(0, 0, 8, image_id))
        tree.thing(image_id, image_id, box(0, 0, image_id, 8))
    return tree


def faults(data: Dataset) -> list[tuple]:
    """(kind, source, image id, annotation id) of what a build reported."""
    return [(f["kind"], f["source"], f["image_id"], f["annotation_id"]) for f in data.index["report"]["faults"]]
