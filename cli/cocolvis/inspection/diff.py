"""``cocolvis diff``: what differs between two data sets."""

from pathlib import Path
from typing import TYPE_CHECKING

from cli.commands import UNCHANGED, command
from cli.display import print_json, print_table, progress, say
from cli.options import json_option, path_argument
from cocolvis.text import counted, first_few, nfc

if TYPE_CHECKING:
    from cocolvis.inspection.diff import Difference
    from cocolvis.vocabulary import Vocabulary

_LISTED = 10
"""How many images and pairs are printed; --json lists all."""


@command(interrupted=UNCHANGED)
@path_argument("dir_a")
@path_argument("dir_b")
@json_option
def diff(dir_a: Path, dir_b: Path, as_json: bool) -> None:
    """Compare two data sets: which images, pixels and classes differ, and which class became which.

    \b
    Example:
      cocolvis diff ~/cocolvis ~/cocolvis-essnet
    """
    from cocolvis.inspection.diff import diff as compare
    from cocolvis.storage.dataset import Dataset

    a, b = Dataset.open(dir_a), Dataset.open(dir_b)
    with progress("diff") as show:
        difference = compare(a, b, show, show.phase)
    _warn_of_names(a.vocabulary, b.vocabulary)
    _print_difference(difference, a.vocabulary, b.vocabulary, as_json)


def _warn_of_names(a: "Vocabulary", b: "Vocabulary") -> None:
    """Say on stderr if a class id stands for different names in the two data sets: masks are compared by class id."""
    differing = [(one, other) for one, other in zip(a, b, strict=False) if nfc(one.name) != nfc(other.name)]
    if differing:
        one, other = differing[0]
        count = f"{len(differing)} class ids have other names" if len(differing) > 1 else "1 class id has another name"
        first = f"{one.id} is {one.name!r} in the first, {other.name!r} in the second"
        say(f"{count} in the second data set: {first}; masks are compared by class id", err=True)


def _print_difference(difference: "Difference", names_a: "Vocabulary", names_b: "Vocabulary", as_json: bool) -> None:
    pairs = [
        {"a": p.a, "a_name": names_a.name(p.a), "b": p.b, "b_name": names_b.name(p.b), "pixels": p.pixels}
        for p in difference.pairs
    ]
    if as_json:
        images = {
            "common": difference.common,
            "differing": len(difference.differing),
            "resized": len(difference.resized),
            "recounted": None if difference.recounted is None else len(difference.recounted),
        }
        only = {"only_a": [list(i) for i in difference.only_a], "only_b": [list(i) for i in difference.only_b]}
        pixels = {"compared": difference.pixels, "differing": difference.differing_pixels}
        print_json({"images": images | only, "pixels": pixels, "classes": difference.classes, "pairs": pairs})
        return
    differing, resized = len(difference.differing), len(difference.resized)
    say(f"{differing:,} of {difference.common:,} common images differ, and {resized:,} have different sizes")
    share = difference.differing_pixels / max(1, difference.pixels)
    classes = f"{len(difference.classes):,} class{'' if len(difference.classes) == 1 else 'es'}"
    say(f"{difference.differing_pixels:,} of {difference.pixels:,} pixels differ ({share:.2%}), of {classes}")
    if difference.recounted is not None:
        say(f"{counted(len(difference.recounted), 'image')} with other numbers of instances")
    for label, images_of_one in (("only in the first", difference.only_a), ("only in the second", difference.only_b)):
        if images_of_one:
            listed = first_few((f"{split} {image_id}" for split, image_id in images_of_one), _LISTED)
            say(f"{label}: {len(images_of_one)} images: {listed}")
    if pairs:
        say()
        rows = [(f"{p['a']} {p['a_name']}", f"{p['b']} {p['b_name']}", p["pixels"]) for p in pairs[:_LISTED]]
        print_table(("first", "second", "pixels"), rows)
