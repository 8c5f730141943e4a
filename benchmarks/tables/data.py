"""The data sets of the tables, with splits "train", "val" (taken from the training pictures) and "test" (held out)."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from cocolvis.building.build import Build, Mode, build
from cocolvis.building.coco_lvis import CocoLvisOptions
from cocolvis.disk.files import read_json, sha256, write_aside
from cocolvis.errors import DataError
from cocolvis.importers.folder import find
from cocolvis.importers.labelled import LabelOptions, LabelPlan
from cocolvis.sources.inputs import Sources
from cocolvis.vocabulary import coco_lvis

ROOT = Path(__file__).parents[2]

FOLDS = 4

SCORED = 125
"""Pictures of the table "scale" that are held out: prediction is slow where a model has 10,000 outputs per pixel."""

TUNING = 6
"""One of this number of training pictures is left out of the training, for every choice and for the curves."""

PRETRAINED = ("real", "scale")
"""The tables whose encoder was trained on ImageNet."""

Name = TypeVar("Name", int, str)
"""An image id, or the name of a file."""

SPLITS = ("train", "val", "test")


@dataclass(frozen=True, slots=True)
class Inputs:
    """What the table "real" is made from, the folders of COCO and LVIS, and the weights of the encoder."""

    coco: Path | None
    lvis: Path | None
    weights: Path | None

    @classmethod
    def from_environment(cls, coco: Path | None, lvis: Path | None, weights: Path | None) -> "Inputs":
        """The given paths; COCOLVIS_REAL_DATA and COCOLVIS_REAL_WEIGHTS stand in for those that are None."""
        root, file = (os.environ.get(f"COCOLVIS_REAL_{name}") for name in ("DATA", "WEIGHTS"))
        folders = [Path(root) / name if root else None for name in ("coco", "lvis")]
        return cls(coco or folders[0], lvis or folders[1], weights or (Path(file) if file else None))

    def annotated(self) -> tuple[Path, Path]:
        """The folders of COCO and LVIS; raises DataError if one is not given."""
        if self.coco is None or self.lvis is None:
            raise DataError("the table real needs --coco and --lvis, or COCOLVIS_REAL_DATA")
        return self.coco, self.lvis

    def encoder(self) -> Path:
        """The weights; raises DataError if they are not given."""
        if self.weights is None:
            raise DataError(f"the tables {' and '.join(PRETRAINED)} need --weights, or COCOLVIS_REAL_WEIGHTS")
        return self.weights

    def local_settings(self, table: str) -> dict[str, Any]:
        """The settings of a run that depend on the machine, such as paths."""
        return {"weights": str(self.encoder().absolute())} if table in PRETRAINED else {}

    def weights_digest(self, table: str) -> str | None:
        """The SHA-256 of the weights; None for tables without any."""
        return sha256(self.encoder()) if table in PRETRAINED else None


def prepare(table: str, parts: Sequence[str], inputs: Inputs, folder: Path) -> None:
    """Build the data sets of the parts of a table in ``folder``, except those that are finished."""
    if table == "real":
        coco, lvis = inputs.annotated()
        ids = [image for split in ids_by_split(lvis).values() for image in split]
        for number, splits in enumerate(folds(ids, FOLDS)):
            if f"fold{number}" in parts:
                build_part(coco, lvis, folder / f"fold{number}", splits)
        return
    for part in parts:
        if not (folder / part / "dataset.json").exists():
            (_build_long_tail if table == "longtail" else _build_scale)(part, folder / part)


def _build_long_tail(part: str, out: Path) -> None:
    """Generate and build the long-tailed sample, of which there is one part."""
    root = _sample(out.with_name(f"{part}-sample"), ["--preset", "longtail-tiny"])
    listed = ids_by_split(root / "lvis")
    training = np.random.default_rng(0).permutation(listed["train"]).tolist()
    build_part(root / "coco", root / "lvis", out, {**tuned(training), "test": listed["val"]})


def _build_scale(classes: str, out: Path) -> None:
    """Generate and import the sample with this number of classes; the first :data:`SCORED` pictures of its val are held out."""
    root = _sample(out.with_name(f"{classes}-sample"), ["--preset", "scale", "--classes", classes])
    names = {split: sorted(path.stem for path in (root / "images" / split).glob("*.jpg")) for split in ("train", "val")}
    training: list[str] = np.random.default_rng(0).permutation(names["train"]).tolist()
    tree = out.with_name(f"{classes}-tree")
    shutil.rmtree(tree, ignore_errors=True)
    for split, chosen in {**tuned(training), "test": names["val"][:SCORED]}.items():
        source = "val" if split == "test" else "train"
        for kind, suffix in (("images", "jpg"), ("masks", "png")):
            (tree / kind / split).mkdir(parents=True)
            for name in chosen:
                (tree / kind / split / f"{name}.{suffix}").hardlink_to(root / kind / source / f"{name}.{suffix}")
    shutil.copy(root / "classes.csv", tree)
    options = LabelOptions(splits=SPLITS, dataset="folder")
    Build(mode=Mode.RESUME).run(lambda: LabelPlan(find(tree, SPLITS), options), out)


def _sample(out: Path, how: Sequence[str]) -> Path:
    """Generate a sample, unless it is finished; it gets its name once it is."""
    if not out.exists():
        aside = out.with_name(f"{out.name}.unfinished")
        shutil.rmtree(aside, ignore_errors=True)
        command = [sys.executable, "-m", "cli.cocolvis", "sample", "--out", str(aside), *how]
        if subprocess.run(command, stdout=subprocess.DEVNULL, cwd=ROOT).returncode:  # it suggests to use the folder now
            raise DataError(f"{out}: the sample was not generated; run the same command to try again")
        aside.rename(out)
    return out


def folds(ids: Sequence[int], count: int, seed: int = 0) -> Iterator[dict[str, list[int]]]:
    """Yield the splits of a cross validation: each picture is in "test" of one fold, and in "train" or "val" of the others."""
    order = np.random.default_rng(seed).permutation(np.sort(np.asarray(ids)))
    ends = np.linspace(0, len(order), count + 1).astype(int)
    for first, last in pairwise(ends):
        yield {**tuned(np.concatenate([order[last:], order[:first]]).tolist()), "test": order[first:last].tolist()}


def tuned(training: Sequence[Name]) -> dict[str, list[Name]]:
    """Divide training pictures, which are in a random order, into "train" and "val"."""
    held = len(training) // TUNING
    return {"train": list(training[held:]), "val": list(training[:held])}


def ids_by_split(lvis: Path) -> dict[str, list[int]]:
    """The image ids in the two annotation files of LVIS."""
    return {split: [image["id"] for image in read_json(_file(lvis, split))["images"]] for split in ("train", "val")}


def build_part(coco: Path, lvis: Path, out: Path, splits: Mapping[str, Sequence[int]]) -> None:
    """Build the data set of the given splits, unless it is finished; the annotation files with these splits are next to it."""
    if (out / "dataset.json").exists():
        return
    annotations = out.with_name(f"{out.name}-lvis")
    write_annotations(lvis, annotations, splits)
    build(Sources(coco, annotations, coco_lvis()), out, CocoLvisOptions(splits=SPLITS), mode=Mode.RESUME)


def write_annotations(lvis: Path, out: Path, splits: Mapping[str, Sequence[int]]) -> None:
    """Write the annotations of LVIS again, with other splits: those of each image id go to the file of its split."""
    files = [read_json(_file(lvis, split)) for split in ("train", "val")]
    images = {image["id"]: image for file in files for image in file["images"]}
    for split, ids in splits.items():
        chosen = set(ids)
        content = {
            **{name: value for name, value in files[0].items() if name not in ("images", "annotations")},
            "images": [images[image] for image in sorted(ids)],
            "annotations": [each for file in files for each in file["annotations"] if each["image_id"] in chosen],
        }
        with write_aside(_file(out, split)) as aside:
            aside.write_text(json.dumps(content), encoding="utf-8")


def _file(folder: Path, split: str) -> Path:
    return folder / f"lvis_v1_{split}.json"
