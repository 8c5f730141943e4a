"""Generates any number of annotations and pictures with the statistics of COCO-Stuff and LVIS.

An image has 640 x 480 pixels, 12.7 polygons of 12 to 70 vertices, 7 stuff regions (compressed run lengths) and a 160 KB JPEG.
All polygons are different. Stuff and pictures, which are slow to draw, are repeated.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
from pycocotools import mask as coco_mask

HEIGHT, WIDTH = 480, 640
POLYGONS, STUFF = 12.7, 7
VERTICES = (12, 70)
DISTINCT = 100


def polygon(rng: np.random.Generator) -> list[float]:
    """A closed blob [x0, y0, x1, y1, ...] with two decimals. Half of all blobs have less than about 1200 pixels, as in LVIS."""
    vertices = int(rng.integers(*VERTICES, endpoint=True))
    angles = np.sort(rng.uniform(0, 2 * np.pi, vertices))
    waves = np.sin(np.outer(angles, [2, 3, 5]) + rng.uniform(0, 6, 3)) @ [0.25, 0.15, 0.06]
    radius = np.exp(rng.normal(np.log(20), 1.0)) * (1 + waves)
    x = np.clip(rng.uniform(0, WIDTH) + radius * np.cos(angles), 0, WIDTH)
    y = np.clip(rng.uniform(0, HEIGHT) + radius * np.sin(angles), 0, HEIGHT)
    return np.stack([x, y], axis=1).ravel().round(2).tolist()


def things(rng: np.random.Generator) -> list[list[float]]:
    """The polygons of one image, POLYGONS on average."""
    return [polygon(rng) for _ in range(rng.poisson(POLYGONS))]


def stuff(rng: np.random.Generator) -> list[dict]:
    """STUFF regions with ragged borders that together fill an image, as run lengths in the form of COCO-Stuff."""
    fields = [_noise(rng, 4) + 0.12 * _noise(rng, 24) + 0.015 * _noise(rng, 100) for _ in range(STUFF)]
    regions = np.argmax(fields, axis=0)
    coded = [coco_mask.encode(np.asfortranarray(regions == number, dtype=np.uint8)) for number in range(STUFF)]
    return [{"counts": region["counts"].decode(), "size": [HEIGHT, WIDTH]} for region in coded]


def _noise(rng: np.random.Generator, cells: int) -> np.ndarray:
    coarse = rng.normal(size=(cells * 3 // 4 + 1, cells + 1)).astype(np.float32)
    return cv2.resize(coarse, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)


def picture(rng: np.random.Generator) -> bytes:
    """A JPEG of about 160 KB."""
    colours = [_noise(rng, 8) + 0.5 * _noise(rng, 80) + 0.45 * _noise(rng, 400) for _ in range(3)]
    pixels = np.clip(128 + 45 * np.stack(colours, axis=2), 0, 255).astype(np.uint8)
    return cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, 92])[1].tobytes()


def image_records(count: int) -> list[dict]:
    """``count`` entries of the ``images`` list of an LVIS file."""
    url = "http://images.cocodataset.org/train2017/{:012d}.jpg"
    flickr = "http://farm5.staticflickr.com/4026/4622125393_84c1fdb8d6_z.jpg"
    size = {"height": HEIGHT, "width": WIDTH, "license": 3, "date_captured": "2013-11-19 20:40:11", "flickr_url": flickr}
    lists = {"neg_category_ids": [7, 300, 811], "not_exhaustive_category_ids": [44]}
    return [{"id": i, "coco_url": url.format(i)} | size | lists for i in range(1, count + 1)]


def write_lvis(path: Path, images: int, seed: int = 0, least_bytes: int = 0) -> int:
    """Write an LVIS file with at least ``images`` images and ``least_bytes`` bytes; returns its number of images."""
    rng = np.random.default_rng(seed)

    def annotations() -> Iterator[str]:
        image = number = 0
        pool = [_thing(rng, points) for _ in range(200) for points in things(rng)] if least_bytes else []
        while image < images or file.tell() < least_bytes:
            image += 1
            drawn = pool[(image * 13) % len(pool) :][: rng.poisson(POLYGONS)] if pool else [_thing(rng, p) for p in things(rng)]
            for text in drawn:
                number += 1
                yield f'{{"id": {number}, "image_id": {image}, {text}}}'
        written.append(image)

    written: list[int] = []
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        file.write('{"info": {"description": "generated"}, "annotations": [')
        for place, text in enumerate(annotations()):
            file.write(", " * (place > 0) + text)
        file.write(f'], "images": {json.dumps(image_records(written[0]))}, "licenses": [], "categories": []}}')
    return written[0]


def _thing(rng: np.random.Generator, points: list[float]) -> str:
    bbox = [min(points[::2]), min(points[1::2]), max(points[::2]), max(points[1::2])]
    return f'"category_id": {rng.integers(1, 1204)}, "segmentation": [{points}], "area": {bbox[2] * bbox[3]}, "bbox": {bbox}'


def write_tree(root: Path, images: int, *, pictures: bool = True, seed: int = 0, distinct: int = DISTINCT) -> tuple[Path, Path]:
    """Write a COCO and an LVIS folder with ``images`` images of the split train; returns their paths.

    Stuff and pictures are drawn ``distinct`` times and repeated.
    """
    rng = np.random.default_rng(seed)
    coco, lvis = root / "coco", root / "lvis"
    write_lvis(lvis / "lvis_v1_train.json", images, seed)
    drawn = [[json.dumps(region) for region in stuff(rng)] for _ in range(min(distinct, images))]
    categories = [rng.permutation(np.arange(92, 184))[:STUFF].tolist() for _ in range(images)]
    annotations = (
        f'{{"segmentation": {segmentation}, "area": 9, "iscrowd": 0, "image_id": {image + 1}, "bbox": [0, 0, 9, 9], '
        f'"category_id": {category}, "id": {image * STUFF + place}}}'
        for image in range(images)
        for place, (segmentation, category) in enumerate(zip(drawn[image % len(drawn)], categories[image], strict=True))
    )
    path = coco / "annotations" / "stuff_train2017.json"
    path.parent.mkdir(parents=True)
    path.write_text(f'{{"images": {json.dumps(image_records(images))}, "annotations": [{", ".join(annotations)}]}}')
    if pictures:
        (coco / "train2017").mkdir()
        encoded = [picture(rng) for _ in range(min(distinct, images))]
        for image in range(images):
            (coco / "train2017" / f"{image + 1:012d}.jpg").write_bytes(encoded[image % len(encoded)])
    return coco, lvis
