"""One step of a training: forward and backward in parts, and an update that a loss which is not finite does not reach."""

from contextlib import nullcontext
from typing import NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

from cocolvis.errors import DataError
from ess.data.batches import Batch, FeatureBatch, RawBatch, RawFeatures
from ess.device import Readback


class Made(NamedTuple):
    """A step that was made: its number, learning rate and batch, and the figures of all processes that are on their way.

    These are the loss, whether the step was suppressed, the learnt temperature after it or 0, and the shares of processes that
    were asked to stop, and of images that were damaged.
    """

    done: int
    lr: float
    raw: RawBatch | RawFeatures
    figures: Readback


class NotFinite(DataError):
    """The loss or a gradient of step ``done`` is not finite. Weights, optimiser and averages are those of the step before."""

    def __init__(self, message: str, done: int):
        super().__init__(message)
        self.done = done


class Guard:
    """Keeps weights, momentum and BatchNorm statistics as they were before the first step that :meth:`judge` finds faulty.

    ``failed`` is a float32 scalar on the device, 1 from that step on. With ``fused``, the optimiser reads this flag on the
    device and does nothing, and nobody waits. Otherwise the step waits for its loss, and :attr:`refuses` says whether to leave
    the update out.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, device: torch.device, *, fused: bool = False):
        norms = [layer for layer in model.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
        buffers = [buffer for layer in norms for buffer in layer.buffers()]
        self._statistics = [
            part for part in ([b for b in buffers if b.is_floating_point() == kind] for kind in (True, False)) if part
        ]
        self._remembered: list[torch.Tensor] = []
        self._optimizer = optimizer
        self.fused = fused
        self.failed = torch.zeros((), device=device)

    @property
    def kept(self) -> torch.Tensor | None:
        """A float32 scalar by which changes are multiplied, 1 or 0; None if they are made or left out as a whole."""
        return 1 - self.failed if self.fused else None

    @property
    def refuses(self) -> bool:
        """Whether the update must be left out; never with ``fused``."""
        return not self.fused and bool(self.failed)

    @torch.no_grad()
    def remember(self) -> None:
        """Copy the statistics that the forward pass is about to change."""
        self._remembered = [_flat(part) for part in self._statistics]

    @torch.no_grad()
    def judge(self, loss: torch.Tensor, gradients: list[torch.Tensor]) -> None:
        """Note whether the loss and all gradients are finite; if not, restore the statistics and stop the optimiser."""
        sizes = torch._foreach_norm(gradients, torch.inf) if gradients else []
        sound = torch.stack([loss.detach().float(), *(size.float() for size in sizes)]).isfinite().all()
        self.failed = torch.maximum(self.failed, (~sound).float())
        if self.fused:
            self._optimizer.found_inf = self.failed  # type: ignore[attr-defined]  # as torch's GradScaler tells fused optimisers
        elif not self.refuses:
            return
        for part, before in zip(self._statistics, self._remembered, strict=True):
            chosen = torch.where(self.failed.bool(), before, _flat(part)).split([buffer.numel() for buffer in part])
            torch._foreach_copy_(part, [values.view_as(buffer) for values, buffer in zip(chosen, part, strict=True)])


def optimise(
    team: Accelerator,
    objective: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: Batch | FeatureBatch,
    accumulate: int = 1,
    clip_norm: float | None = None,
    guard: Guard | None = None,
) -> torch.Tensor:
    """Make a step on a batch on the device, in ``accumulate`` parts, and return the loss before the step, a float32 scalar.

    The loss is the mean over the labelled pixels of all processes and parts together, or 0 if there are none, plus the margin
    penalty; all processes return the same. The gradient of the whole step is scaled down to the norm ``clip_norm``, if it is
    longer. A ``guard`` suppresses the update if loss or gradient are not finite. With a loss scale, only the loss counts:
    infinite gradients are how the scale is found.
    """
    if guard is not None:
        guard.remember()
    weight = team.unwrap_model(objective).total_weight(batch)
    total = team.reduce(weight, "sum")
    total = total.masked_fill(total == 0, 1)  # without a labelled pixel, the sum of the losses is 0 too
    summed = torch.zeros_like(weight)
    for number, part in enumerate(batch.parts(accumulate), 1):
        with nullcontext() if number == accumulate else team.no_sync(objective):
            losses, penalty = objective(part)
            # Gradients are averaged over the processes, so the sum of losses is multiplied by their number.
            team.backward(losses * (team.num_processes / total) + penalty / accumulate)
        summed += losses.detach()
    if clip_norm is not None:
        if team.scaler is not None:
            team.scaler.unscale_(getattr(optimizer, "optimizer", optimizer))
        nn.utils.clip_grad_norm_(objective.parameters(), clip_norm)
    loss = team.reduce(summed, "sum") / total + penalty.detach()
    if guard is not None:
        scaled = team.scaler is not None
        guard.judge(loss, [] if scaled else [p.grad for p in objective.parameters() if p.grad is not None])
    if guard is None or not guard.refuses:
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss


def seed_step(seed: int, step: int, rank: int) -> None:
    """Make the random numbers of a step, such as dropout's, a function of the run's seed, the step, and the process."""
    torch.manual_seed(int(np.random.default_rng([seed, step, rank]).integers(2**63)))


def _flat(tensors: list[torch.Tensor]) -> torch.Tensor:
    """The values of tensors of one type in one new tensor (N,)."""
    return torch.cat([tensor.reshape(-1) for tensor in tensors])
