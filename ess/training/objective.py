"""What a training step minimises: the sum of the pixels' losses, and the margin penalty on the class embeddings."""

import torch
from torch import nn

from ess.config import Config
from ess.data.batches import IGNORE_INDEX, Batch
from ess.data.longtail import NO_TAIL, Tail
from ess.data.transforms import normalize
from ess.losses import cross_entropy
from ess.models.network import SegmentationModel

_HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}
"""What the network computes in, by name; losses and class embeddings stay float32."""


class Objective(nn.Module):
    """A model with its loss as one module, so that wrappers for several devices see all that gradients come from.

    ``config`` says which loss; ``tail`` gives the exact loss its bias and class weights. With ``config.freeze_bn`` the
    encoder's BatchNorm layers keep their statistics and weights, in training mode too; at a learning rate of 0 all of it does.
    """

    def __init__(self, model: SegmentationModel, config: Config, tail: Tail = NO_TAIL):
        super().__init__()
        self.model = model
        self.config = config
        self.register_buffer("bias", tail.bias, persistent=False)
        self.register_buffer("weight", tail.weight, persistent=False)
        if config.lr * config.encoder_lr == 0:
            model.freeze_encoder()
        self._network = torch.compile(model.forward) if config.compile else model.forward
        if config.freeze_bn:
            for layer in self._frozen():
                layer.requires_grad_(False)
        self._order = torch.channels_last if config.channels_last else torch.contiguous_format
        model.to(memory_format=self._order)
        if config.dropout is not None:
            for layer in model.decoder.modules():
                if isinstance(layer, nn.modules.dropout._DropoutNd):
                    layer.p = config.dropout

    def forward(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """(the sum of the losses of the pixels that count, each times its class's weight; the margin penalty), float32 scalars.

        What divides the sum is :meth:`counted`, of all processes and parts of a step together.
        """
        images = normalize(batch.images).contiguous(memory_format=self._order)
        with torch.autocast(images.device.type, _HALVES.get(self.config.precision), enabled=self.config.precision in _HALVES):
            output = self._network(images)
        return self._losses(output, batch)

    def counted(self, batch: Batch) -> torch.Tensor:
        """The number of pixels that count, or the sum of their weights: a float32 scalar."""
        counted = batch.labels != IGNORE_INDEX
        if self.weight is None:
            return counted.sum(dtype=torch.float32)
        return self.weight[batch.labels[counted].long()].sum()

    def train(self, mode: bool = True) -> "Objective":
        """As every module, but for frozen layers."""
        super().train(mode)
        if self.config.freeze_bn:
            for layer in self._frozen():
                layer.eval()
        return self

    def _losses(self, output: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        config, labels = self.config, batch.labels
        settings = {"ignore_index": IGNORE_INDEX, "reduction": "sum"}
        if config.loss == "dense":
            return cross_entropy.dense_cross_entropy(output.float(), labels, **settings), output.new_zeros(
                (), dtype=torch.float32
            )
        classes = self.model.classes()
        settings |= {"temperature": config.temperature, "distance": config.distance}
        if cross_entropy.chosen(config.loss, len(classes)) == "exact":
            settings |= {"bias": self.bias, "class_weight": self.weight, "class_mask": batch.classes}
            loss = cross_entropy.exact_cross_entropy(output, labels, classes, **settings)
        else:
            settings |= {name: getattr(config, name) for name in ("k", "negatives", "search", "query_stride")}
            loss = cross_entropy.knn_cross_entropy(output, labels, classes, **settings)
        return loss, cross_entropy.margin_penalty(classes, margin=config.margin) if config.margin else loss.new_zeros(())

    def _frozen(self) -> list[nn.Module]:
        return [m for m in self.model.encoder.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
