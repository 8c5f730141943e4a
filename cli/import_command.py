"""The command ``cocolvis import``: other data sets, as they are distributed, into the same shards."""

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import click

from cli.building import build_options, run_build, what_is_kept
from cli.display import Progress
from cli.options import Group, path_argument


class _Label(click.ParamType):
    """A class's name and a label; commands see a pair."""

    name = "NAME=N"

    def convert(self, value, param, ctx) -> tuple[str, int]:
        """Parse the text; wrong usage where it is no such pair."""
        name, _, label = value.rpartition("=")
        if not (name and re.fullmatch(r"[0-9]{1,5}", label) and int(label) < 2**16):
            self.fail(f"{value!r} is no name with a label in 0..65535; expected such as road=255", param, ctx)
        return name, int(label)


@click.group(name="import", cls=Group)
def importing() -> None:
    """Turn another data set, as it is distributed, into the format that `cocolvis build` writes.

    Faults of single images are counted, listed and stored in dataset.json; they do not end the import.

    \b
    Example:
      cocolvis import ade20k ~/ADEChallengeData2016 --out ~/ade20k
    """


def _shared(command: Callable) -> Callable:
    return path_argument("src")(build_options(("embed", "path"), None)(command))


def _run(name: str, find: Callable, src: Path, out: Path, splits, limit, images, shard_size, decode, **how) -> None:
    from cocolvis.importers.labelled import LabelOptions, LabelPlan

    splits = tuple(dict.fromkeys(splits))
    kept = {"limit": limit, "images": images, "shard_size": shard_size, "decode": decode}
    options = LabelOptions(dataset=name, splits=splits, **kept)

    def make_plan(show: Progress) -> LabelPlan:
        show.phase(f"looking for pictures and label files in {src}", 0, 0)
        tree = find(src, splits)
        for note in tree.findings.notes:
            show.line(note)
        return LabelPlan(tree, options)

    run_build("import", make_plan, out, **how)


@importing.command(interrupted=what_is_kept)
@_shared
def ade20k(**given) -> None:
    """ADE20K's scene parsing benchmark, 150 classes: ADEChallengeData2016.

    \b
    Example:
      cocolvis import ade20k ~/ADEChallengeData2016 --out ~/ade20k
    """
    from cocolvis.importers.ade20k import find

    _run("ade20k", find, **given)


@importing.command(interrupted=what_is_kept)
@_shared
def cityscapes(**given) -> None:
    """Cityscapes with fine annotations, 19 classes: leftImg8bit and gtFine.

    \b
    Example:
      cocolvis import cityscapes ~/cityscapes --out ~/cityscapes-shards
    """
    from cocolvis.importers.cityscapes import find

    _run("cityscapes", find, **given)


@importing.command(interrupted=what_is_kept)
@_shared
@click.option("--augmented", is_flag=True, help="Train on train_aug.txt with SegmentationClassAug, 10,582 images as is usual.")
def voc(augmented, **given) -> None:
    """PASCAL VOC 2012 segmentation, 21 classes with background: VOCdevkit/VOC2012.

    \b
    Example:
      cocolvis import voc ~/VOCdevkit --out ~/voc
    """
    from cocolvis.importers.voc import find

    _run("voc", partial(find, augmented=augmented), **given)


@importing.command(interrupted=what_is_kept)
@_shared
def cocostuff10k(**given) -> None:
    """COCO-Stuff 10k version 1.1, 182 classes, its split test as val.

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
    "--ignore", "ignored", type=click.IntRange(0, 65535), multiple=True, help="Label that is no class; may be repeated."
)
@click.option(
    "--label", "labels", type=_Label(), multiple=True, help="Label of a class by its name, such as road=255; may be repeated."
)
def folder(first_label, ignored, labels, **given) -> None:
    """Data of your own: images/{train,val}, masks/{train,val} of the same names, and classes.txt, .csv or .json.

    \b
    Example:
      cocolvis import folder ~/mine --first-label 0 --ignore 255 --out ~/mine-shards
    """
    from cocolvis.importers.folder import find

    _run("folder", partial(find, first_label=first_label, ignored=ignored, labels=dict(labels)), **given)
