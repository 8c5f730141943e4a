"""The state of a training as tensors: weights, optimiser, averages, loss scale."""

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ess.config import Config
from ess.losses import temperature
from ess.models.network import SegmentationModel


class TrainingState:
    """A ``model`` in training with its ``optimizer`` and, with ``config.ema``, the exponential moving average of its weights.

    ``log_temperature`` is the parameter of a learnt temperature, which belongs to the loss and not to the model. Random states
    are not part of the state, because every step seeds them from the seed of the run and its own number.
    """

    def __init__(self, model: SegmentationModel, config: Config, log_temperature: nn.Parameter | None = None):
        self.model = model
        self.optimizer = make_optimizer(model, config, log_temperature)
        self._log_temperature = log_temperature
        self._average = None
        if config.ema:
            self._average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(config.ema), use_buffers=True)
            self._average.n_averaged.fill_(1)  # it starts as a copy, and the first step updates it like every other one

    @property
    def result(self) -> SegmentationModel:
        """The model that is evaluated and saved: the one with averaged weights, if there is one."""
        return self.model if self._average is None else cast(SegmentationModel, self._average.module)

    @property
    def temperature(self) -> float | None:
        """The learnt temperature, or None."""
        return None if self._log_temperature is None else self._log_temperature.exp().item()

    def after_step(self) -> None:
        """Limit the learnt temperature, and update the averaged weights with those of the step just made."""
        if self._log_temperature is not None:
            temperature.limit(self._log_temperature)
        if self._average is not None:
            self._average.update_parameters(self.model)

    def tensors(self, scaler: Any = None) -> dict[str, torch.Tensor]:
        """Everything except the weights of :attr:`result`; ``scaler`` is the loss scaler of float16 training."""
        names = {id(parameter): name for name, parameter in self._parameters().items()}
        tensors = {
            f"optimizer/{key}/{names[id(parameter)]}": torch.as_tensor(value)
            for parameter, values in self.optimizer.state.items()
            for key, value in values.items()
            if value is not None
        }
        if self._log_temperature is not None:
            tensors[_LOG_TEMPERATURE] = self._log_temperature
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
        if self._log_temperature is not None:
            self._log_temperature.data.copy_(tensors[_LOG_TEMPERATURE])
        parameters = self._parameters()
        for path, tensor in _below("optimizer/", tensors).items():
            key, name = path.split("/", 1)
            parameter = parameters[name]
            self.optimizer.state[parameter][key] = tensor if key == "step" else tensor.to(parameter.device)
        scale = _below("scaler/", tensors)
        if scaler is not None and scale:
            scaler.load_state_dict(scaler.state_dict() | {key: type_(scale[key]) for key, type_ in _SCALER.items()})

    def _parameters(self) -> dict[str, nn.Parameter]:
        """Everything that is learnt, by name."""
        learnt = dict(self.model.named_parameters())
        return learnt if self._log_temperature is None else learnt | {_LOG_TEMPERATURE: self._log_temperature}


_LOG_TEMPERATURE = "log_temperature"
"""The name of the learnt temperature in checkpoints."""

_SCALER = {"scale": float, "_growth_tracker": int}
"""The entries of a loss scaler's state that change, and their types."""


def make_optimizer(
    model: SegmentationModel, config: Config, log_temperature: nn.Parameter | None = None
) -> torch.optim.Optimizer:
    """SGD or AdamW; encoder, decoder and class embeddings have their own settings, and are the first three groups.

    The groups after them have the parameters without weight decay. With AdamW, these are all one-dimensional ones, which are
    biases and those of norms, and the class embeddings. SGD decays everything, as published. A learnt temperature has the
    settings of the class embeddings and is never decayed.
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
    return (torch.optim.SGD if sgd else torch.optim.AdamW)(decayed + spared, weight_decay=config.weight_decay)


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
