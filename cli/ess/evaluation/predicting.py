"""What the commands that evaluate runs share: the options of the images, and the predictions of a run for them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from cli.display import progress, say
from cli.run_options import checkpoint_option, device_option, inference_options

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cocolvis.errors import DamagedImage
    from cocolvis.storage.dataset import Dataset
    from ess.evaluation.evaluate import Predicted
    from ess.inference.predictor import Predictor


class Predictions(NamedTuple):
    """The predictions of ``predictor`` for the images of a split, and the list of the damaged ones that were left out.

    The list fills up while ``images`` are read.
    """

    predictor: "Predictor"
    images: "Iterable[Predicted]"
    damaged: "list[DamagedImage]"


def split_options(command: Callable[..., None]) -> Callable[..., None]:
    """--split and --limit, --skip-damaged, the views of an image, --checkpoint and --device, for :func:`predicted`."""
    decorators = (
        click.option("--split", default="val", show_default=True, help="Split to evaluate on."),
        click.option("--limit", type=click.IntRange(min=1), help="Only the first N images."),
        click.option("--skip-damaged", is_flag=True, help="Leave out damaged images, and report them."),
        inference_options,
        checkpoint_option,
        device_option,
    )
    for decorate in reversed(decorators):
        command = decorate(command)
    return command


@contextmanager
def predicted(
    run: Path,
    dataset: "Dataset",
    label: str,
    *,
    split: str,
    limit: int | None,
    skip_damaged: bool,
    checkpoint: str,
    device: str,
    oracle_classes: bool = False,
    **inference: Any,
) -> Iterator[Predictions]:
    """The predictions of a run for the images of a split, with progress; damaged images are reported on stderr at the end."""
    from ess.evaluation.evaluate import image_indices, predictions
    from ess.inference.predictor import Predictor
    from ess.inference.views import Inference

    damaged: list[DamagedImage] = []
    with progress(label) as show:
        predictor = Predictor.from_run(run, device, checkpoint, Inference(**inference))
        how: dict[str, Any] = {"indices": image_indices(dataset, split, limit), "oracle_classes": oracle_classes}
        skipped = damaged if skip_damaged else None
        images = predictions(predictor, dataset, split=split, **how, damaged=skipped, progress=show)
        yield Predictions(predictor, images, damaged)
    for fault in damaged:
        say(f"skipped a damaged image: {fault}", err=True)
