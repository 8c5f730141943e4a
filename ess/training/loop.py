"""The training loop of the embedding model and its baseline, to be read from top to bottom."""

import logging
import math
from collections.abc import Generator, Iterable, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from cocolvis.disk.lock import Lease
from cocolvis.errors import DamagedImage, DataError
from cocolvis.storage.dataset import Dataset
from ess.checkpoint import Checkpoint, Run
from ess.config import Config
from ess.data.batches import Batch, FeatureBatch, RawBatch, RawFeatures, rendered
from ess.data.feature_batches import feature_batches
from ess.data.feature_store import SplitFeatures
from ess.data.loader import training_batches
from ess.data.longtail import Tail
from ess.device import Readback, explain_out_of_memory, moved
from ess.evaluation.evaluate import count_pixels, image_indices, predictions, scores_of
from ess.inference.predictor import Predictor
from ess.inference.views import Inference
from ess.losses.cross_entropy import chosen
from ess.models.build import model_from_config
from ess.models.network import SegmentationModel
from ess.stopping import Stop, stop_requests
from ess.training import machine
from ess.training import team as teams
from ess.training.features import check_settings, store_features
from ess.training.journal import Journal
from ess.training.objective import Objective, check_device
from ess.training.plan import planned
from ess.training.state import TrainingState, set_learning_rates
from ess.training.step import Guard, Made, NotFinite, optimise, seed_step

_EVALUATED = 8
"""Images of equal padded size that a GPU predicts together in an evaluation."""

_TOO_LARGE = "the network and its optimiser do not fit this device ({}); choose a smaller --encoder or another --device"
"""What to do if the memory of a device ends before the first step."""

log = logging.getLogger("ess")


def train(
    dataset: Dataset,
    folder: Path,
    config: Config,
    *,
    resume: bool = False,
    allow_other_data: bool = False,
    cache_features: Path | None = None,
) -> Run:
    """Train on the split "train" and leave a run in ``folder``; progress goes to the log and to trackers.

    With ``resume``, training continues from the newest checkpoint with the same batches, augmentations and schedules.
    ``config`` must then describe the same model as the run, and ``dataset`` must be that of the run unless ``allow_other_data``
    is set.

    With ``cache_features``, the features of a frozen encoder are computed once for whole pictures, stored below that folder in
    float16, and used by all steps and evaluations. The folder is not a setting of the run: without it, a run is continued on
    pictures, whose crops have other positions and end at their own borders.

    Ctrl-C and SIGTERM, however often they come, end the step, write a checkpoint and raise KeyboardInterrupt; a second Ctrl-C
    raises it at once. Raises DataError if the loss is no longer finite, or if data or settings are faulty.

    Several processes, started by torchrun for example, share each batch and make the same steps as one process.
    """
    _find(folder, resume)
    if cache_features is not None:
        check_settings(config)
    split, tail, epoch, steps = planned(dataset, config)
    team = teams.join(config, folder)
    with teams.alone(team, folder) as lease, ExitStack() as opened:
        run = _find(folder, resume)  # again: another training may have begun it meanwhile
        config = machine.resolved(config, team.device, run.config if run else None)
        check_device(config, len(dataset.vocabulary), team.device)
        choices = machine.in_force(config, team.device)
        record = {"device": machine.describe(team.device), **choices._asdict()}
        with explain_out_of_memory(_TOO_LARGE.format(record["device"])):
            objective = _new_objective(team, config, len(dataset.vocabulary), tail, pretrained=run is None)
            objective.check_batch_norm(config.batch_size // (team.num_processes * config.accumulate))
            state = TrainingState(objective.model, config, objective.log_temperature, fused=choices.fused)
            how = (steps, allow_other_data, cache_features is not None, record)
            begun = _resume(team, run, dataset, config, state, *how) if run else None
            stored = _features(cache_features, dataset, len(split), objective.model, config, team) if cache_features else {}
            if lease is not None:
                lease.check()  # to store features may take hours
            stop = opened.enter_context(stop_requests(team))
            start = begun.step if begun else 0
            journal = opened.enter_context(Journal(team, folder, config, start, steps))  # a tracker may refuse to start
            if run is None or begun is None:
                run, begun = _begin(team, folder, dataset, config, state, resume, record)
            guard = Guard(objective.model, state.optimizer, team.device, fused=choices.fused)
            wrapped, optimizer = team.prepare(objective.train(), state.optimizer)
        loss = chosen(config.loss, len(dataset.vocabulary))
        told = (record["device"], config.precision, loss, len(split), epoch, config.workers)
        log.info("%s: %s, %s loss, %d images, %d steps an epoch, %s workers", *told)
        schedule = (config, steps, begun.step, tail, (team.process_index, team.num_processes))
        batches: Generator[RawBatch, None, None] | Generator[RawFeatures, None, None]
        batches = feature_batches(split, stored["train"], *schedule) if stored else training_batches(split, *schedule)
        advice = f"try a --batch-size below {config.batch_size}, a --crop below {config.crop}, or --accumulate"
        with closing(batches), explain_out_of_memory(advice), machine.switched(choices):
            parts = (dataset, stored, steps, epoch, state, wrapped, optimizer, guard, journal, stop)
            training = _Training(team, lease, run, *parts)
            training.run_steps(begun, rendered(batches, config.crop, team.device, prefetch=choices.prefetch))
    return run


@dataclass(frozen=True, slots=True)
class _Training:
    """A running training of ``steps`` steps, ``epoch`` of them per epoch; ``features`` are stored ones by split, if any.

    ``objective`` and ``optimizer`` are wrapped for the ``team`` of processes. ``lease`` is the lock of its first process, None
    in the others. The ``guard`` suppresses steps whose loss or gradient is not finite.
    """

    team: Accelerator
    lease: Lease | None
    run: Run
    dataset: Dataset
    features: Mapping[str, SplitFeatures]
    steps: int
    epoch: int
    state: TrainingState
    objective: torch.nn.Module
    optimizer: torch.optim.Optimizer
    guard: Guard
    journal: Journal
    stop: Stop

    def run_steps(self, begun: Checkpoint, batches: Iterable[tuple[RawBatch | RawFeatures, Batch | FeatureBatch]]) -> None:
        """Make the remaining steps, after the evaluation of the checkpoint if that is missing."""
        if begun.step and begun.scores is None and self._evaluates_after(begun.step):
            self._evaluate(begun.step)
        try:
            self._run_steps(begun.step, batches)
        except NotFinite as error:
            if error.done - 1 > begun.step and not self._saves_after(error.done - 1):
                self._save(error.done - 1)
            raise
        self.journal.classes(self.steps, self._predictor())

    def _run_steps(self, begun: int, batches: Iterable[tuple[RawBatch | RawFeatures, Batch | FeatureBatch]]) -> None:
        """Make the steps. If the device itself suppresses faulty ones, each is reported when the next one is on its way."""
        made: Made | None = None
        for done, (raw, batch) in enumerate(batches, begun + 1):
            before, made = made, self._step(done, raw, batch)
            stopping = before is not None and self._report(before)
            evaluating, saving = self._evaluates_after(done), self._saves_after(done)
            if saving or stopping or not self.guard.fused:
                stopping, made = self._report(made) or stopping, None
            if saving or stopping:
                self._save(done)
            if stopping and (evaluating or done < self.steps):
                raise KeyboardInterrupt
            if evaluating:
                self._evaluate(done)

    def _step(self, done: int, raw: RawBatch | RawFeatures, batch: Batch | FeatureBatch) -> Made:
        """Make step number ``done``, counted from 1."""
        config, step, state = self.run.config, done - 1, self.state
        set_learning_rates(state.optimizer, config, step, self.steps)
        seed_step(config.seed, step, self.team.process_index)
        parts = config.accumulate, config.clip_norm
        loss = optimise(self.team, self.objective, self.optimizer, batch, *parts, self.guard)
        if not self.guard.refuses:
            state.after_step(self.guard.kept)
        asked = moved(torch.tensor([float(self.stop.requested), float(len(raw.damaged))]), loss.device)
        learnt = loss.new_zeros(()) if state.log_temperature is None else state.log_temperature.detach().exp()
        figures = torch.cat([torch.stack([loss, self.guard.failed, learnt]), asked])
        lr = state.optimizer.param_groups[1]["lr"]
        return Made(done, lr, raw, Readback(self.team.reduce(figures, "mean")))

    def _report(self, made: Made) -> bool:
        """Report a step to the journal, and return whether any process was asked to stop.

        Raises NotFinite if its loss or gradient is not finite.
        """
        loss, failed, learnt, stopping, damaged = made.figures.wait()
        if failed or not math.isfinite(loss):
            ids = self.team.gather(torch.from_numpy(made.raw.ids).to(self.team.device)).tolist()
            fault = f"loss is {loss}" if not math.isfinite(loss) else f"the gradient of the loss {loss:.4g} is not finite"
            where = f"at step {made.done}, lr {made.lr:.3g}, images {ids}"
            raise NotFinite(f"{fault} {where}; try a smaller --lr", made.done)
        self.journal.step(made.done, loss, made.lr, None if self.state.log_temperature is None else learnt)
        if damaged:
            self.journal.gather_damaged(made.raw.damaged)
        return bool(stopping)

    def _save(self, done: int) -> None:
        """Write a checkpoint. All processes wait for it, because launchers end all of them when the first one ends."""
        if self.lease is not None:
            self.lease.check()
            self.run.save(done, self.state.result, self.state.tensors(self.team.scaler), self.state.temperature)
        self.team.wait_for_everyone()

    def _saves_after(self, done: int) -> bool:
        return self._evaluates_after(done) or done % self.run.config.save_every == 0 or done == self.steps

    def _evaluates_after(self, done: int) -> bool:
        every = self.run.config.eval_every
        return every is not None and (done % (self.epoch if every == "epoch" else every) == 0 or done == self.steps)

    def _evaluate(self, done: int) -> None:
        """Evaluate the model of checkpoint ``done`` and add the scores to it.

        Raises KeyboardInterrupt if a stop is requested.
        """
        predictor = self._predictor()
        with machine.evaluating():
            scores = self._scores(predictor)
            if self.lease is not None:
                self.lease.check()
                self.run.score(done, scores)
            self.journal.evaluation(done, scores)
            self.journal.pictures(done, predictor, self.dataset)
        self.objective.train()

    def _scores(self, predictor: Predictor) -> dict:
        """The scores on the split "val" or its first images. The processes share these and check for a stop after each."""
        team, config = self.team, self.run.config
        indices = image_indices(self.dataset, "val", config.eval_limit)
        share, most = indices[team.process_index :: team.num_processes], len(indices[:: team.num_processes])
        damaged: list[DamagedImage] | None = [] if config.skip_damaged else None
        images = predictions(
            predictor,
            self.dataset,
            indices=share,
            damaged=damaged,
            features=self.features.get("val"),
            progress=lambda done, total: self.stop.check(),
        )
        confusion = count_pixels(images, len(self.dataset.vocabulary))
        if len(share) < most:  # every process must check equally often
            self.stop.check()
        confusion.pixels = team.reduce(confusion.pixels.to(team.device), "sum").cpu()
        all_damaged = [] if damaged is None else self.journal.gather_damaged(damaged)
        confusion.images = len(indices) - len(all_damaged)
        return scores_of(confusion, self.dataset, damaged=all_damaged)

    def _predictor(self) -> Predictor:
        together = _EVALUATED if self.team.device.type == "cuda" else 1
        how = Inference(batch_size=together)
        advice = "train with --eval-every none, and evaluate the run with `ess eval --window`"
        return Predictor(self.state.result.eval(), self.dataset.vocabulary, self.team.device, how, advice=advice)


def _find(folder: Path, resume: bool) -> Run | None:
    """The run in a folder, or None; raises DataError if there is one that is not to be resumed."""
    run = Run.find(folder)
    if run and not resume:
        raise DataError(f"{folder}: already holds a run; continue it with --resume, or choose another --out")
    return run


def _new_objective(team: Accelerator, config: Config, classes: int, tail: Tail, *, pretrained: bool) -> Objective:
    """A new model with its loss, on the team's device; a resumed run needs no ``pretrained`` weights."""
    torch.manual_seed(config.seed)
    weights = config.weights if pretrained and config.weights != "none" else None
    model = teams.synchronised(model_from_config(config, classes, weights=weights), team)
    return Objective(model, config, tail).to(team.device)


def _features(
    folder: Path, dataset: Dataset, images: int, model: SegmentationModel, config: Config, team: Accelerator
) -> Mapping[str, SplitFeatures]:
    """The stored features of the first ``images`` of the split "train", and of the images that are evaluated."""
    wanted: dict[str, Iterable[int]] = {"train": range(images)}
    if config.eval_every is not None:
        wanted["val"] = image_indices(dataset, "val", config.eval_limit)
    return store_features(folder, dataset, wanted, model, config, team)


def _begin(
    team: Accelerator,
    folder: Path,
    dataset: Dataset,
    config: Config,
    state: TrainingState,
    resume: bool,
    record: Mapping[str, Any],
) -> tuple[Run, Checkpoint]:
    """Begin a new run with the ``record`` of its machine, and return it with its untrained checkpoint."""
    if resume:
        log.info("%s: holds no run to resume; a new one begins", folder)
    run = Run(folder, config, dataset.vocabulary, dataset.index["digest"], machine=record)
    team.wait_for_everyone()  # until all processes have looked for an earlier run
    if team.is_main_process:
        run.begin(state.result, state.tensors(), state.temperature)
    return run, Checkpoint(folder, 0, None)


def _resume(
    team: Accelerator,
    run: Run,
    dataset: Dataset,
    config: Config,
    state: TrainingState,
    steps: int,
    allow_other_data: bool,
    cached: bool,
    record: Mapping[str, Any],
) -> Checkpoint:
    """Load the newest checkpoint of a run; raises DataError, with the run unchanged, if it does not match the settings.

    ``cached`` says that steps and evaluations will read the same stored features.
    """
    if run.vocabulary.digest != dataset.vocabulary.digest:
        raise DataError(f"{run.folder}: was trained with another vocabulary than that of {dataset.folder}")
    changes = ", ".join(run.change(config))
    begun = run.load(state.result)
    if begun.step > steps:
        length = f"--steps {steps}" if config.steps else f"--epochs {config.epochs}, which are {steps} steps,"
        raise DataError(
            f"{run.folder}: has done {begun.step} steps already; {length} would be fewer: give more, or use another --out"
        )
    run.change_data(dataset.index["digest"], begun.step, allowed=allow_other_data)
    state.load(begun.training(), team.scaler)
    if cached and not _same_tensors(state.model.encoder, state.result.encoder):
        raise DataError(
            f"{run.folder}: ema has averaged an encoder that was trained, so that steps and evaluations need other features;"
            " leave out --cache-features"
        )
    team.wait_for_everyone()  # until all processes have read the checkpoint
    run.machine = record
    if team.is_main_process:
        run.write()
    log.info("resumed %s at step %d", run.folder, begun.step)
    if changes:
        log.info("settings change: %s", changes)
    return begun


def _same_tensors(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    """Whether two modules of the same kind have equal parameters and buffers."""
    pairs = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    return all(torch.equal(*pair) for pair in pairs)
