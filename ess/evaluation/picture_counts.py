"""Counts of pixels by picture and class, from which an evaluation can be repeated on any choice of its pictures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ess.evaluation.metrics import Confusion


@dataclass(frozen=True, slots=True)
class PictureCounts:
    """Pixels of N pictures by class 0..C-1; only classes that occur in a picture are stored.

    ``ids`` (N,) int64 are the image ids. Entry i says that ``pixels[i]`` (3,) pixels of picture ``rows[i]``, 0..N-1, have class
    ``columns[i]``, 0..C-1, in the truth, in the prediction, and in both, as in :class:`ess.evaluation.metrics.Confusion`.
    """

    classes: int
    ids: np.ndarray
    rows: np.ndarray
    columns: np.ndarray
    pixels: np.ndarray

    @classmethod
    def of(cls, classes: int, counts: Mapping[int, np.ndarray]) -> "PictureCounts":
        """From image id -> (3, C) counts; the pictures are sorted by id, so that two evaluations have them in one order."""
        ids = sorted(counts)
        found = [np.flatnonzero(np.asarray(counts[image]).any(axis=0)) for image in ids]
        pixels = [np.asarray(counts[image])[:, columns].T for image, columns in zip(ids, found, strict=True)]
        return cls(
            classes,
            np.array(ids, np.int64),
            np.repeat(np.arange(len(ids)), [len(columns) for columns in found]),
            np.concatenate([np.zeros(0, np.int64), *found]),
            np.concatenate([np.zeros((0, 3), np.int64), *pixels]),
        )

    @classmethod
    def joined(cls, parts: Sequence["PictureCounts"]) -> "PictureCounts":
        """The counts of parts that share no picture, such as the folds of a cross validation, sorted by id.

        Raises ValueError if there are no parts, if they have different numbers of classes, or if a picture is in two of them.
        """
        numbers = {part.classes for part in parts}
        if len(numbers) != 1:
            raise ValueError(f"cannot join {len(parts)} parts with {sorted(numbers)} classes: expected one number of classes")
        ids = np.concatenate([part.ids for part in parts])
        if len(np.unique(ids)) != len(ids):
            raise ValueError("cannot join parts that share a picture")
        place = np.argsort(np.argsort(ids))
        starts = np.cumsum([0, *(len(part.ids) for part in parts)])
        rows = np.concatenate([place[part.rows + start] for part, start in zip(parts, starts, strict=False)])
        order = np.argsort(rows, kind="stable")
        columns, pixels = (np.concatenate([getattr(part, name) for part in parts])[order] for name in ("columns", "pixels"))
        return cls(numbers.pop(), np.sort(ids), rows[order], columns, pixels)

    def dense(self, first: int = 0, last: int | None = None) -> np.ndarray:
        """(N, 3, last - first) int64, the counts of the classes ``first`` .. ``last`` - 1; all classes by default."""
        last = self.classes if last is None else last
        chosen = (self.columns >= first) & (self.columns < last)
        dense = np.zeros((len(self.ids), 3, last - first), np.int64)
        dense[self.rows[chosen], :, self.columns[chosen] - first] = self.pixels[chosen]
        return dense

    def total(self) -> Confusion:
        """The counts of all pictures together."""
        confusion = Confusion(self.classes)
        np.add.at(confusion.pixels.numpy().T, self.columns, self.pixels)  # NumPy and the tensor share their memory
        confusion.images = len(self.ids)
        return confusion

    def to_json(self) -> dict[str, Any]:
        """As lists, for JSON."""
        names = ("truth", "predicted", "both")
        pixels = {name: self.pixels[:, number].tolist() for number, name in enumerate(names)}
        stored = {"ids": self.ids, "rows": self.rows, "columns": self.columns}
        return {"classes": self.classes, **{name: values.tolist() for name, values in stored.items()}, **pixels}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "PictureCounts":
        """The inverse of :meth:`to_json`."""
        ids, rows, columns = (np.array(content[name], np.int64) for name in ("ids", "rows", "columns"))
        pixels = np.array([content[name] for name in ("truth", "predicted", "both")], np.int64).T
        return cls(content["classes"], ids, rows, columns, pixels)
