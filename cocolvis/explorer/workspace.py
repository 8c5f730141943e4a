"""What one explorer shows: a data set, its catalog, and the predictions of runs; what takes long is prepared in a thread."""

import threading
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cocolvis.disk.files import reason
from cocolvis.errors import DataError
from cocolvis.explorer.cache import Tables, Thumbnails, cache_folder, key_of
from cocolvis.explorer.catalog import Catalog
from cocolvis.storage.index import INDEX, open_index, vocabulary_of
from cocolvis.text import escaped
from cocolvis.vocabulary import ClassInfo, Vocabulary

if TYPE_CHECKING:
    from cocolvis.explorer.scores import RunScores
    from cocolvis.sources.inputs import Sources
    from cocolvis.storage.dataset import Dataset, Split

_VERSION = "3"
"""The version of the tables in the cache; part of their key."""

_LATER = 1.5
"""Seconds before work begins that the first page does not need, so that it is not delayed."""


class Run:
    """Predictions for a data set, under a short name; ``scores`` is None until they have been compared with the labels.

    Raises DataError if the folder does not hold predictions for the data set with this digest and vocabulary.
    """

    def __init__(self, folder: Path, name: str, digest: str, vocabulary: Vocabulary):
        self.folder, self.name = folder, name
        index = open_index(folder)
        self.made_by = index.get("predictions")
        if not isinstance(self.made_by, dict):
            raise DataError(f"{folder}: does not hold predictions; write them with `ess predict RUN DATA --format shards`")
        if self.made_by.get("of") != digest:
            raise DataError(f"{folder}: holds predictions for another data set; predict this one")
        self.vocabulary = vocabulary_of(folder, index)
        if Vocabulary(self.vocabulary.classes[: len(vocabulary)], self.vocabulary.ignored).digest != vocabulary.digest:
            raise DataError(f"{folder}: was predicted with another vocabulary than that of the data set")
        self.key = _key(folder)
        self.scores: RunScores | None = None

    @cached_property
    def splits(self) -> "dict[str, Split]":
        """The predictions by split; they keep their shards open."""
        return {name: self.dataset.split(name) for name in self.dataset.splits}

    @cached_property
    def dataset(self) -> "Dataset":
        """The predictions as a data set."""
        from cocolvis.storage.dataset import Dataset  # imported late: the first page does not need HDF5

        return Dataset.open(self.folder)


class Workspace:
    """Everything that the pages show.

    ``catalog`` is None, and the ``scores`` of a run are None, until :meth:`prepare` has made them; ``doing`` then says what is
    being done, (text, done, total), and ``failed`` why it ended early. Raises DataError if the data set or predictions cannot
    be opened. ``sources`` are the annotations that the data set was built from, to explain pixels; a thread that reads them
    holds ``explaining``.
    """

    def __init__(
        self,
        folder: Path,
        predictions: Sequence[Path] = (),
        *,
        image_root: Path | None = None,
        sources: "Sources | None" = None,
    ):
        self.folder, self.image_root, self.sources = folder, image_root, sources
        self.index = open_index(folder)
        self.vocabulary = vocabulary_of(folder, self.index)
        self.key = _key(folder)
        self._cache = cache_folder() / "explorer"
        self.thumbnails = Thumbnails(self._cache / "thumbnails")
        found = Tables.open(self._path()) if self._has_all_shards() else None
        self.catalog = Catalog(found) if found else None
        self.runs: dict[str, Run] = {}
        for path in predictions:
            run = Run(path, self._short_name(path), self.index["digest"], self.vocabulary)
            self.runs[run.name] = run
        self.doing: tuple[str, int, int] = ("Opening the data set", 0, 0)
        self.failed: str | None = None
        self._opening = threading.Lock()
        self.explaining = threading.Lock()

    def _short_name(self, path: Path) -> str:
        """The name of a folder as addresses can hold it, with a number if an earlier one has the same."""
        first, number = escaped(path.resolve().name) or "predictions", 2
        name = first
        while name in self.runs:
            name, number = f"{first}-{number}", number + 1
        return name

    def _has_all_shards(self) -> bool:
        """Whether all shards have the size that dataset.json records; the others are reported when all are read again."""
        try:
            return all((self.folder / shard["file"]).stat().st_size == shard["bytes"] for shard in self.index["shards"])
        except OSError:
            return False

    def _path(self, run: Run | None = None) -> Path:
        """The file of the catalog, or of the scores of a run."""
        keys = [_VERSION, self.key] + ([run.key] if run else [])
        return self._cache / f"{key_of(*keys)}.tables"

    @cached_property
    def pictures_key(self) -> str:
        """The key of what is drawn from pictures: that of the data set, and the folder of the pictures if one was given."""
        return key_of(self.key, str(self.image_root.resolve()) if self.image_root else "")

    def version(self, run: Run | None = None) -> str:
        """What the address of a picture holds of the files that it is drawn from, so that browsers can keep it.

        It depends on the shards that cannot be read, too, because only the images of the others are numbered.
        """
        unreadable = self.catalog.unreadable if self.catalog else []
        return key_of(self.pictures_key, run.key if run else "", *unreadable)[:12]

    @property
    def title(self) -> str:
        """The name of the data set's folder."""
        return self.folder.resolve().name or str(self.folder)

    @property
    def splits(self) -> "dict[str, Split]":
        """The splits of the data set, which read pictures and masks and keep their shards open."""
        with self._opening:
            return self._splits

    @cached_property
    def _splits(self) -> "dict[str, Split]":
        return {name: self.dataset.split(name) for name in self.dataset.splits}

    @cached_property
    def dataset(self) -> "Dataset":
        """The opened data set."""
        from cocolvis.storage.dataset import Dataset

        return Dataset.open(self.folder, self.image_root)

    def info(self, class_id: int, run: Run | None = None) -> ClassInfo:
        """A class of the data set, or one that was added to a run."""
        return (run.vocabulary if run else self.vocabulary)[class_id]

    def is_ready(self, run: Run | None = None) -> bool:
        """Whether the catalog, and the scores of a run if one is given, are there."""
        return self.catalog is not None and (run is None or run.scores is not None)

    def start(self) -> None:
        """Prepare everything that is missing, in a thread of its own."""
        waiting = threading.Timer(_LATER if self.catalog else 0, self._prepare_safely)
        waiting.daemon = True
        waiting.start()

    def _prepare_safely(self) -> None:
        try:
            self.prepare()
        except DataError as error:
            self.failed = str(error)
        except OSError as error:
            self.failed = reason(error)
        except MemoryError:
            self.failed = "memory ran out"

    def prepare(self) -> None:
        """Make the catalog and the scores of all runs, unless they are in the cache; raises DataError if that fails.

        If a shard cannot be read, the images of the others are numbered without it, and no scores by these numbers are kept.
        """
        from cocolvis.explorer.counting import count_classes
        from cocolvis.explorer.scores import RunScores, count_pixels

        if self.catalog is None:
            report = self._report("Reading the class tables, shard by shard")
            self.catalog = count_classes(self.dataset, self._path(), report)
        for run in self.runs.values():
            path = None if self.catalog.unreadable else self._path(run)
            found = Tables.open(path) if path else None
            report = self._report(f"Comparing {run.name} with the labels, image by image")
            run.scores = RunScores(found) if found else count_pixels(self.dataset, run.dataset, self.catalog, path, report)
        self.splits  # noqa: B018 (opens them, so that the first picture does not wait for that)

    def _report(self, text: str) -> Any:
        def report(done: int, total: int) -> None:
            self.doing = text, done, total

        return report


def _key(folder: Path) -> str:
    """The key of a data set in the cache: its place and its index. A forged digest in another folder cannot reach it."""
    try:
        return key_of(str(folder.resolve()), (folder / INDEX).read_bytes())
    except OSError as error:
        raise DataError(f"{folder / INDEX}: cannot be read: {reason(error)}") from None
