"""The state of a training as tensors: weights, optimiser, averages, loss scale."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ess.config import Config
from ess.losses import temperature
from ess.models.network import SegmentationModel


class TrainingState:
    """A ``model`` in training with its ``optimizer`` and, with ``config.ema``, the exponential moving average of its weights.

    ``log_temperature`` is the parameter of a learnt temperature, which belongs to the loss and not to the model. Random states
    are not part of the state, because every step seeds them from the seed of the run and its own number.
    """

    def __init__(
        self,
        model: SegmentationModel,
        config: Config,
        log_temperature: nn.Parameter | None = None,
        *,
        fused: bool = False,
    ):
        self.model = model
        self.optimizer = make_optimizer(model, config, log_temperature, fused=fused)
        self.log_temperature = log_temperature
        self._average = copy.deepcopy(model) if config.ema else None
        self._decay = config.ema

    @property
    def result(self) -> SegmentationModel:
        """The model that is evaluated and saved: the one with averaged weights, if there is one."""
        return self.model if self._average is None else self._average

    @property
    def temperature(self) -> float | None:
        """The learnt temperature, or None."""
        return None if self.log_temperature is None else self.log_temperature.exp().item()

    def after_step(self, kept: torch.Tensor | None = None) -> None:
        """Limit the learnt temperature, and update the averaged weights with those of the step just made.

        ``kept``, a scalar on the device, is 0 if the step was suppressed, which leaves the averages as they are.
        """
        if self.log_temperature is not None:
            temperature.limit(self.log_temperature)
        if self._average is not None:
            _update_average(self._average, self.model, 1 - self._decay, kept)

    def tensors(self, scaler: Any = None) -> dict[str, torch.Tensor]:
        """Everything except the weights of :attr:`result`; ``scaler`` is the loss scaler of float16 training."""
        names = {id(parameter): name for name, parameter in self._parameters().items()}
        tensors = {
            f"optimizer/{key}/{names[id(parameter)]}": torch.as_tensor(value)
            for parameter, values in self.optimizer.state.items()
            for key, value in values.items()
            if value is not None
        }
        if self.log_temperature is not None:
            tensors[_LOG_TEMPERATURE] = self.log_temperature
        if self._average is not None:
            tensors |= {f"weights/{name}": tensor for name, tensor in self.model.state_dict().items()}
        if scaler is not None:
            state = scaler.state_dict()
            tensors |= {f"scaler/{key}": torch.tensor(state[key], dtype=torch.float64) for key in _SCALER if key in state}
        return tensors

    def load(self, tensors: Mapping[str, torch.Tensor], scaler: Any = None) -> None:
        """Restore what :meth:`tensors` returned, after the weights of :attr:`result` were loaded."""
        weights = _below("weights/", tensors) or self.result.state_dict()
        self.model.load_state_dict(weights)
        if self.log_temperature is not None:
            self.log_temperature.data.copy_(tensors[_LOG_TEMPERATURE])
        parameters = self._parameters()
        for path, tensor in _below("optimizer/", tensors).items():
            key, name = path.split("/", 1)
            parameter = parameters[name]
            self.optimizer.state[parameter][key] = self._restored(key, tensor, parameter)
        self._complete_momentum()
        scale = _below("scaler/", tensors)
        if scaler is not None and scale:
            scaler.load_state_dict(scaler.state_dict() | {key: type_(scale[key]) for key, type_ in _SCALER.items()})

    def _restored(self, key: str, tensor: torch.Tensor, parameter: nn.Parameter) -> torch.Tensor:
        """A value of the optimiser's state where it belongs: fused kernels want counts on the device, and all in one order."""
        if key == "step":
            return tensor.to(parameter.device) if self.optimizer.defaults["fused"] else tensor
        return torch.empty_like(parameter).copy_(tensor)  # in the order in memory that the parameter has

    def _complete_momentum(self) -> None:
        """Give zeros to learnt parameters without momentum if others of their group have some.

        These were frozen until now. Fused SGD wants the momentum of a whole group or of none. Zeros mean the same as none.
        """
        state = self.optimizer.state
        for group in self.optimizer.param_groups:
            if any("momentum_buffer" in state.get(parameter, ()) for parameter in group["params"]):
                for parameter in group["params"]:
                    if parameter.requires_grad:
                        state[parameter].setdefault("momentum_buffer", torch.zeros_like(parameter))

    def _parameters(self) -> dict[str, nn.Parameter]:
        """Everything that is learnt, by name."""
        learnt = dict(self.model.named_parameters())
        return learnt if self.log_temperature is None else learnt | {_LOG_TEMPERATURE: self.log_temperature}


_LOG_TEMPERATURE = "log_temperature"
"""The name of the learnt temperature in checkpoints."""

_SCALER = {"scale": float, "_growth_tracker": int}
"""The entries of a loss scaler's state that change, and their types."""


@torch.no_grad()
def _update_average(average: SegmentationModel, model: SegmentationModel, share: float, kept: torch.Tensor | None) -> None:
    """Move averages towards the model by ``share`` of the difference, times ``kept``; counts are copied."""
    pairs = [*zip(average.parameters(), model.parameters(), strict=True), *zip(average.buffers(), model.buffers(), strict=True)]
    averages, values = zip(*(pair for pair in pairs if pair[0].is_floating_point()), strict=True)
    if kept is None:
        torch._foreach_lerp_(averages, values, share)
    else:
        changes = torch._foreach_sub(values, averages)
        torch._foreach_mul_(changes, share * kept)
        torch._foreach_add_(averages, changes)
    counts = [pair for pair in pairs if not pair[0].is_floating_point()]
    if counts:
        torch._foreach_copy_([count for count, _ in counts], [value for _, value in counts])


def make_optimizer(
    model: SegmentationModel, config: Config, log_temperature: nn.Parameter | None = None, *, fused: bool = False
) -> torch.optim.Optimizer:
    """SGD or AdamW; encoder, decoder and class embeddings have their own settings, and are the first three groups.

    The groups after them have the parameters without weight decay. With AdamW, these are all one-dimensional ones, which are
    biases and those of norms, and the class embeddings. SGD decays everything, as published. A learnt temperature has the
    settings of the class embeddings and is never decayed. ``fused`` makes a step one kernel, which an attribute ``found_inf``
    of the optimiser can suppress on the device.
    """
    groups = model.parameter_groups()
    if log_temperature is not None:
        groups["classes"] = [*groups["classes"], log_temperature]
    settings = (
        ("encoder", config.lr * config.encoder_lr, config.momentum, config.power),
        ("decoder", config.lr, config.momentum, config.power),
        ("classes", config.lr, config.embedding_momentum, config.embedding_power),
    )
    sgd = config.optimizer == "sgd"
    decayed, spared = [], []
    for name, lr, momentum, power in settings:
        shared = {"lr": lr, "base_lr": lr, "power": power} | ({"momentum": momentum} if sgd else {"betas": (momentum, 0.999)})
        divided: dict[bool, list[nn.Parameter]] = {True: [], False: []}
        for parameter in groups[name]:
            divided[parameter is not log_temperature and (sgd or (parameter.ndim > 1 and name != "classes"))].append(parameter)
        decayed.append({"params": divided[True], **shared})
        if divided[False]:
            spared.append({"params": divided[False], **shared, "weight_decay": 0.0})
    kind = torch.optim.SGD if sgd else torch.optim.AdamW
    return kind(decayed + spared, weight_decay=config.weight_decay, fused=fused or None)


def set_learning_rates(optimizer: torch.optim.Optimizer, config: Config, step: int, steps: int) -> None:
    """Set the rates of the polynomial schedule: lr * (1 - step / steps) ** power, but at least min(``config.min_lr``, lr).

    A learning rate of 0 therefore stays 0. During the first ``config.warmup`` steps the rate is multiplied by (step + 1) /
    (warmup + 1).
    """
    rise = min(1.0, (step + 1) / (config.warmup + 1))
    for group in optimizer.param_groups:
        floor = min(config.min_lr, group["base_lr"])
        group["lr"] = max(rise * group["base_lr"] * (1 - step / steps) ** group["power"], floor)


def _below(prefix: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
