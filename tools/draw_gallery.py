"""Writes docs/gallery.md and its pictures from the results of `make demo` and of a dense baseline:

    ess train demo/data --out demo/baseline --preset demo --loss dense
    python tools/draw_gallery.py demo

All figures of `cocolvis stats --figures` and `ess analyze` are drawn again below DEMO/figures, in a few minutes on two cores.
"""

import sys
from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from cocolvis.disk.files import write_aside
from cocolvis.figures.collection import write_figures
from cocolvis.inspection.stats import read_counts, summarise
from cocolvis.sources.inputs import Sources
from cocolvis.storage.dataset import Dataset
from cocolvis.vocabulary import coco_lvis
from ess.checkpoint import Run
from ess.figures.collection import Options, collect

DOCS = Path(__file__).parents[1] / "docs"
PAGE, PICTURES = DOCS / "gallery.md", DOCS / "pictures" / "gallery"
WIDTH = 1000
"""The most columns of a picture."""

CLUSTERS = 20
"""The clusters of the demo's classes, which are about a hundred."""

HEAD = """# Gallery

Every figure of `cocolvis stats --figures` and `ess analyze`, drawn from the results of `make demo`: generated pictures of
coloured shapes with the names of COCO+LVIS classes, and a small model that was trained on them for a few minutes. They show
what the figures look like, not what a model can reach. The baseline is the same network with one output per class. Each figure
is also written as SVG, with its numbers as CSV. These commands draw this page:

    ess train demo/data --out demo/baseline --preset demo --loss dense
    python tools/draw_gallery.py demo
"""


class Entry(NamedTuple):
    """A figure of the page."""

    name: str
    title: str
    caption: str
    png: Path


OF_DATA = {
    "images_per_class": (
        "The long tail",
        "The images of each class, sorted, for all classes (grey) and within each frequency group of LVIS, and the share of all"
        " images of classes that the first n hold.",
    ),
    "word_cloud": (
        "Word cloud of the classes",
        "The height of a name is proportional to the square root of its share of the labelled pixels, so its area is about"
        " proportional to the share. Colours are those of the frequency groups.",
    ),
}
"""The figures of the data set that `ess analyze` does not draw: title and caption."""


def entries(demo: Path, folder: Path) -> Iterator[tuple[str, list[Entry]]]:
    """(command, its figures) for both commands; the figures are written to ``folder``."""
    data, run, baseline = Dataset.open(demo / "data"), Run.open(demo / "run"), Run.open(demo / "baseline")
    sources = Sources(demo / "sample" / "coco", demo / "sample" / "lvis", coco_lvis())
    counts = read_counts(data)
    write_figures(folder, data, counts, summarise(data.vocabulary, counts), None)
    yield "cocolvis stats demo/data --figures figures", [Entry(n, *texts, folder / f"{n}.png") for n, texts in OF_DATA.items()]
    options = Options(sources=sources, baseline=baseline, clusters=CLUSTERS, device="cpu")
    found = collect(run, data, folder, options, left_out=lambda sentence: sys.exit(sentence), step=print)
    flags = f"--clusters {CLUSTERS} --coco demo/sample/coco --lvis demo/sample/lvis"
    command = f"ess analyze demo/run demo/data --out figures --baseline demo/baseline {flags}"
    yield command, [Entry(figure.name, figure.title, figure.caption, figure.png) for figure in found]


def reduced(path: Path) -> bytes:
    """A picture as WebP with at most WIDTH columns: without loss, or with a little if that is much smaller."""
    with Image.open(path) as picture:
        small = picture.convert("RGB")
    if small.width > WIDTH:
        small = small.resize((WIDTH, round(small.height * WIDTH / small.width)), Image.Resampling.LANCZOS)
    found = []
    for settings in ({"lossless": True}, {"quality": 84}):
        stream = BytesIO()
        small.save(stream, format="WEBP", method=6, **settings)
        found.append(stream.getvalue())
    return found[0] if len(found[0]) <= 1.5 * len(found[1]) else found[1]


def page(groups: Sequence[tuple[str, Sequence[Entry]]]) -> str:
    """The text of the page."""
    lines = [HEAD]
    for command, figures in groups:
        lines.append(f"This command draws the figures below:\n\n    {command}\n")
        lines += [f"## {f.title}\n\n![{f.title}](pictures/gallery/{f.name}.webp)\n\n{f.caption}\n" for f in figures]
    return "\n".join(lines)


def main(demo: Path) -> None:
    """Draw all figures of a demo, and write the page and its pictures."""
    groups = [*entries(demo, demo / "figures")]
    for _, figures in groups:
        for figure in figures:
            with write_aside(PICTURES / f"{figure.name}.webp") as aside:
                aside.write_bytes(reduced(figure.png))
    with write_aside(PAGE) as aside:
        aside.write_text(page(groups), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
