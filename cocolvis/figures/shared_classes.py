"""The classes that LVIS and COCO-Stuff share: for each, an image where it is stuff next to one where it is a thing."""

from collections.abc import Iterator, Mapping
from itertools import repeat
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from cocolvis.errors import DamagedImage
from cocolvis.figures.files import save_both, write_table
from cocolvis.inspection.stats import Counts
from cocolvis.inspection.why import check_inputs
from cocolvis.progress import Progress, ignore
from cocolvis.sources.inputs import Sources
from cocolvis.storage.dataset import Dataset, Split
from cocolvis.storage.samples import Sample
from cocolvis.vocabulary import ClassInfo

COLUMNS = ("class", "name", "source", "split", "image", "path", "pixels", "image_pixels")
"""The columns of the CSV; all but the first three are empty if no image shows the class in this way."""

SOURCES = ("stuff", "lvis")
"""The two sources: COCO-Stuff draws a class as stuff, LVIS as things."""

_WIDTH, _HEIGHT = 360, 270
"""The most columns and rows of a picture in the figure."""

_DIM, _EDGE = 0.35, (255, 220, 0)
"""The brightness of the pixels that do not show the class, and the colour of its outline."""


class Example(NamedTuple):
    """An image in which all annotations of a class come from one source.

    ``pixels`` of its mask show the class. ``picture`` (h, w, 3) uint8 RGB is the image with the class highlighted.
    """

    split: str
    image_id: int
    path: str
    size: tuple[int, int]
    pixels: int
    picture: np.ndarray


def write(dataset: Dataset, counts: Mapping[str, Counts], sources: Sources, stem: Path, progress: Progress = ignore) -> None:
    """Write ``stem`` with .png, .svg and .csv; ``progress`` counts classes.

    Raises DataError if the data set was not built from these annotation files, or if a file cannot be written.
    """
    for name in counts:
        sources.things(name)
    check_inputs(dataset, sources)
    opened = {name: dataset.split(name) for name in counts}
    images = {name: (split, split.image_ids()) for name, split in opened.items()}
    shared = [c for c in dataset.vocabulary if set(SOURCES) <= set(c.sources)]
    found: list[tuple[ClassInfo, str, Example | None]] = []
    for done, info in enumerate(shared):
        progress(done, len(shared))
        examples = _examples(images, counts, sources, info)
        found += [(info, source, examples.get(source)) for source in SOURCES]
    progress(len(shared), len(shared))
    check_inputs(dataset, sources)
    write_table(stem.with_suffix(".csv"), COLUMNS, map(_row, found))
    save_both(_draw(found), stem)


def _examples(
    images: Mapping[str, tuple[Split, np.ndarray]], counts: Mapping[str, Counts], sources: Sources, info: ClassInfo
) -> dict[str, Example]:
    """Source -> the image that shows the most pixels of a class among those where only this source annotates it.

    ``images`` has the samples and the image ids of each split. Ties go to the first image. Images whose pictures cannot be read
    are passed over.
    """
    found: dict[str, Example] = {}
    for name, row, pixels in _showing(counts, info.id):
        split, ids = images[name]
        drawn = _drawn_by(sources, name, int(ids[row]), info)
        if drawn is None or drawn in found:
            continue
        try:
            sample = split[row]
            picture = _highlighted(sample, info.id)
        except DamagedImage:
            continue
        found[drawn] = Example(name, sample.image_id, sample.path, sample.size, pixels, picture)
        if len(found) == len(SOURCES):
            break
    return found


def _showing(counts: Mapping[str, Counts], class_id: int) -> Iterator[tuple[str, int, int]]:
    """(split, number of the image in it, pixels of the class) of the images that show a class, most pixels first."""
    images: list[tuple[int, int, int]] = []
    names = list(counts)
    for order, split in enumerate(counts.values()):
        mine = split.classes == class_id
        images += zip((-split.pixels[mine].astype(np.int64)).tolist(), repeat(order), split.rows[mine].tolist(), strict=False)
    for pixels, order, row in sorted(images):
        yield names[order], row, -pixels


def _drawn_by(sources: Sources, split: str, image_id: int, info: ClassInfo) -> str | None:
    """The only source that annotates the class in an image; None if both do, or neither."""
    things = sources.things(split)
    record = things.images.get(image_id)
    if record is None:
        return None
    folder, _ = sources.locate(record, split)
    drawn = [
        source
        for source, segments in (("stuff", sources.segments(folder, image_id)), ("lvis", things.segments(image_id)))
        if any(segment.category_id == info.sources[source] for segment in segments)
    ]
    return drawn[0] if len(drawn) == 1 else None


def _row(found: tuple[ClassInfo, str, Example | None]) -> list[Any]:
    info, source, example = found
    if example is None:
        return [info.id, info.name, source, *[None] * 5]
    height, width = example.size
    return [info.id, info.name, source, example.split, example.image_id, example.path, example.pixels, height * width]


def _draw(found: list[tuple[ClassInfo, str, Example | None]]) -> Any:
    """The figure: two classes in a row, each with its two pictures."""
    from matplotlib.figure import Figure

    columns = 2 * len(SOURCES)
    rows = -(-len(found) // columns)
    figure = Figure(figsize=(3.1 * columns, 2.6 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in panels:
        axes.axis("off")
    for axes, (info, source, example) in zip(panels, found, strict=False):
        axes.set(xlim=(0, _WIDTH), ylim=(_HEIGHT, 0), aspect="equal")
        where = f", {example.split} {example.image_id}" if example else ""
        axes.set_title(f"{info.name} as {'stuff' if source == 'stuff' else 'thing'}{where}", fontsize=10, loc="left")
        if example is None:
            axes.text(0, 12, "not in this data set", va="top", color="0.4")
        else:
            height, width, _ = example.picture.shape
            axes.imshow(example.picture, extent=(0, width, height, 0), interpolation="nearest")
            axes.set(xlim=(0, _WIDTH), ylim=(_HEIGHT, 0))
    return figure


def _highlighted(sample: Sample, class_id: int) -> np.ndarray:
    """The picture at the size of the figure, darkened except for one class, which is outlined: (h, w, 3) uint8 RGB."""
    height, width = sample.size
    scale = min(_WIDTH / width, _HEIGHT / height)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_NEAREST
    image = cv2.resize(sample.image(), size, interpolation=how)
    share = cv2.resize((sample.mask == class_id).astype(np.float32), size, interpolation=how)
    shown = (image * (_DIM + (1 - _DIM) * share[..., None])).astype(np.uint8)
    outlines, _ = cv2.findContours((share > 0.5).astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    return cv2.drawContours(shown, outlines, -1, _EDGE, 1)
