"""``cocolvis import``: other data sets, converted from the layout of their distribution to the same shards."""

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli.cocolvis.creation.options import build_options
from cli.cocolvis.creation.run import run_build, what_is_kept
from cli.commands import Group
from cli.display import Progress
from cli.options import path_argument

if TYPE_CHECKING:
    from cocolvis.importers.labelled import LabelPlan
    from cocolvis.importers.tree import Tree


class _Label(click.ParamType):
    """The name of a class and its label; commands receive the pair."""

    name = "NAME=N"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, int]:
        """Parse the text; anything other than NAME=N with N in 0..65535 is wrong usage."""
        name, _, label = value.rpartition("=")
        if not (name and re.fullmatch(r"[0-9]{1,5}", label) and int(label) < 2**16):
            self.fail(f"{value!r} is not a name with a label in 0..65535; expected, for example, road=255", param, ctx)
        return name, int(label)


@click.group(name="import", cls=Group)
def importing() -> None:
    """Convert another data set from the layout of its distribution to the format of `cocolvis build`.

    Faults of single images are counted, listed and stored in dataset.json; they do not stop the import.

    \b
    Example:
      cocolvis import ade20k ~/ADEChallengeData2016 --out ~/ade20k
    """


def _shared(command: Callable[..., None]) -> Callable[..., None]:
    """Add the arguments and options that all imports share."""
    return path_argument("src")(build_options(("embed", "path"), None)(command))


def _run(
    name: str,
    find: "Callable[[Path, tuple[str, ...]], Tree]",
    *,
    src: Path,
    out: Path,
    splits: tuple[str, ...],
    limit: int | None,
    images: str,
    shard_size: int | None,
    decode: bool,
    **how: Any,
) -> None:
    """Import the pictures and label files that ``find`` finds in ``src``."""
    from cocolvis.importers.labelled import LabelOptions, LabelPlan

    splits = tuple(dict.fromkeys(splits))
    stored: dict[str, Any] = {"images": images, "shard_size": shard_size, "decode": decode}
    options = LabelOptions(dataset=name, splits=splits, limit=limit, **stored)

    def make_plan(show: Progress) -> "LabelPlan":
        show.phase(f"looking for pictures and label files in {src}", 0, 0)
        tree = find(src, splits)
        for note in tree.findings.notes:
            show.line(note)
        return LabelPlan(tree, options)

    run_build("import", make_plan, out, **how)


@importing.command(interrupted=what_is_kept)
@_shared
def ade20k(**given: Any) -> None:
    """ADE20K's scene parsing benchmark, 150 classes: ADEChallengeData2016.

    \b
    Example:
      cocolvis import ade20k ~/ADEChallengeData2016 --out ~/ade20k
    """
    from cocolvis.importers.ade20k import find

    _run("ade20k", find, **given)


@importing.command(interrupted=what_is_kept)
@_shared
def cityscapes(**given: Any) -> None:
    """Cityscapes with fine annotations, 19 classes: leftImg8bit and gtFine.

    \b
    Example:
      cocolvis import cityscapes ~/cityscapes --out ~/cityscapes-shards
    """
    from cocolvis.importers.cityscapes import find

    _run("cityscapes", find, **given)


@importing.command(interrupted=what_is_kept)
@_shared
@click.option("--augmented", is_flag=True, help="Train on the usual 10,582 images: train_aug.txt with SegmentationClassAug.")
def voc(augmented: bool, **given: Any) -> None:
    """PASCAL VOC 2012 segmentation, 21 classes including background: VOCdevkit/VOC2012.

    \b
    Example:
      cocolvis import voc ~/VOCdevkit --out ~/voc
    """
    from cocolvis.importers.voc import find

    _run("voc", partial(find, augmented=augmented), **given)


@importing.command(interrupted=what_is_kept)
@_shared
def cocostuff10k(**given: Any) -> None:
    """COCO-Stuff 10k version 1.1, 182 classes; its test split becomes val.

    \b
    Example:
      cocolvis import cocostuff10k ~/cocostuff-10k-v1.1 --out ~/cocostuff10k
    """
    from cocolvis.importers.cocostuff10k import find

    _run("cocostuff10k", find, **given)


@importing.command(interrupted=what_is_kept)
@_shared
@click.option("--first-label", type=click.IntRange(0, 1), default=1, show_default=True, help="Label of the first class.")
@click.option(
    "--ignore", "ignored", type=click.IntRange(0, 65535), multiple=True, help="Label that is not a class; may be repeated."
)
@click.option(
    "--label", "labels", type=_Label(), multiple=True, help="Label of a named class, for example road=255; may be repeated."
)
def folder(first_label: int, ignored: tuple[int, ...], labels: tuple[tuple[str, int], ...], **given: Any) -> None:
    """Your own data: images/{train,val}, masks/{train,val} with the same names, and classes.txt, .csv or .json.

    \b
    Example:
      cocolvis import folder ~/mine --first-label 0 --ignore 255 --out ~/mine-shards
    """
    from cocolvis.importers.folder import find

    chosen = dict(labels)
    if other := next(((name, label) for name, label in labels if chosen[name] != label), None):
        raise click.UsageError(f"--label {other[0]} is given as {other[1]} and as {chosen[other[0]]}; a class has one label")
    _run("folder", partial(find, first_label=first_label, ignored=ignored, labels=chosen), **given)
