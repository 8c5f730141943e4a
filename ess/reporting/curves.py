"""Reads the curves of a training: from the events that it wrote for TensorBoard, and from the scores of its checkpoints."""

import math
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cocolvis.disk.files import reason
from cocolvis.errors import DataError
from ess.checkpoint import Run

Points = list[tuple[int, float]]
"""(step, value), by ascending steps."""

LOSS, MIOU = "train/loss", "val/miou"

_SMALL = 4096
"""Larger events, such as pictures, contain no points of curves; they are skipped, because their check sums take long."""


def training_curves(run: Run) -> dict[str, Points]:
    """The points of the loss of the training, and of the mIoU of its evaluations: empty lists if nothing was recorded.

    Steps that a resumed training repeated count once, and values that are not finite are left out. A training with another
    tracker than TensorBoard has no loss, and of a damaged file the events before the damage are used. Checkpoints add the mIoU
    of those kept.
    """
    found: dict[str, dict[int, float]] = {LOSS: {}, MIOU: {}}
    for path in sorted(run.folder.glob("tensorboard/**/events.out.tfevents.*"), key=_started):
        for event in _events(path):
            if event.session_log.status == event.session_log.START:  # a resumed training repeats the steps from here on
                found = {name: {step: v for step, v in points.items() if step < event.step} for name, points in found.items()}
            for value in event.summary.value:
                if value.tag in found and math.isfinite(value.simple_value):
                    found[value.tag][event.step] = value.simple_value
    for checkpoint in run.listed():
        if checkpoint.step and checkpoint.miou >= 0:
            found[MIOU].setdefault(checkpoint.step, checkpoint.miou)
    return {name: sorted(points.items()) for name, points in found.items()}


def _started(path: Path) -> tuple[float, str]:
    """The time of a file's first event, since names know whole seconds only and end in a number that is not padded."""
    return next((event.wall_time for event in _events(path)), 0.0), path.name


def _events(path: Path) -> Iterator[Any]:
    """The small events of a file, up to the first damage.

    Each is stored as its length in 8 bytes, the check sum of these, the event, and its check sum, both in 4 bytes.
    """
    from google.protobuf.message import DecodeError
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.summary.writer.record_writer import masked_crc32c

    try:
        with path.open("rb") as file:
            while len(head := file.read(12)) == 12:
                length, check = struct.unpack("<QI", head)
                if check != masked_crc32c(head[:8]):
                    return
                if length > _SMALL:
                    file.seek(length + 4, os.SEEK_CUR)
                    continue
                content, check_of_content = file.read(length), file.read(4)
                if len(check_of_content) < 4 or struct.unpack("<I", check_of_content)[0] != masked_crc32c(content):
                    return
                yield Event.FromString(content)
    except DecodeError:
        return
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {reason(error)}") from None
