"""Joins the processes that train together through accelerate, one per device, started by torchrun or `accelerate launch`."""

import logging
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.tracking import get_available_trackers
from accelerate.utils import DistributedDataParallelKwargs, broadcast_object_list
from timm.layers import convert_sync_batchnorm

from cocolvis.disk.lock import Lease, held
from cocolvis.errors import DataError
from ess.config import Config
from ess.device import choose_device, take_own_gpu
from ess.models.network import SegmentationModel

log = logging.getLogger("ess")


def join(config: Config, folder: Path) -> Accelerator:
    """Join the processes that train; the result has the device and rank of this one, the float16 loss scaler, and trackers.

    Raises DataError if the device or a tracker is not available, or if a batch cannot be shared equally.
    """
    if config.device != "cpu":
        take_own_gpu()
    device = choose_device(config.device)
    processes = int(os.environ.get("WORLD_SIZE", 1))
    if processes > 1 and device.index is not None:
        raise DataError(f"device {config.device!r} with {processes} processes: each takes its own; choose --device auto")
    if config.batch_size % (processes * config.accumulate):
        raise DataError(
            f"batch_size {config.batch_size} is not a multiple of processes x accumulate = {processes} x {config.accumulate};"
            " it counts the images of all processes together"
        )
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)
    AcceleratorState._reset_state(reset_partial_state=True)  # otherwise settings of an earlier run in this process would win
    with _settings_of_accelerate_hidden():
        team = Accelerator(
            cpu=device.type == "cpu",
            mixed_precision="no",  # the objective itself chooses the precision of each of its parts
            log_with=_trackers(config.track) or None,
            project_dir=folder / "tensorboard",
            kwargs_handlers=[DistributedDataParallelKwargs(gradient_as_bucket_view=True)],
        )
    if config.precision == "fp16":
        team.scaler = torch.amp.GradScaler(team.device.type)
    return team


@contextmanager
def alone(team: Accelerator, folder: Path) -> Iterator[Lease | None]:
    """Hold the lock of a run's folder inside this context, in the first process; the others of the team get None.

    The others wait until it is held, so that all of them find the same run. Raises DataError in all of them if another training
    holds it. The lock of a killed process is taken over: see :mod:`cocolvis.disk.lock`.
    """
    lease, refusal = None, [""]
    with ExitStack() as stack:
        if team.is_main_process:
            try:
                lease = stack.enter_context(held(folder, None, log.info, "a training"))
            except DataError as error:
                refusal = [str(error)]
        broadcast_object_list(refusal)
        if refusal[0]:
            raise DataError(refusal[0])
        yield lease


def synchronised(model: SegmentationModel, team: Accelerator) -> SegmentationModel:
    """The model on the team's device; with several GPUs, its BatchNorm uses the statistics of all processes."""
    model = model.to(team.device)
    return convert_sync_batchnorm(model) if team.num_processes > 1 and team.device.type == "cuda" else model


@contextmanager
def _settings_of_accelerate_hidden() -> Iterator[None]:
    """Hide the variables ACCELERATE_*, which override arguments: they would scale gradients, change precisions, wrap models.

    The variables that say which processes belong together, such as RANK and WORLD_SIZE, stay.
    """
    hidden = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith("ACCELERATE_")}
    try:
        yield
    finally:
        os.environ.update(hidden)


def _trackers(names: str) -> list[str]:
    available = [str(name) for name in get_available_trackers()]
    wanted = [name.strip() for name in names.split(",") if name.strip() not in ("", "none")]
    for name in wanted:
        if name not in available:
            raise DataError(f"tracker {name!r} is not installed; there are {', '.join(available)}, and none")
    return wanted
