"""The input of a COCO+LVIS build: the annotation files, read once, and the picture and stuff annotations of each image."""

import hashlib
import os
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import PurePosixPath

from cocolvis.disk import reading
from cocolvis.disk.archives import Place
from cocolvis.errors import DataError
from cocolvis.progress import Announce, Phase, ignore
from cocolvis.sources import locations
from cocolvis.sources.annotations import AnnotationFile, ImageRecord, Segment
from cocolvis.sources.locations import FOLDERS, Pictures, Roots
from cocolvis.vocabulary import Vocabulary


class Sources:
    """COCO (pictures and stuff annotations) and LVIS; each file is read once, when it is first needed.

    ``coco`` and ``lvis`` are each a folder, or several folders and zip files. Raises DataError for other files, and if a file
    that is read has another list of categories than ``vocabulary``. ``phase`` reports which file is being read,
    ``announce`` why that takes long.
    """

    def __init__(self, coco: Roots, lvis: Roots, vocabulary: Vocabulary, announce: Announce = ignore, phase: Phase = ignore):
        locations.check_roots(coco, "--coco")
        locations.check_roots(lvis, "--lvis")
        self._coco = coco
        self._lvis = lvis
        self._vocabulary = vocabulary
        self._announce, self._phase = announce, phase
        self._things: dict[str, AnnotationFile] = {}
        self._stuff: dict[str, AnnotationFile] = {}
        self._pictures: dict[str, Pictures] = {}
        self._mapped: list[tuple[Place, os.stat_result]] = []
        self._digests: dict[str, Future[str]] = {}
        self._hashing = ThreadPoolExecutor(1, "sha256")

    def things(self, split: str) -> AnnotationFile:
        """The LVIS annotations of a split, whose images make up the split of the data set."""
        if split not in self._things:
            self._things[split] = self._read(locations.lvis_place(self._lvis, split), "lvis")
        return self._things[split]

    def stuff(self, folder: str) -> AnnotationFile:
        """The stuff annotations of the images in ``folder`` (train2017, val2017)."""
        if folder not in self._stuff:
            self._stuff[folder] = self._read(locations.stuff_place(self._coco, folder), "stuff")
        return self._stuff[folder]

    def pictures(self, folder: str) -> Pictures:
        """The pictures of ``folder``; raises DataError, listing the places searched, if they do not exist."""
        if folder not in self._pictures:
            self._pictures[folder] = locations.pictures(self._coco, folder)
        return self._pictures[folder]

    def locate(self, image: ImageRecord, split: str) -> tuple[str, str]:
        """(folder, file name) of the picture of an LVIS image.

        The folder is the one in its record, otherwise the one whose stuff file lists the image, otherwise that of the split.
        Raises DataError if the record names no usable file, or a folder without stuff annotations.
        """
        folder, name = image.location()
        if folder is not None and folder not in FOLDERS and not locations.has_stuff(self._coco, folder):
            raise DataError(f"its folder is {folder!r}, which has no stuff annotations; expected {' or '.join(FOLDERS)}")
        if folder is None:
            usual = f"{split}2017"
            folders = sorted(FOLDERS, key=lambda f: f != usual)
            listed = (f for f in folders if locations.has_stuff(self._coco, f) and image.id in self.stuff(f).images)
            folder = next(listed, usual)
        return folder, name

    def segments(self, folder: str, image_id: int) -> list[Segment]:
        """The stuff annotations of an image in file order."""
        return self.stuff(folder).segments(image_id)

    def digests(self) -> dict[str, str]:
        """File name -> SHA-256 of the JSON, for each annotation file that was read."""
        return {name: digest.result() for name, digest in sorted(self._digests.items())}

    def check_unchanged(self) -> None:
        """Raise DataError if an annotation file was overwritten since it was read: segments refer to the file, not to a copy.

        A file that was replaced by another one, or removed, is still there for those who have opened it.
        """
        for place, before in self._mapped:
            now = reading.status(place.path)
            if now is None or not os.path.samestat(now, before):
                continue
            if (now.st_size, now.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
                advice = "restore the file and continue with --resume, or build again with --overwrite"
                raise DataError(f"{place}: was changed after the build had begun to read it; {advice}")

    def _read(self, place: Place, source: str) -> AnnotationFile:
        name = PurePosixPath((place.member or "").replace("\\", "/") or place.path).name
        progress = partial(self._phase, f"reading {name}")
        progress(0, 0)  # before the file is unpacked, which may take a long time
        status = reading.status(place.path) if place.member is None else None  # members of a zip are copied
        content = place.map()
        if status is not None:
            self._mapped.append((place, status))
        self._digests[name] = self._hashing.submit(lambda: hashlib.sha256(content).hexdigest())
        annotations = AnnotationFile(content, str(place), source, self._announce, progress)
        if annotations.categories:
            self._vocabulary.check_categories(source, annotations.categories, str(place))
        return annotations
