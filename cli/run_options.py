"""The options that the commands on a trained run share: which checkpoint, which device, how images meet the model."""

from collections.abc import Callable
from functools import wraps

import click

from cli.options import path_argument

run_argument = path_argument("run")
device_option = click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, mps.")
checkpoint_option = click.option(
    "--checkpoint", default="newest", show_default=True, type=click.Choice(["newest", "best"]), help="Best by mIoU on val."
)

_TTA_SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
"""What papers mean by multi-scale testing."""


class Numbers(click.ParamType):
    """Numbers of one kind with commas between them; commands see a tuple."""

    name = "numbers"

    def __init__(self, kind: type):
        self._kind = kind

    def convert(self, value, param, ctx) -> tuple:
        """Parse the text; wrong usage where a part is no such number."""
        if isinstance(value, tuple):
            return value
        try:
            return tuple(self._kind(part) for part in value.split(","))
        except ValueError:
            self.fail(f"{value!r} is no list of numbers; expected such as 1,2", param, ctx)


def inference_options(command: Callable) -> Callable:
    """--window, --stride, --flip, --scales and --batch-size, the fields of ``ess.inference.views.Inference``; --tta for two."""
    positive = click.IntRange(min=1)
    decorators = (
        click.option("--window", type=positive, help="Look in windows of N x N pixels and blend them; for large images."),
        click.option("--stride", type=positive, help="Pixels from one window to the next; two thirds of it by default."),
        click.option("--flip", is_flag=True, help="Blend with the mirrored image."),
        click.option("--scales", type=Numbers(float), help="Blend sizes, e.g. 0.75,1,1.25.  [default: 1]"),
        click.option("--tta", is_flag=True, help=f"--flip --scales {','.join(f'{s:g}' for s in _TTA_SCALES)}, as papers do."),
        click.option(
            "--batch-size",
            type=positive,
            default=1,
            show_default=True,
            help="Images of one padded size, or windows, at a time.",
        ),
    )

    @wraps(command)
    def with_views(*, flip: bool, scales: tuple | None, tta: bool, **given) -> None:
        command(flip=flip or tta, scales=scales or (_TTA_SCALES if tta else (1.0,)), **given)

    for decorate in reversed(decorators):
        with_views = decorate(with_views)
    return with_views
