"""The instances of each class in each image, counted with lvis alone; and builds as earlier versions made them."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from lvis import LVIS

from cocolvis.building.coco_lvis import CocoLvisOptions
from cocolvis.storage.dataset import Dataset


def counted(data: Dataset, lvis: Path, split: str) -> dict[int, dict[int, int]]:
    """Image id -> class of its mask -> annotations of lvis_v1_{split}.json that cover a pixel; class ids are category ids."""
    file, images = LVIS(str(lvis / f"lvis_v1_{split}.json")), data.split(split)
    found = {}
    for row, image_id in enumerate(images.image_ids().tolist()):
        annotations = file.load_anns(file.get_ann_ids(img_ids=[image_id]))
        painted = Counter(a["category_id"] for a in annotations if file.ann_to_mask(a).any())
        found[image_id] = {c: painted[c] for c in sorted({*images.mask(row).ravel().tolist()} - {0})}
    return found


def totals(counts: dict[int, dict[int, int]]) -> Counter[int]:
    """Class -> instances in all images."""
    return sum((Counter(of_image) for of_image in counts.values()), Counter[int]())


@contextmanager
def without_instances() -> Iterator[None]:
    """Build as the versions did that recorded no instances."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CocoLvisOptions, "records_instances", False)
        yield
