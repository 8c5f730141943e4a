"""The training loop of the embedding model and its baseline, to be read from top to bottom."""

import logging
import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import torch
from torch.utils.tensorboard import SummaryWriter

from cocolvis.dataset import Dataset
from cocolvis.errors import DataError
from ess import losses
from ess.checkpoint import Run
from ess.config import Config
from ess.data import IGNORE_INDEX, epoch_length, training_batches, training_split
from ess.device import choose_device, explain_out_of_memory
from ess.evaluate import evaluate
from ess.longtail import NO_TAIL, Tail, tail_of
from ess.models import SegmentationModel, model_from_config
from ess.predict import Predictor
from ess.transforms import normalize

log = logging.getLogger("ess")


def train(dataset: Dataset, folder: Path, config: Config, *, resume: bool = False) -> Run:
    """Train on the split "train" and leave a run in ``folder``; progress goes to the log and to TensorBoard files.

    With ``resume`` the newest checkpoint goes on with the same batches, augmentations and schedules; ``config`` is then that
    of the run, or differs in what does not shape the model. Ctrl-C and SIGTERM end the step, write a checkpoint and raise
    KeyboardInterrupt. A DataError when the loss is no longer finite, and for every fault of data or settings.
    """
    device = choose_device(config.device)
    split = training_split(dataset, config)
    tail = tail_of(split, len(dataset.vocabulary), config, device)
    steps = config.steps or config.epochs * (epoch_length(len(split), tail.repeats) // config.batch_size)
    torch.manual_seed(config.seed)
    exists = (folder / "run.json").exists()
    if exists and not resume:
        raise DataError(f"{folder}: already holds a run; continue it with --resume, or choose another --out")
    weights = None if exists or config.weights == "none" else config.weights
    model = model_from_config(config, len(dataset.vocabulary), weights=weights).to(device).train()
    optimizer = make_optimizer(model, config)
    if exists:
        run, start = resume_run(folder, dataset, config, model, optimizer)
    else:
        run, start = Run(folder, config, dataset.vocabulary), 0
        run.begin(model, training_state(model, optimizer))

    scores = None
    seen, since = 0, time.monotonic()
    advice = f"try a --batch-size below {config.batch_size} or a --crop below {config.crop}"
    with (
        SummaryWriter(folder / "tensorboard", purge_step=start) as board,
        stop_requests() as stop,
        explain_out_of_memory(advice),
    ):
        for step, (images, labels, ids) in enumerate(training_batches(split, config, steps, start, tail.repeats), start):
            set_learning_rates(optimizer, config, step, steps)
            images, labels = images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
            loss = loss_of(model, normalize(images), labels, config, tail)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()

            done = step + 1
            seen += len(images)
            value = loss.item()
            lr = optimizer.param_groups[1]["lr"]
            if not math.isfinite(value):
                raise DataError(f"loss is {value} at step {done}, lr {lr:.3g}, images {ids.tolist()}; try a smaller --lr")
            if done % config.log_every == 0 or done == steps:
                speed = seen / (time.monotonic() - since)
                eta = timedelta(seconds=round((steps - done) * config.batch_size / speed))
                log.info("step %d/%d  loss %.4f  lr %.3g  %.1f images/s  ETA %s", done, steps, value, lr, speed, eta)
                for name, scalar in (("loss", value), ("lr", lr), ("images_per_second", speed)):
                    board.add_scalar(f"train/{name}", scalar, done)
                seen, since = 0, time.monotonic()

            evaluating = config.eval_every is not None and (done % config.eval_every == 0 or done == steps)
            if evaluating:
                scores = evaluate(Predictor(model.eval(), dataset.vocabulary, device), dataset, limit=config.eval_limit)
                model.train()
                log.info(
                    "step %d/%d  mIoU %s  pixel accuracy %s",
                    done,
                    steps,
                    *map(_score, (scores["miou"], scores["pixel_accuracy"])),
                )
                for name in ("miou", "pixel_accuracy", "mean_accuracy", "fw_iou"):
                    board.add_scalar(f"val/{name}", scores[name] or 0.0, done)
                since = time.monotonic()
            if evaluating or done % config.save_every == 0 or done == steps or stop.is_set():
                run.save(done, model, training_state(model, optimizer), scores)
            if stop.is_set() and done < steps:
                raise KeyboardInterrupt
    return run


def loss_of(
    model: SegmentationModel, images: torch.Tensor, labels: torch.Tensor, config: Config, tail: Tail = NO_TAIL
) -> torch.Tensor:
    """The scalar loss of a batch: cross entropy as ``config.loss`` says, plus the margin penalty on the class embeddings.

    ``images`` (B, 3, H, W) float32, normalised; ``labels`` (B, H, W) int16. The exact loss takes the tail's bias and weights.
    """
    output = model(images)
    if config.loss == "dense":
        return losses.dense_cross_entropy(output, labels, ignore_index=IGNORE_INDEX)
    classes = model.classes()
    shared = {"temperature": config.temperature, "distance": config.distance, "ignore_index": IGNORE_INDEX}
    if config.loss == "exact" or (config.loss == "auto" and len(classes) <= losses.EXACT_UP_TO):
        loss = losses.exact_cross_entropy(output, labels, classes, bias=tail.bias, class_weight=tail.weight, **shared)
    else:
        names = ("k", "negatives", "search", "query_stride")
        loss = losses.knn_cross_entropy(output, labels, classes, **{name: getattr(config, name) for name in names}, **shared)
    return loss + losses.margin_penalty(classes, margin=config.margin) if config.margin else loss


def make_optimizer(model: SegmentationModel, config: Config) -> torch.optim.SGD:
    """SGD over three groups in this order: encoder, decoder, class embeddings; each with the settings of the paper."""
    groups = model.parameter_groups()
    settings = (
        ("encoder", config.lr * config.encoder_lr, config.momentum, config.power),
        ("decoder", config.lr, config.momentum, config.power),
        ("classes", config.lr, config.embedding_momentum, config.embedding_power),
    )
    return torch.optim.SGD(
        [
            {"params": groups[name], "lr": lr, "base_lr": lr, "momentum": momentum, "power": power}
            for name, lr, momentum, power in settings
        ],
        weight_decay=config.weight_decay,
    )


def set_learning_rates(optimizer: torch.optim.Optimizer, config: Config, step: int, steps: int) -> None:
    """The polynomial schedule: lr * (1 - step / steps) ** power, never below ``config.min_lr``."""
    for group in optimizer.param_groups:
        group["lr"] = max(group["base_lr"] * (1 - step / steps) ** group["power"], config.min_lr)


def training_state(model: SegmentationModel, optimizer: torch.optim.SGD) -> dict[str, torch.Tensor]:
    """Everything but the weights that the next step depends on: momentum by parameter name, random states."""
    state = {"rng/cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["rng/cuda"] = torch.cuda.get_rng_state()
    for name, parameter in model.named_parameters():
        momentum = optimizer.state[parameter].get("momentum_buffer")
        if momentum is not None:
            state[f"momentum/{name}"] = momentum
    return state


def resume_run(
    folder: Path, dataset: Dataset, config: Config, model: SegmentationModel, optimizer: torch.optim.SGD
) -> tuple[Run, int]:
    """Load the newest checkpoint into model, optimiser and random generators; the run and the steps already done."""
    run = Run.open(folder)
    if run.vocabulary.digest != dataset.vocabulary.digest:
        raise DataError(f"{folder}: was trained with another vocabulary than that of {dataset.folder}")
    run.update(config)
    checkpoint = run.load(model)
    state = checkpoint.training()
    for name, parameter in model.named_parameters():
        if f"momentum/{name}" in state:
            optimizer.state[parameter]["momentum_buffer"] = state[f"momentum/{name}"].to(parameter.device)
    torch.set_rng_state(state["rng/cpu"])
    if "rng/cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["rng/cuda"])
    log.info("resumed %s at step %d", folder, checkpoint.step)
    return run, checkpoint.step


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


def _score(value: float | None) -> str:
    return "none" if value is None else f"{value:.3f}"
