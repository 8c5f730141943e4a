"""The inputs of a prediction: finds pictures and videos in files, folders and globs, names their results, and reads them."""

import glob
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import cv2
import numpy as np

from cocolvis.disk.files import reason, regular_file
from cocolvis.disk.folders import on_disk, passed_over, walk
from cocolvis.errors import DataError
from cocolvis.pictures import remarks
from cocolvis.pictures.encoded import check_pixels, decode_file
from cocolvis.text import decoded, nfc

PICTURES = frozenset((".jpg", ".jpeg", ".png", ".bmp", ".gif", ".pbm", ".pgm", ".ppm", ".webp", ".tif", ".tiff"))
VIDEOS = frozenset((".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm"))
"""Endings, in lower case, of the pictures and of the videos that are taken from folders and globs."""

log = logging.getLogger("ess")


@dataclass(frozen=True, slots=True)
class Input:
    """A picture or a video; ``name`` is the path of its results in the output folder, without an ending."""

    path: Path
    name: Path

    @property
    def is_video(self) -> bool:
        """Whether the file's ending is that of a video."""
        return self.path.suffix.lower() in VIDEOS


def find_inputs(arguments: Iterable[str], exclude: Path | None = None) -> list[Input]:
    """The pictures and videos in files, folders (at any depth) and globs such as "photos/**/*.jpg".

    The name of an input is its stem, preceded by its folders below the given folder or glob. Entries that exist but cannot be
    read, such as broken links, are included. Linked folders are followed; hidden files and files of operating systems are
    skipped, and so is everything in the folder ``exclude``; a file with several paths is taken once. The log names folders that
    cannot be read. Raises DataError if an argument does not exist, if a folder contains neither pictures nor videos, or if all
    of them are in ``exclude``.
    """
    inputs: dict[Path, Input] = {}
    excluded = Path(os.path.realpath(exclude)) if exclude else None
    for argument in arguments:
        for one in _named(argument):
            path = Path(os.path.realpath(one.path) if os.path.exists(one.path) else os.path.abspath(one.path))
            if excluded not in path.parents or one.path == Path(argument):
                inputs.setdefault(path, one)
    if not inputs:
        raise DataError(f"{exclude}: holds all pictures and videos; results go there, so choose another --out")
    return [*inputs.values()]


def read_list(content: bytes) -> list[str]:
    """The paths in a list with one path per line, such as stdin; raises DataError if it is not text or names no path."""
    lines = decoded(content, "the list of paths", errors="surrogateescape").split("\n")
    if not any(map(str.strip, lines)):
        raise DataError("the list of paths: is empty; expected one path per line")
    return [line for line in lines if line.strip()]


def _named(argument: str) -> list[Input]:
    if not argument:
        raise DataError("an input is empty; expected a picture, a video, a folder of these, or a glob")
    path = on_disk(Path(argument))
    if os.path.isfile(path):
        return [Input(path, Path(path.stem))]
    if os.path.isdir(path):
        root, files = path, _below(path)
    elif glob.has_magic(argument):
        root, files = _globbed(Path(argument))
    else:
        raise DataError(f"{path}: is not a file; expected a picture (JPEG or PNG), a video, a folder of these, or a glob")
    known = [file for file in files if file.suffix.lower() in PICTURES | VIDEOS]  # unreadable ones are reported later
    if not known:
        raise DataError(f"{path}: holds no pictures or videos; expected files ending in {', '.join(sorted(PICTURES | VIDEOS))}")
    return [Input(file, file.relative_to(root).with_suffix("")) for file in known]


def _below(folder: Path) -> list[Path]:
    files, notes = walk(folder, tolerant=True)
    for note in notes:
        log.warning("%s", note)
    paths = [folder / file for file in files]
    return sorted([*paths, *_like_pictures(folder, paths)], key=str)


def _like_pictures(folder: Path, files: Sequence[Path]) -> list[Path]:
    """Folders below ``folder`` that are named like pictures but contain none of the ``files``."""
    holders = {folder, *(file.parent for file in files)}
    above = {parent for holder in holders for parent in (holder, *holder.parents)}
    beside = [holder / name for holder in holders for name in _names(holder)]
    named = [path for path in beside if path.suffix.lower() in PICTURES and not passed_over(path.name)]
    return [path for path in named if path not in above and os.path.isdir(path)]


def _names(folder: Path) -> list[str]:
    """The names of the entries of a folder; empty if it does not exist or cannot be read, which was reported before."""
    try:
        return os.listdir(folder)
    except OSError:
        return []


def _globbed(pattern: Path) -> tuple[Path, list[Path]]:
    """(the folder before the first wildcard, the files that match a glob, sorted); "**" matches any folders, or none."""
    first = next(place for place, part in enumerate(pattern.parts) if glob.has_magic(part))
    root, wild = on_disk(Path(*pattern.parts[:first])), [nfc(part) for part in pattern.parts[first:]]
    if "**" in wild:  # the standard library would follow a loop of links
        return root, [file for file in _below(root) if _fits([nfc(part) for part in file.relative_to(root).parts], wild)]
    files = [Path(file) for file in sorted(glob.glob(str(root.joinpath(*pattern.parts[first:]))))]
    return root, [file for file in files if not any(map(passed_over, {*file.parts[first:]} - {*pattern.parts}))]


def _fits(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    """Whether the ``parts`` of a path match those of a glob."""
    if not pattern:
        return not parts
    if pattern[0] == "**":
        return _fits(parts, pattern[1:]) or (bool(parts) and _fits(parts[1:], pattern))
    return bool(parts) and fnmatchcase(parts[0], pattern[0]) and _fits(parts[1:], pattern[1:])


def read_picture(path: Path, remark: Callable[[str, Path], None] = lambda kind, path: None) -> np.ndarray:
    """(H, W, 3) uint8 RGB of a picture file; raises ValueError if it cannot be read or decoded, or has more than 2^27 pixels.

    ``remark`` is called with each kind of remark on the picture (:mod:`cocolvis.pictures.remarks`) and its path.
    """
    try:
        regular_file(path)
        content = path.read_bytes()
    except DataError as error:
        if os.path.islink(path) and not os.path.exists(path):
            raise ValueError(f"is a link to {os.readlink(path)}, which cannot be read") from None
        raise ValueError(str(error).removeprefix(f"{path}: ")) from None
    except OSError as error:
        raise ValueError(f"cannot be read: {reason(error)}") from None
    try:
        pixels = decode_file(content)
        for kind in remarks.of_picture(content):
            remark(kind, path)
        return pixels
    except (ValueError, MemoryError) as error:
        raise ValueError(f"the picture cannot be decoded: {str(error) or 'memory ran out'}") from None


def frames(path: Path, every: int = 1) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (number from 0, (H, W, 3) uint8 RGB) of every ``every``-th frame of a video.

    Raises ValueError if it has no frame.
    """
    video, number = _open(path), 0
    try:
        while video.grab():
            if number % every == 0:
                done, pixels = video.retrieve()
                if not done:
                    break
                yield number, np.ascontiguousarray(pixels[..., ::-1])
            number += 1
    finally:
        video.release()
    if not number:
        raise ValueError("the video has no frame that can be decoded")


def check_complete(path: Path) -> None:
    """Raise ValueError if a video, which can be opened, breaks off before its last frame.

    The number of frames in a header can be too large in a complete video, so it is compared only if the file is shorter than
    its chunks, as AVI, MP4 and MOV have them.
    """
    try:
        breaks_off = path.stat().st_size < _end_of_chunks(path)
    except OSError as error:
        raise ValueError(f"cannot be read: {reason(error)}") from None
    if not breaks_off:
        return
    stated, video, found = video_facts(path)[0], _open(path), 0
    while video.grab():
        found += 1
    video.release()
    if found < stated:
        raise ValueError(f"the video breaks off: {found} of the {stated} frames in its header can be read, and are predicted")


def _end_of_chunks(path: Path) -> int:
    """Where the outermost chunks of an AVI, MP4 or MOV end according to their sizes; 0 for other files."""
    end, size = 0, path.stat().st_size
    with path.open("rb") as file:
        head = file.read(12)
        avi, mp4 = (head[:4], head[8:]) == (b"RIFF", b"AVI "), head[4:8] == b"ftyp"
        while (avi or mp4) and end < size:
            file.seek(end)
            length = (_riff_bytes if avi else _box_bytes)(file.read(16))
            if not length:
                break
            end += length
    return end


def _riff_bytes(start: bytes) -> int:
    """The size of an outermost chunk of an AVI; 0 if it is unknown, as in files that were written to a pipe."""
    length = int.from_bytes(start[4:8], "little")
    return 8 + length if start[:4] == b"RIFF" and 0 < length < 2**32 - 1 else 0


def _box_bytes(start: bytes) -> int:
    """The size of an outermost box of an MP4 or MOV; 0 if it extends to the end of the file, or is not a box."""
    length = int.from_bytes(start[:4])
    if not start[4:8].isalnum():
        return 0
    return int.from_bytes(start[8:]) if length == 1 else length


def video_facts(path: Path) -> tuple[int, float]:
    """(number of frames, frames per second) according to the header of a video; raises ValueError if it cannot be opened."""
    video = _open(path)
    facts = int(max(0, video.get(cv2.CAP_PROP_FRAME_COUNT))), float(video.get(cv2.CAP_PROP_FPS))
    video.release()
    return facts


def opencv_path(path: Path, what: str = "its path") -> str:
    """A path for OpenCV; raises ValueError, which begins with ``what``, if it is not UTF-8."""
    try:
        return os.fsencode(path).decode()
    except UnicodeDecodeError:
        raise ValueError(f"{what} is not UTF-8, which OpenCV cannot open; rename it") from None


def _open(path: Path) -> cv2.VideoCapture:
    video = cv2.VideoCapture(opencv_path(path))
    if not video.isOpened():
        raise ValueError("the video cannot be opened")
    height, width = (int(video.get(side)) for side in (cv2.CAP_PROP_FRAME_HEIGHT, cv2.CAP_PROP_FRAME_WIDTH))
    try:
        check_pixels((height, width))
    except ValueError as error:
        video.release()
        raise ValueError(f"the video's frames are too large, or have no size: {error}") from None
    return video
