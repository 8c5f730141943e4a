"""Named cases of hostile annotation records: what is added to a tree, and what a build must report about it."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

IMAGE, ANNOTATION, THING, STUFF, NAME = "$IMAGE", "$ANNOTATION", "$THING", "$STUFF", "$NAME"
"""Symbols for the ids of a case's image, of the added record, and of the image's two valid annotations; in texts, also for the
file name of the image without its suffix."""

Fault = tuple[str, str, int | str | None, int | str | None]
"""(kind, source, image id, annotation id)."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is added to a tree, as JSON texts and a change of the picture, and the expected result.

    ``thing`` and ``stuff`` are added annotations. ``added_image`` and ``added_listing`` are image records added to the LVIS and
    the stuff file; ``image`` and ``listing`` replace the records of the image there. ``left`` is what remains of the image:
    "all", "things" (without stuff), "painted" (all and the added annotation) or "nothing".
    """

    name: str
    thing: str = ""
    stuff: str = ""
    image: str = ""
    listing: str = ""
    added_image: str = ""
    added_listing: str = ""
    picture: Callable[[Path], object] | None = None
    faults: tuple[Fault, ...] = ()
    left: str = "all"


def _annotation(
    segmentation: str, *, category: str = "7", image: str = IMAGE, identity: str = ANNOTATION, more: str = ""
) -> str:
    return f'{{"id": {identity}, "image_id": {image}, "category_id": {category}, "segmentation": {segmentation}{more}}}'


def _runs(counts: str, size: str = "[8, 8]") -> str:
    return f'{{"size": {size}, "counts": {counts}}}'


def _compressed(*runs: int) -> str:
    """Run lengths in COCO's compressed coding, as JSON; they need not be valid."""
    text = ""
    for place, run in enumerate(runs):
        value, more = run - (runs[place - 2] if place > 2 else 0), True
        while more:
            symbol, value = value & 31, value >> 5
            more = value != (-1 if symbol & 16 else 0)
            text += chr(symbol + 32 * more + 48)
    return _runs(json.dumps(text))


_SQUARE = "[[2, 3, 7, 3, 7, 6, 2, 6]]"
_TURNS = np.arange(5000) * 0.7
_STAR = np.stack([4 + (1 + 3 * (np.arange(5000) % 2)) * turn(_TURNS) for turn in (np.cos, np.sin)], 1).round(3).ravel().tolist()
DEEP = "[" * 5000 + "]" * 5000
MANY_DIGITS = "9" * 5000

_REFUSED = {
    "NaN coordinate": "[[0, 0, NaN, 0, 8, 8]]",
    "all coordinates NaN": "[[NaN, NaN, NaN, NaN, NaN, NaN]]",
    "infinite coordinate": "[[0, 0, Infinity, 0, 8, 8]]",
    "minus infinite coordinate": "[[0, 0, 8, -Infinity, 8, 8]]",
    "coordinate that overflows to infinity": "[[0, 0, 1e999, 0, 8, 8]]",
    "coordinate of 1e300": "[[0, 0, 1e300, 0, 8, 8]]",
    "coordinate beyond 32 bits": "[[0, 0, 4294967297, 0, 8, 8]]",
    "coordinate beyond 64 bits": "[[0, 0, -36893488147419103232, 0, 8, 8]]",
    "coordinate of 5000 digits": f"[[0, 0, {MANY_DIGITS}, 0, 8, 8]]",
    "coordinate a bit too far out": "[[0, 0, 16.001, 0, 8, 8]]",
    "odd number of coordinates": "[[0, 0, 8, 0, 8, 8, 0]]",
    "two points": "[[0, 0, 8, 8]]",
    "one point": "[[4, 4]]",
    "polygon without points": "[[]]",
    "good polygon beside an empty one": "[[0, 0, 8, 0, 8, 8], []]",
    "no polygons": "[]",
    "box as four numbers": "[1, 1, 6, 6]",
    "box as a polygon of four numbers": "[[1, 1, 6, 6], [2, 2, 7, 7]]",
    "box as two corners": "[[1, 1], [6, 6]]",
    "points as pairs": "[[[0, 0], [8, 0], [8, 8]]]",
    "coordinates as text": '[["0", "0", "8", "0", "8", "8"]]',
    "true among the coordinates": "[[0, 0, 8, 0, 8, true]]",
    "null among the coordinates": "[[0, 0, 8, null, 8, 8]]",
    "null as a polygon": "[null]",
    "null as segmentation": "null",
    "number as segmentation": "17",
    "true as segmentation": "true",
    "text as segmentation": '"0,0,8,0,8,8"',
    "polygon as text": '["0 0 8 0 8 8"]',
    "object as segmentation": '{"x": 1}',
    "empty object": "{}",
    "nested 40 deep": "[" * 40 + "]" * 40,
    "nested 5000 deep": DEEP,
    "runs nested 5000 deep": _runs(DEEP),
    "size of another image": _runs("[63]", "[7, 9]"),
    "size of another image of as many pixels": _runs("[0, 64]", "[4, 16]"),
    "size of zero": _runs("[0]", "[0, 8]"),
    "size negative": _runs("[0, 64]", "[-8, -8]"),
    "size huge": _runs("[0, 64]", "[4294967296, 4294967296]"),
    "size right modulo 2^32": _runs("[0, 64]", "[4294967304, 8]"),
    "size of 5000 digits": _runs("[0, 64]", f"[{MANY_DIGITS}, 8]"),
    "size fractional": _runs("[0, 64]", "[8.5, 8]"),
    "size of one number": _runs("[0, 64]", "[8]"),
    "size of three numbers": _runs("[0, 64]", "[8, 8, 1]"),
    "size as a number": _runs("[0, 64]", "64"),
    "size as text": _runs("[0, 64]", '"8x8"'),
    "size of texts": _runs("[0, 64]", '["8", "8"]'),
    "size null": _runs("[0, 64]", "null"),
    "size missing": '{"counts": [0, 64]}',
    "counts missing": '{"size": [8, 8]}',
    "counts null": _runs("null"),
    "counts as a number": _runs("64"),
    "counts nested": _runs("[[0, 64]]"),
    "counts in an object": _runs('{"0": 64}'),
    "counts of text": _runs('["0", "64"]'),
    "counts fractional": _runs("[0.5, 63.5]"),
    "counts NaN": _runs("[NaN, 64]"),
    "counts true": _runs("[true, 63]"),
    "counts null inside": _runs("[0, null]"),
    "no counts": _runs("[]"),
    "runs too short": _runs("[10, 10]"),
    "runs too long": _runs("[10, 100]"),
    "one pixel too many": _runs("[10, 55]"),
    "negative run": _runs("[70, -6]"),
    "negative run inside": _runs("[30, -10, 44]"),
    "negative run first": _runs("[-10, 20, 10, 44]"),
    "runs right modulo 2^32": _runs("[4294967296, 64]"),
    "runs right modulo 2^32 by two": _runs("[2147483648, 2147483648, 64]"),
    "runs right modulo 2^64": _runs("[9223372036854775807, 9223372036854775807, 66]"),
    "runs beyond 64 bits": _runs("[18446744073709551616, 64]"),
    "run of 5000 digits": _runs(f"[{MANY_DIGITS}, 64]"),
    "compressed counts empty": _runs('""'),
    "compressed counts of spaces": _runs('"  "'),
    "compressed counts that are cut short": _compressed(20, 44).replace('"}', 'P"}'),
    "compressed counts too short": _compressed(10, 10),
    "compressed counts too long": _compressed(10, 55),
    "compressed counts negative": _compressed(70, -6),
    "compressed counts negative inside": _compressed(30, -10, 44),
    "compressed counts right modulo 2^32": _compressed(2**32, 64),
    "compressed counts right modulo 2^32 by steps": _compressed(0, 2**31, 0, 2**31, 64),
    "compressed counts right modulo 2^64": _compressed(2**63, 2**63, 64),
    "compressed counts far beyond 64 bits": _compressed(2**200, 64),
    "compressed counts overlong": _runs('"' + "P" * 15 + '0"'),
    "compressed counts beyond ASCII": _runs(r'"P2\u00e9"'),
    "compressed counts with a lone surrogate": _runs(r'"P2\ud800"'),
    "compressed counts that are not UTF-8": _runs('"P2\udcff\udc80"'),
    "compressed counts with NUL": _runs(r'"P2\u0000"'),
    "compressed counts of DEL": _runs(r'"\u007f"'),
    "compressed counts as Python bytes": _runs("\"b'P2'\""),
    "compressed counts of 100000 characters": _runs('"' + "o" * 100_000 + '"'),
}
"""Invalid segmentations, in otherwise valid records."""

_PAINTED = {
    "star of 10000 vertices": json.dumps([_STAR + _STAR]),
    "bow tie": "[[0, 0, 8, 8, 8, 0, 0, 8]]",
    "polygon on itself": "[[1, 1, 7, 1, 7, 7, 1, 7, 1, 1, 7, 1, 7, 7, 1, 7]]",
    "polygons that overlap": "[[0, 0, 5, 0, 5, 5, 0, 5], [3, 3, 8, 3, 8, 8, 3, 8]]",
    "polygon without area": "[[1, 1, 5, 5, 7, 7]]",
    "polygon of one point thrice": "[[4, 4, 4, 4, 4, 4]]",
    "polygon outside on the right": "[[9, 1, 15, 1, 15, 7, 9, 7]]",
    "polygon outside on the left": "[[-7, 1, -2, 1, -2, 7, -7, 7]]",
    "polygon out on all sides": "[[-8, -8, 16, -8, 16, 16, -8, 16]]",
    "exponents": "[[1e0, 1E0, 0.7e1, 1e+0, 70e-1, 6.5, 1.0, 0.0065E3]]",
    "minus zero": "[[-0.0, -0, 8, -0.0, 8, 5, -0.0, 5]]",
    "many decimals": "[[3.000000000000000000001, 1, 8, 1, 8, 6.4999999999999999999999999, 3, 6]]",
    "denormal": "[[5e-324, 1e-400, 8, 0, 8, 5, 0, 5]]",
    "spaces and line breaks": "[\n[ 0 ,\t0, 8, 0,\r\n8, 5 ] ]",
    "run lengths": _runs("[20, 20, 4, 20]"),
    "run lengths with empty runs": _runs("[20, 0, 0, 20, 4, 20]"),
    "compressed run lengths": _compressed(20, 20, 4, 16, 4),
    "compressed run lengths with empty runs": _compressed(20, 0, 0, 20, 4, 20),
    "all pixels": _compressed(0, 64),
    "no pixels": _runs("[64]"),
    "runs with more keys": '{"counts": [20, 44], "extra": [null, {"a": "b"}], "size": [8, 8]}',
    "runs with a key twice": '{"size": [8, 8], "counts": [64], "counts": [20, 44]}',
}
"""Valid segmentations, which must be painted as pycocotools paints them."""

_BAD = "malformed annotation"
MISSING, TWICE = (("missing annotation id", "lvis", None, None), ("duplicate annotation id", "lvis", None, None))
"""Faults that are reported once for all such annotations of a file."""
_UNKNOWN = {"lvis": (0, -1, 1204, 2**40, 2**64), "stuff": (0, -1, 7, 91, 184, 1204, 2**40)}
_NO_INTEGERS = {
    "category_id": ("7.5", "1e30", "true", '"7"', "null", "[7]", "NaN", MANY_DIGITS, DEEP),
    "image_id": ("1.5", "-9.3e18", "true", f'"{IMAGE}"', "null", "Infinity", MANY_DIGITS, DEEP),
    "id": ("1.5", "1e19", "true", '"1"', '{"id": 1}', "1e999", MANY_DIGITS, DEEP),
}


def _segmentations() -> list[Case]:
    """Cases of segmentations, alternating between the two files."""
    cases = []
    for number, (name, text) in enumerate(_REFUSED.items()):
        key, source, category = (("thing", "lvis", "7"), ("stuff", "stuff", "99"))[number % 2]
        faults = ((_BAD, source, IMAGE, ANNOTATION),)
        cases.append(Case(name=name, faults=faults, **{key: _annotation(text, category=category)}))
    for number, (name, text) in enumerate(_PAINTED.items()):
        key, category = (("thing", "7"), ("stuff", "99"))[number % 2]
        cases.append(Case(name=name, left="painted", **{key: _annotation(text, category=category)}))
    return cases


def _fields() -> list[Case]:
    """Cases of records with other fields that are wrong or missing."""
    cases = []
    for source, categories in _UNKNOWN.items():
        for category in categories:
            text, faults = _annotation(_SQUARE, category=str(category)), (("unknown category", source, IMAGE, ANNOTATION),)
            key = {"lvis": "thing", "stuff": "stuff"}[source]
            cases.append(Case(name=f"{source} category {category}", faults=faults, **{key: text}))
    for field, values in _NO_INTEGERS.items():
        argument = {"category_id": "category", "image_id": "image", "id": "identity"}[field]
        fault = (_BAD, "lvis", None if field == "image_id" else IMAGE, None if field == "id" else ANNOTATION)
        for value in values:
            text = _annotation(_SQUARE, **{argument: value})
            cases.append(Case(name=f"{field} is {short(value)}", thing=text, faults=(fault,)))
        if field != "id":
            cases.append(Case(name=f"no {field}", thing=_annotation(_SQUARE).replace(f'"{field}"', '"other"'), faults=(fault,)))
    return cases


def short(text: str) -> str:
    """A value as it appears in the name of a case."""
    return text if len(text) < 30 else f"{text[:3]}... of {len(text)} characters"


def _records() -> list[Case]:
    def thing(name: str, text: str, kind: str, image: int | str | None, annotation: str | None) -> Case:
        return Case(name=name, thing=text, faults=((kind, "lvis", image, annotation),))

    cases = [
        thing(f"annotation that is {text}", text, _BAD, None, None)
        for text in ("17", "null", "true", '"text"', "[]", "[1, 2, 3]", "NaN", "{}")
    ]
    for image in (987654321, -1, 2**63, 2**70):
        text = _annotation(_SQUARE, image=str(image))
        cases.append(thing(f"annotation of image {image}", text, "unlisted image", image, ANNOTATION))
    unsegmented = _annotation(_SQUARE).replace("segmentation", "segments")
    stuff_nan, stuff_twice = (_annotation(_SQUARE, category="99", identity=identity) for identity in ("NaN", STUFF))
    return [
        *cases,
        thing("no segmentation", unsegmented, _BAD, IMAGE, ANNOTATION),
        thing("key twice, the last one wrong", _annotation(_SQUARE, more=', "category_id": null'), _BAD, IMAGE, ANNOTATION),
        Case(name="stuff with a NaN id", stuff=stuff_nan, faults=((_BAD, "stuff", IMAGE, None),)),
        Case(name="annotation id twice", thing=_annotation(_SQUARE, identity=THING), faults=(TWICE,), left="painted"),
        Case(name="stuff id twice", stuff=stuff_twice, faults=((TWICE[0], "stuff", None, None),), left="painted"),
        Case(name="annotation id null", thing=_annotation(_SQUARE, identity="null"), faults=(MISSING,), left="painted"),
        Case(name="no annotation id", thing=_annotation(_SQUARE).replace('"id"', '"other"'), faults=(MISSING,), left="painted"),
        *(Case(name=name, thing=text, left="painted") for name, text in _odd_records().items()),
    ]


def _odd_records() -> dict[str, str]:
    """Annotations that look odd but are valid."""
    extras = {
        "extra keys": '"": null, "area": -5, "bbox": "none", "iscrowd": [], "score": {"a": [1]}',
        "NaN in a key that is not read": '"area": NaN, "bbox": [-Infinity, Infinity, NaN]',
        "numbers out of range in a key that is not read": '"area": 1e999, "score": -1e999',
        "5000 digits in a key that is not read": f'"area": {MANY_DIGITS}, "score": NaN',
        "lone surrogates in a key that is not read": r'"note": "\ud800", "\udfff": 1',
        "invalid UTF-8 in a key that is not read": '"note": "\udcff\udc80"',
        "deep nesting in a key that is not read": f'"note": {DEEP}',
        "deep objects in a key that is not read": '"note": ' + '{"a":' * 5000 + "1" + "}" * 5000,
        "long text": f'"note": "{"x" * 100_000}"',
        "key twice": f'"id": {ANNOTATION}, "category_id": 7',
    }
    records = {name: _annotation(_SQUARE, more=f", {text}") for name, text in extras.items()}
    whole = {"category": "7.0", "image": f"{IMAGE}.0", "identity": f"{ANNOTATION}e0"}
    records["whole numbers as floats"] = _annotation(_SQUARE, **whole)
    records["whole numbers as floats in run lengths"] = _annotation(_runs("[20.0, 20, 2.4e1]", "[8.0, 8]"))
    records["key twice, the first one wrong"] = _annotation(_SQUARE, category="null", more=', "category_id": 7')
    records["crowd with run lengths"] = _annotation(_runs("[10, 44, 10]"), more=', "iscrowd": 1, "area": 44')
    records["annotation id of 30 digits"] = _annotation(_SQUARE, identity=f"{'7' * 22}{ANNOTATION}")
    records["negative annotation id"] = _annotation(_SQUARE, identity=f"-{ANNOTATION}")
    return records


ANNOTATIONS = _segmentations() + _fields() + _records()
