"""The independent check: derives masks and instances again with lvis.LVIS and pycocotools.coco.COCO, and compares all of them.

Apart from the vocabulary it shares no code with the builder; it reads the built masks through :class:`Dataset`.
"""

import hashlib
import io
import json
import posixpath
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
from lvis import LVIS
from pycocotools.coco import COCO

from cocolvis.disk.archives import Place
from cocolvis.errors import DataError
from cocolvis.progress import Phase, Progress, ignore
from cocolvis.sources.locations import Roots, lvis_place, stuff_place
from cocolvis.storage.dataset import Dataset
from cocolvis.vocabulary import coco_lvis

_SKIPPED_ANNOTATION = {"malformed annotation", "unlisted image", "unknown category"}
_SKIPPED_IMAGE = {"malformed image", "duplicate image"}
_SKIPPED_PICTURE = {"missing image", "unreadable image", "wrong image size"}

_PUBLISHED_ORDER = (165, 98, 93, 168, 92, 141, 153, 109, 137, 108)
"""The stuff ids that LVIS shares, in the order in which the published generator replaces them."""

_PUBLISHED_LACKS = 429995
"""The id of the image that the published generator leaves out."""


@dataclass(slots=True)
class OracleResult:
    """The result of the comparison.

    ``images`` counts the compared images; ``differing`` lists (split, image id, differing pixels), and ``recounted`` (split,
    image id, classes with another number of instances), which is empty if the data set does not record them. ``missing`` and
    ``unexpected`` list (split, image id) of images that the data set lacks, and of images that it should not contain or
    contains more than once. ``skipped`` counts the annotations that were left out because the build reported a fault in them.
    """

    images: int = 0
    differing: list[tuple[str, int, int]] = field(default_factory=list)
    recounted: list[tuple[str, int, int]] = field(default_factory=list)
    missing: list[tuple[str, int]] = field(default_factory=list)
    unexpected: list[tuple[str, int]] = field(default_factory=list)
    skipped: int = 0

    def faults(self) -> list[str]:
        """One line for each fault; empty if everything is equal."""
        lines = [f"{split}: image {i} is missing, and the report does not list it" for split, i in self.missing]
        lines += [f"{split}: image {i} should not be there" for split, i in self.unexpected]
        lines += [f"{split}: image {i} differs in {pixels} pixels" for split, i, pixels in self.differing]
        return lines + [f"{split}: image {i} has other instances of {classes} classes" for split, i, classes in self.recounted]


def check(dataset: Dataset, coco: Roots, lvis: Roots, progress: Progress = ignore, phase: Phase = ignore) -> OracleResult:
    """Derive each mask of a COCO+LVIS data set again from the annotations that it was built from, and compare.

    ``progress`` counts images; ``phase`` reports which file is being read. Raises DataError if the data set has another
    vocabulary or was built from other annotation files.
    """
    if not dataset.is_coco_lvis:
        raise DataError(f"{dataset.folder}: does not have the vocabulary of COCO+LVIS; --oracle can only check COCO+LVIS masks")
    oracle = _Oracle(dataset, coco, lvis, phase)
    result = OracleResult()
    total = sum(dataset.splits.values())
    for name in dataset.splits:
        expected = oracle.images(name)
        split = dataset.split(name)
        built = split.image_ids().tolist()
        counts = Counter(built)
        result.missing += [(name, i) for i in expected if i not in counts]
        result.unexpected += [(name, i) for i, count in counts.items() if i not in expected or count > 1]
        for row, image_id in enumerate(built):
            if image_id in expected:
                mask, instances = oracle.derive(name, expected[image_id])
                pixels = _differing(split.mask(row), mask)
                result.differing += [(name, image_id, pixels)] if pixels else []
                classes = _recounted(split.instances_of(row), instances)
                result.recounted += [(name, image_id, classes)] if classes else []
            result.images += 1
            progress(result.images, total)
    result.skipped = oracle.skipped
    return result


def _differing(built: np.ndarray, derived: np.ndarray) -> int:
    """The number of pixels that differ; all pixels of the larger mask if the sizes differ."""
    return int((built != derived).sum()) if built.shape == derived.shape else max(built.size, derived.size)


def _recounted(built: dict[int, int] | None, derived: dict[int, int]) -> int:
    """The number of classes whose instances differ; 0 if the data set does not record them."""
    return 0 if built is None else sum(built.get(c) != derived.get(c) for c in {*built, *derived})


class _Oracle:
    """Determines which images each split must hold, and their masks, with the options that the data set records."""

    def __init__(self, dataset: Dataset, coco: Roots, lvis: Roots, phase: Phase):
        self._phase = phase
        self._coco_roots, self._lvis_roots = coco, lvis
        self._inputs = dataset.index["inputs"]
        self._options = dataset.index["options"]
        faults = list(dataset.faults())
        self._annotations = _reported(faults, _SKIPPED_ANNOTATION)
        self._images = _reported(faults, _SKIPPED_IMAGE)
        self._pictures = {fault["image_id"] for fault in faults if fault["kind"] in _SKIPPED_PICTURE}
        self._classes = {source: coco_lvis().lookup(source) for source in ("lvis", "stuff")}
        self._lvis: dict[str, LVIS] = {}
        self._coco: dict[str, COCO] = {}
        self.skipped = 0

    def images(self, split: str) -> dict[int, dict]:
        """The images that the split must hold: image id -> LVIS record."""
        self._lvis = {split: self._load_lvis(split)}  # one split at a time: the files are large
        found = list(self._lvis[split].imgs.values())[: self._options["limit"]]
        return {image["id"]: image for image in found if self._belongs(split, image)}

    def derive(self, split: str, image: dict) -> tuple[np.ndarray, dict[int, int]]:
        """The (H, W) uint16 mask of one image, and the number of LVIS annotations of each class that it shows."""
        lvis, coco = self._lvis[split], self._stuff(split, image)
        size = image["height"], image["width"]
        stuff = [(a["category_id"], coco.annToMask(a) > 0) for a in coco.imgToAnns.get(image["id"], ())]
        things = [(self._classes["lvis"][a["category_id"]], lvis.ann_to_mask(a) > 0) for a in self._things(split, image)]
        if self._options["compat"]:
            mask = self._published(_layers(stuff, size)[0], eight_bits=len(stuff) == 1)
        else:
            converted = [(self._classes["stuff"][category], where) for category, where in stuff]
            mask = _layers(self._ordered(converted), size)[0]
        classes, covered = _layers(self._ordered(things), size)
        merged = np.where(covered, classes, mask).astype(np.uint16)
        counts = Counter(class_id for class_id, where in things if where.any())
        return merged, {c: counts[c] for c in np.unique(merged).tolist() if c}

    def _belongs(self, split: str, image: dict) -> bool:
        if image["id"] in self._pictures:
            return False
        if not self._options["compat"]:
            return True
        coco = self._stuff(split, image)
        annotated = coco.imgToAnns.get(image["id"]) or self._things(split, image)
        return image["id"] != _PUBLISHED_LACKS and image["id"] in coco.imgs and bool(annotated)

    def _ordered(self, regions: Sequence[tuple[int, np.ndarray]]) -> Sequence[tuple[int, np.ndarray]]:
        """Sort the regions so that the topmost comes first."""
        if self._options["overlap"] == "small-on-top":
            return sorted(regions, key=lambda region: np.count_nonzero(region[1]))
        return regions

    def _published(self, stuff: np.ndarray, *, eight_bits: bool) -> np.ndarray:
        """Convert stuff ids to class ids as the published generator does: one id after another, in place."""
        mask = stuff.astype(np.uint8 if eight_bits else np.int64)
        rest = [category for category in range(92, 183) if category not in _PUBLISHED_ORDER]
        for category in (*_PUBLISHED_ORDER, *rest):
            mask[mask == category] = np.array(self._classes["stuff"][category]).astype(mask.dtype)
        mask[mask == 183] = 0
        mask[mask == 255] = 0
        return mask

    def _things(self, split: str, image: dict) -> list[dict]:
        return self._lvis[split].img_ann_map.get(image["id"], [])

    def _stuff(self, split: str, image: dict) -> COCO:
        """The stuff file of an image: that of the folder in its record, otherwise one that lists it, otherwise the split's."""
        folder = _folder(image)
        if folder:
            return self._load_coco(folder)
        folders = sorted(("train2017", "val2017"), key=lambda name: name != f"{split}2017")
        present = [f for f in folders if f"stuff_{f}.json" in self._inputs]
        listing = [f for f in present if image["id"] in self._load_coco(f).imgs]
        return self._load_coco((listing or folders)[0])

    def _load_coco(self, folder: str) -> COCO:
        if folder not in self._coco:
            coco = COCO()
            coco.dataset = self._read(stuff_place(self._coco_roots, folder), f"stuff_{folder}.json", "stuff")
            with redirect_stdout(io.StringIO()):
                coco.createIndex()
            self._coco[folder] = coco
        return self._coco[folder]

    def _load_lvis(self, split: str) -> LVIS:
        class Filtered(LVIS):
            _load_json = staticmethod(lambda name: self._read(lvis_place(self._lvis_roots, split), name, "lvis"))

        return Filtered(f"lvis_v1_{split}.json")

    def _read(self, place: Place, name: str, source: str) -> dict:
        """Parse a file, without the records in which the build reported a fault."""
        mapped = place.map()
        self._phase(f"reading {name}", 0, len(mapped))
        text = bytes(mapped)
        if self._inputs.get(name) not in (None, hashlib.sha256(text).hexdigest()):
            raise DataError(f"{place}: is not the file that the data set was built from; check --coco and --lvis")
        try:
            content = json.loads(text)
        except ValueError as error:
            raise DataError(f"{place}: is not JSON: {error}") from None
        before = len(content["annotations"])
        annotations = list(_without(content["annotations"], self._annotations[source], ("image_id", "id")))
        self.skipped += before - len(annotations)
        for number, record in enumerate(annotations):
            record |= {key: _whole(record[key]) for key in ("image_id", "category_id")}
            record["id"] = number  # both libraries index annotations by their id, which masks do not depend on
            if isinstance(record["segmentation"], dict):
                record["segmentation"] = {key: _whole(value) for key, value in record["segmentation"].items()}
        images = list(_without(content["images"], self._images[source], ("id", None)))
        for image in images:
            image |= {key: _whole(image[key]) for key in ("id", "height", "width")}
        return content | {"annotations": annotations, "images": images, "categories": content.get("categories") or []}


def _reported(faults: list[dict], kinds: set[str]) -> dict[str, Counter]:
    """Count how often each (image id, annotation id) was reported: source -> counts."""
    counts: dict[str, Counter] = {"lvis": Counter(), "stuff": Counter()}
    for fault in faults:
        if fault["kind"] in kinds and fault["source"] in counts:
            counts[fault["source"]][fault["image_id"], fault["annotation_id"]] += 1
    return counts


def _without(records: list[Any], reported: Counter, keys: tuple[str, str | None]) -> Iterator[dict]:
    """Yield the records in order, without the reported ones; of records with equal keys, the last are left out."""
    left = Counter(reported)
    kept = []
    for record in reversed(records):
        ids = record if isinstance(record, dict) else {}
        key = tuple(_identity(ids.get(name)) for name in keys)
        if left[key]:
            left[key] -= 1
        else:
            kept.append(record)
    return reversed(kept)


def _whole(value: Any) -> Any:
    """Turn 139.0 into 139, also inside lists; leave everything else unchanged."""
    if isinstance(value, list):
        return [_whole(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _identity(value: Any) -> int | None:
    """An id as the report stores it: None unless it is a 64-bit integer."""
    if isinstance(value, float) and not abs(value) < 2**63:
        return None
    value = _whole(value)
    return value if type(value) is int else None


def _folder(image: dict) -> str:
    """The folder that a record names: in COCO's own URL, otherwise before the file name, otherwise in another URL."""
    url, name = (re.sub(r"\\", "/", image.get(key) or "") for key in ("coco_url", "file_name"))
    parts = urlsplit(url)
    *_, folder, last = ["", *unquote(parts.path).split("/")]
    plain = not (parts.query or parts.fragment or "%" in url)
    if plain and (parts.hostname or "").endswith("cocodataset.org") and folder and last:
        return folder
    if "://" in name:
        return posixpath.basename(posixpath.dirname(unquote(urlsplit(name).path)))
    named = posixpath.dirname(posixpath.normpath(name)) if name else ""
    known = ("train2017", "val2017")
    if posixpath.basename(named) in known:  # folders above it do not count
        named = posixpath.basename(named)
    agrees = folder in known and last == posixpath.basename(name)
    return named or (folder if agrees or not name else "")


def _layers(regions: Sequence[tuple[int, np.ndarray]], size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Paint regions, topmost first: (H, W) int64 ids with 0 for uncovered pixels, and (H, W) bool covered."""
    ids, covered = np.zeros(size, np.int64), np.zeros(size, bool)
    for number, where in regions:
        ids[where & ~covered] = number
        covered |= where
    return ids, covered
