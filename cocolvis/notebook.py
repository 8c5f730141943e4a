"""Small HTML tables and pictures, with which objects show themselves in notebooks."""

import base64
import html
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import cv2
import numpy as np

from cocolvis.palette import palette

_SIDE = 320
"""The longest side, in pixels, of a picture in a notebook."""


class Markup(NamedTuple):
    """HTML that a table shows as it is; every other value is escaped."""

    html: str


def table(header: Sequence[object], rows: Iterable[Sequence[object]], caption: object = "") -> str:
    """An HTML table; numbers are right-aligned with thousands separators, and None is an empty cell."""
    head = "".join(f"<th>{_cell(name)}</th>" for name in header)
    body = "".join("<tr>" + "".join(_column(value) for value in row) + "</tr>" for row in rows)
    above = f'<caption style="text-align:left">{_cell(caption)}</caption>' if caption else ""
    return f"<table>{above}{f'<thead><tr>{head}</tr></thead>' if header else ''}<tbody>{body}</tbody></table>"


def _column(value: object) -> str:
    side = "right" if isinstance(value, int | float) else "left"
    return f'<td style="text-align:{side}">{_cell(value)}</td>'


def _cell(value: object) -> str:
    if isinstance(value, Markup):
        return value.html
    if value is None:
        return ""
    return f"{value:,}" if isinstance(value, int) else html.escape(str(value))


def swatch(class_id: int) -> Markup:
    """A small square in the colour of a class."""
    colour = palette(max(1284, class_id))[class_id].tobytes().hex()
    return Markup(f'<span style="display:inline-block;width:1em;height:1em;border-radius:.2em;background:#{colour}"></span>')


def pictures(image: np.ndarray | None, mask: np.ndarray) -> str:
    """An ``<img>`` with a picture (H, W, 3) uint8 RGB, if given, and the mask (H, W) in the colours of its classes."""
    height, width = mask.shape
    factor = min(1.0, _SIDE / max(height, width))
    size = max(1, round(width * factor)), max(1, round(height * factor))
    small = cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST)
    parts = [palette(max(1284, int(small.max(initial=0))))[small]]
    if image is not None:
        parts.insert(0, cv2.resize(image, size, interpolation=cv2.INTER_AREA))
    content = cv2.imencode(".png", np.ascontiguousarray(np.concatenate(parts, axis=1)[..., ::-1]))[1].tobytes()
    return f'<img alt="picture and mask" src="data:image/png;base64,{base64.b64encode(content).decode()}">'
