"""Where COCO and LVIS downloads keep their files, and which image of LVIS has which stuff annotations."""

from pathlib import Path

from cocolvis.annotations import AnnotationFile, ImageRecord, Segment
from cocolvis.errors import DataError
from cocolvis.files import sha256
from cocolvis.vocabulary import Vocabulary

SPLITS = ("train", "val")


class Sources:
    """A COCO folder (images, stuff annotations) and an LVIS folder, read lazily and once.

    A category list that differs from ``vocabulary`` raises a DataError as soon as its file is read.
    """

    def __init__(self, coco: Path, lvis: Path, vocabulary: Vocabulary):
        self.coco = coco
        self.lvis = lvis
        self._vocabulary = vocabulary
        self._stuff: dict[str, AnnotationFile] = {}

    def lvis_path(self, split: str) -> Path:
        """``lvis_v1_{split}.json``; a DataError that lists what was looked for."""
        return _existing([self.lvis / f"lvis_v1_{split}.json"], f"LVIS annotations of split {split}", "--lvis or --split")

    def things(self, split: str) -> AnnotationFile:
        """The LVIS annotations of a split; its images are the images of the data set's split."""
        return self._read(self.lvis_path(split), "lvis")

    def stuff(self, folder: str) -> AnnotationFile:
        """The stuff annotations of the images in ``folder`` (train2017, val2017)."""
        if folder not in self._stuff:
            path = _existing([self._stuff_path(folder)], f"stuff annotations of {folder}", "--coco")
            self._stuff[folder] = self._read(path, "stuff")
        return self._stuff[folder]

    def locate(self, image: ImageRecord, split: str) -> tuple[str, str]:
        """(folder, file name) of an LVIS image: as its record says, else where the stuff list has it, else the split's."""
        folder, name = image.location()
        if folder is None:
            own = f"{split}2017"
            others = [f"{other}2017" for other in SPLITS if other != split]
            listed = (f for f in [own, *others] if self._stuff_path(f).is_file() and image.id in self.stuff(f).images)
            folder = next(listed, own)
        return folder, name

    def segments(self, folder: str, image_id: int) -> list[Segment]:
        """The stuff annotations of an image in file order."""
        return self.stuff(folder).segments(image_id)

    def digests(self) -> dict[str, str]:
        """File name -> SHA-256 of every annotation file that can be found; a data set is built from these."""
        paths = [self._stuff_path(f"{s}2017") for s in SPLITS]
        paths += [self.lvis / f"lvis_v1_{s}.json" for s in SPLITS]
        return {path.name: sha256(path) for path in paths if path.is_file()}

    def _stuff_path(self, folder: str) -> Path:
        return self.coco / "annotations" / f"stuff_{folder}.json"

    def _read(self, path: Path, source: str) -> AnnotationFile:
        annotations = AnnotationFile(path, source)
        if annotations.categories:
            self._vocabulary.check_categories(source, annotations.categories, str(path))
        return annotations


def _existing(candidates: list[Path], what: str, option: str) -> Path:
    for path in candidates:
        if path.is_file():
            return path
    looked = ", ".join(str(path) for path in candidates)
    raise DataError(f"no {what}: looked for {looked}; check {option}")
