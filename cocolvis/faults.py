"""The faults of the input that a build reports: what was skipped or is missing, and why."""

from typing import NamedTuple

from cocolvis import text


class _Fault(NamedTuple):
    kind: str
    source: str
    image_id: int | None
    annotation_id: int | None
    reason: str


class Fault(_Fault):
    """One entry in the report of a build: something in the input that was skipped or is missing.

    ``reason`` is always one printable line of at most :data:`cocolvis.text.LINE` characters.
    """

    __slots__ = ()

    def __new__(cls, kind: str, source: str, image_id: int | None, annotation_id: int | None, reason: str) -> "Fault":
        """A fault whose ``reason`` is passed through :func:`cocolvis.text.one_line`."""
        return super().__new__(cls, kind, source, image_id, annotation_id, text.one_line(reason))
