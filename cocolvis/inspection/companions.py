"""One class in a data set: its images, its areas, and the classes that occur together with it."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from cocolvis.inspection.stats import Counts, quantiles
from cocolvis.vocabulary import Vocabulary


def describe_class(vocabulary: Vocabulary, counts: Mapping[str, Counts], class_id: int) -> dict[str, Any]:
    """Return ``{"class", "name", "group", "splits": {name: {...}}}`` with plain numbers and texts.

    Each split has "images" and "pixels" of the class and their shares of all images and of all labelled pixels, its
    "instances" (null if the data set does not record them),
    "pixel_quantiles" (its pixels in the images that show it), "area_quantiles" (the same as a share of the image), and
    "companions": the classes that occur together with it in an image, with "class", "name", "group", the number of common
    "images", their "share" of the images of the class, and "lift". They are sorted by images in descending order; ties go to
    the higher lift, then to the lower id.

    The lift of classes a and b is P(a, b) / (P(a) P(b)) over the images of the split: 1 if they occur independently.
    """
    info = vocabulary[class_id]
    splits = {name: _in_split(vocabulary, split, class_id) for name, split in counts.items()}
    return {"class": info.id, "name": info.name, "group": info.group, "splits": splits}


def _in_split(vocabulary: Vocabulary, counts: Counts, class_id: int) -> dict[str, Any]:
    mine = counts.classes == class_id
    rows, pixels = counts.rows[mine], counts.pixels[mine].astype(np.int64)
    return {
        "images": len(rows),
        "image_share": len(rows) / max(1, len(counts.areas)),
        "pixels": int(pixels.sum()),
        "pixel_share": int(pixels.sum()) / max(1, int(counts.pixels.sum(dtype=np.int64))),
        "instances": None if counts.instances is None else int(counts.instances[mine].sum(dtype=np.int64)),
        "pixel_quantiles": quantiles(pixels),
        "area_quantiles": quantiles(pixels / counts.areas[rows]),
        "companions": _companions(vocabulary, counts, class_id, rows),
    }


def _companions(vocabulary: Vocabulary, counts: Counts, class_id: int, rows: np.ndarray) -> list[dict[str, Any]]:
    """The companions of a class in the images ``rows`` that show it: one pass over the entries of the split."""
    shows = np.zeros(len(counts.areas), bool)
    shows[rows] = True
    together = np.bincount(counts.classes[shows[counts.rows]], minlength=len(vocabulary) + 1)
    together[class_id] = 0
    found = np.flatnonzero(together)
    common, images = together[found], counts.images_of(len(vocabulary))[found]
    lift = common * len(counts.areas) / (len(rows) * images) if len(rows) else np.zeros(0)
    return [
        {
            "class": (c := vocabulary[int(found[i])]).id,
            "name": c.name,
            "group": c.group,
            "images": int(common[i]),
            "share": int(common[i]) / len(rows),
            "lift": float(lift[i]),
        }
        for i in np.lexsort((-lift, -common)).tolist()
    ]
