"""Fetches and checks the official COCO, COCO-Stuff and LVIS archives, and records their SHA-256."""

import os
import shlex
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import msgspec

from cocolvis.disk.alone import alone_in
from cocolvis.disk.archives import members
from cocolvis.disk.files import is_absent, read_json, reason, regular_file, sha256, sync_folder, write_json
from cocolvis.downloads import zip_directory
from cocolvis.downloads.transfer import WEB, PartialFile, RetryPolicy, fetch
from cocolvis.errors import DataError
from cocolvis.progress import Announce, Phase, Progress, count_bytes, ignore
from cocolvis.text import human_size

RECORD = "downloads.json"
"""The file in the download folder that lists its finished archives."""

_TOLERANCE = 2**20
"""Bytes that an archive of estimated size may have in excess of twice the estimate."""


@dataclass(frozen=True)
class Archive:
    """An official archive: its name for ``--only``, its path in the download folder, its address and size in bytes.

    ``size`` is an estimate unless ``exact``.
    """

    name: str
    file: str
    url: str
    size: int
    exact: bool = True


_COCO, _LVIS = "http://images.cocodataset.org/zips", "https://dl.fbaipublicfiles.com/LVIS"
_STUFF = "http://calvin.inf.ed.ac.uk/wp-content/uploads/data/cocostuffdataset"

ARCHIVES = (
    Archive("lvis-val", "lvis/lvis_v1_val.json.zip", f"{_LVIS}/lvis_v1_val.json.zip", 64_026_968),
    Archive("lvis-train", "lvis/lvis_v1_train.json.zip", f"{_LVIS}/lvis_v1_train.json.zip", 350_264_821),
    Archive("stuff", "coco/stuff_trainval2017.zip", f"{_STUFF}/stuff_trainval2017.zip", 543_000_000, exact=False),
    Archive("val2017", "coco/val2017.zip", f"{_COCO}/val2017.zip", 815_585_330),
    Archive("train2017", "coco/train2017.zip", f"{_COCO}/train2017.zip", 19_336_861_798),
)
"""The archives in download order. train2017, which takes hours, is last, so that a dead address is noticed early."""


class Record(msgspec.Struct):
    """A finished archive, as listed in downloads.json."""

    name: str
    file: str
    url: str
    bytes: int
    sha256: str


class _Records(msgspec.Struct):
    files: list[Record]


class Job:
    """One archive of a download: its source, its target, and how much of it has been fetched."""

    def __init__(self, archive: Archive, out: Path, mirror: str | None, record: Record | None):
        words = ["cocolvis", "download", "--out", str(out), "--only", archive.name, *(("--mirror", mirror) if mirror else ())]
        url = f"{mirror.rstrip('/')}/{archive.url.rpartition('/')[2]}" if mirror else archive.url
        published = archive.size if archive.exact else None
        self.archive, self.record = archive, record
        most = archive.size if archive.exact else 2 * archive.size + _TOLERANCE
        self.part = PartialFile(url, out / archive.file, published, most, f"`{shlex.join(words)}`")
        self.there = os.path.exists(self.part.target)
        version, self.have = self.part.resumable()
        self.size = (version and version.bytes) or archive.size
        if self.there:
            self.have = self.size = regular_file(self.part.target).st_size
        expected = record.bytes if record else published
        if self.there and expected not in (None, self.have):
            wanted = f"{RECORD} records" if record else "the published file has"
            raise self.fault(self.part.target, f"has {self.have:,} bytes, but {wanted} {expected:,}; remove it")

    @property
    def finished(self) -> bool:
        """Whether the archive exists and is recorded."""
        return self.there and self.record is not None

    @property
    def left(self) -> int:
        """The bytes still to fetch; an estimate if the size is one."""
        return max(self.size - self.have, 0)

    @property
    def state(self) -> str:
        """The state in one word: "finished", "there" (but not recorded), "begun", or ""."""
        return "finished" if self.finished else "there" if self.there else "begun" if self.have else ""

    def fault(self, path: Path, fault: str) -> DataError:
        """The exception for a fault of ``path``; its message ends with the command that fetches the archive again."""
        return DataError(f"{path}: {fault} and fetch it again with {self.part.command}")


def plan(out: Path, names: Sequence[str] = (), mirror: str | None = None) -> list[Job]:
    """A job for each named archive (default: all), with its state in the folder ``out``; fetches nothing.

    ``mirror`` replaces everything before the last part of each address. Raises DataError if it is not a web address, or if an
    archive in ``out`` differs in size from the recorded or published one.
    """
    if mirror is not None and not WEB.fullmatch(mirror):
        raise DataError(f"--mirror {mirror}: is not a web address; expected http:// or https:// and no spaces")
    records = _records(out)
    return [Job(each, out, mirror, records.get(each.name)) for each in ARCHIVES if not names or each.name in names]


def free_bytes(out: Path) -> int:
    """The free bytes on the disk of ``out``, which need not exist yet."""
    out = out.absolute()
    return shutil.disk_usage(next(folder for folder in (out, *out.parents) if os.path.exists(folder))).free


def check_disk(out: Path, jobs: Sequence[Job]) -> None:
    """Raise DataError if the disk cannot hold what is left to fetch."""
    left, free = sum(job.left for job in jobs), free_bytes(out)
    if left > free:
        sizes = f"{human_size(left)} are left to fetch and the disk has {human_size(free)} free"
        raise DataError(f"{out}: {sizes}; make room, choose another --out, or fetch less with --only")


def download(
    out: Path,
    names: Sequence[str] = (),
    mirror: str | None = None,
    progress: Progress = ignore,
    announce: Announce = ignore,
    phase: Phase = ignore,
    policy: RetryPolicy | None = None,
) -> list[Record]:
    """Fetch the unfinished archives that :func:`plan` lists, and return the records of all of them, as in downloads.json.

    ``progress`` reports bytes received, ``phase`` the bytes of an archive being hashed, and ``announce`` each retry. Raises
    DataError if an archive cannot be fetched or is not the published one; received bytes are kept, and the same call continues
    from there.
    """
    with alone_in(out, "another download is running there; wait until it ends"):  # both would append to the same partial files
        jobs, records = plan(out, names, mirror), _records(out)
        check_disk(out, jobs)
        sizes = {job: (job.have, job.size) for job in jobs}
        for job in jobs:

            def received(have: int, size: int | None, job: Job = job) -> None:
                sizes[job] = have, size or max(have, job.size)
                progress(*map(sum, zip(*sizes.values(), strict=True)))

            received(job.have, job.size)
            if job.finished:
                continue
            if not job.there:
                fetch(job.part, received, announce, policy or RetryPolicy())
            records[job.archive.name] = record = _checked(job, announce, phase)
            write_json(out / RECORD, msgspec.to_builtins(_Records(list(records.values()))))
            if not job.there:
                _take_name(job.part)
            received(record.bytes, record.bytes)
    return [records[job.archive.name] for job in jobs]


def _checked(job: Job, announce: Announce, phase: Phase) -> Record:
    """The record of an archive that was fetched or put there by the user; raises DataError if it is not the published one."""
    archive, part = job.archive, job.part
    path = part.target if job.there else part.path
    size, fault = path.stat().st_size, None
    if part.published not in (None, size):
        fault = f"has {size:,} bytes, but the published file has {part.published:,}"
    elif broken := zip_directory.fault(path):
        fault = f"has {size:,} bytes and is not a zip archive: {broken}"
    elif job.there and (unread := next((member for member in members(path).values() if member.unread), None)):
        fault = f"its member {unread.member} is {unread.unread}, which is not supported; pack the file again with Deflate, or"
        raise job.fault(path, f"{fault} remove it")
    if fault and job.there:
        raise job.fault(path, f"{fault}; remove it")
    if fault:
        kept = f"the {part.have:,} bytes received before are kept" if part.restore() else "it was removed"
        raise job.fault(path, f"{fault}; {kept}; choose another server (--mirror)")
    announce(f"{part.target.name}: computing the SHA-256 of its {size:,} bytes")
    digest = sha256(path, count_bytes(partial(phase, f"hashing {part.target.name}"), size))
    if job.record and job.record.sha256 != digest:
        announce(f"{part.target.name}: has the SHA-256 {digest}; an earlier download had {job.record.sha256}")
    return Record(archive.name, archive.file, part.url, size, digest)


def _take_name(part: PartialFile) -> None:
    """Sync a complete file and give it its final name; its version, without which it would be useless, is removed last."""
    try:
        with part.path.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(part.path, part.target)
        part.version_path.unlink(missing_ok=True)
        part.forget()
        sync_folder(part.target.parent)
    except OSError as error:
        raise DataError(f"{part.target}: cannot be written: {reason(error)}") from error


def _records(out: Path) -> dict[str, Record]:
    """The records of earlier downloads into a folder, by name."""
    path = out / RECORD
    if is_absent(path):
        return {}
    try:
        return {record.name: record for record in msgspec.convert(read_json(path), _Records).files}
    except msgspec.ValidationError as error:
        raise DataError(f"{path}: is not a record of downloads: {error}; remove it, and it will be rewritten") from None
