"""A built data set: its index dataset.json, and its splits as sequences of samples."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from cocolvis.errors import DamagedImage, DataError
from cocolvis.progress import ignore
from cocolvis.storage import checks, report
from cocolvis.storage.handles import OPEN
from cocolvis.storage.shards import Sample, ShardReader
from cocolvis.text import one_line
from cocolvis.vocabulary import Vocabulary, coco_lvis

FORMAT = "cocolvis"
VERSION = 2
INDEX = "dataset.json"


class Dataset:
    """The folder that ``cocolvis build`` writes.

    ``index`` is dataset.json as parsed, ``vocabulary`` its classes, ``image_root`` where the pictures of a data set that
    stores only their paths lie.
    """

    def __init__(self, folder: Path, index: Mapping[str, Any], image_root: Path | None = None):
        self.folder = folder
        self.index = index
        self.vocabulary = Vocabulary.from_json(index["vocabulary"])
        recorded = index["options"].get("image_root")
        self.image_root = image_root or (Path(recorded) if recorded else None)
        self._searched: dict[str, tuple[Split, np.ndarray]] = {}

    @classmethod
    def open(cls, folder: str | Path, image_root: str | Path | None = None) -> "Dataset":
        """Read the index; a DataError when there is none, it has another format, or anything in it is not as it must be."""
        folder = Path(folder)
        if checks.absent(folder / INDEX):
            unfinished = (
                "" if checks.absent(folder / "shards") else " yet: complete it with `cocolvis build ... --resume`, or `import`"
            )
            raise DataError(f"{folder}: holds no {INDEX}{unfinished}; expected a folder that `cocolvis build` wrote")
        index = checks.read_index(folder / INDEX, (FORMAT, VERSION))
        try:
            return cls(folder, index, Path(image_root) if image_root else None)
        except DataError as error:
            raise DataError(f"{folder / INDEX}: {one_line(error)}") from None

    @property
    def is_coco_lvis(self) -> bool:
        """Whether COCO and LVIS annotations can say how the masks came about: not those of an import, or of other classes."""
        return not checks.is_imported(self.index) and self.vocabulary.digest == coco_lvis().digest

    @property
    def splits(self) -> dict[str, int]:
        """Split name -> number of images."""
        return {name: split["images"] for name, split in self.index["splits"].items()}

    def faults(self) -> Iterator[dict[str, Any]]:
        """All faults that the build reported; a DataError where the file that holds them is not as dataset.json says."""
        return report.read(self.folder, self.index["report"])

    def split(self, name: str) -> "Split":
        """The samples of a split; a DataError that lists the splits when there is none of this name."""
        if name not in self.splits:
            raise DataError(f"{self.folder}: has no split {name!r}; it has {', '.join(self.splits) or 'none'}")
        return Split(self, name)

    def shard_paths(self, split: str) -> list[Path]:
        """The shards of a split in order."""
        return [self.folder / shard["file"] for shard in self.index["shards"] if shard["split"] == split]

    def find(self, image_id: int) -> Sample:
        """The sample with this image id, in whichever split; a DataError when there is none."""
        split, row = self.locate(image_id)
        return split[row]

    def locate(self, image_id: int) -> tuple["Split", int]:
        """The split that holds an image, and its place there; a DataError when there is none."""
        for name in self.splits:
            if name not in self._searched:
                split = self.split(name)
                self._searched[name] = split, split.image_ids()
            split, ids = self._searched[name]
            rows = np.flatnonzero(ids == image_id)
            if rows.size:
                return split, int(rows[0])
        raise DataError(f"{self.folder}: holds no image {image_id}; `cocolvis images` lists those that it holds")


class Split:
    """The samples of one split, in the order in which they were built; pickles and forks safely.

    ``split[i]`` opens shards as needed; a process keeps those open that it used last (see :mod:`cocolvis.storage.handles`).
    """

    def __init__(self, dataset: Dataset, name: str):
        self.name = name
        self.image_root = dataset.image_root
        self._digest, self._classes = dataset.vocabulary.digest, len(dataset.vocabulary)
        self._paths = dataset.shard_paths(name)
        counts = [s["images"] for s in dataset.index["shards"] if s["split"] == name]
        self._starts = np.cumsum([0, *counts])
        self._owner = OPEN.owner(self, len(self._paths))

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: int) -> Sample:
        """Sample ``index``, 0 <= index < len."""
        shard, row = self._place(index)
        return self.with_picture(shard.sample(row))

    def with_picture(self, sample: Sample) -> Sample:
        """The sample with its picture where the data set refers to files; a DataError where there is none. Thread-safe."""
        if sample.content or self.image_root is None:
            return sample
        try:
            content = checks.picture(self.image_root, sample.path)
        except DamagedImage as error:
            raise DamagedImage(sample.told(f"{error}; say where the images lie with --image-root")) from None
        except DataError as error:
            raise DataError(sample.told(error)) from None
        return replace(sample, content=content)

    def mask(self, index: int) -> np.ndarray:
        """(H, W) uint16 mask of sample ``index``; the picture is left alone."""
        shard, row = self._place(index)
        return shard.runs(row).mask()

    def image_ids(self) -> np.ndarray:
        """(N,) int64 image ids in order."""
        return self._gather(ShardReader.image_ids, np.zeros(0, np.int64))

    def sizes(self) -> np.ndarray:
        """(N, 2) uint32 heights and widths in order."""
        return self._gather(ShardReader.sizes, np.zeros((0, 2), np.uint32))

    def shards(self) -> Iterator[ShardReader]:
        """The shards in order, each opened when it is asked for."""
        return map(self._shard, range(len(self._paths)))

    def present(self, read: Callable[[int], None] = ignore) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(rows int64, classes uint16, pixels uint32), one entry for each class in each image; no mask is decoded.

        ``read`` is told how many images' counts were read, shard by shard.
        """
        rows, classes, pixels = [np.zeros(0, np.int64)], [np.zeros(0, np.uint16)], [np.zeros(0, np.uint32)]
        for number, start in enumerate(self._starts[:-1]):
            offsets, shard_classes, shard_pixels = self._shard(number).present()
            rows.append(start + np.repeat(np.arange(len(offsets) - 1), np.diff(offsets.astype(np.int64))))
            classes.append(shard_classes)
            pixels.append(shard_pixels)
            read(int(self._starts[number + 1]))
        return np.concatenate(rows), np.concatenate(classes), np.concatenate(pixels)

    def _gather(self, column, empty: np.ndarray) -> np.ndarray:
        return np.concatenate([empty, *(map(column, self.shards()))])

    def _place(self, index: int) -> tuple[ShardReader, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        number = int(np.searchsorted(self._starts, index, side="right")) - 1
        return self._shard(number), index - int(self._starts[number])

    def _shard(self, number: int) -> ShardReader:
        return OPEN.get(self._owner, number, self._opened)

    def _opened(self, number: int) -> ShardReader:
        reader = ShardReader(self._paths[number], self._classes)
        if reader.attributes.get("vocabulary") != self._digest:
            raise DataError(f"{reader.path}: was built with another vocabulary than dataset.json names")
        if reader.attributes.get("split") != self.name:
            raise DataError(f"{reader.path}: belongs to another split than {self.name}, which dataset.json names")
        expected = int(self._starts[number + 1] - self._starts[number])
        if len(reader) != expected:
            raise DataError(f"{reader.path}: holds {len(reader)} images, dataset.json says {expected}")
        return reader

    def __getstate__(self) -> dict:
        return {name: value for name, value in self.__dict__.items() if name != "_owner"}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._owner = OPEN.owner(self, len(self._paths))
