"""The memory that reading annotation files of many shapes takes, most with a fault that the typed parser refuses.

``python tests/helpers/memory_of_annotations.py FOLDER BYTES`` prints {shape: [bytes of memory besides the file, size of the
file, result]}. Each file is read in a separate process, forked from one that has imported and compiled everything.
"""

import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from cocolvis.disk.archives import Place
from cocolvis.errors import DataError
from cocolvis.sources import annotations
from cocolvis.sources.annotations import AnnotationFile

_LISTS = '{"images": [{"id": 1, "height": 9, "width": 9}], "annotations": [', "]}"
_IMAGES = '{"images": [', '], "annotations": []}'
_BAD = '{"id": NaN}'


def _annotation(number: int, segmentation: str = "[]", image: int = 1, more: str = "") -> str:
    return f'{{"id":{number},"image_id":{image},"category_id":1,"segmentation":{segmentation}{more}}}'


def _image(number: int, more: str = "") -> str:
    return f'{{"id":{number},"height":9,"width":9{more}}}'


def _many(record: Callable[[int], str], size: int) -> Iterator[str]:
    number = 10**6
    while size > 0:
        number += 1
        text = record(number) + ","
        size -= len(text)
        yield text


def _around(lists: tuple[str, str], *parts: str) -> Iterator[str]:
    yield lists[0]
    yield from parts
    yield lists[1]


SHAPES: dict[str, Callable[[int], Iterator[str]]] = {
    "numbers for annotations": lambda n: _around(_LISTS, "0," * (n // 2), "0"),
    "empty objects": lambda n: _around(_LISTS, "{}," * (n // 3), "{}"),
    "lists that never end": lambda n: iter([_LISTS[0], "[" * n]),
    "only brackets": lambda n: iter(["[" * n]),
    "nested deeply": lambda n: _around(_LISTS, "[" * (n // 2), "]" * (n // 2)),
    "objects nested deeply": lambda n: _around(_LISTS, '{"a":' * (n // 6), "1", "}" * (n // 6)),
    "numbers that never end": lambda n: iter([_LISTS[0], "[", "0.5," * (n // 4)]),
    "a key after the other": lambda n: _around(("{", "}"), '"a":1,' * (n // 6), '"b":NaN'),
    "keys without end": lambda n: iter(["{", '"a":1,' * (n // 6)]),
    "one large record": lambda n: _around(_LISTS, _annotation(1, "[[" + "0.5," * (n // 4) + "NaN]]")),
    "one large record of small polygons": lambda n: _around(_LISTS, _annotation(1, "[" + "[]," * (n // 3) + "[NaN]]")),
    "much that is not read": lambda n: _around(_LISTS, _annotation(1, more=',"x":[' + "0.5," * (n // 4) + "NaN]")),
    "much beside the lists": lambda n: _around(('{"info": [' + "0.5," * (n // 4) + "NaN],", "}"), _LISTS[0][1:], "]"),
    "many good, one bad": lambda n: _around(_LISTS, *_many(_annotation, n), _BAD),
    "every other with NaN": lambda n: _around(_LISTS, *_many(lambda i: _annotation(i, ("[]", "[NaN]")[i % 2]), n), _BAD),
    "every other no record": lambda n: _around(_LISTS, *_many(lambda i: _annotation(i) if i % 2 else "0", n), _BAD),
    "annotations of no image": lambda n: _around(_LISTS, *_many(lambda i: _annotation(i, image=2), n), _BAD),
    "an id again and again": lambda n: _around(_LISTS, *_many(lambda i: _annotation(7), n), _BAD),
    "many images": lambda n: _around(_IMAGES, *_many(_image, n), _BAD),
    "an image again and again": lambda n: _around(_IMAGES, *_many(lambda i: _image(7), n), _BAD),
    "many categories of an image": lambda n: _around(_IMAGES, _image(1, ',"neg_category_ids":[' + "1000," * (n // 5) + "1]")),
    "many categories of a bad image": lambda n: _around(_IMAGES, _image(1, ',"neg_category_ids":[' + "7," * (n // 2) + "NaN]")),
    "categories that never end": lambda n: iter([_IMAGES[0], _image(1, ',"neg_category_ids":[' + "7," * (n // 2))]),
    "many categories": lambda n: _around(
        (_LISTS[0] + '],"categories":[', "]}"), *_many(lambda i: f'{{"id":{i},"name":"a"}}', n), '{"id":1,"name":"b"}'
    ),
    "a long text": lambda n: _around(_LISTS, _annotation(1, '"' + "\\ud800" * (n // 6) + '"')),
    "a long text of single bytes": lambda n: _around(_LISTS, _annotation(1, '"\\ud800' + "\udcff" * n + '"')),
    "a long name": lambda n: _around(_IMAGES, _image(1, ',"file_name":"\U0001f600' + "\udcff" * n + '"')),
    "a long key": lambda n: _around(("{", "," + _LISTS[0][1:] + "NaN]}"), '"' + "\udcff" * n + '":1'),
}
"""Name -> function that takes a number of bytes and returns the text of a file of about that size."""


def _resident(what: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(what)).split()[1])


def _read(path: Path) -> str:
    try:
        found = AnnotationFile(Place(str(path)).map(), path.name, "lvis")
    except DataError as error:
        return f"DataError {error}"
    return f"{len(found.images)} images, {len(found._annotations)} annotations, {len(found.faults)} faults"


def _measured(path: Path) -> list:
    """[bytes of memory besides the file, size of the file, result], measured in a separate process."""
    reader, writer = os.pipe()
    if not (child := os.fork()):
        Path("/proc/self/clear_refs").write_text("5")
        before, said = _resident("VmRSS"), _read(path)
        size = path.stat().st_size
        os.write(writer, json.dumps([_resident("VmHWM") - before - size, size, said[:300]]).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as said:
        answer = said.read()
    os.waitpid(child, 0)
    return json.loads(answer)


def main(folder: Path, size: int) -> None:
    """Write and measure one file after another."""
    annotations._FAULTS = 1000  # a constant amount would hide what grows with the file
    path, found = folder / "file.json", {}
    path.write_text(_LISTS[0] + _annotation(1, "[NaN]") + "," + _BAD + _LISTS[1])
    _read(path)
    for name, text in SHAPES.items():
        with path.open("w", encoding="utf-8", errors="surrogateescape") as file:
            file.writelines(text(size))
        found[name] = _measured(path)
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
