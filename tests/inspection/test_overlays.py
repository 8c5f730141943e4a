"""Overlays compared pixel by pixel with a simple reference implementation, and the cost of pictures of extreme shapes."""

import tracemalloc

import cv2
import numpy as np
import pytest

from cocolvis.errors import DataError
from cocolvis.inspection.render import NAMED, colourise, enlarge, overlay, side_by_side
from cocolvis.pictures.encoded import write_png
from cocolvis.vocabulary import coco_lvis

NAMES = ["", *(c.name for c in coco_lvis())]


def plain_overlay(image, mask, names, opacity=0.55):
    """The reference: the same overlay, with everything computed over the whole picture."""
    blend = np.where((mask > 0)[..., None], image * (1 - opacity) + colourise(mask) * opacity, image)
    edges = np.zeros(mask.shape, bool)
    edges[:, :-1] |= mask[:, :-1] != mask[:, 1:]
    edges[:-1] |= mask[:-1] != mask[1:]
    picture = np.ascontiguousarray(np.where(edges[..., None], blend * 0.35, blend).astype(np.uint8))
    classes, pixels = np.unique(mask[mask > 0], return_counts=True)
    largest = [c for c, n in sorted(zip(classes.tolist(), pixels.tolist(), strict=True), key=lambda cn: (-cn[1], cn[0]))]
    taken = []
    for c in largest[:NAMED]:
        region = mask == c
        if region.sum() >= 0.004 * mask.size:
            plain_name(picture, names[c], region, taken)
    return picture


def plain_name(picture, name, region, taken):
    height, width = region.shape
    scale = min(0.75, max(0.35, min(height, width) / 640))
    (w, h), base = cv2.getTextSize(name, cv2.FONT_HERSHEY_SIMPLEX, scale, 1)
    inside = cv2.distanceTransform(np.pad(region, 1).astype(np.uint8), cv2.DIST_L2, 5)
    y, x = (int(v) - 1 for v in np.unravel_index(inside.argmax(), inside.shape))
    left = min(max(x - w // 2, 2), max(2, width - w - 2))
    for shift in (0, 1, -1, 2, -2):
        bottom = min(max(y + h // 2 + shift * (h + base), h + 2), height - base)
        box = left, bottom - h - 2, left + w, bottom + base
        if not any(box[0] < r and l < box[2] and box[1] < b and t < box[3] for l, t, r, b in taken):  # noqa: E741
            taken.append(box)
            glyphs = np.zeros(picture.shape[:2], np.uint8)
            cv2.putText(glyphs, name, (left, bottom), cv2.FONT_HERSHEY_SIMPLEX, scale, 255, 1, cv2.LINE_AA)
            grown = cv2.dilate(glyphs, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (5, 5)))
            for shape, colour in ((grown, 20.0), (glyphs, 255.0)):
                alpha = shape[..., None] / 255
                picture[:] = np.rint(picture * (1 - alpha) + colour * alpha)
            return


def drawn(rng, size, classes, kind):
    """A picture of noise and a mask of cells around random points, noise, or bands, with a fifth of it unlabelled."""
    image = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
    values = rng.integers(1, 1285, classes, dtype=np.uint16) * (rng.random(classes) > 0.2)
    if kind == "noise":
        return image, values[rng.integers(classes, size=size)].astype(np.uint16)
    rows, columns = np.mgrid[: size[0], : size[1]]
    if kind == "bands":
        return image, values[(rows * 3 + columns) // 9 % classes].astype(np.uint16)
    points = rng.random((classes, 2)) * size
    nearest = np.argmin((rows[..., None] - points[:, 0]) ** 2 + (columns[..., None] - points[:, 1]) ** 2, axis=-1)
    return image, values[nearest].astype(np.uint16)


SIZES = [(1, 1), (1, 2), (2, 1), (1, 90), (90, 1), (3, 4), (5, 300), (300, 5), (17, 33), (64, 64), (97, 131), (240, 320)]


@pytest.mark.parametrize("kind", ["cells", "noise", "bands"])
@pytest.mark.parametrize("size", [*SIZES, (375, 500)])
def test_an_overlay_matches_the_reference(size, kind):
    for classes in (1, 2, 7, 30):
        rng = np.random.default_rng([*size, classes])
        image, mask = drawn(rng, size, classes, kind)
        assert np.array_equal(overlay(image, mask, coco_lvis()), plain_overlay(image, mask, NAMES))


@pytest.mark.parametrize("opacity", [0.0, 0.3, 1.0])
def test_other_opacities_names_and_arrays_match_the_reference(opacity):
    rng = np.random.default_rng(5)
    image, mask = drawn(rng, (120, 160), 9, "cells")
    names = [letter * 40 for letter in "äÄgj_yQ|"] * 200
    expected = plain_overlay(image, mask, names, opacity)
    assert np.array_equal(overlay(image, mask, names, opacity), expected)
    mask = mask.astype(np.int64)
    image.setflags(write=False)
    assert np.array_equal(
        overlay(image[::-1], mask[::-1], names, opacity), plain_overlay(image[::-1], mask[::-1], names, opacity)
    )
    mask[mask > 0] += 1284 + 30000
    names = [*NAMES, *(f"added {c}" for c in range(1, 40000))]
    assert np.array_equal(overlay(image, mask, names, opacity), plain_overlay(image, mask, names, opacity))


@pytest.mark.parametrize("real_sizes", [((480, 640), 12), ((427, 640), 5)])
def test_an_overlay_of_usual_size_matches_the_reference(real_sizes):
    size, classes = real_sizes
    image, mask = drawn(np.random.default_rng(1), size, classes, "cells")
    assert np.array_equal(overlay(image, mask, coco_lvis()), plain_overlay(image, mask, NAMES))


def peak_of(function, *arguments):
    tracemalloc.start()
    try:
        function(*arguments)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("size", [(1, 100_000), (100_000, 1), (2, 60_000), (60_000, 2), (30, 3_000), (300, 300)])
def test_memory_is_proportional_to_the_pixels_for_any_shape(size):
    image, mask = np.zeros((*size, 3), np.uint8), np.ones(size, np.uint16)
    mask[:, : size[1] // 2] = 7
    overlay(image[:1], mask[:1], NAMES)  # compile first, which takes memory too
    shown = enlarge(image, mask)
    assert shown[1].size <= max(mask.size, 2**20)
    assert max(shown[1].shape) <= max(8192, *size)
    assert peak_of(overlay, *shown, NAMES) < 2**20 + 64 * shown[1].size
    assert side_by_side(image, mask, NAMES).nbytes <= 4 * shown[0].nbytes + 2**20 + 6 * 3 * mask.size


def test_wide_and_small_pictures_are_still_enlarged():
    for size, factor in (((30, 30), 16), ((59, 72), 8), ((100, 600), 5), ((60, 900), 8), ((239, 320), 2), ((320, 427), 2)):
        image, mask = np.zeros((*size, 3), np.uint8), np.zeros(size, np.uint16)
        assert enlarge(image, mask)[1].shape == (factor * size[0], factor * size[1])


@pytest.mark.long
@pytest.mark.parametrize("size", [(2, 5_000_000), (5_000_000, 2)])
def test_a_strip_of_ten_million_pixels(size):
    image, mask = np.zeros((*size, 3), np.uint8), np.ones(size, np.uint16)
    shown = enlarge(image, mask)
    assert shown[1].shape == size
    assert overlay(*shown, NAMES).shape == image.shape


def test_a_picture_too_large_for_png_is_refused_and_leaves_no_file(tmp_path):
    with pytest.raises(DataError, match="a PNG cannot hold 2 x 1000001 pixels"):
        write_png(tmp_path / "wide.png", np.zeros((2, 1_000_001), np.uint16))
    assert not list(tmp_path.iterdir())
