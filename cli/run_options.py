"""The options that commands on a trained run share: its checkpoint, the device, and the views of an image."""

from collections.abc import Callable
from functools import wraps
from typing import Any

import click

from cli.options import path_argument

run_argument = path_argument("run")
device_option = click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1 or mps.")
checkpoint_option = click.option(
    "--checkpoint",
    default="newest",
    show_default=True,
    type=click.Choice(["newest", "best"]),
    help="The newest checkpoint, or the best by mIoU on val.",
)

_TTA_SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
"""The scales of multi-scale testing in papers."""


class Numbers(click.ParamType):
    """Numbers of one type, separated by commas; commands receive a tuple."""

    name = "numbers"

    def __init__(self, kind: type):
        self._kind = kind

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[Any, ...]:
        """Parse the text; a part that is not such a number is wrong usage."""
        if isinstance(value, tuple):
            return value
        try:
            return tuple(self._kind(part) for part in value.split(","))
        except ValueError:
            self.fail(f"{value!r} is not a list of numbers; expected, for example, 1,2", param, ctx)


def inference_options(command: Callable[..., None]) -> Callable[..., None]:
    """The fields of ``ess.inference.views.Inference`` as options: --window, --stride, ..., --precision; and --tta.

    --tta sets --flip, and --scales unless scales are given.
    """
    positive = click.IntRange(min=1)
    precisions = click.Choice(["float32", "bf16"])
    batch_help = "Images of the same padded size, or windows, at a time."
    precision = "Precision of the network; bf16 is faster on GPUs that have it natively."
    decorators = (
        click.option("--window", type=positive, help="Predict in windows of N x N pixels and blend them; for large images."),
        click.option("--stride", type=positive, help="Pixels between windows; the default is two thirds of --window."),
        click.option("--flip", is_flag=True, help="Blend with the mirrored image."),
        click.option("--scales", type=Numbers(float), help="Blend sizes of at most 16, e.g. 0.75,1,1.25.  [default: 1]"),
        click.option("--tta", is_flag=True, help=f"--flip --scales {','.join(f'{s:g}' for s in _TTA_SCALES)}, as papers do."),
        click.option("--batch-size", type=positive, default=1, show_default=True, help=batch_help),
        click.option("--precision", type=precisions, default="float32", show_default=True, help=precision),
    )

    @wraps(command)
    def with_views(*, flip: bool, scales: tuple[float, ...] | None, tta: bool, **given: Any) -> None:
        command(flip=flip or tta, scales=scales or (_TTA_SCALES if tta else (1.0,)), **given)

    decorated: Callable[..., None] = with_views
    for decorate in reversed(decorators):
        decorated = decorate(decorated)
    return decorated
