"""Reads generated COCO + LVIS trees back, with pycocotools and without the code of the build."""

import json
from collections import defaultdict

import numpy as np
from pycocotools import mask as coco_mask

from cocolvis.vocabulary import coco_lvis

JSONS = {
    "stuff_train2017": "coco/annotations/stuff_train2017.json",
    "stuff_val2017": "coco/annotations/stuff_val2017.json",
    "lvis_train": "lvis/lvis_v1_train.json",
    "lvis_val": "lvis/lvis_v1_val.json",
}


class SampleTree:
    """A generated tree, read back: the four JSON files, and masks merged by the rule of COCO+LVIS."""

    def __init__(self, root):
        self.root = root
        self.json = {key: json.loads((root / path).read_text()) for key, path in JSONS.items()}
        self.stuff, self.things = defaultdict(list), defaultdict(list)
        for key, data in self.json.items():
            for a in data["annotations"]:
                (self.stuff if key.startswith("stuff") else self.things)[a["image_id"]].append(a)

    def images(self, *splits):
        return [i for split in splits or ("train", "val") for i in self.json[f"lvis_{split}"]["images"]]

    def path(self, image):
        return self.root / "coco" / "/".join(image["coco_url"].split("/")[-2:])

    def thing_masks(self, image):
        """(category, (H, W) bool) in file order."""
        size = image["height"], image["width"]
        merged = [(a, coco_mask.merge(coco_mask.frPyObjects(a["segmentation"], *size))) for a in self.things[image["id"]]]
        return [(a["category_id"], coco_mask.decode(rle).astype(bool)) for a, rle in merged]

    def mask(self, image):
        """(H, W) uint16 classes by the rule of COCO+LVIS: things over stuff, the first in the file topmost."""
        stuff, lvis = coco_lvis().lookup("stuff"), coco_lvis().lookup("lvis")
        mask = np.zeros((image["height"], image["width"]), np.uint16)
        for a in reversed(self.stuff[image["id"]]):
            mask[coco_mask.decode(a["segmentation"]) > 0] = stuff[a["category_id"]]
        for category, where in reversed(self.thing_masks(image)):
            mask[where] = lvis[category]
        return mask


def contents(root):
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def off_line(pixels, look):
    """Mean distance of RGB pixels (N, 3), at any brightness, from the mixtures of a class's two colours."""
    shares = np.linspace(0, 1, 7)[:, None]
    mixtures = look.base * (1 - shares) + look.second * shares
    light = np.clip((pixels @ mixtures.T) / (mixtures**2).sum(axis=1), 0.7, 1.15)
    return np.linalg.norm(pixels[:, None] - light[..., None] * mixtures, axis=2).min(axis=1).mean()
