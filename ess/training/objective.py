"""The objective of a training step: the sum of the pixels' losses, and the margin penalty on the class embeddings."""

import os
import shutil
import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from cocolvis.errors import DataError
from ess.config import Config
from ess.data.batches import IGNORE_INDEX, Batch, FeatureBatch
from ess.data.longtail import NO_TAIL, Tail
from ess.data.transforms import normalize
from ess.kernels.gpu import probe
from ess.losses import cross_entropy, interpolated, temperature
from ess.losses.neighbours import fault_of
from ess.losses.points import point_cross_entropy
from ess.models.network import SegmentationModel

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
"""The setting ``precision`` -> the type of the network's arithmetic; losses and class embeddings stay float32."""

_CXX = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")
"""The C++ compiler that torch.compile calls for a CPU."""

_LABELS: dict[str, Any] = {"ignore_index": IGNORE_INDEX, "validate": False}
"""What the losses need to know of labels; that these are classes of the vocabulary was checked when the shard was read."""


def check_device(config: Config, classes: int, device: torch.device) -> None:
    """Raise DataError if the device cannot compile the network, or not search in the way that the settings say.

    Only the k-NN loss with this number of ``classes`` searches, unless its negatives are random.
    """
    if config.compile and device.type == "cuda" and not probe.works(device):
        raise DataError("compile needs Triton, which cannot run its kernels here; leave out --compile")
    if config.compile and device.type == "cpu" and not shutil.which(_CXX):
        raise DataError(f"compile needs a C++ compiler, and there is no {_CXX}; install it, or leave out --compile")
    if cross_entropy.chosen(config.loss, classes) != "knn" or config.negatives == "random":
        return
    wanted = min(config.k, classes) if config.negatives == "published" else min(config.k, classes - 1) + 1
    if fault := fault_of(config.search, wanted, device):
        raise DataError(f"search is {fault}; choose --search auto")


def dropouts(model: SegmentationModel) -> list[nn.modules.dropout._DropoutNd]:
    """The dropout layers of the decoder."""
    return [layer for layer in model.decoder.modules() if isinstance(layer, nn.modules.dropout._DropoutNd)]


class Objective(nn.Module):
    """A model and its loss as one module, so that wrappers for several devices see everything that gradients flow through.

    ``config`` chooses the loss, ``tail`` gives the exact loss its bias and class weights. ``log_temperature`` is the parameter
    of a learnt temperature. With ``config.freeze_bn`` the encoder's BatchNorm layers keep their statistics and weights even in
    training mode. With a learning rate of 0, the whole encoder is frozen.
    """

    bias: torch.Tensor | None
    weight: torch.Tensor | None
    log_temperature: nn.Parameter | None

    def __init__(self, model: SegmentationModel, config: Config, tail: Tail = NO_TAIL):
        super().__init__()
        self.model = model
        self.config = config
        self.register_buffer("bias", tail.bias, persistent=False)
        self.register_buffer("weight", tail.weight, persistent=False)
        learnt = config.temperature == "learnt" and config.loss != "dense"
        self.register_parameter("log_temperature", temperature.log_temperature() if learnt else None)
        if config.lr * config.encoder_lr == 0:
            model.freeze_encoder()
        self._network = torch.compile(self._from_images) if config.compile else self._from_images
        self._decoder = torch.compile(self._from_features) if config.compile else self._from_features
        if config.freeze_bn:
            for layer in self._batch_norms():
                layer.requires_grad_(False)
        self._memory_format = torch.channels_last if config.channels_last else torch.contiguous_format
        model.to(memory_format=self._memory_format)
        if config.dropout is not None:
            for layer in dropouts(model):
                layer.p = config.dropout

    @torch.no_grad()
    def check_batch_norm(self, images: int) -> None:
        """Raise DataError if a BatchNorm layer would learn from one value per channel, with ``images`` crops at a time.

        That happens to one crop after image pooling, or where a feature map is one pixel. Changes nothing.
        """
        if images > 1:
            return
        mode = self.training
        layers = [layer for layer in self.train().modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
        learning = [layer for layer in layers if layer.training and not isinstance(layer, nn.SyncBatchNorm)]
        single: list[nn.Module] = []

        def look(layer: nn.Module, inputs: tuple[torch.Tensor]) -> None:
            if inputs[0].numel() == inputs[0].shape[1]:
                single.append(layer)

        hooks = [layer.register_forward_pre_hook(look) for layer in learning]
        try:
            self.eval().model(torch.zeros(1, 3, self.config.crop, self.config.crop, device=next(self.parameters()).device))
        finally:
            self.train(mode)
            for hook in hooks:
                hook.remove()
        if single:
            encoder = single[0] in {*self.model.encoder.modules()}
            part, advice = ("encoder", "--freeze-bn") if encoder else ("decoder", "--norm group")
            raise DataError(
                f"BatchNorm of the {part} cannot learn from 1 image at a time, of which a layer sees one value per channel;"
                f" choose a larger --batch-size, a smaller --accumulate, or {advice}"
            )

    def forward(self, batch: Batch | FeatureBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """(the sum of the losses of all labelled pixels, each times its class's weight; the margin penalty), float32 scalars.

        The caller divides the sum by :meth:`total_weight`, taken over all processes and parts of a step together.
        """
        output = self._output(batch)
        if self.config.loss == "dense":
            return self._dense_loss(output, batch), output.new_zeros((), dtype=torch.float32)
        classes = self.model.classes()
        loss = self._embedding_loss(output, classes, batch)
        margin = self.config.margin
        return loss, cross_entropy.margin_penalty(classes, margin=margin) if margin else loss.new_zeros(())

    def _output(self, batch: Batch | FeatureBatch) -> torch.Tensor:
        """The embeddings of the pixels of a batch, or of its stored features; the logits of a dense head are not resized."""
        dtype = _AUTOCAST.get(self.config.precision)
        with torch.autocast(batch.labels.device.type, dtype, enabled=dtype is not None):
            if isinstance(batch, FeatureBatch):
                features = [each.float().contiguous(memory_format=self._memory_format) for each in batch.features]
                return self._decoder(features, tuple(batch.labels.shape[-2:]))
            return self._network(normalize(batch.images).contiguous(memory_format=self._memory_format))

    def _from_images(self, images: torch.Tensor) -> torch.Tensor:
        return self._from_features(self.model.encode(images), images.shape[-2:])

    def _from_features(self, features: Sequence[torch.Tensor], size: Sequence[int]) -> torch.Tensor:
        return self.model.coarse(features) if self.config.loss == "dense" else self.model.decode(features, size)

    def total_weight(self, batch: Batch | FeatureBatch) -> torch.Tensor:
        """The number of labelled pixels, or the sum of their classes' weights: a float32 scalar."""
        labelled = batch.labels != IGNORE_INDEX
        if self.weight is None:
            return labelled.sum(dtype=torch.float32)
        return (self.weight[batch.labels.long().clamp_min(0)] * labelled).sum()

    def train(self, mode: bool = True) -> "Objective":
        """Set the mode of every module except frozen BatchNorm layers."""
        super().train(mode)
        if self.config.freeze_bn:
            for layer in self._batch_norms():
                layer.eval()
        return self

    def _dense_loss(self, coarse: torch.Tensor, batch: Batch | FeatureBatch) -> torch.Tensor:
        height, width = map(self.model.padded, batch.labels.shape[1:])
        extent = (height, width)
        if self.config.points is None:
            return interpolated.interpolated_cross_entropy(
                coarse.float(), batch.labels, extent=extent, reduction="sum", **_LABELS
            )
        means = point_cross_entropy(coarse, batch.labels, self.config.points, extent=extent, **_LABELS)
        return (means * (batch.labels != IGNORE_INDEX).sum(dim=(1, 2))).sum()  # the points stand for all labelled pixels

    def _embedding_loss(self, embeddings: torch.Tensor, classes: torch.Tensor, batch: Batch | FeatureBatch) -> torch.Tensor:
        config, t = self.config, self.config.temperature
        if self.log_temperature is not None:
            embeddings, classes, t = temperature.with_temperature(embeddings, classes, self.log_temperature, config.distance)
        assert not isinstance(t, str)
        if cross_entropy.chosen(config.loss, len(classes)) == "exact":
            return cross_entropy.exact_cross_entropy(
                embeddings,
                batch.labels,
                classes,
                temperature=t,
                distance=config.distance,
                bias=self.bias,
                class_weight=self.weight,
                class_mask=batch.classes,
                reduction="sum",
                **_LABELS,
            )
        return cross_entropy.knn_cross_entropy(
            embeddings,
            batch.labels,
            classes,
            k=config.k,
            temperature=t,
            distance=config.distance,
            negatives=config.negatives,
            search=config.search,
            query_stride=config.query_stride,
            reduction="sum",
            **_LABELS,
        )

    def _batch_norms(self) -> list[nn.Module]:
        """The BatchNorm layers of the encoder."""
        return [m for m in self.model.encoder.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
