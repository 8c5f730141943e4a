"""Builds on a small, full or read-only file system of their own: a script, run in a namespace where it may mount one.

``python small_disk.py SCENARIO FOLDER COCO LVIS`` mounts a tmpfs on FOLDER, for itself alone, and prints what happened as JSON.
"""

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

from cocolvis.building.build import Mode, build
from cocolvis.building.coco_lvis import CocoLvisOptions, CocoLvisPlan
from cocolvis.errors import DataError
from cocolvis.sources.inputs import Sources
from cocolvis.vocabulary import coco_lvis

SHARD_SIZE = 15
WAYS = (["unshare", "--mount"], ["unshare", "--map-root-user", "--mount"])
"""How to get a mount namespace as root, and as another user."""


def run(scenario: str, folder: Path, built) -> dict | None:
    """Run a scenario in a new process; what it printed, or None if mounting is not allowed here."""
    folder.mkdir(exist_ok=True)
    for way in WAYS if shutil.which("unshare") else ():
        probe = subprocess.run([*way, "mount", "-t", "tmpfs", "tmpfs", folder], capture_output=True, check=False)
        if probe.returncode == 0:
            command = [*way, sys.executable, __file__, scenario, folder, built.coco, built.lvis]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
            return json.loads(done.stdout)
    return None


def mount(folder: Path, options: str) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], check=True)


def digests(folder: Path) -> dict[str, str]:
    """Relative path -> SHA-256 of every file."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def attempt(built: tuple[Path, Path], out: Path, **settings) -> str | None:
    """Build; the message if that fails, otherwise None."""
    try:
        build(Sources(*built, coco_lvis()), out, CocoLvisOptions(shard_size=SHARD_SIZE), **settings)
    except DataError as error:
        return str(error)
    return None


def finished(out: Path) -> dict[str, tuple[int, int]]:
    """Name of each shard that has a report -> inode and time of the last change."""
    names = [path.stem for path in (out / ".build").glob("*-*.json")]
    found = {name: (out / "shards" / f"{name}.h5").stat() for name in names}
    return {name: (status.st_ino, status.st_mtime_ns) for name, status in found.items()}


def broken_off(built: tuple[Path, Path], out: Path, breaking, mending) -> dict:
    """Call ``breaking()`` once the first shard of a build is finished, and complete the build after ``mending()``."""
    broken = False

    def progress(done: int, total: int) -> None:
        nonlocal broken
        if not broken and finished(out):
            broken = True
            breaking()

    said = attempt(built, out, progress=progress)
    before, left = finished(out), [path.name for path in out.rglob("*.tmp")]
    indexed = (out / "dataset.json").exists()
    mending()
    again = attempt(built, out, mode=Mode.RESUME)
    after = {name: (s.st_ino, s.st_mtime_ns) for name in before for s in [(out / "shards" / f"{name}.h5").stat()]}
    return {
        "said": said,
        "finished": sorted(before),
        "left": left,
        "indexed": indexed,
        "again": again,
        "kept": after == before,
        "contents": digests(out),
    }


def too_small(folder: Path, built: tuple[Path, Path]) -> dict:
    """The command line on a disk that the estimate refuses, in a new folder and over an older data set."""
    mount(folder, "size=300k")
    sources = ["--coco", built[0], "--lvis", built[1]]
    command = [sys.executable, "-m", "cli.cocolvis", "build", *sources, "--out", folder / "data"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    return {"code": done.returncode, "said": done.stderr, "there": [str(path) for path in folder.rglob("*")]}


def overwrites(folder: Path, built: tuple[Path, Path]) -> dict:
    """--overwrite by a data set that does not fit, and on a disk that has room for one data set but not for two."""
    mount(folder, "size=450k")
    build(Sources(*built, coco_lvis()), folder / "data", CocoLvisOptions(limit=1))
    before = digests(folder)
    facts = {"small": attempt(built, folder / "data", mode=Mode.OVERWRITE), "same": digests(folder) == before}
    mount(folder, "size=1100k")
    plan = CocoLvisPlan.make(Sources(*built, coco_lvis()), CocoLvisOptions(shard_size=SHARD_SIZE))
    facts["first"] = attempt(built, folder / "data")
    facts["room for two"] = shutil.disk_usage(folder).free > plan.bytes_needed(plan.shard_counts())
    return facts | {"second": attempt(built, folder / "data", mode=Mode.OVERWRITE)}


def fills_up(folder: Path, built: tuple[Path, Path], room: str) -> dict:
    """Fill the disk, except for ``room`` bytes, while a build runs."""
    mount(folder, "size=2m")
    ballast = folder / "ballast"

    def fill() -> None:
        ballast.write_bytes(bytes(shutil.disk_usage(folder).free - int(room)))

    return broken_off(built, folder / "data", fill, ballast.unlink)


def read_only(folder: Path, built: tuple[Path, Path]) -> dict:
    """Make the disk read-only while a build runs; also start builds on a disk that is read-only already."""
    mount(folder, "size=2m")

    def remount(mode: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{mode}", folder], check=True)

    facts = broken_off(built, folder / "data", lambda: remount("ro"), lambda: remount("rw"))
    remount("ro")
    return facts | {"new": attempt(built, folder / "new"), "over": attempt(built, folder / "data", mode=Mode.OVERWRITE)}


if __name__ == "__main__":
    (scenario, *details), folder, coco, lvis = sys.argv[1].split(), *map(Path, sys.argv[2:])
    print(json.dumps(globals()[scenario](folder, (coco, lvis), *details)))
