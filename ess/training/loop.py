"""The training loop of the embedding model and its baseline, to be read from top to bottom."""

import logging
import math
from contextlib import closing, nullcontext
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator

from cocolvis.errors import DataError
from cocolvis.storage.dataset import Dataset
from ess.checkpoint import Checkpoint, Run
from ess.config import MOST_STEPS, Config
from ess.data.batches import Batch
from ess.data.loader import epoch_length, training_batches, training_split
from ess.data.longtail import Tail, tail_of
from ess.device import explain_out_of_memory
from ess.evaluation.evaluate import check_readable, count, first, scores_of
from ess.inference.predictor import Predictor
from ess.models.network import model_from_config
from ess.stopping import Stop, stop_requests
from ess.training import team as teams
from ess.training.journal import Journal
from ess.training.objective import Objective
from ess.training.state import TrainingState, set_learning_rates

log = logging.getLogger("ess")


def train(dataset: Dataset, folder: Path, config: Config, *, resume: bool = False, allow_other_data: bool = False) -> Run:
    """Train on the split "train" and leave a run in ``folder``; progress goes to the log and to trackers.

    With ``resume`` the newest checkpoint goes on with the same batches, augmentations and schedules; ``config`` is then that
    of the run, or differs in what does not shape the model, and ``dataset`` is that of the run, or ``allow_other_data``.
    Ctrl-C and SIGTERM, however often it comes, end the step, write a checkpoint and raise KeyboardInterrupt; a second Ctrl-C
    raises it at once. A DataError when the loss is no longer finite, and for every fault of data or settings.

    Several processes, as torchrun starts them, share each batch, and make the steps that one would make.
    """
    run = Run.find(folder)
    if run and not resume:
        raise DataError(f"{folder}: already holds a run; continue it with --resume, or choose another --out")
    split = training_split(dataset, config)
    tail = tail_of(split, dataset.vocabulary, config)
    steps = _planned_steps(config, len(split), tail)
    if config.eval_every is not None:
        check_readable(dataset, "val", skip_damaged=config.skip_damaged)
    team = teams.join(config, folder)
    torch.manual_seed(config.seed)
    weights = None if run or config.weights == "none" else config.weights
    model = teams.synchronised(model_from_config(config, len(dataset.vocabulary), weights=weights), team)
    objective = Objective(model, config, tail).to(team.device)
    state = TrainingState(model, config)
    if run:
        begun = _resumed(team, run, dataset, config, state, steps, allow_other_data)
    else:
        run, begun = _new(team, folder, dataset, config, state, resume)
    start = begun.step
    wrapped, optimizer = team.prepare(objective.train(), state.optimizer)

    share = (team.process_index, team.num_processes)
    advice = f"try a --batch-size below {config.batch_size}, a --crop below {config.crop}, or --accumulate"
    with (
        stop_requests(team) as stop,
        Journal(team, folder, config, start, steps) as journal,
        closing(training_batches(split, config, steps, start, tail, share)) as batches,
        explain_out_of_memory(advice),
    ):
        if start and begun.scores is None and _evaluates(config, start, steps):
            _evaluate(team, run, start, state, dataset, journal, stop)
            objective.train()
        for step, windows in enumerate(batches, start):
            set_learning_rates(state.optimizer, config, step, steps)
            seed_step(config.seed, step, team.process_index)
            loss = optimise(team, wrapped, optimizer, windows.crops(config.crop, team.device), config.accumulate)
            state.after_step()

            done, lr = step + 1, state.optimizer.param_groups[1]["lr"]
            flags = loss.new_tensor([stop.requested, len(windows.damaged)])
            value, stopping, damaged = team.reduce(torch.cat([loss[None], flags]), "mean").tolist()
            if not math.isfinite(value):
                ids = team.gather(windows.ids.to(team.device)).tolist()
                raise DataError(f"loss is {value} at step {done}, lr {lr:.3g}, images {ids}; try a smaller --lr")
            journal.step(done, value, lr)
            if damaged:
                journal.damage(windows.damaged)

            evaluating = _evaluates(config, done, steps)
            if evaluating or done % config.save_every == 0 or done == steps or stopping:
                _save(team, run, done, state)
            if stopping and (evaluating or done < steps):
                raise KeyboardInterrupt
            if evaluating:
                _evaluate(team, run, done, state, dataset, journal, stop)
                objective.train()
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


def _planned_steps(config: Config, images: int, tail: Tail) -> int:
    """The steps of the whole training; a DataError where the epochs make more than a checkpoint's name has room for."""
    steps = config.steps or config.epochs * (epoch_length(images, tail.repeats) // config.batch_size)
    if steps > MOST_STEPS:
        raise DataError(f"{config.epochs} epochs are {steps} steps; expected up to {MOST_STEPS}")
    return steps


def _new(
    team: Accelerator, folder: Path, dataset: Dataset, config: Config, state: TrainingState, resume: bool
) -> tuple[Run, Checkpoint]:
    """A run that begins, and its untrained checkpoint."""
    if resume:
        log.info("%s: holds no run to resume; a new one begins", folder)
    run = Run(folder, config, dataset.vocabulary, dataset.index["digest"])
    team.wait_for_everyone()  # until all have looked whether there is one
    if team.is_main_process:
        run.begin(state.result, state.tensors())
    return run, Checkpoint(folder, 0, None)


def _resumed(
    team: Accelerator, run: Run, dataset: Dataset, config: Config, state: TrainingState, steps: int, allow_other_data: bool
) -> Checkpoint:
    """The newest checkpoint of a run, loaded; the run is left as it is when it cannot go on like this."""
    if run.vocabulary.digest != dataset.vocabulary.digest:
        raise DataError(f"{run.folder}: was trained with another vocabulary than that of {dataset.folder}")
    run.change(config)
    begun = run.load(state.result)
    if begun.step > steps:
        length = f"--steps {steps}" if config.steps else f"--epochs {config.epochs}, which are {steps} steps,"
        raise DataError(
            f"{run.folder}: has done {begun.step} steps already; {length} would be less: give more, or use another --out"
        )
    run.change_data(dataset.index["digest"], begun.step, allowed=allow_other_data)
    state.load(begun.training(), team.scaler)
    team.wait_for_everyone()  # until all have read it
    if team.is_main_process:
        run.write()
    log.info("resumed %s at step %d", run.folder, begun.step)
    return begun


def _evaluates(config: Config, done: int, steps: int) -> bool:
    """Whether so many steps of all are followed by an evaluation."""
    return config.eval_every is not None and (done % config.eval_every == 0 or done == steps)


def _evaluate(
    team: Accelerator, run: Run, step: int, state: TrainingState, dataset: Dataset, journal: Journal, stop: Stop
) -> None:
    """Evaluate what checkpoint ``step`` holds and add its scores; once a stop is requested, KeyboardInterrupt instead."""
    predictor = Predictor(state.result.eval(), dataset.vocabulary, team.device)
    scores = _scores(team, predictor, dataset, run.config, journal, stop)
    if team.is_main_process:
        run.score(step, scores)
    journal.evaluation(step, scores)
    journal.pictures(step, predictor, dataset)


def _scores(team: Accelerator, predictor: Predictor, dataset: Dataset, config: Config, journal: Journal, stop: Stop) -> dict:
    """The scores on the split "val" or its first images, which the processes share; they ask for a stop after each image."""
    images = first(dataset, "val", config.eval_limit)
    own, most = images[team.process_index :: team.num_processes], len(images[:: team.num_processes])
    damaged = [] if config.skip_damaged else None
    confusion = count(predictor, dataset, indices=own, damaged=damaged, progress=lambda *_: stop.check())
    if len(own) < most:
        stop.check()
    confusion.pixels = team.reduce(confusion.pixels.to(team.device), "sum").cpu()
    damaged = journal.damage(damaged) if config.skip_damaged else []
    confusion.images = len(images) - len(damaged)
    return scores_of(confusion, dataset, damaged=damaged)


def _save(team: Accelerator, run: Run, step: int, state: TrainingState) -> None:
    """Write a checkpoint. Nobody goes on before: launchers end all processes when the first one ends."""
    if team.is_main_process:
        run.save(step, state.result, state.tensors(team.scaler))
    team.wait_for_everyone()
