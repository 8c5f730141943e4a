"""How cost grows: processor time against images, pixels, classes, dimensions and processes, each with its exponent.

    python benchmarks/growth.py [--only classes ...] [--repeats 3] [--quick] [--plot DIR] [--json]

A time is the processor time of this process and of those that it started and that have ended, the least of several repeats.
Unlike the time on a clock, it hardly depends on what else the machine does. Each part uses one thread, and is called once
before it is measured. The exponent is the slope of log time against log size, a straight line fitted to all sizes. A second
one is fitted to the upper half of the sizes, where a constant time to start matters least.
"""

import json
import os
import resource
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import click
import coco_like
import cv2
import many_images
import numpy as np
from pycocotools import mask as coco_mask

from cocolvis.building.build import build
from cocolvis.building.coco_lvis import CocoLvisOptions
from cocolvis.disk.files import save_figure
from cocolvis.inspection.stats import statistics
from cocolvis.masks.merge import Region, merge
from cocolvis.masks.rasterize import rasterize
from cocolvis.sources.inputs import Sources
from cocolvis.storage.dataset import Dataset
from cocolvis.vocabulary import coco_lvis

CLASSES, DIM, SIDE = 1284, 12, 128
"""The classes, dimensions and side in pixels of the losses' input, where they do not grow."""

DISTINCT = 20
"""How many different masks of stuff the images of a build have."""

THRESHOLD = 0.001
"""The threshold of repeat-factor sampling, that of LVIS."""

QUICK = 3
"""How many sizes of each part ``--quick`` measures."""

Call = Callable[[], Any]


class Part(NamedTuple):
    """What is measured together: each of ``lines`` prepares, for one of ``sizes``, the call whose time is taken."""

    title: str
    axis: str
    sizes: tuple[int, ...]
    lines: dict[str, Callable[[int], Call]]


def powers(first: int, factor: int, count: int) -> tuple[int, ...]:
    """``count`` sizes, each ``factor`` times the one before."""
    return tuple(first * factor**n for n in range(count))


class Inputs:
    """The generated input, below a temporary folder."""

    def __init__(self, folder: Path):
        self.folder = folder

    @cache  # noqa: B019 (there is one instance per run)
    def tree(self, images: int) -> Path:
        """A COCO + LVIS tree without pictures."""
        root = self.folder / f"tree-{images}"
        coco_like.write_tree(root, images, pictures=False, distinct=DISTINCT)
        return root

    @cache  # noqa: B019
    def many(self, most: int) -> Dataset:
        """A data set of this many images."""
        many_images.write_dataset(self.folder / "many", most)
        return Dataset.open(self.folder / "many")

    def first(self, images: int, most: int) -> Dataset:
        """The first images, a multiple of those in a shard, of the data set of ``most`` images; its shards are opened again."""
        whole = self.many(most)
        shards = whole.index["shards"][: images // many_images.SHARD]
        return Dataset(
            whole.folder, {**whole.index, "shards": shards, "splits": {"train": {"images": images, "shards": len(shards)}}}
        )

    def build(self, images: int, workers: int = 1) -> Call:
        root = self.tree(images)

        def call() -> None:
            out = self.folder / "data"
            shutil.rmtree(out, ignore_errors=True)
            sources = Sources(root / "coco", root / "lvis", coco_lvis())
            build(sources, out, CocoLvisOptions(splits=("train",), images="none", shard_size=125), workers=workers)

        return call


def merging(pixels: int) -> Call:
    """Merge the annotations of one image, enlarged to about this many pixels, from their JSON to the mask."""
    rng, scale = np.random.default_rng(0), (pixels / coco_like.HEIGHT / coco_like.WIDTH) ** 0.5
    height, width = round(coco_like.HEIGHT * scale), round(coco_like.WIDTH * scale)
    things = [json.dumps([[scale * number for number in polygon]]).encode() for polygon in coco_like.things(rng)]
    stuff = []
    for region in coco_like.stuff(rng):
        enlarged = cv2.resize(coco_mask.decode(region), (width, height), interpolation=cv2.INTER_NEAREST)
        coded = coco_mask.encode(np.asfortranarray(enlarged))
        stuff.append(json.dumps({"counts": coded["counts"].decode(), "size": [height, width]}).encode())

    def call() -> np.ndarray:
        regions = ([Region(1, rasterize(one, height, width)) for one in source] for source in (stuff, things))
        return merge(*regions, height, width).mask()

    return call


def sampler(dataset: Dataset) -> None:
    """Read the frequencies of classes, compute repeat factors, and draw the batches of one epoch."""
    from ess.config import Config
    from ess.data.loader import StepBatches, epoch_length
    from ess.data.longtail import tail_of

    config, split = Config(repeat_threshold=THRESHOLD), dataset.split("train")
    repeats = tail_of(split, dataset.vocabulary, config).repeats
    steps = epoch_length(len(split), repeats) // config.batch_size
    for _ in StepBatches(len(split), config.batch_size, steps, config.seed, repeats=repeats):
        pass


def loss(name: str, *, classes: int = CLASSES, dim: int = DIM, side: int = SIDE) -> Call:
    """The value and the gradients of a loss, on one image."""
    from losses import CONTENDERS, problem

    function, _ = CONTENDERS[name]
    embeddings, labels, table = problem(classes, dim, 1, side, side)

    def call() -> None:
        leaves = [tensor.detach().requires_grad_() for tensor in (embeddings, table)]
        function(leaves[0], labels, leaves[1]).backward()

    return call


def prediction(classes: int) -> Call:
    """The nearest class of each pixel of one image."""
    from losses import problem

    from ess.losses.neighbours import nearest

    embeddings, _, table = problem(classes, DIM, 1, SIDE, SIDE)
    queries = embeddings[0].flatten(1).T.contiguous()
    return lambda: nearest(queries, table, 1)


def parts(inputs: Inputs) -> dict[str, Part]:
    """Everything that this script measures, by name."""
    images, pixels, classes, dims = powers(12_500, 2, 4), powers(76_800, 4, 5), powers(256, 2, 7), powers(8, 2, 5)
    most = images[-1]
    exact_and_knn = {"exact loss": "exact", "k-NN loss": "k-NN"}
    return {
        "build": Part("a build", "images", powers(250, 2, 4), {"build": inputs.build}),
        "stats": Part("cocolvis stats", "images", images, {"stats": lambda n: lambda: statistics(inputs.first(n, most))}),
        "sampler": Part("batches of an epoch", "images", images, {"sampler": lambda n: lambda: sampler(inputs.first(n, most))}),
        "merging": Part("merging one image", "pixels", pixels, {"merging": merging}),
        "pixels": Part(
            "losses",
            "pixels",
            powers(4096, 4, 4),
            {line: lambda n, name=name: loss(name, side=round(n**0.5)) for line, name in exact_and_knn.items()},
        ),
        "classes": Part(
            "losses and prediction",
            "classes",
            classes,
            {
                **{line: lambda n, name=name: loss(name, classes=n) for line, name in exact_and_knn.items()},
                "prediction": prediction,
            },
        ),
        "dimensions": Part(
            "losses",
            "dimensions of an embedding",
            dims,
            {line: lambda n, name=name: loss(name, dim=n) for line, name in exact_and_knn.items()},
        ),
        "processes": Part(
            "a build, all processes together", "processes", powers(1, 2, 3), {"build": lambda n: inputs.build(2000, workers=n)}
        ),
    }


def spent() -> float:
    """The processor time in seconds of this process and of its children that have ended."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def least_seconds(part: Part, repeats: int) -> dict[str, list[float]]:
    """Line -> the least processor time at each size. The sizes take turns, so that a slow minute does not bend a line."""
    calls = {(line, size): prepare(size) for line, prepare in part.lines.items() for size in part.sizes}
    for line in part.lines:
        calls[line, part.sizes[0]]()
    best = dict.fromkeys(calls, float("inf"))
    for _ in range(repeats):
        for key, call in calls.items():
            before = spent()
            call()
            best[key] = min(best[key], spent() - before)
    return {line: [best[line, size] for size in part.sizes] for line in part.lines}


def exponent(sizes: Sequence[float], seconds: Sequence[float]) -> float:
    """p of seconds ~ size^p: the slope of a straight line fitted to the logarithms by least squares.

    Raises ValueError unless there are as many times as sizes, at least two different sizes, and positive finite numbers only.
    """
    if len(sizes) != len(seconds) or len({*sizes}) < 2:
        raise ValueError(
            f"sizes {list(sizes)}, times {list(seconds)}: expected a time for each of at least two different sizes"
        )
    numbers = np.array([sizes, seconds], np.float64)
    if not (np.isfinite(numbers).all() and (numbers > 0).all()):
        raise ValueError(f"sizes {list(sizes)}, times {list(seconds)}: expected positive, finite numbers")
    x, y = np.log(numbers)
    return float(np.polyfit(x, y, 1)[0])


def upper_half(values: Sequence) -> Sequence:
    """The upper half of the sizes, or of their times, rounded up; at least two."""
    return values[min(len(values) // 2, len(values) - 2) :]


def measure(part: Part, repeats: int) -> dict[str, Any]:
    """The times and exponents of a part."""
    lines = {
        line: {
            "seconds": seconds,
            "exponent": exponent(part.sizes, seconds),
            "upper_exponent": exponent(upper_half(part.sizes), upper_half(seconds)),
        }
        for line, seconds in least_seconds(part, repeats).items()
    }
    return {"title": part.title, "axis": part.axis, "sizes": list(part.sizes), "lines": lines}


def draw(found: dict[str, dict], path: Path) -> None:
    """Draw a panel for each part: the times, and the line fitted to the upper half, dotted where it continues below."""
    from ess.figures.style import RUNS, clean, new_figure

    columns = min(4, len(found))
    rows = -(-len(found) // columns)
    figure = new_figure(2.7 * columns, 2.5 * rows)
    for number, part in enumerate(found.values()):
        axes = figure.add_subplot(rows, columns, number + 1)
        sizes, some = np.array(part["sizes"]), part["sizes"][:: -(-len(part["sizes"]) // 4)]
        for colour, (line, values) in zip(RUNS, part["lines"].items(), strict=False):
            power = values["upper_exponent"]
            middle = np.exp(np.mean(np.log(upper_half(values["seconds"])) - power * np.log(upper_half(sizes))))
            axes.plot(sizes, middle * sizes**power, ":", color=colour, linewidth=1)
            axes.plot(upper_half(sizes), middle * upper_half(sizes) ** power, color=colour, linewidth=1)
            label = f"{line} {power:.2f}" if len(part["lines"]) > 1 else f"{power:.2f}"
            axes.plot(sizes, values["seconds"], "o", color=colour, markersize=4, label=label)
        axes.set(xscale="log", yscale="log", xlabel=part["axis"])
        axes.set_title(part["title"], fontsize=9, loc="left")
        axes.set_xticks(some, [f"{size:,}" for size in some])
        axes.minorticks_off()
        axes.yaxis.set_major_formatter("{x:g}")
        low, high = axes.get_ylim()
        axes.set_ylim(min(low, high / 20), high)
        axes.xaxis.label.set_size(8)
        axes.tick_params(labelsize=7)
        axes.legend(frameon=False, fontsize=7, handletextpad=0.2, loc="lower right")
        clean(axes)
    figure.supylabel("processor time in seconds", fontsize=8)
    save_figure(figure, path)


def show(name: str, part: dict[str, Any]) -> None:
    """Print the rows of a part."""
    for line, values in part["lines"].items():
        sizes = f"{part['sizes'][0]:,} to {part['sizes'][-1]:,} {part['axis'].split()[0]}"
        figures = f"{values['seconds'][-1]:>12.3f}{values['exponent']:>12.2f}{values['upper_exponent']:>14.2f}"
        click.echo(f"{name:<12}{line:<14}{sizes:<34}{figures}")


NAMES = tuple(parts(Inputs(Path())))


@click.command()
@click.option("--only", multiple=True, type=click.Choice(NAMES), help="Measure only this part; repeatable.")
@click.option("--repeats", default=3, show_default=True, help="Repeats; each time is the least of them.")
@click.option("--quick", is_flag=True, help=f"Only the {QUICK} smallest sizes, once: to try the script.")
@click.option("--plot", type=click.Path(path_type=Path), help="Folder for growth.png.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def main(only, repeats, quick, plot, as_json) -> None:
    """Measure how processor time grows, and fit exponents."""
    os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported
    cv2.setNumThreads(1)
    found = {}
    if not as_json:
        click.echo(f"{'part':<12}{'':<14}{'sizes':<34}{'s, largest':>12}{'exponent':>12}{'upper half':>14}")
    with tempfile.TemporaryDirectory() as folder:
        for name, part in parts(Inputs(Path(folder))).items():
            if not only or name in only:
                part = part._replace(sizes=part.sizes[:QUICK]) if quick else part
                found[name] = measure(part, 1 if quick else repeats)
                if not as_json:
                    show(name, found[name])
    if plot:
        draw(found, plot / "growth.png")
    if as_json:
        click.echo(json.dumps({"cores": os.cpu_count(), "repeats": 1 if quick else repeats, "parts": found}, indent=1))


if __name__ == "__main__":
    main()
