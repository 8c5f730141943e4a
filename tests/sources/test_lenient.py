"""The compiled JSON reader compared with Python's json: what it accepts, its values, and the offsets of elements."""

import json
from random import Random

import pytest

from cocolvis.sources import json_kernels
from cocolvis.sources.lenient import as_text, elements, strict, values

SEEDS = (
    rb'{"a":[1,2.5e3,-0,true,null,"x\u00e9\"y \ud83d\ude00",{"b":[],"c":{}}],"d":"' + "é€\U0001f600".encode() + b'"}',
    b'[[NaN],{"k":-Infinity}, 1E+5 ,Infinity,false,[]]',
)
INSERTED = b'{}[],:"\\\\0123456789eE+-.truefalsnulNaIfity \n\x01\xff\xe2\xf0\x80'


def mutated(random: Random) -> bytes:
    content = bytearray(random.choice(SEEDS))
    for _ in range(random.choice((1, 1, 2, 3))):
        at, symbol = random.randrange(len(content)), random.choice(INSERTED)
        content[at : at + random.randrange(2)] = [symbol][: random.randrange(2)]
    return bytes(content)


def by_json(content: bytes):
    return json.loads(str(content, "utf-8", "replace"))


@pytest.mark.parametrize("rounds", [4_000, pytest.param(10**6, marks=pytest.mark.long)])
def test_exactly_what_python_reads_is_read(rounds):
    random, accepted = Random(0), 0
    for _ in range(rounds):
        content = mutated(random)
        text = as_text(content)
        end = json_kernels.skip(text, 0)
        try:
            value = by_json(content)
        except ValueError:
            assert end < 0 or json_kernels.blank(text, end) < len(text), content
            continue
        assert json_kernels.blank(text, end) == len(text), content
        again = json.loads(bytes(strict(text, 0, end)), parse_constant=pytest.fail)
        assert normal(again) == normal(value), content
        accepted += 1
    assert accepted > rounds / 20


def normal(value):
    """A value without the intended differences: NaN counts as infinite, replaced bytes and surrogates as one character."""
    if isinstance(value, float):
        return "infinite" if value != value or abs(value) == float("inf") else value
    if isinstance(value, str):
        replaced = "".join("\ufffd" if "\ud800" <= symbol < "\ue000" else symbol for symbol in value)
        return "\ufffd".join(part for part in replaced.split("\ufffd") if part)
    if isinstance(value, list):
        return [normal(element) for element in value]
    return {normal(k): normal(v) for k, v in value.items()} if isinstance(value, dict) else value


def test_elements_of_the_requested_lists():
    text = as_text(
        rb' {"x": [1], "im\u0061ges" : [ 1,"]\"" ,[[2]],{"images":[3]}, NaN ], "images": 4, "images": [], "y": {"z": [5]}} '
    )
    found = [
        (key, [bytes(text[a:b]) for a, b in spans.tolist()])
        for key, at, _ in values(text, ("images", "y"))
        if text[at] == ord("[")
        for spans in elements(text, at)
    ]
    assert found == [("images", [b"1", rb'"]\""', b"[[2]]", b'{"images":[3]}', b"NaN"]), ("images", [])]


def test_any_value_but_null_of_a_requested_key():
    text = as_text(b'{"a": 1.5, "b": null, "a": {"b": []}, "c": [2]}')
    assert [(key, bytes(text[at:end])) for key, at, end in values(text, ("a", "b"))] == [("a", b"1.5"), ("a", b'{"b": []}')]


def test_long_lists_are_read_in_parts():
    numbers = list(range(5000))
    text = as_text(json.dumps({"a": numbers}).encode())
    [(_, at, _)] = values(text, ("a",))
    parts = list(elements(text, at))
    assert len(parts) > 2 and [int(bytes(text[a:b])) for spans in parts for a, b in spans.tolist()] == numbers


def test_depth_is_unlimited_and_is_cut_for_strict_parsers():
    deep = b"[" * 10**6 + b'"]"' + b"]" * 10**6
    assert json_kernels.skip(as_text(deep), 0) == len(deep)
    assert bytes(strict(as_text(deep), 0, len(deep))) == b"[" * 99 + b"null" + b"]" * 99
