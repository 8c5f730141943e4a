"""Fetches the official COCO, COCO-Stuff and LVIS archives, checks them, and records what came with its SHA-256."""

import fcntl
import os
import shlex
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import msgspec

from cocolvis.disk.archives import members
from cocolvis.disk.files import read_json, sha256, sync_folder, write_json
from cocolvis.downloads import zip_directory
from cocolvis.downloads.transfer import WEB, Note, Part, Patience, fetch
from cocolvis.errors import DataError
from cocolvis.progress import Phase, count_bytes, quiet
from cocolvis.text import human_size

RECORD = "downloads.json"

_TOLERANCE = 2**20
"""Bytes that a file whose size is an estimate may have beyond twice of it."""


@dataclass(frozen=True)
class Remote:
    """A file as it is published; where the source states no size it is an estimate, where it states no SHA-256 that is None."""

    name: str
    file: str
    url: str
    size: int
    exact: bool = True
    sha256: str | None = None


_COCO, _LVIS = "http://images.cocodataset.org/zips", "https://dl.fbaipublicfiles.com/LVIS"
_STUFF = "http://calvin.inf.ed.ac.uk/wp-content/uploads/data/cocostuffdataset"

FILES = (
    Remote("lvis-val", "lvis/lvis_v1_val.json.zip", f"{_LVIS}/lvis_v1_val.json.zip", 64_026_968),
    Remote("lvis-train", "lvis/lvis_v1_train.json.zip", f"{_LVIS}/lvis_v1_train.json.zip", 350_264_821),
    Remote("stuff", "coco/stuff_trainval2017.zip", f"{_STUFF}/stuff_trainval2017.zip", 543_000_000, exact=False),
    Remote("val2017", "coco/val2017.zip", f"{_COCO}/val2017.zip", 815_585_330),
    Remote("train2017", "coco/train2017.zip", f"{_COCO}/train2017.zip", 19_336_861_798),
)
"""In the order in which they are fetched: a dead address shows before the hours that train2017 takes."""


class Record(msgspec.Struct):
    """What was fetched; downloads.json lists these."""

    name: str
    file: str
    url: str
    bytes: int
    sha256: str


class _Records(msgspec.Struct):
    files: list[Record]


class Job:
    """One file of a download: where it comes from, where it goes, and how much of it is there."""

    def __init__(self, remote: Remote, out: Path, mirror: str | None, record: Record | None):
        words = ["cocolvis", "download", "--out", str(out), "--only", remote.name, *(("--mirror", mirror) if mirror else ())]
        url = f"{mirror.rstrip('/')}/{remote.url.rpartition('/')[2]}" if mirror else remote.url
        published = remote.size if remote.exact else None
        self.remote, self.record = remote, record
        most = remote.size if remote.exact else 2 * remote.size + _TOLERANCE
        self.part = Part(url, out / remote.file, published, most, f"`{shlex.join(words)}`")
        self.there = self.part.target.exists()
        mark, self.have = self.part.resumable()
        self.size = (mark and mark.bytes) or remote.size
        if self.there:
            self.have = self.size = self.part.target.stat().st_size
        expected = record.bytes if record else published
        if self.there and expected not in (None, self.have):
            said = f"{RECORD} records" if record else "the published file has"
            self.fail(self.part.target, f"has {self.have:,} bytes, {said} {expected:,}; remove it")

    @property
    def finished(self) -> bool:
        """Whether the file is there and recorded."""
        return self.there and self.record is not None

    @property
    def left(self) -> int:
        """Bytes still to fetch; an estimate where the size is one."""
        return max(self.size - self.have, 0)

    @property
    def state(self) -> str:
        """In a word: finished, there (but not recorded), begun, or nothing."""
        return "finished" if self.finished else "there" if self.there else "begun" if self.have else ""

    def fail(self, path: Path, fault: str) -> None:
        """Raise a DataError that names the command which fetches this file."""
        raise DataError(f"{path}: {fault} and fetch it again with {self.part.command}")


def plan(out: Path, names: Sequence[str] = (), mirror: str | None = None) -> list[Job]:
    """What fetching the named files (default: all) into ``out`` means; fetches nothing.

    ``mirror`` replaces everything before the last part of each address. A DataError where a finished file has another size than
    recorded or published.
    """
    if mirror is not None and not WEB.fullmatch(mirror):
        raise DataError(f"--mirror {mirror}: is no web address; it must begin with http:// or https:// and hold no spaces")
    records = _records(out)
    return [Job(remote, out, mirror, records.get(remote.name)) for remote in FILES if not names or remote.name in names]


def free_bytes(out: Path) -> int:
    """What the disk of ``out``, which need not exist yet, has free."""
    out = out.absolute()
    return shutil.disk_usage(next(folder for folder in (out, *out.parents) if folder.exists())).free


def check_disk(out: Path, jobs: Sequence[Job]) -> None:
    """A DataError where the disk cannot hold what is left to fetch."""
    left, free = sum(job.left for job in jobs), free_bytes(out)
    if left > free:
        sizes = f"{human_size(left)} are left to fetch and the disk has {human_size(free)} free"
        raise DataError(f"{out}: {sizes}; make room, choose another --out, or fetch less with --only")


def download(
    out: Path,
    names: Sequence[str] = (),
    mirror: str | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
    note: Note = lambda text: None,
    phase: Phase = quiet,
    patience: Patience | None = None,
) -> list[Record]:
    """Fetch what ``plan`` lists and is not finished; the records of all of it, which downloads.json keeps too.

    ``progress`` gets bytes, ``phase`` those of a file that is being hashed, ``note`` a line whenever something is tried again.
    A DataError where a file cannot be had or is not the published one; what came is kept, and the same call goes on there.
    """
    with _alone(out):
        jobs, records = plan(out, names, mirror), _records(out)
        check_disk(out, jobs)
        sizes = {job: (job.have, job.size) for job in jobs}
        for job in jobs:

            def show(have: int, size: int | None, job: Job = job) -> None:
                sizes[job] = have, size or max(have, job.size)
                progress(*map(sum, zip(*sizes.values(), strict=True)))

            show(job.have, job.size)
            if job.finished:
                continue
            if not job.there:
                fetch(job.part, show, note, patience or Patience())
            records[job.remote.name] = record = _checked(job, note, phase)
            write_json(out / RECORD, msgspec.to_builtins(_Records(list(records.values()))))
            if not job.there:
                _take_name(job.part)
            show(record.bytes, record.bytes)
    return [records[job.remote.name] for job in jobs]


def _checked(job: Job, note: Note, phase: Phase) -> Record:
    """The record of a file that came or was put there; a DataError where it is not the published one."""
    remote, part = job.remote, job.part
    path = part.target if job.there else part.path
    size, digest, fault = path.stat().st_size, "", None
    if part.published not in (None, size):
        fault = f"has {size:,} bytes, the published file has {part.published:,}"
    elif broken := zip_directory.fault(path):
        fault = f"{size:,} bytes came that are no zip archive: {broken}"
    elif job.there and (unread := next((member for member in members(path).values() if member.unread), None)):
        fault = f"its member {unread.member} is {unread.unread}, which is not read; pack the file again with Deflate, or"
        job.fail(path, f"{fault} remove it")
    else:
        note(f"{part.target.name}: {size:,} bytes are there; computing their SHA-256")
        hashed = count_bytes(partial(phase, f"hashing {part.target.name}"), size)
        digest = sha256(path, hashed)
        if remote.sha256 not in (None, digest):
            fault = f"has the SHA-256 {digest}, published is {remote.sha256}"
    if fault and job.there:
        job.fail(path, f"{fault}; remove it")
    if fault:
        kept = f"{part.have:,} bytes that came before are kept" if part.restore() else "it was removed"
        job.fail(path, f"{fault}; {kept}; look for another server (--mirror)")
    if job.record and job.record.sha256 != digest:
        note(f"{part.target.name}: has the SHA-256 {digest}; an earlier download had {job.record.sha256}")
    return Record(remote.name, remote.file, part.url, size, digest)


def _take_name(part: Part) -> None:
    """Make a complete part durable and give it its final name; the mark goes last, without it the part is worth nothing."""
    try:
        with part.path.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(part.path, part.target)
        part.marked.unlink(missing_ok=True)
        part.forget()
        sync_folder(part.target.parent)
    except OSError as error:
        raise DataError(f"{part.target}: cannot be written: {error.strerror or error}") from error


def _records(out: Path) -> dict[str, Record]:
    """What earlier downloads into a folder recorded, by name."""
    path = out / RECORD
    if not path.exists():
        return {}
    try:
        return {record.name: record for record in msgspec.convert(read_json(path), _Records).files}
    except msgspec.ValidationError as error:
        raise DataError(f"{path}: is no record of downloads: {error}; remove it, and it is written anew") from None


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Keep a second download out of the folder: both would append to the same parts."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        handle = os.open(out, os.O_RDONLY)
    except OSError as error:
        raise DataError(f"{out}: cannot be written: {error.strerror or error}") from None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise DataError(f"{out}: another download is running there; wait until it ends") from None
    except OSError:
        pass  # a file system without locks
    try:
        yield
    finally:
        os.close(handle)
