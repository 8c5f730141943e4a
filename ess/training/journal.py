"""The reports of a training: lines in the log; curves, sample predictions and class embeddings for trackers."""

import logging
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from datetime import timedelta
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from cocolvis.disk.files import Unwritable, reason
from cocolvis.errors import DamagedImage
from cocolvis.inspection.render import enlarge, overlay
from cocolvis.storage.dataset import Dataset
from cocolvis.text import one_line
from ess.config import Config
from ess.data.damage import describe_skipped, with_advice
from ess.inference.predictor import Predictor

PICTURES = 4
"""How many images of the evaluated split are shown with their predictions."""

log = logging.getLogger("ess")


class _Pace:
    """Measures images per second over the steps since the last line in the log, without the time of other work.

    The very first step, in which loaders start and kernels are compiled, is used only if it is the only one.
    """

    def __init__(self) -> None:
        self._steps, self._images, self._seconds, self._since = 0, 0, 0.0, time.monotonic()

    def step(self, images: int) -> None:
        """Note that a step of ``images`` images ends now."""
        now, self._steps = time.monotonic(), self._steps + 1
        if self._steps == 2:
            self._images, self._seconds = 0, 0.0
        self._images, self._seconds, self._since = self._images + images, self._seconds + now - self._since, now

    def pause(self) -> None:
        """Leave out the time since the last step, which was spent on other work."""
        self._since = time.monotonic()

    def images_per_second(self) -> float:
        """The speed since the last call."""
        speed = self._images / max(self._seconds, 1e-9)
        self._images, self._seconds = 0, 0.0
        return speed


class Journal:
    """Reports the progress of a run of ``steps`` steps, from the main process only. Leaving it closes the trackers.

    Raises DataError if a tracker cannot start. Curves that can no longer be written, because the disk is full for example, end
    with a warning; the training continues.
    """

    def __init__(self, team: Accelerator, folder: Path, config: Config, start: int, steps: int):
        self._team = team
        self._config = config
        self._steps = steps
        self._pace = _Pace()
        self._damaged: set[str] = set()
        self._lost_curves = False
        # TensorBoard drops the points at the purge step and later ones: those of step ``start`` stay.
        try:
            team.init_trackers("ess", init_kwargs={"tensorboard": {"purge_step": start + 1}, "wandb": {"name": folder.name}})
            for tracker in team.trackers:
                if tracker.name == "tensorboard" and team.is_main_process:
                    tracker.writer.add_text("settings", "    " + config.to_toml().replace("\n", "\n    "), start)
                else:
                    tracker.store_init_configuration({k: v for k, v in config.to_json().items() if v is not None})
        except Exception as error:  # each tracker has its own kinds
            raise Unwritable(f"{folder}: the curves of --track {config.track} cannot be written: {_why(error)}") from None
        self._report_thread = threading.excepthook

    def __enter__(self) -> "Journal":
        threading.excepthook = self._on_failed_thread
        return self

    def __exit__(self, *error: object) -> None:
        if self._damaged:
            self._say("%s", describe_skipped(len(self._damaged)))
        with self._curves():
            self._team.end_training()
        threading.excepthook = self._report_thread

    def gather_damaged(self, skipped: Sequence[DamagedImage]) -> list[DamagedImage]:
        """The damaged images that all processes skipped, each reported once; every process must call this with its own."""
        damaged = gather_object(list(skipped))
        self._note(damaged)
        return damaged

    def step(self, done: int, loss: float, lr: float, temperature: float | None = None) -> None:
        """Note a step; every ``log_every`` steps and at the end, write a line and add points to the curves.

        ``temperature`` is the learnt one after the step.
        """
        self._pace.step(self._config.batch_size)
        if done % self._config.log_every and done != self._steps:
            return
        speed = self._pace.images_per_second()
        eta = timedelta(seconds=round((self._steps - done) * self._config.batch_size / speed))
        learnt = "" if temperature is None else f"  T {temperature:.2f}"
        self._say("step %d/%d  loss %.4f  lr %.3g%s  %.1f images/s  ETA %s", done, self._steps, loss, lr, learnt, speed, eta)
        points = {"train/loss": loss, "train/lr": lr, "train/images_per_second": speed}
        self._plot(points if temperature is None else points | {"train/temperature": temperature}, done)

    def evaluation(self, done: int, scores: dict) -> None:
        """Report the scores of an evaluation; its time is not counted as training."""
        shown = ("none" if scores[name] is None else f"{scores[name]:.3f}" for name in ("miou", "pixel_accuracy"))
        self._say("step %d/%d  mIoU %s  pixel accuracy %s", done, self._steps, *shown)
        points = {f"val/{name}": scores[name] for name in ("miou", "pixel_accuracy", "mean_accuracy", "fw_iou")}
        points |= {f"val/miou_{group}": value for group, value in scores["groups"].items()}
        self._plot({name: value for name, value in points.items() if value is not None}, done)
        self._pace.pause()

    def pictures(self, done: int, predictor: Predictor, dataset: Dataset, split: str = "val") -> None:
        """Show truth and prediction side by side for the first images of a split.

        Damaged images are skipped or raised, as the settings say.
        """
        board = self._board()
        if board is None:
            return
        images = dataset.split(split)
        for index in range(min(PICTURES, len(images))):
            try:
                sample = images[index]
                image = sample.image()
            except DamagedImage as error:
                if not self._config.skip_damaged:
                    raise with_advice(error) from None
                self._note([error])
                continue
            masks = (sample.mask, predictor(image))
            shown = [overlay(*enlarge(image, mask), predictor.vocabulary) for mask in masks]
            with self._curves():
                board.add_image(f"val/{sample.image_id}", np.hstack(shown), done, dataformats="HWC")
        self._pace.pause()

    def classes(self, done: int, predictor: Predictor) -> None:
        """Give the class embeddings with their names to TensorBoard's projector."""
        board, embeddings = self._board(), predictor.model.class_embeddings
        if board is None or embeddings is None:
            return
        names = [(c.name, c.kind, c.group or "") for c in predictor.vocabulary]
        with torch.no_grad():
            vectors = predictor.model.classes().float().cpu()
        with self._curves(), redirect_stdout(StringIO()):  # torch prints a warning if a finished run is resumed
            board.add_embedding(vectors, names, tag="classes", global_step=done, metadata_header=["name", "kind", "group"])

    def _note(self, damaged: Sequence[DamagedImage]) -> None:
        for line in map(str, damaged):
            if line not in self._damaged:
                self._damaged.add(line)
                self._say("skipped a damaged image: %s", line)

    def _say(self, message: str, *values: object) -> None:
        if self._team.is_main_process:
            log.info(message, *values)

    def _plot(self, points: dict[str, float], done: int) -> None:
        """Add points to the curves."""
        if not self._lost_curves:
            with self._curves():
                self._team.log(points, step=done)

    @contextmanager
    def _curves(self) -> Iterator[None]:
        """Inside this context, a tracker that cannot write ends the curves, with one warning."""
        try:
            yield
        except Exception as error:  # each tracker has its own kinds
            if not self._lost_curves:
                log.warning("the curves end here: %s; the training continues without them", _why(error))
            self._lost_curves = True

    def _on_failed_thread(self, failure: Any) -> None:
        """Report the failure of a thread, except that of the one that writes for TensorBoard, which :meth:`_curves` reports."""
        if not (isinstance(failure.exc_value, OSError) and type(failure.thread).__name__ == "_AsyncWriterThread"):
            self._report_thread(failure)

    def _board(self) -> Any:
        """TensorBoard's writer, or None."""
        if not self._team.is_main_process or self._lost_curves:
            return None
        return next((tracker.writer for tracker in self._team.trackers if tracker.name == "tensorboard"), None)


def _why(error: Exception) -> str:
    """The message of a tracker's failure, on one line."""
    return reason(error) if isinstance(error, OSError) else one_line(error)
