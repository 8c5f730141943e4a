"""A built data set: its index dataset.json, and its splits as sequences of samples."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from cocolvis import notebook
from cocolvis.errors import DamagedImage, DataError
from cocolvis.masks.runlength import Runs
from cocolvis.progress import ignore
from cocolvis.storage import report
from cocolvis.storage.index import FORMAT as FORMAT
from cocolvis.storage.index import INDEX as INDEX
from cocolvis.storage.index import VERSION as VERSION
from cocolvis.storage.index import is_imported, open_index, vocabulary_of
from cocolvis.storage.open_shards import OPEN_SHARDS
from cocolvis.storage.picture_files import read_picture
from cocolvis.storage.samples import Sample
from cocolvis.storage.shard_reader import ShardReader
from cocolvis.vocabulary import coco_lvis


class Dataset:
    """A folder that ``cocolvis build`` or ``cocolvis import`` wrote.

    ``index`` is the parsed dataset.json and ``vocabulary`` its classes. ``image_root`` is the folder of the pictures, for a
    data set that stores only their paths.
    """

    def __init__(self, folder: Path, index: Mapping[str, Any], image_root: Path | None = None):
        self.folder = folder
        self.index = index
        self.vocabulary = vocabulary_of(folder, index)
        recorded = index["options"].get("image_root")
        self.image_root = image_root or (Path(recorded) if recorded else None)
        self._searched: dict[str, tuple[Split, np.ndarray]] = {}

    @classmethod
    def open(cls, folder: str | Path, image_root: str | Path | None = None) -> "Dataset":
        """Open a data set by its folder; raises DataError if dataset.json is missing, has another format, or is not valid."""
        folder = Path(folder)
        return cls(folder, open_index(folder), Path(image_root) if image_root else None)

    @property
    def is_coco_lvis(self) -> bool:
        """Whether the masks derive from COCO and LVIS annotations with the standard vocabulary; never true of an import."""
        return not is_imported(self.index) and self.vocabulary.digest == coco_lvis().digest

    @property
    def records_instances(self) -> bool:
        """Whether the shards record how many instances of each class an image has; never true of an import."""
        return bool(self.index.get("instances"))

    @property
    def splits(self) -> dict[str, int]:
        """Split name -> number of images."""
        return {name: split["images"] for name, split in self.index["splits"].items()}

    def _repr_html_(self) -> str:
        """The splits as a table, for notebooks."""
        rows = [(name, split["images"], split["shards"]) for name, split in self.index["splits"].items()]
        return notebook.table(("split", "images", "shards"), rows, f"{self.folder}: {len(self.vocabulary):,} classes")

    def faults(self) -> Iterator[dict[str, Any]]:
        """All faults that the build reported.

        Raises DataError if faults.jsonl is needed and differs from the record in dataset.json.
        """
        return report.read(self.folder, self.index["report"])

    def split(self, name: str) -> "Split":
        """The samples of a split; raises DataError, listing those that exist, if there is no split of this name."""
        if name not in self.splits:
            raise DataError(f"{self.folder}: has no split {name!r}; it has {', '.join(self.splits) or 'none'}")
        return Split(self, name)

    def shard_paths(self, split: str) -> list[Path]:
        """The files of the shards of a split, in order."""
        return [self.folder / shard["file"] for shard in self.index["shards"] if shard["split"] == split]

    def find(self, image_id: int, first: str | None = None) -> Sample:
        """The sample with this image id, in any split; raises DataError if there is none.

        Several splits may have an image of this id: the split ``first`` is searched before the others.
        """
        split, row = self.locate(image_id, first)
        return split[row]

    def locate(self, image_id: int, first: str | None = None) -> tuple["Split", int]:
        """The split that holds an image, and the image's number in it; raises DataError if no split holds it.

        The split ``first`` is searched before the others.
        """
        for name in sorted(self.splits, key=lambda name: name != first):
            if name not in self._searched:
                split = self.split(name)
                self._searched[name] = split, split.image_ids()
            split, ids = self._searched[name]
            rows = np.flatnonzero(ids == image_id)
            if rows.size:
                return split, int(rows[0])
        raise DataError(f"{self.folder}: holds no image {image_id}; `cocolvis images` lists those that it holds")


class Split:
    """The samples of one split, in build order; safe to pickle and to use after a fork.

    ``split[i]`` opens shards as needed; the most recently used ones stay open (see :mod:`cocolvis.storage.open_shards`).
    ``starts`` (S + 1,) int64 are the numbers of the first samples of the S shards, followed by the number of samples.
    """

    def __init__(self, dataset: Dataset, name: str):
        self.name = name
        self.image_root = dataset.image_root
        self._digest, self._classes = dataset.vocabulary.digest, len(dataset.vocabulary)
        self._records_instances = dataset.records_instances
        self._paths = dataset.shard_paths(name)
        counts = [s["images"] for s in dataset.index["shards"] if s["split"] == name]
        self.starts = np.cumsum([0, *counts])
        self._owner = OPEN_SHARDS.owner(self, len(self._paths))

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getitem__(self, index: int) -> Sample:
        """Sample ``index``, 0 <= index < len."""
        return self.with_picture(self.stored(index))

    def stored(self, index: int) -> Sample:
        """Sample ``index`` as it is in its shard, 0 <= index < len: a picture in ``image_root`` is not read."""
        shard, row = self._locate(index)
        return shard.sample(row)

    def with_picture(self, sample: Sample) -> Sample:
        """The sample with its picture read from ``image_root``, if the data set stores only paths. Thread-safe.

        Raises DamagedImage if this picture cannot be read, DataError if the disk fails.
        """
        if sample.content or self.image_root is None:
            return sample
        try:
            content = read_picture(self.image_root, sample.path)
        except DamagedImage as error:
            raise DamagedImage(sample.fault_line(f"{error}; pass the folder of the images with --image-root")) from None
        except DataError as error:
            raise DataError(sample.fault_line(error)) from None
        return replace(sample, content=content)

    def mask(self, index: int) -> np.ndarray:
        """(H, W) uint16 mask of sample ``index``; its picture is not read."""
        return self.runs(index).mask()

    def runs(self, index: int) -> Runs:
        """The mask of sample ``index`` as run lengths; its picture is not read."""
        shard, row = self._locate(index)
        return shard.runs(row)

    def instances_of(self, index: int) -> dict[int, int] | None:
        """The instances of each class in the mask of sample ``index``, 0 for stuff; None if they are not recorded."""
        shard, row = self._locate(index)
        return shard.instances_of(row)

    def image_ids(self) -> np.ndarray:
        """(N,) int64 image ids in order."""
        return self._gather(ShardReader.image_ids, np.zeros(0, np.int64))

    def sizes(self) -> np.ndarray:
        """(N, 2) uint32 heights and widths in order."""
        return self._gather(ShardReader.sizes, np.zeros((0, 2), np.uint32))

    def shards(self) -> Iterator[ShardReader]:
        """The shards in order, each opened when the iterator reaches it."""
        return map(self.shard, range(len(self._paths)))

    def present(self, read: Callable[[int], None] = ignore) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(rows int64, classes uint16, pixels uint32), one entry per class and image; no mask is decoded.

        ``read`` is called after each shard with the number of images whose counts have been read.
        """
        rows, classes, pixels = [np.zeros(0, np.int64)], [np.zeros(0, np.uint16)], [np.zeros(0, np.uint32)]
        for number, start in enumerate(self.starts[:-1]):
            offsets, shard_classes, shard_pixels = self.shard(number).present()
            counts = (offsets[1:] - offsets[:-1]).astype(np.int64)
            rows.append(start + np.repeat(np.arange(len(counts)), counts))
            classes.append(shard_classes)
            pixels.append(shard_pixels)
            read(int(self.starts[number + 1]))
        return np.concatenate(rows), np.concatenate(classes), np.concatenate(pixels)

    def instances(self) -> np.ndarray | None:
        """(n,) uint32: the instances of each class in each image, in the order of :meth:`present`; None if not recorded."""
        if not self._records_instances:
            return None
        parts = (shard.instances() for shard in self.shards())
        return np.concatenate([np.zeros(0, np.uint32), *(part for part in parts if part is not None)])

    def _gather(self, column: Callable[[ShardReader], np.ndarray], empty: np.ndarray) -> np.ndarray:
        return np.concatenate([empty, *(map(column, self.shards()))])

    def _locate(self, index: int) -> tuple[ShardReader, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        number = int(np.searchsorted(self.starts, index, side="right")) - 1
        return self.shard(number), index - int(self.starts[number])

    def shard(self, number: int) -> ShardReader:
        """Shard ``number``, opened if needed; raises DataError if it is not what dataset.json says. Thread-safe."""
        return OPEN_SHARDS.get(self._owner, number, self._open_shard)

    def _open_shard(self, number: int) -> ShardReader:
        reader = ShardReader(self._paths[number], self._classes)
        if reader.attributes.get("vocabulary") != self._digest:
            raise DataError(f"{reader.path}: was built with a vocabulary other than the one in dataset.json")
        if reader.attributes.get("split") != self.name:
            raise DataError(f"{reader.path}: belongs to another split than {self.name}, which dataset.json names")
        if reader.has_instances != self._records_instances:
            said = "records instances" if reader.has_instances else "does not record instances"
            raise DataError(f"{reader.path}: {said}, dataset.json says otherwise")
        expected = int(self.starts[number + 1] - self.starts[number])
        if len(reader) != expected:
            raise DataError(f"{reader.path}: holds {len(reader)} images, dataset.json says {expected}")
        return reader

    def __getstate__(self) -> dict:
        return {name: value for name, value in self.__dict__.items() if name != "_owner"}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._owner = OPEN_SHARDS.owner(self, len(self._paths))
