"""The commands of ``ess`` that need no run: which models there are, and what they cost."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory

import click

from cli.display import Size, print_json, print_table, progress, say
from cli.options import UNCHANGED, command, json_option, path_option
from cocolvis.text import human_size


@command(interrupted=UNCHANGED)
@click.option("--arch", help="Only the encoders of this decoder.")
@click.option("--encoder", help="One encoder: its size, strides, decoders, licence, and the tags of its weights.")
@json_option
def models(arch, encoder, as_json) -> None:
    """List the encoders with the decoders that work, or tell more about one of them.

    \b
    Example:
      ess models --arch deeplabv3plus
      ess models --encoder vit_small_patch14_dinov2
    """
    from ess.models.encoders import decoders_of, describe, encoders_of, pairs, pretrained_tags

    if encoder is not None:
        about = describe(encoder)
        if as_json:
            print_json(about)
            return
        about["parameters"] = f"{about['parameters'] / 1e6:.1f} M"
        rows = [(name, ", ".join(map(str, value)) if isinstance(value, list) else value) for name, value in about.items()]
        print_table(rows[0], rows[1:])
        return
    found = pairs() if arch is None else [(arch, name) for name in encoders_of(arch)]
    if as_json:
        print_json({"pairs": [{"arch": a, "encoder": e} for a, e in found]})
        return
    names = dict.fromkeys(name for _, name in found)
    print_table(("encoder", "weights", "decoders"), [(n, pretrained_tags(n)[0], " ".join(decoders_of(n))) for n in names])


@command(interrupted="no measurement was kept; the same command begins again")
@click.option(
    "--classes",
    "counts",
    multiple=True,
    type=click.IntRange(2),
    default=(19, 150, 1284, 10_000),
    show_default=True,
    help="Number of classes; may be repeated.",
)
@click.option("--arch", default="deeplabv3plus", show_default=True, help="Decoder.")
@click.option("--encoder", default="resnet50", show_default=True, help="Encoder.")
@click.option("--loss", default="auto", show_default=True, type=click.Choice(["knn", "exact", "auto"]), help="Our loss.")
@click.option("--batch-size", type=click.IntRange(1), help="Images a step.  [default: what fits a GPU; 2 on the CPU]")
@click.option("--crop", type=click.IntRange(8), help="Side of the pictures.  [default: the paper's for so many classes]")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, mps.")
@click.option("--seconds", default=1.0, show_default=True, help="Each measurement lasts as long, and one turn at least.")
@click.option("--repeats", default=3, show_default=True, type=click.IntRange(1), help="Rounds; medians count.")
@path_option("--data", help="Data set for the loader's part.  [default: a generated one]")
@click.option("--workers", default=2, show_default=True, type=click.IntRange(1), help="Loader processes.")
@click.option("--only", type=click.Choice(["train", "predict", "loading"]), multiple=True, help="Only this; may be repeated.")
@json_option
def bench(counts, arch, encoder, loss, batch_size, crop, device, seconds, repeats, data, workers, only, as_json) -> None:
    """Measure training steps, predictions and the loader, ours beside one output a class, as Table 1 of the paper does.

    \b
    Example:
      ess bench --classes 1284 --crop 512 --batch-size 2 --only train
    """
    from ess.bench.loading import measure_loading
    from ess.bench.steps import compare
    from ess.config import Config

    config = Config(arch=arch, encoder=encoder, loss=loss, device=device, workers=workers, crop=crop or 512, weights="none")
    shared = {"crop": crop, "batch_size": batch_size, "seconds": seconds, "rounds": repeats}
    found: dict = {}
    for what in ("train", "predict"):
        if not only or what in only:
            with progress(what, "rounds") as show:
                done, total = count(1), len(counts) * repeats
                shared["progress"] = lambda: show(next(done), total)  # noqa: B023 (called within this turn)
                found[what] = [compare(what, classes, config, **shared).to_json() for classes in counts]
    if not only or "loading" in only:
        with _data_set(data) as folder:
            loader = replace(config, batch_size=batch_size or 8)
            found["loading"] = measure_loading(folder, loader, seconds=5 * seconds, rounds=repeats).to_json()
    if as_json:
        print_json(found)
        return
    for what in ("train", "predict"):
        if what in found:
            _print_comparison(what, found[what])
    if "loading" in found:
        row = found["loading"]
        say()
        say(
            f"loading: {row['crops_per_second']:.1f} crops/s from {row['workers']} processes,"
            f" {row['share']:.2f} of what as many decode alone ({row['decodes_per_second']:.1f} pictures/s each)"
        )


def _print_comparison(what: str, rows: Sequence[dict]) -> None:
    """A table of what :func:`ess.bench.steps.compare` found, a row for each number of classes."""

    def seconds(found: dict | None) -> str:
        if found is None or "seconds" in found:
            return f"{found['seconds']:.3f}" if found else ""
        return f"needs {human_size(found['needs_bytes'])}" if "needs_bytes" in found else "out of memory"

    def peak(found: dict) -> Size | None:
        return Size(found["peak_bytes"]) if "peak_bytes" in found else None

    def number(value: float | None) -> str:
        return "" if value is None else f"{value:.2f}"

    header = (
        "classes",
        "pictures",
        "network s",
        "ours s",
        "dense s",
        "ours/dense",
        "an image",
        "in the paper",
        "beyond the network",
    )
    say()
    say(f"{'training, s an iteration' if what == 'train' else 'prediction, s an image'}")
    print_table(
        (*header, "ours memory", "dense memory"),
        [
            (
                row["classes"],
                f"{row['ours']['batch_size']} x {row['height']} x {row['width']}",
                *(seconds(row.get(name)) for name in ("network", "ours", "dense")),
                *(number(row[name]) for name in ("ratio", "ratio_per_image", "paper_ratio", "beyond_network")),
                *(peak(row[name]) for name in ("ours", "dense")),
            )
            for row in rows
        ],
    )


@contextmanager
def _data_set(folder: Path | None) -> Iterator[Path]:
    """The folder of a data set; None is one that is generated, and gone afterwards."""
    if folder is not None:
        yield folder
        return
    from cocolvis.building.build import build
    from cocolvis.building.merged import BuildOptions
    from cocolvis.sample.writer import write_sample
    from cocolvis.sources.pairing import Sources
    from cocolvis.vocabulary import coco_lvis

    with TemporaryDirectory() as name:
        root = Path(name)
        with progress("sample") as show:
            write_sample(root / "sample", images=96, classes=60, size=512, progress=show)
        with progress("build") as show:
            sources = Sources(root / "sample" / "coco", root / "sample" / "lvis", coco_lvis())
            build(sources, root / "data", BuildOptions(), progress=show)
        yield root / "data"


COMMANDS = (models, bench)
