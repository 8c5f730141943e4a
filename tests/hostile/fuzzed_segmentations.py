"""Mutated segmentations, and the check that ``rasterize`` refuses them or agrees with pycocotools."""

import json
import re
from contextlib import suppress
from random import Random

import numpy as np
from pycocotools import mask as coco_mask
from trees import box, rle

from cocolvis.masks.rasterize import BadSegmentation, rasterize

_WORDS = r"""
    NaN Infinity -Infinity 1e999 -1e999 1e308 1e-400 -0.0 0 1 7 7.0 -1 0.5 15.999999999 16.001 1e2 31 32 63 64 65 127
    2147483647 2147483648 4294967295 4294967296 4294967360 9223372036854775807 9223372036854775808 18446744073709551616 true
    false null "" "7" "\ud800" "\u0000" [] [[]] {} [7] {"id":7} 01 1. .5 +1 1e 0x10 --1
"""
NASTY = [*_WORDS.split(), "9" * 5000, "[" * 2000 + "]" * 2000, '"a\nb"', "1" + "0" * 400, "-" + "9" * 40]
"""JSON values, and texts that resemble them."""

_BYTES = b'[]{}",:0123456789.-+eEPNot \\/\n\x00\x1f\x7f\x80\xc3\xed\xff'
_NUMBER = re.compile(rb"-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?")
_MARGIN = 6
"""The most symbols of a compressed number that pycocotools decodes without overflow."""


def mutated(random: Random, content: bytes, others: list[bytes], most: int = 3) -> bytes:
    """``content`` after one to ``most`` changes, most of them small, some harmless."""
    for _ in range(random.randint(1, most)):
        content = random.choice(_CHANGES)(random, content, others)
    return content


def _replaced(random: Random, content: bytes, text: bytes) -> bytes:
    numbers = list(_NUMBER.finditer(content))
    if not numbers:
        return content + text
    number = random.choice(numbers)
    return content[: number.start()] + text + content[number.end() :]


def _renumber(random: Random, content: bytes, others: list[bytes]) -> bytes:
    return _replaced(random, content, random.choice([b"%d", b"%d.5", b"%d.0", b"%de0"]) % random.randint(-1, 9))


def _renumber_nastily(random: Random, content: bytes, others: list[bytes]) -> bytes:
    return _replaced(random, content, random.choice(NASTY).encode())


def _balance(random: Random, content: bytes, others: list[bytes]) -> bytes:
    """Subtract from one number and add to the next but one, so that run lengths keep their sum."""
    at = random.choice([found.start() for found in re.finditer(rb"\d+", content)] or [0])
    found = re.compile(rb"(\d{1,9})(,[^,]*, ?)(\d{1,9})(?![\d.])").match(content, at)
    if not found:
        return content
    step = min(int(found[1]) + random.choice((0, 0, 0, 5)), random.randint(1, 9))
    numbers = b"%d%b%d" % (int(found[1]) - step, found[2], int(found[3]) + step)
    return content[:at] + numbers + content[found.end() :]


def _space(random: Random, content: bytes, others: list[bytes]) -> bytes:
    places = [m.start() for m in re.finditer(rb"[\[\]{},:]", content)]
    at = random.choice(places or [0])
    return content[:at] + random.choice([b" ", b"\n", b"\t", b"\r", b"\x0b", b"\x00"]) + content[at:]


def _at(random: Random, content: bytes) -> int:
    return random.randint(0, len(content))


def _slice(random: Random, content: bytes) -> tuple[int, int]:
    start = _at(random, content)
    return start, min(len(content), start + random.choice([1, 1, 1, 2, 5, 20, 100]))


def _flip(random: Random, content: bytes, others: list[bytes]) -> bytes:
    at = _at(random, content[:-1])
    return content[:at] + bytes([b ^ 1 << random.randrange(8) for b in content[at : at + 1]]) + content[at + 1 :]


def _insert(random: Random, content: bytes, others: list[bytes]) -> bytes:
    at = _at(random, content)
    return content[:at] + bytes([random.choice(_BYTES)]) + content[at:]


def _delete(random: Random, content: bytes, others: list[bytes]) -> bytes:
    start, stop = _slice(random, content)
    return content[:start] + content[stop:]


def _repeat(random: Random, content: bytes, others: list[bytes]) -> bytes:
    start, stop = _slice(random, content)
    return content[:stop] + content[start:]


def _cut(random: Random, content: bytes, others: list[bytes]) -> bytes:
    return content[: _at(random, content)] if random.randrange(4) == 0 else content


def _exchange(random: Random, content: bytes, others: list[bytes]) -> bytes:
    at = _at(random, content[:-2])
    return content[:at] + content[at : at + 2][::-1] + content[at + 2 :]


def _splice(random: Random, content: bytes, others: list[bytes]) -> bytes:
    other = random.choice(others)
    return content[: _at(random, content)] + other[_at(random, other) :]


_CHANGES = [_balance] * 6 + [_renumber] * 5 + [_space] * 3 + [_renumber_nastily] * 2
_CHANGES += [_flip, _insert, _delete, _repeat, _cut, _exchange, _splice]


def _blob(seed: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(seed).random((height, width)).cumsum(0) % 3 < 1


def _polygon(seed: int, height: int, width: int, points: int) -> list[float]:
    rng = np.random.default_rng(seed)
    return (rng.uniform(-0.3, 1.3, (points, 2)) * (width, height)).round(2).ravel().tolist()


SEGMENTATIONS = [
    (json.dumps(segmentation).encode(), height, width)
    for height, width in ((8, 8), (30, 40), (41, 17), (1, 1), (240, 320))
    for segmentation in (
        box(1, 1, width, height),
        [_polygon(1, height, width, 3)],
        [_polygon(k, height, width, 5) for k in range(3)],
        [_polygon(9, height, width, 30)],
        rle(_blob(1, height, width)[:60, :60] if height * width < 1300 else np.ones((height, width), bool)),
        rle(_blob(2, height, width) if height * width < 1300 else np.zeros((height, width), bool), compressed=False),
        {"size": [height, width], "counts": [0, height * width]},
        {"counts": [height * width], "size": [height, width], "note": "x"},
    )
]
"""(valid JSON, height, width)."""
_TEXTS = [text for text, _, _ in SEGMENTATIONS]


def segmentation(random: Random) -> tuple[bytes, int, int]:
    """(JSON, height, width) of a segmentation, mutated in most cases."""
    if random.randrange(2):
        text, height, width = random.choice(SEGMENTATIONS)
        return mutated(random, text, _TEXTS), height, width
    height, width = random.choice(((8, 8), (1, 1), (1, 50), (37, 1), (30, 40), (97, 81), (240, 320)))
    drawn = random.choice((_drawn_polygons, _drawn_polygons, _drawn_runs))(random, height, width)
    text = json.dumps(drawn).encode()
    return (text if random.randrange(4) else mutated(random, text, _TEXTS, most=1)), height, width


def _drawn_polygons(random: Random, height: int, width: int) -> list[list[float]]:
    """Polygons with coordinates on a grid, which exposes rounding, and as far outside the image as is allowed."""
    grid, reach = random.choice((1, 2, 5, 10, 1000)), random.choice((0, 0, 0.2, 1))

    def coordinate(side: int) -> float:
        return random.randint(int(-reach * side * grid), int((1 + reach) * side * grid)) / grid

    count = random.choice((3, 3, 4, 5, 8, 13))
    polygons = range(random.choice((1, 1, 2, 3)))
    return [[coordinate(side) for _ in range(count) for side in (width, height)] for _ in polygons]


def _drawn_runs(random: Random, height: int, width: int) -> dict:
    cuts = [0, *sorted(random.randint(0, height * width) for _ in range(random.randint(0, 20))), height * width]
    runs = {"size": [height, width], "counts": np.diff(cuts).tolist()}
    return runs if random.randrange(2) else runs | {"counts": coco_mask.frPyObjects(runs, height, width)["counts"].decode()}


class Json:
    """Text as Python's json reads it; ``doubtful`` means that other JSON readers may disagree."""

    def __init__(self, content: bytes):
        text = content.decode("utf-8", "replace")
        self.doubtful = text.encode() != content or bool(re.search(r"\\u[dD][89a-fA-F]", text))
        decoder = json.JSONDecoder(parse_constant=self._constant, parse_int=self._integer, object_pairs_hook=self._object)
        decoder.strict = False
        self.value = decoder.decode(text)
        with suppress(ValueError):  # control characters
            json.loads(text)
            return
        self.doubtful = True

    def _constant(self, name: str) -> float:
        self.doubtful = True
        return float(name)

    def _integer(self, digits: str) -> int | float:
        return int(digits) if len(digits) < 4000 else float(digits)

    def _object(self, pairs: list) -> dict:
        self.doubtful |= len(dict(pairs)) < len(pairs)
        return dict(pairs)


def _is_number(value) -> bool:
    return type(value) in (int, float)


def _polygons(parsed: list, height: int, width: int) -> np.ndarray | None:
    for polygon in parsed:
        if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2 or not all(map(_is_number, polygon)):
            return None
        if not all(-side <= v <= 2 * side for k in (0, 1) for side in [(width, height)[k]] for v in polygon[k::2]):
            return None
    return coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(parsed, height, width))) > 0 if parsed else None


def _decompressed(counts: str) -> tuple[list[int], int] | None:
    """(run lengths, most symbols of one of them) of compressed counts; None if they are malformed."""
    runs: list[int] = []
    value = place = longest = 0
    for symbol in (ord(character) - 48 for character in counts):
        if not 0 <= symbol < 64:
            return None
        value |= (symbol & 31) << 5 * place
        place += 1
        if not symbol & 32:
            value -= (1 << 5 * place) if symbol & 16 else 0
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            longest, value, place = max(longest, place), 0, 0
    return None if place else (runs, longest)


def _whole(value):
    """A list with whole numbers as ints, even if they are written as floats."""
    if not isinstance(value, list):
        return value
    return [int(item) if isinstance(item, float) and item.is_integer() else item for item in value]


def _painted_runs(parsed: dict, height: int, width: int) -> tuple[np.ndarray | None, bool]:
    """(mask or None, whether the counts are coded with more symbols than necessary)."""
    size, counts, longest = _whole(parsed.get("size")), _whole(parsed.get("counts")), 0
    if not isinstance(size, list) or [type(s) for s in size] != [int, int] or size != [height, width]:
        return None, False
    if isinstance(counts, str):
        counts, longest = _decompressed(counts) or (None, 0)
    if not isinstance(counts, list) or not all(type(run) is int and run >= 0 for run in counts):
        return None, False
    if not counts or sum(counts) != height * width:
        return None, False
    flat = np.repeat(np.arange(len(counts)) % 2 > 0, counts)
    if longest <= _MARGIN:
        runs = {"size": size, "counts": parsed["counts"] if longest else counts}
        known = runs if longest else coco_mask.frPyObjects(runs, height, width)
        assert np.array_equal(coco_mask.decode(known).ravel(order="F") > 0, flat)
    return flat.reshape(width, height).T, longest > _MARGIN


def _judged(content: bytes, height: int, width: int) -> tuple[bool, np.ndarray | None]:
    """(whether it may be refused, the mask if it is accepted, or None)."""
    try:
        read = Json(content)
    except ValueError:
        return True, None
    if isinstance(read.value, dict):
        mask, doubtful = _painted_runs(read.value, height, width)
    else:
        mask, doubtful = _polygons(read.value, height, width) if isinstance(read.value, list) else None, False
    return mask is None or doubtful or read.doubtful, mask


def assert_refused_or_painted(content: bytes, height: int, width: int) -> bool:
    """Check that a segmentation is refused, or painted in valid spans as pycocotools paints it; whether it was painted."""
    try:
        refusable, mask = _judged(content, height, width)
    except RecursionError:  # nested too deeply for Python's json
        with suppress(BadSegmentation):
            rasterize(content, height, width)
        return False
    try:
        starts, stops = rasterize(content, height, width)
    except BadSegmentation as error:
        assert refusable, f"is refused: {error}"
        assert str(error).strip() and len(str(error).splitlines()) == 1, f"the reason is {error}"
        return False
    assert mask is not None, "is accepted"
    assert starts.dtype == stops.dtype == np.int64 and starts.shape == stops.shape == (starts.size,)
    assert (starts < stops).all() and (stops[:-1] <= starts[1:]).all(), "spans are empty or out of order"
    assert not starts.size or (starts[0] >= 0 and stops[-1] <= height * width), "spans leave the image"
    steps = np.zeros(height * width + 1, np.int64)
    np.add.at(steps, starts, 1)
    np.add.at(steps, stops, -1)
    assert np.array_equal(steps.cumsum()[:-1].reshape(width, height).T > 0, mask), "other pixels are painted"
    return True
