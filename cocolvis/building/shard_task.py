"""The base classes of shard options and tasks, for annotations and for label files, and the function that writes a shard."""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import h5py

from cocolvis.disk import reading
from cocolvis.disk.archives import Place
from cocolvis.disk.lock import Lease
from cocolvis.errors import DataError
from cocolvis.faults import Fault
from cocolvis.masks.merge import MASK_RULE
from cocolvis.pictures import encoded, remarks
from cocolvis.sources.locations import SPLITS
from cocolvis.storage.index import MOST, VERSION
from cocolvis.storage.samples import Sample
from cocolvis.storage.shard_writer import ShardWriter

IMAGES = ("embed", "path", "none")
"""What a shard stores of a picture: its bytes and path; only its path; or only its path, without the build opening it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardOptions:
    """Everything besides the input that decides what the shards contain.

    ``limit`` is the number of images taken from the start of each split; ``shard_size`` is the number of images in a shard,
    None if the plan chooses it; ``images`` is one of ``IMAGES``; ``decode`` leaves out pictures that
    :func:`cocolvis.pictures.encoded.check` finds damaged beyond the header. Raises DataError if a value is out of range.
    """

    splits: tuple[str, ...] = SPLITS
    limit: int | None = None
    shard_size: int | None = 500
    images: str = "embed"
    decode: bool = False

    records_instances = False  # no annotation, so that it belongs to the class and is no field
    """Whether the shards record the instances of each class; label files have none."""

    def __post_init__(self):
        if self.images not in IMAGES:
            raise DataError(f"images is {self.images!r}; expected one of {IMAGES}")
        for name, value, least in (("shard size", self.shard_size, 1), ("limit", self.limit, 0)):
            if value is not None and not least <= value <= MOST:
                raise DataError(f"{name} is {value}; expected {least} to {MOST}")
        if self.decode and self.images == "none":
            raise DataError("--decode reads the pictures, but --images none ignores them; choose --images path or embed")


class Pictured(Protocol):
    """An image of a task: ``path`` is recorded in the shard; ``picture`` locates the bytes, None if they are not read."""

    @property
    def image_id(self) -> int: ...

    @property
    def path(self) -> str: ...

    @property
    def picture(self) -> Place | None: ...


Image = TypeVar("Image", bound=Pictured)
"""What a task stores about one image."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardTask(ABC, Generic[Image]):
    """Everything that one shard is made from. It pickles, so it can run in any process that sees the same folders.

    ``vocabulary`` is the digest of the classes. With ``allow_missing``, every read error is a fault of one image, whatever its
    cause; nothing else in the shard changes.
    """

    name: str
    split: str
    images: Sequence[Image]
    options: ShardOptions
    vocabulary: str
    allow_missing: bool = False

    @abstractmethod
    def sample(self, image: Image, faults: list[Fault], seen: Counter[str]) -> Sample | None:
        """One of the ``images`` as a sample, or None if it is left out. Everything skipped is added to ``faults``.

        ``seen`` counts remarks that are reported at the end of the build (:mod:`cocolvis.pictures.remarks`).
        """


def run_shard(task: ShardTask, shard: Path, lease: Lease, tick: Callable[[], None] = lambda: None) -> dict[str, Any]:
    """Write the shard and return its report.

    Its keys are "images", "bytes", "checksum", "hdf5", "mask_rule", "version", "instances" (whether they are recorded),
    "faults" and "seen". ``hdf5`` is the version of the library in this process, which may differ from that of other workers.
    ``tick`` is called after each image. Faults of single records are collected. Raises DataError if the shard cannot be
    written, if the ``lease`` of the folder was lost, or if input cannot be read for a reason that does not concern a single
    file.
    """
    lease.check()  # before the work, which a worker that does not see the folder would do in vain
    with reading.allowing_missing(task.allow_missing):
        return _write_shard(task, shard, lease, tick)


def _write_shard(task: ShardTask, shard: Path, lease: Lease, tick: Callable[[], None]) -> dict[str, Any]:
    faults: list[Fault] = []
    seen: Counter[str] = Counter()
    attributes = {"split": task.split, "images": task.options.images, "vocabulary": task.vocabulary}
    writer = ShardWriter(shard, attributes, lease.check, instances=task.options.records_instances)
    for image in task.images:
        sample = task.sample(image, faults, seen)
        if sample is not None:
            writer.add(sample)
        tick()
    made_by = {"mask_rule": MASK_RULE, "version": VERSION, "instances": task.options.records_instances}
    return writer.finish() | made_by | {"hdf5": h5py.version.hdf5_version} | {"faults": faults, "seen": dict(seen)}


def read_picture(
    image: Pictured,
    expected: tuple[int, int],
    source: str,
    faults: list[Fault],
    absent: str | None = None,
    *,
    decode: bool = False,
    seen: Counter[str] | None = None,
) -> bytes | None:
    """The bytes of an image's picture, b"" if the build does not read it; None and a fault if it cannot be used.

    It cannot be used if it is absent, broken, or not of the ``expected`` (height, width), which the fault attributes to
    ``source``, such as "its mask is". ``absent`` is the reason for a missing picture, if the caller knows it. ``decode`` is
    passed to :func:`encoded.check`. ``seen`` counts remarks on the picture. Raises DataError if the picture cannot be read or
    decoded for a reason that does not concern this one file.
    """
    if image.picture is None:
        return b""
    try:
        content = image.picture.read()
        with reading.decoding(image.picture):
            encoded.check(content, expected, decode)
            remarked = remarks.of_picture(content)
        if seen is not None:
            seen.update(remarked)
        return content
    except (FileNotFoundError, NotADirectoryError):
        kind, reason = "missing image", absent or image.picture.why_missing()
    except OSError as error:
        kind, reason = "unreadable image", f"cannot be read: {reading.strerror(error)}"
    except encoded.WrongSize as error:
        turned = remarks.why_size(content, encoded.image_size(content), expected)
        kind, reason = "wrong image size", f"{error}, {source} {expected[0]} x {expected[1]}{turned}"
    except ValueError as error:
        kind, reason = "unreadable image", str(error)
    faults.append(Fault(kind, "image", image.image_id, None, f"{image.path}: {reason}"))
    return None
