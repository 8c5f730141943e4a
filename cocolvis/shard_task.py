"""The work of one shard, whatever its masks come from: all its samples into one file; runs in any process."""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import h5py

from cocolvis import images, reading, remarks
from cocolvis.annotations import Fault
from cocolvis.archives import Place
from cocolvis.lock import Lease
from cocolvis.merge import MASK_RULE
from cocolvis.shard_plan import ShardOptions
from cocolvis.shards import VERSION, Sample, ShardWriter


class Picture(Protocol):
    """What a task knows of an image: ``path`` is what the shard records, ``picture`` where the bytes lie."""

    image_id: int
    path: str
    picture: Place


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardTask(ABC):
    """Everything that one shard is made of; pickles, so that it may run anywhere that sees the same folders.

    ``vocabulary`` is the digest of the classes. With ``allow_missing``, input that cannot be read is a fault whatever the
    reason; it plays no part in what a build is made of.
    """

    name: str
    split: str
    images: Sequence
    options: ShardOptions
    vocabulary: str
    allow_missing: bool = False

    @abstractmethod
    def sample(self, image: Picture, faults: list[Fault], seen: Counter[str]) -> Sample | None:
        """One of the ``images`` as a sample; None where it is left out. Whatever is skipped is added to ``faults``.

        ``seen`` counts what is worth a word at the end (:mod:`cocolvis.remarks`).
        """


def run_shard(task: ShardTask, shard: Path, lease: Lease, tick: Callable[[], None] = lambda: None) -> dict:
    """Write the shard and return its report: {"images", "bytes", "sha256", "hdf5", "mask_rule", "version", "faults", "seen"}.

    ``hdf5`` is the version of the library here, as workers may have others than the process that asks them. ``tick`` is called
    after each image. Faults of single records are collected. A DataError for a file that cannot be written, a folder whose
    ``lease`` was lost, and input that cannot be read for a reason that is not its own.
    """
    with reading.allowing(task.allow_missing):
        return _run(task, shard, lease, tick)


def _run(task: ShardTask, shard: Path, lease: Lease, tick: Callable[[], None]) -> dict:
    faults: list[Fault] = []
    seen: Counter[str] = Counter()
    attributes = {"split": task.split, "images": task.options.images, "vocabulary": task.vocabulary}
    writer = ShardWriter(shard, attributes, lease.check)
    for image in task.images:
        sample = task.sample(image, faults, seen)
        if sample is not None:
            writer.add(sample)
        tick()
    made_by = {"hdf5": h5py.version.hdf5_version, "mask_rule": MASK_RULE, "version": VERSION}
    return writer.finish() | made_by | {"faults": faults, "seen": dict(seen)}


def read_picture(
    image: Picture,
    expected: tuple[int, int],
    said: str,
    faults: list[Fault],
    absent: str = "does not exist",
    *,
    decode: bool = False,
    seen: Counter[str] | None = None,
) -> bytes | None:
    """The bytes of an image's picture; None, and a fault, where it is absent, broken or not of the ``expected`` size.

    ``said`` is the words in which a fault tells who expects (height, width), ``absent`` those for a picture that is not there;
    ``decode`` is that of :func:`images.check`. ``seen`` counts remarks on the picture. A DataError where a reason that is not
    its own keeps it from being read or looked into.
    """

    def fault(kind: str, reason: str) -> None:
        faults.append(Fault(kind, "image", image.image_id, None, f"{image.path}: {reason}"))

    try:
        content = image.picture.read()
        with reading.decoding(image.picture):
            images.check(content, expected, decode)
            noted = remarks.of_picture(content)
    except (FileNotFoundError, NotADirectoryError):
        gone = getattr(image.picture, "member", None) and f"{image.picture.path} does not exist any more"
        return fault("missing image", gone or absent)
    except OSError as error:
        return fault("unreadable image", f"cannot be read: {reading.strerror(error)}")
    except images.WrongSize as error:
        reason = f"{error}, {said} {expected[0]} x {expected[1]}"
        return fault("wrong image size", reason + remarks.why_size(content, images.image_size(content), expected))
    except ValueError as error:
        return fault("unreadable image", str(error))
    if seen is not None:
        seen.update(noted)
    return content
