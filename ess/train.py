"""The training loop of the embedding model and its baseline, to be read from top to bottom."""

import logging
import math
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator

from cocolvis.dataset import Dataset
from cocolvis.errors import DataError
from ess import team as teams
from ess.batches import Batch
from ess.checkpoint import Run
from ess.config import Config
from ess.data import epoch_length, training_batches, training_split
from ess.device import explain_out_of_memory
from ess.evaluate import count, first, scores_of
from ess.journal import Journal
from ess.longtail import tail_of
from ess.models import model_from_config
from ess.objective import Objective
from ess.predict import Predictor
from ess.state import TrainingState, set_learning_rates

log = logging.getLogger("ess")


def train(dataset: Dataset, folder: Path, config: Config, *, resume: bool = False) -> Run:
    """Train on the split "train" and leave a run in ``folder``; progress goes to the log and to trackers.

    With ``resume`` the newest checkpoint goes on with the same batches, augmentations and schedules; ``config`` is then that
    of the run, or differs in what does not shape the model. Ctrl-C and SIGTERM end the step, write a checkpoint and raise
    KeyboardInterrupt. A DataError when the loss is no longer finite, and for every fault of data or settings.

    Several processes, as torchrun starts them, share each batch, and make the steps that one would make.
    """
    split = training_split(dataset, config)
    tail = tail_of(split, dataset.vocabulary, config)
    steps = config.steps or config.epochs * (epoch_length(len(split), tail.repeats) // config.batch_size)
    exists = (folder / "run.json").exists()
    if exists and not resume:
        raise DataError(f"{folder}: already holds a run; continue it with --resume, or choose another --out")
    team = teams.join(config, folder)
    torch.manual_seed(config.seed)
    weights = None if exists or config.weights == "none" else config.weights
    model = teams.synchronised(model_from_config(config, len(dataset.vocabulary), weights=weights), team)
    objective = Objective(model, config, tail).to(team.device)
    state = TrainingState(model, config)
    run, start = _begin(team, folder, dataset, config, state, exists)
    wrapped, optimizer = team.prepare(objective.train(), state.optimizer)

    share = (team.process_index, team.num_processes)
    advice = f"try a --batch-size below {config.batch_size}, a --crop below {config.crop}, or --accumulate"
    scores = None
    with (
        Journal(team, folder, config, start, steps) as journal,
        stop_requests() as stop,
        explain_out_of_memory(advice),
    ):
        for step, windows in enumerate(training_batches(split, config, steps, start, tail, share), start):
            set_learning_rates(state.optimizer, config, step, steps)
            seed_step(config.seed, step, team.process_index)
            loss = optimise(team, wrapped, optimizer, windows.crops(config.crop, team.device), config.accumulate)
            state.after_step()

            done, lr = step + 1, state.optimizer.param_groups[1]["lr"]
            flags = loss.new_tensor([stop.is_set(), len(windows.damaged)])
            value, stopping, damaged = team.reduce(torch.cat([loss[None], flags]), "mean").tolist()
            if not math.isfinite(value):
                ids = team.gather(windows.ids.to(team.device)).tolist()
                raise DataError(f"loss is {value} at step {done}, lr {lr:.3g}, images {ids}; try a smaller --lr")
            journal.step(done, value, lr)
            if damaged:
                journal.damage(windows.damaged)

            evaluating = config.eval_every is not None and (done % config.eval_every == 0 or done == steps)
            if evaluating:
                predictor = Predictor(state.result.eval(), dataset.vocabulary, team.device)
                scores = _evaluate(team, predictor, dataset, config, journal)
                journal.evaluation(done, scores)
                journal.pictures(done, predictor, dataset)
                objective.train()
            if evaluating or done % config.save_every == 0 or done == steps or stopping:
                _save(team, run, done, state, scores if evaluating else None)
            if stopping and done < steps:
                raise KeyboardInterrupt
        journal.classes(steps, Predictor(state.result.eval(), dataset.vocabulary, team.device))
    return run


def optimise(
    team: Accelerator, objective: torch.nn.Module, optimizer: torch.optim.Optimizer, batch: Batch, accumulate: int = 1
) -> torch.Tensor:
    """One step on a batch that lies on the device, in ``accumulate`` parts: the loss before it, a float32 scalar.

    The loss is the mean over the counted pixels of all processes and parts together, plus the margin penalty; all processes
    return the same.
    """
    counted = team.unwrap_model(objective).counted(batch)
    total = team.reduce(counted, "sum").clamp_min(torch.finfo(counted.dtype).tiny)
    summed = torch.zeros_like(counted)
    for number, part in enumerate(batch.parts(accumulate), 1):
        with nullcontext() if number == accumulate else team.no_sync(objective):
            losses, penalty = objective(part)
            # Gradients are averaged over processes: what each gives is taken that many times.
            team.backward(losses * (team.num_processes / total) + penalty / accumulate)
        summed += losses.detach()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return team.reduce(summed, "sum") / total + penalty.detach()


def seed_step(seed: int, step: int, rank: int) -> None:
    """Make the random numbers of a step, such as dropout's, a function of the run's seed, the step, and the process."""
    torch.manual_seed(int(np.random.default_rng([seed, step, rank]).integers(2**63)))


def _begin(
    team: Accelerator, folder: Path, dataset: Dataset, config: Config, state: TrainingState, exists: bool
) -> tuple[Run, int]:
    """The run, and the steps already done: of a new one 0, else its newest checkpoint is loaded."""
    team.wait_for_everyone()  # until all have looked whether there is one
    if not exists:
        run = Run(folder, config, dataset.vocabulary)
        if team.is_main_process:
            run.begin(state.result, state.tensors())
        return run, 0
    run = Run.open(folder)
    if run.vocabulary.digest != dataset.vocabulary.digest:
        raise DataError(f"{folder}: was trained with another vocabulary than that of {dataset.folder}")
    run.change(config)
    checkpoint = run.load(state.result)
    state.load(checkpoint.training(), team.scaler)
    if team.is_main_process:
        run.write()
        log.info("resumed %s at step %d", folder, checkpoint.step)
    return run, checkpoint.step


def _evaluate(team: Accelerator, predictor: Predictor, dataset: Dataset, config: Config, journal: Journal) -> dict:
    """The scores on the split "val" or its first images, which the processes share."""
    images = first(dataset, "val", config.eval_limit)
    damaged = [] if config.skip_damaged else None
    confusion = count(predictor, dataset, indices=images[team.process_index :: team.num_processes], damaged=damaged)
    confusion.matrix = team.reduce(confusion.matrix.to(team.device), "sum").cpu()
    damaged = journal.damage(damaged) if config.skip_damaged else []
    confusion.images = len(images) - len(damaged)
    return scores_of(confusion, dataset, damaged=damaged)


def _save(team: Accelerator, run: Run, step: int, state: TrainingState, scores: dict | None) -> None:
    if team.is_main_process:
        run.save(step, state.result, state.tensors(team.scaler), scores)


@contextmanager
def stop_requests() -> Iterator[threading.Event]:
    """An event that the first Ctrl-C or SIGTERM sets; the second Ctrl-C interrupts at once."""
    stop = threading.Event()

    def request(number, frame) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.signal(number, request) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
