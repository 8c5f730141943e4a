"""Finds images in a catalog: those that show certain classes, in the order of their ids, of an area, or of a score."""

from collections.abc import Sequence

import numpy as np

from cocolvis.explorer.catalog import Catalog


def select(
    catalog: Catalog,
    every: Sequence[int] = (),
    some: Sequence[int] = (),
    none: Sequence[int] = (),
    split: str | None = None,
) -> np.ndarray:
    """The numbers of the images that show all classes of ``every``, one of ``some`` (if given) and none of ``none``.

    Returns (n,) int64, ascending; only images of ``split``, if it is given.
    """
    chosen = np.full(len(catalog), split is None)
    for members in catalog.members(split) if split is not None else ():
        chosen[members.start : members.stop] = True
    for class_id in every:
        chosen &= _showing(catalog, [class_id])
    if some:
        chosen &= _showing(catalog, some)
    return np.flatnonzero(chosen & ~_showing(catalog, none))


def _showing(catalog: Catalog, classes: Sequence[int]) -> np.ndarray:
    """(N,) bool: whether an image shows at least one of the classes."""
    shown = np.zeros(len(catalog), bool)
    for class_id in classes:
        shown[catalog.showing(class_id)[0]] = True
    return shown


def areas(catalog: Catalog, classes: Sequence[int], images: np.ndarray) -> np.ndarray:
    """The share of each image that the classes cover together, 0..1: float64 of the shape of ``images``."""
    pixels = np.zeros(len(catalog))
    for class_id in classes:
        rows, counts = catalog.showing(class_id)
        pixels[rows] += counts
    return pixels[images] / catalog.sizes()[images].astype(np.float64).prod(axis=1)


def shares(catalog: Catalog, images: np.ndarray, rows: np.ndarray, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The images among ``rows`` (n,), and the share of each that its ``pixels`` (n,) are, 0..1."""
    found = np.isin(rows, images)
    rows = rows[found].astype(np.int64)
    return rows, pixels[found] / catalog.sizes()[rows].astype(np.float64).prod(axis=1)


def by_id(catalog: Catalog, images: np.ndarray) -> np.ndarray:
    """The order of the images by their ids."""
    return np.argsort(catalog.ids()[images], kind="stable")


def by_value(values: np.ndarray, *, descending: bool = False) -> np.ndarray:
    """The order of the values; ties stay in order."""
    return np.argsort(-values if descending else values, kind="stable")


def find(catalog: Catalog, image_id: int, split: str | None = None) -> int | None:
    """The number of the first image with this id, in one split or in any; None if there is none."""
    found = np.flatnonzero(catalog.ids() == image_id).tolist()
    return next((image for image in found if split in (None, catalog.place(image).split)), None)
