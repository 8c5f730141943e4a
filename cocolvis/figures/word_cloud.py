"""The word cloud of class names: the area of a name grows with the share of its class among the labelled pixels."""

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cocolvis.disk.files import write_aside
from cocolvis.figures.files import write_table
from cocolvis.figures.long_tail import COLOURS, PLAIN

COLUMNS = ("class", "name", "group", "pixels", "pixel_ratio", "font_size")
"""The columns of the CSV; ``font_size`` is in pixels of the PNG, and empty for a name that is too small to be drawn."""

_WIDTH, _HEIGHT = 1600, 900
_LARGEST, _SMALLEST = (200, 160, 128, 102, 82, 66), 9
"""Font sizes, in pixels: of the largest word (the first at which all words have room) and of the smallest."""

_LONGEST = 60
"""The most characters of a name; the package stops at the first word that is wider than the picture."""


def write(classes: list[Mapping[str, Any]], stem: Path) -> None:
    """Write ``stem`` with .png, .svg and .csv for the ``classes`` of a split in the result of ``statistics``, one with pixels.

    The height of a name is proportional to the square root of its pixel ratio. Names that would be too small to read are left
    out. Names are drawn smaller if not even small ones have room. The same input gives the same picture.

    Raises ImportError if the package wordcloud is not installed, DataError if a file cannot be written.
    """
    ranked = sorted(classes, key=lambda row: (-row["pixels"], row["class"]))
    cloud = _cloud(ranked)
    sizes = {word: size for (word, _), size, *_ in cloud.layout_}
    rows = [
        [row["class"], row["name"], row["group"], row["pixels"], row["pixel_share"], sizes.get(_word(row))] for row in ranked
    ]
    write_table(stem.with_suffix(".csv"), COLUMNS, rows)
    logging.getLogger("fontTools.subset").setLevel(logging.ERROR)  # it warns of a table that no browser needs
    with write_aside(stem.with_suffix(".svg")) as aside:
        aside.write_text(cloud.to_svg(embed_font=True, optimize_embedded_font=True), encoding="utf-8")
    with write_aside(stem.with_suffix(".png")) as aside:
        cloud.to_image().save(aside, format="png")


def _word(row: Mapping[str, Any]) -> str:
    """The word that stands for a class; shortened names end in the class, so that they stay different."""
    return row["name"] if len(row["name"]) <= _LONGEST else f"{row['name'][: _LONGEST - 8]}… {row['class']}"


def _cloud(classes: list[Mapping[str, Any]]) -> Any:
    """The words in their places, as large as all of them fit at their true sizes; ``classes`` are sorted by pixels."""
    for largest in _LARGEST:
        # Whole sizes: the package multiplies each size with its ratio to the one before and rounds; errors would add up.
        most = max(1, classes[0]["pixels"])
        sizes = {_word(row): round(largest * math.sqrt(row["pixels"] / most)) for row in classes}
        sizes = {word: size for word, size in sizes.items() if size >= _SMALLEST}
        cloud = _placed(classes, sizes, largest)
        if {word: size for (word, _), size, *_ in cloud.layout_} == sizes:
            break
    return cloud


def _placed(classes: list[Mapping[str, Any]], sizes: Mapping[str, int], largest: int) -> Any:
    from matplotlib import get_data_path
    from wordcloud import WordCloud

    groups = {_word(row): row["group"] for row in classes}
    cloud = WordCloud(
        width=_WIDTH,
        height=_HEIGHT,
        background_color="white",
        font_path=str(Path(get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")),
        max_words=len(classes),
        max_font_size=largest,
        min_font_size=_SMALLEST,
        relative_scaling=1,
        prefer_horizontal=1,
        random_state=0,
        color_func=lambda word, **_: COLOURS.get(groups[word], PLAIN),
    )
    return cloud.generate_from_frequencies(sizes)
