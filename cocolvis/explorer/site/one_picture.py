"""The page of one picture: its classes in the labels and in the predictions, and what LVIS says of it."""

from typing import Any

import numpy as np

from cocolvis.errors import DataError
from cocolvis.explorer import queries
from cocolvis.explorer.pictures import NoPicture, is_shown, picture, read_sample
from cocolvis.explorer.scores import Pairs, compare, iou
from cocolvis.explorer.site.address import Query
from cocolvis.explorer.site.common import NotFound, View, ready, short
from cocolvis.explorer.workspace import Run, Workspace
from cocolvis.masks.runlength import Runs
from cocolvis.storage.samples import Sample


def find(workspace: Workspace, split: str, image_id: int) -> int:
    """The number of an image in the catalog; raises NotFound if the data set does not hold it."""
    catalog = ready(workspace)
    image = queries.find(catalog, image_id, split) if split in catalog.splits else None
    if image is None:
        raise NotFound(f"the split {split} has no image {image_id}")
    return image


def find_anywhere(workspace: Workspace, image_id: int) -> str:
    """The split of an image; raises NotFound if the data set does not hold it."""
    catalog = ready(workspace)
    image = queries.find(catalog, image_id)
    if image is None:
        raise NotFound(f"the data set has no image {image_id}")
    return catalog.place(image).split


def predicted_runs(workspace: Workspace, run: Run, image: int) -> Runs | None:
    """The prediction of a run for an image as run lengths; None if there is none.

    Raises DataError if it is damaged or has another size than the labels.
    """
    catalog = ready(workspace, run)
    assert run.scores is not None
    row = run.scores.row(image)
    if row is None:
        return None
    found = run.splits[catalog.place(image).split].runs(row)
    if found[2:] != tuple(catalog.sizes()[image].tolist()):
        raise DataError(f"{run.folder}: the prediction for image {catalog.ids()[image]} has another size than its mask")
    return found


def view(workspace: Workspace, split: str, image_id: int, query: Query) -> View:
    """Everything that the page shows of one picture; raises NotFound if the data set does not hold it.

    A picture or mask that is damaged or cannot be read is not an error: "problems" says what is wrong with it.
    """
    image = find(workspace, split, image_id)
    catalog = ready(workspace)
    height, width = catalog.sizes()[image].tolist()
    found: View = {
        "id": image_id,
        "split": split,
        "height": height,
        "width": width,
        "drawn": is_shown(height, width),
        "has_picture": False,
        "path": None,
        "problems": [],
        "instances": None,
        "classes": [],
        "runs": [],
        "neg": [],
        "not_exhaustive": [],
        "explained": workspace.sources is not None,
        **_neighbours(workspace, image, split),
    }
    try:
        sample = read_sample(workspace, image)
    except DataError as error:
        return found | {"problems": [str(error)], "drawn": False}
    found |= {"path": sample.path} | _picture_of(workspace, image, sample)
    found["instances"] = None if sample.instances is None else sum(sample.instances.values())
    for name in ("neg", "not_exhaustive"):
        found[name] = [short(workspace, catalog, None, c) for c in getattr(sample, name).tolist() if _known(workspace, c)]
    runs = [(run, *_compared(workspace, run, image, sample, found["problems"])) for run in workspace.runs.values()]
    found["runs"] = [_run(run, pairs) for run, predicted, pairs in runs if predicted is not None]
    found["classes"] = _classes(workspace, sample, [one for one in runs if one[1] is not None])
    return found


def _known(workspace: Workspace, class_id: int) -> bool:
    return 1 <= class_id <= len(workspace.vocabulary)


def _neighbours(workspace: Workspace, image: int, split: str) -> View:
    """The ids of the images before and after one in the order of its split."""
    catalog = ready(workspace)
    ids = np.sort(np.concatenate([catalog.ids()[part.start : part.stop] for part in catalog.members(split)]))
    place = int(np.searchsorted(ids, catalog.ids()[image]))
    after = int(np.searchsorted(ids, catalog.ids()[image], side="right"))
    return {
        "before": int(ids[place - 1]) if place else None,
        "after": int(ids[after]) if after < len(ids) else None,
        "place": place + 1,
        "of": len(ids),
    }


def _picture_of(workspace: Workspace, image: int, sample: Sample) -> View:
    try:
        picture(workspace, image, sample)
    except NoPicture as error:
        return {"has_picture": False, "problems": [str(error)]}
    return {"has_picture": True}


def _compared(
    workspace: Workspace, run: Run, image: int, sample: Sample, problems: list[str]
) -> tuple[Runs | None, Pairs | None]:
    """The prediction of a run and its pixels by true and predicted class; None and a problem if it cannot be used."""
    if run.scores is None:
        return None, None
    try:
        predicted = predicted_runs(workspace, run, image)
    except DataError as error:
        problems.append(str(error))
        return None, None
    return (predicted, compare(sample.runs, predicted)) if predicted is not None else (None, None)


def _run(run: Run, pairs: Pairs | None) -> View:
    """The scores of a run in one picture."""
    scores = iou(pairs) if pairs is not None else {}
    right = int(pairs.pixels[pairs.truth == pairs.predicted].sum()) if pairs is not None else 0
    total = int(pairs.pixels.sum()) if pairs is not None else 0
    return {
        "name": run.name,
        "miou": sum(scores.values()) / len(scores) if scores else None,
        "accuracy": right / total if total else None,
    }


def _classes(workspace: Workspace, sample: Sample, runs: list[tuple[Run, Any, Any]]) -> list[View]:
    """The classes in the labels or in a prediction, largest first, with their pixels and IoU in each.

    The classes that were added to runs may have the same number and different names; each of them has its row.
    """
    catalog = ready(workspace)
    masks = [(None, sample.runs), *((run, predicted) for run, predicted, _ in runs)]
    counted = [_pixels(workspace, run, mask) for run, mask in masks]
    owners = {one: run for (run, _), pixels in zip(masks, counted, strict=True) for one in pixels}
    scores = [iou(pairs) for _, _, pairs in runs]
    rows = []
    for (c, name), run in owners.items():
        labelled, *predicted = (pixels.get((c, name), 0) for pixels in counted)
        owner = None if _known(workspace, c) else run
        row = short(workspace, catalog, owner, c) | {"added": owner is not None, "synset": workspace.info(c, owner).synset}
        row["instances"] = None if sample.instances is None else sample.instances.get(c, 0)
        row |= {"pixels": labelled, "share": labelled / (sample.size[0] * sample.size[1])}
        row["runs"] = [{"pixels": pixels, "iou": of.get(c)} for pixels, of in zip(predicted, scores, strict=True)]
        rows.append(row)
    return sorted(rows, key=lambda row: (-row["pixels"], -sum(one["pixels"] for one in row["runs"]), row["class"]))


def _pixels(workspace: Workspace, run: Run | None, runs: Runs) -> dict[tuple[int, str], int]:
    """(class, name) -> pixels of a mask, of the labels or a run; without those that have no class."""
    ids, place = np.unique(runs.classes, return_inverse=True)
    counts = np.bincount(place, runs.lengths, len(ids)).astype(int).tolist()
    return {(c, workspace.info(c, run).name): count for c, count in zip(ids.tolist(), counts, strict=True) if c}


def explain(workspace: Workspace, split: str, image_id: int, x: int, y: int) -> View:
    """Which annotation gave a pixel its class, and which ones it hides; reads the annotation files on first use.

    Raises NotFound if the explorer was started without them, DataError if they do not belong to the data set.
    """
    if workspace.sources is None:
        raise NotFound("annotations were not given; start the explorer with --coco DIR --lvis DIR")
    place = ready(workspace).place(find(workspace, split, image_id))
    from cocolvis.inspection.why import why  # imported late: it needs the code of builds, which is slow to import

    with workspace.explaining:
        return why(workspace.dataset, workspace.sources, (workspace.splits[split], place.row), x, y).to_json()
