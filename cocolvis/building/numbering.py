"""Compares the labels in imported masks with the list of classes, and suggests an option of the import if they do not fit."""

import re
import shlex
from collections.abc import Collection, Iterable, Mapping

from cocolvis.text import first_few
from cocolvis.vocabulary import Vocabulary

SOURCE = "folder"
"""The vocabulary's name for the numbering of labels in `cocolvis import folder`."""

_KEY = "label {}"
_WHITE = (255, 65535)
"""White in 8 and 16 bits: some programs write it for "yes" in black-and-white masks, and others for "no class"."""

_NAMED = 8
"""How many unknown labels a line lists."""


def keys(labels: Iterable[int], known: Collection[int]) -> list[str]:
    """The keys under which the labels of an image are counted: all ``known`` labels, and the first few unknown ones."""
    labels = list(labels)
    others = [label for label in labels if label not in known]
    kept = {*others[:_NAMED], *(label for label in _WHITE if label in others)}
    return [_KEY.format(label) for label in labels if label in known or label in kept]


def advice(seen: Mapping[str, int], vocabulary: Vocabulary) -> list[str]:
    """Suggestions for the user, one line each, if the labels ``seen`` (counts by :func:`keys`) do not fit the classes."""
    pattern = _KEY.format(r"(\d+)")
    images = {int(match[1]): count for key, count in seen.items() if (match := re.fullmatch(pattern, key))}
    classes = {c.sources[SOURCE]: c.name for c in vocabulary if SOURCE in c.sources}
    if not images or len(classes) < len(vocabulary):
        return []
    unknown = sorted(images.keys() - vocabulary.lookup(SOURCE).keys())
    white = [label for label in unknown if label in _WHITE]
    if white and images.keys() == {0, white[0]}:
        return [_black_and_white(white[0], classes)]
    others = [label for label in unknown if label not in white]
    lines = [_white(label, images[label]) for label in white]
    if list(classes) in ([*range(len(classes))], [*range(1, len(classes) + 1)]):  # no class was given a label of its own
        shifted = _shifted(images.keys() - set(white), others, classes)
        return lines + (shifted if shifted or not others else [_unknown(others, classes)])
    return lines + ([_unknown(others, classes)] if others else [])


def _black_and_white(white: int, classes: Mapping[int, str]) -> str:
    reason = f"the masks hold only the labels 0 and {white}, as black-and-white pictures do, and no class has {white}"
    name = list(classes.values())[-1] if len(classes) <= 2 else "NAME"
    first_label = "--first-label 0 " if len(classes) == 2 else ""
    return f"{reason}: if it stands for {_quoted(name)}, import them with {first_label}--label {shlex.quote(f'{name}={white}')}"


def _quoted(name: str) -> str:
    return "the class NAME" if name == "NAME" else repr(name)


def _white(label: int, images: int) -> str:
    where = f"{images} masks hold" if images > 1 else "1 mask holds"
    return f"{where} label {label}, which no class has: if it means that a pixel has none, import them with --ignore {label}"


def _shifted(labels: Collection[int], unknown: list[int], classes: Mapping[int, str]) -> list[str]:
    """A suggestion if the labels would fit with another first label, as a list of one line; [] otherwise."""
    (first, name), last = next(iter(classes.items())), max(classes)
    if first == 1 and not unknown and set(labels) == set(range(last)):
        held = f"the masks hold the labels {_span(0, last - 1)}, and none holds {last}, the last class's ({classes[last]!r})"
        return [f"{held}: if 0 stands for the first class {name!r}, import them with --first-label 0"]
    if unknown != [last + 1]:
        return []
    held = f"the masks hold label {last + 1}, and {_count(classes)} {_span(first, last)}"
    if first == 0:
        return [f"{held}: if the masks count classes from 1, import them with --first-label 1"]
    return [f"{held}: if the list lacks a class, such as the background, add it; if not, import them with --ignore {last + 1}"]


def _unknown(labels: list[int], classes: Mapping[int, str]) -> str:
    held = f"the masks hold {first_few(labels, _NAMED)}, and {_count(classes)} {_span(min(classes), max(classes))}"
    return f"{held}: add the missing classes to the list, or import them with --ignore {labels[0]}"


def _span(first: int, last: int) -> str:
    return f"{first}..{last}" if last > first else str(first)


def _count(classes: Collection[int]) -> str:
    return f"the {len(classes)} classes have" if len(classes) > 1 else "the only class has"
