"""What a build skips or misses, as it is reported: one line for each fault of the input."""

from typing import NamedTuple

from cocolvis import text


class _Fault(NamedTuple):
    kind: str
    source: str
    image_id: int | None
    annotation_id: int | None
    reason: str


class Fault(_Fault):
    """Something that was skipped, or that is missing: it stands in the report of a build.

    ``reason`` is one printable line of bounded length, whatever the input made of it.
    """

    __slots__ = ()

    def __new__(cls, kind: str, source: str, image_id: int | None, annotation_id: int | None, reason: str) -> "Fault":
        """The fault with its reason as :func:`cocolvis.text.line` has it."""
        return super().__new__(cls, kind, source, image_id, annotation_id, text.line(reason))
