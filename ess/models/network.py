"""The network: an encoder, a decoder with one output per pixel, and the class embeddings."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from cocolvis.errors import DataError
from ess.data.transforms import IMAGENET_MEAN, IMAGENET_STD
from ess.losses.neighbours import nearest
from ess.models.coarse_labels import Scores, largest_class

_FINER = 4
"""How many pixels a point of the decoder's output must cover before labels are decided at its resolution."""

_ROWS = 32
"""How many rows of logits are copied at a time."""


class SegmentationModel(nn.Module):
    """An encoder, a decoder with one output per pixel and, unless ``dim`` is None, the class embeddings (C, ``dim``).

    ``decoder(encoder(images))`` gives ``dim`` channels at any resolution, or ``classes`` logits if ``dim`` is None.

    ``normalize`` "full" gives unit vectors at every pixel. "quarter" normalises the output of the decoder before upsampling it,
    as the published code does. None leaves pixel and class embeddings as they are. Predictions are the nearest classes by
    ``distance``. Images are padded with zeros at the bottom and the right to a multiple of ``multiple`` pixels and at least
    ``smallest``, and the outputs are cropped accordingly. ``mean`` and ``std`` are the statistics with which the encoder was
    trained; images normalised by ImageNet's are converted to them.
    """

    scale: torch.Tensor | None
    shift: torch.Tensor | None

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        classes: int,
        dim: int | None,
        *,
        normalize: str | None = "full",
        distance: str = "euclidean",
        multiple: int = 32,
        smallest: int = 1,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ):
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.class_embeddings = None if dim is None else nn.Parameter(torch.empty(classes, dim).uniform_(-1, 1))
        self.normalize = normalize
        self.distance = distance
        self.multiple = multiple
        self.smallest = smallest
        scale, shift = _restandardization(mean, std)
        self._frozen = False
        self.arithmetic: torch.dtype | None = None
        """The type of the arithmetic of encoder and decoder in predictions; None is that of the weights."""
        self.register_buffer("scale", scale, persistent=False)
        self.register_buffer("shift", shift, persistent=False)

    def freeze_encoder(self) -> None:
        """Freeze the encoder: from now on it gets no gradients, keeps no activations and stays in evaluation mode."""
        self._frozen = True
        self.encoder.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "SegmentationModel":
        """Set the mode of all parts except a frozen encoder."""
        super().train(mode)
        if self._frozen:
            self.encoder.eval()
        return self

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Images (B, 3, H, W), normalised as for ImageNet -> embeddings (B, D, H, W) float32, or logits (B, C, H, W)."""
        height, width = images.shape[-2:]
        return self.decode(self.encode(images), (height, width))

    def encode(self, images: torch.Tensor) -> Sequence[torch.Tensor]:
        """Images as in :meth:`forward` -> the features of the padded images, from which :meth:`decode` continues."""
        height, width = images.shape[-2:]
        return self._encoded(F.pad(images, (0, self.padded(width) - width, 0, self.padded(height) - height)))

    def decode(self, features: Sequence[torch.Tensor], size: Sequence[int]) -> torch.Tensor:
        """The features of images of ``size`` (H, W), as :meth:`encode` gives them -> the output of :meth:`forward`."""
        return self.upsample(self.coarse(features), size)

    def upsample(self, coarse: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
        """The output of :meth:`coarse` for images of ``size`` (H, W) -> the output of :meth:`forward`."""
        height, width = size
        return self._upsampled(coarse, (self.padded(height), self.padded(width)))[:, :, :height, :width]

    def coarse(self, features: Sequence[torch.Tensor]) -> torch.Tensor:
        """Features as :meth:`encode` gives them -> the output of the decoder, (B, channels, h, w), not resized or normalised.

        It covers the images after padding: :meth:`padded` pixels in each direction.
        """
        try:
            if self.arithmetic is None:
                return self.decoder(features)
            with self._in_arithmetic():
                return self.decoder(features).float()
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            advice = "use a larger batch or norm 'group'"
            raise DataError(f"BatchNorm cannot train on batch size 1 after image pooling: {advice}") from None

    def output(self, padded: torch.Tensor) -> torch.Tensor:
        """:meth:`forward` for images whose sides are already those of :meth:`padded`."""
        return self._upsampled(self.coarse(self._encoded(padded)), padded.shape[-2:])

    def classes(self) -> torch.Tensor:
        """The class embeddings (C, D), of unit length unless ``normalize`` is None."""
        if self.class_embeddings is None:
            raise ValueError("a dense head has no class embeddings: build the model with head 'embedding'")
        return self.class_embeddings if self.normalize is None else F.normalize(self.class_embeddings, dim=1)

    @torch.no_grad()
    def predict(self, images: torch.Tensor) -> torch.Tensor:
        """Images as in :meth:`forward` -> (B, H, W) int64, the index 0..C-1 of the nearest class or the largest logit."""
        return self.classify_coarse(self.coarse(self.encode(images)), images.shape[-2:])

    @torch.no_grad()
    def classify(
        self, output: torch.Tensor, bias: torch.Tensor | None = None, among: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The output of :meth:`forward` -> (B, H, W) int64, the index 0..C-1 of the nearest class or the largest logit.

        ``bias`` (C,) is subtracted from the distances, or added to the logits of a dense head. Only the classes ``among`` (n,)
        int64, ascending and all by default, are compared.
        """
        if among is not None and bias is not None:
            bias = bias[among]
        if self.class_embeddings is None:
            labels = _largest(output if among is None else output[:, among], bias)
        else:
            classes = self.classes() if among is None else self.classes()[among]
            pixels = output.permute(0, 2, 3, 1)
            found = nearest(pixels.flatten(0, 2), classes, 1, distance=self.distance, bias=bias)
            labels = found.view(pixels.shape[:3])
        return labels if among is None else among[labels]

    @torch.no_grad()
    def classify_coarse(
        self,
        coarse: torch.Tensor,
        size: Sequence[int],
        bias: torch.Tensor | None = None,
        among: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The labels that :meth:`classify` gives for ``upsample(coarse, size)``, faster and with less memory where possible.

        Logits are interpolated linearly. So are the inner products with class embeddings, and these decide which class is
        nearest if all class embeddings have unit length; a pixel's may have any. Ties by rounding may differ.
        """
        points, full = coarse.shape[-2:], [self.padded(side) for side in size]
        dense = self.class_embeddings is None
        by_products = self.normalize is not None and bias is None and coarse.device.type == "cpu"
        if not (dense or by_products) or full[0] * full[1] < _FINER * points[0] * points[1]:
            return self.classify(self.upsample(coarse, size), bias, among)
        if among is not None and bias is not None:
            bias = bias[among]
        if dense:
            coarse, classes = (coarse if among is None else coarse[:, among]), None
        else:
            coarse = F.normalize(coarse, dim=1) if self.normalize == "quarter" else coarse
            classes = self.classes() if among is None else self.classes()[among]
        labels = torch.stack([largest_class(Scores(maps, classes, bias), full, size) for maps in coarse])
        return labels if among is None else among[labels]

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """All parameters in groups "encoder", "decoder" and "classes", for which training uses separate learning rates."""
        classes = [] if self.class_embeddings is None else [self.class_embeddings]
        return {"encoder": [*self.encoder.parameters()], "decoder": [*self.decoder.parameters()], "classes": classes}

    def padded(self, length: int) -> int:
        """The side in pixels to which an image side of ``length`` pixels is padded."""
        return max(self.smallest, (length + self.multiple - 1) // self.multiple * self.multiple)

    def _encoded(self, padded: torch.Tensor) -> Sequence[torch.Tensor]:
        images = padded if self.scale is None or self.shift is None else padded * self.scale + self.shift
        if self.arithmetic is not None:
            with torch.no_grad(), self._in_arithmetic():
                return self.encoder(images)
        if not self._frozen:
            return self.encoder(images)
        with torch.no_grad():
            return self.encoder(images)

    def _in_arithmetic(self) -> torch.autocast:
        return torch.autocast(next(self.parameters()).device.type, self.arithmetic)

    def _upsampled(self, output: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
        if self.class_embeddings is None:
            return _resize(output, size)
        output = output.to(torch.promote_types(output.dtype, torch.float32))
        if self.normalize == "quarter":
            output = F.normalize(output, dim=1)
        output = _resize(output, size)
        return F.normalize(output, dim=1) if self.normalize == "full" else output


def _largest(logits: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """The class of the largest logit plus bias (C,), (B, H, W) int64; a few rows at a time, because the sums need memory."""
    if bias is None:
        return logits.argmax(dim=1)
    return torch.cat([(rows + bias[:, None, None]).argmax(dim=1) for rows in logits.split(_ROWS, dim=2)], dim=1)


def _resize(x: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    if tuple(x.shape[-2:]) == tuple(size):
        return x
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)


def _restandardization(mean: Sequence[float], std: Sequence[float]) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """(scale, shift), each (3, 1, 1), that convert images from ImageNet's statistics to these; None if they are the same."""
    if (tuple(mean), tuple(std)) == (IMAGENET_MEAN, IMAGENET_STD):
        return None, None
    ours, theirs = torch.tensor([IMAGENET_MEAN, IMAGENET_STD]), torch.tensor([mean, std])
    return (ours[1] / theirs[1]).view(3, 1, 1), ((ours[0] - theirs[0]) / theirs[1]).view(3, 1, 1)
