"""One image of a data set: its mask, its encoded picture, and the class lists that LVIS gives for it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from cocolvis import notebook
from cocolvis.errors import DamagedImage, DataError
from cocolvis.masks.runlength import Runs
from cocolvis.pictures import encoded
from cocolvis.text import replace_unprintable

_LONGEST_PATH, _LONGEST_REASON = 150, 400
"""Characters of an image's path and of a reason that a message shows."""

_LISTED = 12
"""How many classes of a sample a notebook lists."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One image of a data set as stored on disk.

    ``path`` locates the picture below the picture folder and ``content`` holds its encoded bytes, empty if the data set does
    not embed pictures. ``runs`` is the run-length encoded mask. ``neg`` and ``not_exhaustive``, both (n,) uint16, are the
    classes that LVIS verified to be absent and those that it did not annotate exhaustively. ``instances`` maps each class in
    the mask to the number of its LVIS annotations, 0 for stuff; None if the data set does not record them. ``shard`` is the
    file that the sample was read from.
    """

    image_id: int
    path: str
    runs: Runs
    content: bytes
    neg: np.ndarray
    not_exhaustive: np.ndarray
    instances: Mapping[int, int] | None = None
    shard: Path | None = field(default=None, compare=False)

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) in pixels, of both mask and picture."""
        return self.runs.height, self.runs.width

    @cached_property
    def mask(self) -> np.ndarray:
        """(H, W) uint16 class ids, 0 = unlabelled; decoded on first access."""
        return self.runs.mask()

    def image(self) -> np.ndarray:
        """Decode the picture: (H, W, 3) uint8 RGB.

        Raises DamagedImage if the picture is absent, damaged, or declares another size than the mask; DataError if the machine
        runs out of memory.
        """
        return self._process_picture(encoded.decode_rgb)

    def _repr_html_(self) -> str:
        """A small picture, the mask, and the largest classes as a table, for notebooks."""
        try:
            image = self.image()
        except DataError:
            image = None
        counts = np.bincount(self.runs.classes, self.runs.lengths)
        counts[:1] = 0
        largest = [int(c) for c in np.argsort(-counts, kind="stable")[:_LISTED] if counts[c]]
        header: tuple[str, ...] = ("", "class", "pixels")
        rows: list[tuple[object, ...]] = [(notebook.swatch(c), c, int(counts[c])) for c in largest]
        if self.instances is not None:
            header = (*header, "instances")
            rows = [(*row, self.instances.get(c)) for row, c in zip(rows, largest, strict=True)]
        caption = f"image {self.image_id}, {self.size[0]} x {self.size[1]}: {self.path}"
        return notebook.pictures(image, self.mask) + notebook.table(header, rows, caption)

    def check_image(self) -> None:
        """Raise DamagedImage if :func:`cocolvis.pictures.encoded.check` finds a fault in the picture."""
        self._process_picture(encoded.check)

    def _process_picture(self, process: Callable[[bytes, tuple[int, int]], Any]) -> Any:
        reason: Exception | str
        try:
            return process(self.content, self.size)
        except encoded.WrongSize as error:
            reason = f"{error}, its mask {self.size[0]} x {self.size[1]}"
        except encoded.NoMemory as error:
            raise DataError(self.fault_line(error)) from None
        except ValueError as error:
            reason = error if self.content else "no picture is stored"
        raise DamagedImage(self.fault_line(reason))

    def fault_line(self, reason: Exception | str) -> str:
        """One line that names the shard, the image, its path, and what is wrong with it."""
        return fault_line(self.shard, f"image {self.image_id}", self.path, reason)


def fault_line(shard: Path | None, what: str, path: str, reason: Exception | str) -> str:
    """One line about a fault of ``what``, such as "mask of image 9", with the ``path`` of its picture and the reason."""
    text = f"{what} ({_shorten(path, _LONGEST_PATH)}): {_shorten(str(reason), _LONGEST_REASON)}"
    return text if shard is None else f"{shard}: {text}"


def _shorten(text: str, most: int) -> str:
    """The text on one line, with its middle cut out if it is longer than ``most`` characters."""
    text = replace_unprintable(text)
    return text if len(text) <= most else f"{text[: most // 2]} ... {text[-most // 2 :]}"
