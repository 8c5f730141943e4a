"""Writes predictions to files: 16-bit PNGs of class ids, overlays, COCO run lengths; for pictures, and for videos by frame."""

import json
import logging
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path

import cv2
import numpy as np

from cocolvis.ahead import ahead
from cocolvis.disk import lock
from cocolvis.disk.files import LONGEST_NAME, Unwritable, check_writable, read_json, write_aside
from cocolvis.errors import DataError
from cocolvis.inspection.render import enlarge, overlay
from cocolvis.pictures import remarks
from cocolvis.pictures.encoded import write_png
from cocolvis.progress import Announce, Progress, ignore
from ess.inference.image_ids import ImageId, image_ids, number_of
from ess.inference.inputs import Input, check_complete, frames, opencv_path, read_picture, video_facts
from ess.inference.predictor import Predictor

FORMATS = ("png", "overlay", "rle")
RLE_FILE = "predictions.json"

_THREADS = 4
"""How many threads read pictures, and how many encode results, while the network computes."""

_SAVED_EVERY = 60.0
"""Seconds between two saves of the run lengths; more if a save takes long, so that at most 5 % of the time is spent on them."""

_FRAME = re.compile(r"[0-9]{6,}\.png")
"""The names of the masks of a video's frames."""

log = logging.getLogger("ess")


def predict_files(
    predictor: Predictor,
    inputs: Sequence[Input],
    out: Path,
    formats: Sequence[str] = ("png", "overlay"),
    *,
    every: int = 1,
    skip_existing: bool = False,
    progress: Progress = ignore,
    announce: Announce = ignore,
) -> list[str]:
    """Write the predictions of pictures and videos below ``out``, and return a line for each that cannot be decoded completely.

    "png" is ``NAME.png``, (H, W) 16-bit class ids; "overlay" is ``NAME_overlay.png``; "rle" is one ``predictions.json`` of
    :func:`run_lengths`. Every ``every``-th frame of a video is predicted: PNGs are ``NAME/000000.png``, overlays are one silent
    ``NAME_overlay.mp4``, and run lengths have a "frame". Run lengths of an earlier call are kept until this one has predicted
    the same picture or frame. ``skip_existing`` skips inputs that have all of their results, also those of a process that was
    killed. ``announce`` is called with a line if this waits for a sign of life from another process. Raises DataError if files
    cannot be written or would overwrite each other, or if another process writes run lengths there.
    """
    faults: list[str] = []
    inputs = [*_with_possible_names(inputs, out, formats, faults)]
    _check_names(inputs, out, formats)
    with _permitted(out, formats, announce) as permit:
        _predict(_Results(predictor, inputs, out, formats, skip_existing, permit), inputs, every, faults, progress)
    return faults


@contextmanager
def _permitted(out: Path, formats: Sequence[str], announce: Announce) -> Iterator[Callable[[], None]]:
    """Hold the folder of run lengths, which are one file for all inputs, and yield the check that precedes each write of it."""
    if "rle" not in formats:
        yield ignore
        return
    check_writable(out / RLE_FILE)
    with lock.held(out, None, announce, "a prediction") as lease:
        yield lease.check


def _predict(results: "_Results", inputs: Sequence[Input], every: int, faults: list[str], progress: Progress) -> None:
    """Predict the inputs; ``faults`` gets a line for each that cannot be decoded completely."""
    noted = _Remarks()
    pictures = [one for one in inputs if not one.is_video]
    videos = [one for one in inputs if one.is_video]
    total = len(faults) + len(pictures) + sum(_frames_of(video, every) for video in videos)
    missing = [one for one in pictures if not results.exist(one)]
    done = len(pictures) - len(missing)
    try:
        for _ in ahead(results.write, results.predictor.stream(_decoded(missing, faults, noted)), _THREADS):
            done += 1
            results.save_if_due()
            progress(done + len(faults), total)
        done = len(pictures)
        for _ in chain.from_iterable(_predict_video(results, video, every, faults) for video in videos):
            done += 1
            results.save_if_due()
            progress(done, max(done, total))
    finally:
        results.save()
        noted.log()


def _predict_video(results: "_Results", video: Input, every: int, faults: list[str]) -> Iterator[int]:
    """Yield the numbers of a video's frames when done; ``faults`` gets a line if it cannot be read, or not to its end."""
    try:
        yield from results.write_video(video, every)
        check_complete(video.path)
    except ValueError as error:
        faults.append(f"{video.path}: {error}")


class _Remarks:
    """Remarks on pictures, collected as several threads read them, and logged once at the end."""

    def __init__(self) -> None:
        self._files: dict[str, list[str]] = {}

    def __call__(self, kind: str, file: Path) -> None:
        """Note a remark on a file."""
        self._files.setdefault(kind, []).append(str(file))

    def log(self) -> None:
        """Log a line for each kind of remark."""
        counts = {kind: len(files) for kind, files in self._files.items()}
        for line in remarks.lines(counts, {kind: min(files) for kind, files in self._files.items()}):
            log.warning("%s", line)


def run_lengths(mask: np.ndarray, file: Path, frame: int | None = None) -> list[dict]:
    """An entry for each class of a mask (H, W), in the format of COCO results, which pycocotools reads.

    ``{"image_id", "file_name", "category_id", "segmentation": {"size": [H, W], "counts"}}``, with "frame" for one of a video.
    The category is the class id. The image id is the number in the file's name, as in COCO, or the name if that is not a
    number. Several files may share it, so :func:`predict_files` replaces it by a unique one (:func:`image_ids`).
    """
    from pycocotools import mask as coco_mask

    number = number_of(file)
    named = {"image_id": file.name if number is None else number, "file_name": str(file)}
    named |= {} if frame is None else {"frame": frame}
    entries = []
    for c in np.unique(mask).tolist():
        rle = coco_mask.encode(np.asfortranarray(mask == c, np.uint8))
        counts = rle["counts"].decode("ascii")
        entries.append(named | {"category_id": c, "segmentation": {"size": list(rle["size"]), "counts": counts}})
    return entries


class _Results:
    """The files below ``out``. Run lengths that an earlier call wrote are kept until their picture or frame is predicted.

    ``permit`` is called before they are written, and raises an exception to prevent it.
    """

    def __init__(
        self,
        predictor: Predictor,
        inputs: Sequence[Input],
        out: Path,
        formats: Sequence[str],
        skip_existing: bool,
        permit: Callable[[], None] = ignore,
    ):
        self.predictor, self.out, self.formats, self.skip_existing = predictor, out, formats, skip_existing
        self._names = {str(one.path): f"{one.name}{one.path.suffix}" for one in inputs}
        self.entries: dict[tuple[str, int], list[dict]] = {}
        self._due, self._permit = time.monotonic() + _SAVED_EVERY, permit
        if "rle" in formats and os.path.exists(out / RLE_FILE):
            given = {os.path.abspath(file): file for file in self._names}  # an earlier call may have had it by another path
            for entry in _read_entries(out / RLE_FILE):
                file = given.get(os.path.abspath(entry["file_name"]), entry["file_name"])
                self.entries.setdefault((file, entry.get("frame", -1)), []).append(entry | {"file_name": file})

    def exist(self, one: Input) -> bool:
        """Whether a picture is skipped because it has all its results."""
        return self._skipped(_files(one, self.out, self.formats), (str(one.path), -1))

    def write(self, predicted: tuple[Input, np.ndarray, np.ndarray]) -> None:
        """Write the results of one picture."""
        one, image, mask = predicted
        if "png" in self.formats:
            write_png(self.out / f"{one.name}.png", mask)
        if "overlay" in self.formats:
            write_png(self.out / f"{one.name}_overlay.png", self._overlay(image, mask))
        if "rle" in self.formats:
            self.entries[str(one.path), -1] = run_lengths(mask, one.path)

    def write_video(self, one: Input, every: int) -> Iterator[int]:
        """Write the results of a video and yield the numbers of its frames when done; raises ValueError if it is unreadable."""
        film, rate = self.out / f"{one.name}_overlay.mp4", video_facts(one.path)[1]
        if "overlay" not in self.formats:
            wanted = (frame for frame in frames(one.path, every) if not self._has(one, frame[0]))
            yield from (self._write_frame(one, *frame) for frame in self.predictor.stream(wanted))
            return
        if self._video_exists(one, film, every):
            return
        seen = self.predictor.stream(frames(one.path, every))
        with write_aside(film) as aside:
            writer, count = None, 0
            part = aside.with_suffix(".mp4")  # OpenCV chooses the container by the ending
            try:
                for number, image, mask in seen:
                    picture = self._overlay(image, mask)
                    writer = writer or _film(part, picture, rate / every)
                    writer.write(picture[: picture.shape[0] & ~1, : picture.shape[1] & ~1, ::-1])
                    count += 1
                    yield self._write_frame(one, number, image, mask)
                assert writer is not None  # frames() raised ValueError if the video has none
                writer.release()
                if _frame_count(part) != count:
                    raise Unwritable(f"{film}: cannot be written: the file breaks off, most likely because the disk is full")
                part.replace(aside)
            finally:
                part.unlink(missing_ok=True)

    def save_if_due(self) -> None:
        """Write the run lengths if the last time was long ago, so that little is lost if the process is killed."""
        begun = time.monotonic()
        if begun >= self._due:
            self.save()
            ended = time.monotonic()
            self._due = ended + max(_SAVED_EVERY, 20 * (ended - begun))

    def save(self) -> None:
        """Write the run lengths, sorted by file and frame; threads may add others meanwhile."""
        found = dict(self.entries)
        if found:
            ids = self._ids(found)
            entries = [entry | {"image_id": ids[key[0]]} for key in sorted(found) for entry in found[key]]
            with write_aside(self.out / RLE_FILE, self._permit) as aside:
                aside.write_text("[\n" + ",\n".join(json.dumps(entry) for entry in entries) + "\n]\n", encoding="utf-8")

    def _ids(self, found: Mapping[tuple[str, int], list[dict]]) -> dict[str, ImageId]:
        """File -> id, for all inputs and for the files of an earlier call, whose names are known only if they were ids."""
        earlier = {file: entries[0].get("image_id") for (file, _), entries in found.items() if file not in self._names}
        named = {file: i if isinstance(i, str) else Path(file).name for file, i in earlier.items()}
        return image_ids(self._names | named)

    def _video_exists(self, one: Input, film: Path, every: int) -> bool:
        """:meth:`exist` for a video with an overlay; its frames are read only if they have results of their own."""
        numbers = () if {*self.formats} == {"overlay"} else (number for number, _ in frames(one.path, every))
        return self.skip_existing and _is_written(film) and all(self._has(one, number) for number in numbers)

    def _has(self, one: Input, number: int) -> bool:
        """:meth:`exist` for one frame of a video, without its overlay."""
        files = [self._frame_file(one, number)] if "png" in self.formats else []
        return self._skipped(files, (str(one.path), number))

    def _skipped(self, files: Sequence[Path], key: tuple[str, int]) -> bool:
        return self.skip_existing and (key in self.entries or "rle" not in self.formats) and all(map(_is_written, files))

    def _frame_file(self, one: Input, number: int) -> Path:
        return self.out / one.name / f"{number:06d}.png"

    def _write_frame(self, one: Input, number: int, image: np.ndarray, mask: np.ndarray) -> int:
        if "png" in self.formats:
            write_png(self._frame_file(one, number), mask)
        if "rle" in self.formats:
            self.entries[str(one.path), number] = run_lengths(mask, one.path, number)
        return number

    def _overlay(self, image: np.ndarray, mask: np.ndarray) -> np.ndarray:
        return overlay(*enlarge(image, mask), self.predictor.vocabulary)


def _decoded(inputs: Sequence[Input], faults: list[str], noted: _Remarks) -> Iterator[tuple[Input, np.ndarray]]:
    """Yield the pictures that can be decoded; ``faults`` gets a line for each of the others."""

    def decode(one: Input) -> tuple[Input, np.ndarray | str]:
        try:
            return one, read_picture(one.path, noted)
        except ValueError as error:
            return one, f"{one.path}: {error}"

    for one, result in ahead(decode, inputs, _THREADS):
        if isinstance(result, str):
            faults.append(result)
        else:
            yield one, result


def _files(one: Input, out: Path, formats: Sequence[str]) -> list[Path]:
    """The files that are written for one input, without the run lengths of all inputs."""
    png, film = ("", "_overlay.mp4") if one.is_video else (".png", "_overlay.png")
    return [out / f"{one.name}{end}" for kind, end in (("png", png), ("overlay", film)) if kind in formats]


def _is_written(file: Path) -> bool:
    """Whether a result exists; an empty file is what a power cut may leave."""
    return os.path.isfile(file) and os.path.getsize(file) > 0


def _with_possible_names(inputs: Sequence[Input], out: Path, formats: Sequence[str], faults: list[str]) -> Iterator[Input]:
    """Yield the inputs whose results can be named; ``faults`` gets a line for each of the others."""
    for one in inputs:
        longest = max((len(os.fsencode(path.name)) for path in _files(one, out, formats)), default=0)
        if longest > LONGEST_NAME:
            reason = f"the name of its result would have {longest} bytes; file systems accept at most {LONGEST_NAME}"
            faults.append(f"{one.path}: {reason}: rename it, or choose --format rle")
        else:
            yield one


def _check_names(inputs: Sequence[Input], out: Path, formats: Sequence[str]) -> None:
    """Raise DataError if two inputs would have the same result, or a result would replace an input."""
    files = {one: _files(one, out, formats) for one in inputs}
    counts = Counter(path for paths in files.values() for path in paths)
    originals = {os.path.realpath(one.path) for one in inputs}  # Path.resolve() raises at a link to itself
    for one, paths in files.items():
        for path in paths:
            if counts[path] > 1:
                name = path.relative_to(out)
                raise DataError(
                    f"{one.path}: {counts[path]} inputs would be written as {name}; predict them separately, or the folder with"
                    " both: results keep its folders"
                )
            if os.path.realpath(path) in originals:
                raise DataError(f"{one.path}: its result would overwrite the input {path}; choose another --out")
    if "png" in formats:
        _check_frames(files, out)


def _check_frames(files: Mapping[Input, Sequence[Path]], out: Path) -> None:
    """Raise DataError if an input, or one of its ``files``, has the name of a mask of a video's frame."""
    videos = {os.path.realpath(out / one.name): one.path for one in files if one.is_video}

    def video_with(path: Path) -> Path | None:
        return videos.get(os.path.realpath(path.parent)) if videos and _FRAME.fullmatch(path.name) else None

    for one, results in files.items():
        for original in (one.path, Path(os.path.realpath(one.path))):
            if video := video_with(original):
                raise DataError(f"{one.path}: a frame of {video} would overwrite it; choose another --out")
        for path in results:
            if video := video_with(path):
                name = path.relative_to(out)
                raise DataError(f"{one.path}: would be written as {name}, like a frame of {video}; predict it to another --out")


def _frames_of(video: Input, every: int) -> int:
    """How many frames of a video are predicted, according to its header; 1 if it cannot be opened."""
    try:
        return -(-video_facts(video.path)[0] // every)
    except ValueError:
        return 1


def _film(path: Path, picture: np.ndarray, rate: float) -> cv2.VideoWriter:
    """A writer for a video of even size, as encoders require; raises ValueError if its path, size or rate is not possible."""
    size, rate = (picture.shape[1] & ~1, picture.shape[0] & ~1), _film_rate(rate)
    path.touch()  # raises OSError where nothing can be written: this is not a fault of the video
    writer = cv2.VideoWriter(opencv_path(path, "the path of its overlay"), cv2.VideoWriter.fourcc(*"mp4v"), rate, size)
    if not writer.isOpened():
        what = f"{size[0]} x {size[1]} pixels at {rate:g} frames per second"
        raise ValueError(f"its overlay video of {what} cannot be written; choose --format png")
    return writer


def _film_rate(rate: float) -> float:
    """The possible rate of a video that is closest to ``rate``, 25 if that is unknown.

    OpenCV writes a rate as n, n / 10, n / 100 or n / 1000, and in MPEG-4, n is at most 65535.
    """
    if not rate > 0:
        return 25.0
    rate = min(max(rate, 0.002), 65535.0)
    return round(rate, next(digits for digits in (3, 2, 1, 0) if rate * 10**digits < 65535.5))


def _frame_count(film: Path) -> int:
    """The frames of a video that was just written, 0 if it cannot be read: OpenCV does not report a full disk."""
    try:
        return video_facts(film)[0]
    except ValueError:
        return 0


def _read_entries(path: Path) -> list[dict]:
    entries = read_json(path)
    if not isinstance(entries, list) or not all(map(_is_entry, entries)):
        raise DataError(
            f"{path}: is not a list of results that `ess predict --format rle` writes; remove it, or choose another --out"
        )
    return entries


def _is_entry(entry: object) -> bool:
    return isinstance(entry, dict) and isinstance(entry.get("file_name"), str) and isinstance(entry.get("frame", -1), int)
