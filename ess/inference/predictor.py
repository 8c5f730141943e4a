"""Predicts class ids with a trained model; images and results are NumPy arrays."""

import logging
import math
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any, TypeVar, overload

import numpy as np
import torch

from cocolvis import notebook
from cocolvis.vocabulary import Vocabulary
from ess.checkpoint import Checkpoint, Run
from ess.data.loader import to_class_ids
from ess.device import OutOfMemory, choose_device, explain_out_of_memory
from ess.inference.added import AddedClass, assign_added_classes, classes_for_checkpoint, extend_vocabulary
from ess.inference.calibration import bias_for_checkpoint
from ess.inference.side_by_side import side_by_side
from ess.inference.views import PRECISIONS, Inference
from ess.models.build import model_from_config
from ess.models.network import SegmentationModel
from ess.models.prediction import for_prediction

log = logging.getLogger("ess")

Key = TypeVar("Key")

_Chosen = tuple[Key, np.ndarray, np.ndarray | None]
"""The key of an image, the image, and the classes that it can have."""

_WAITING = 8
"""The images of at most this many batches wait for others of the same padded size."""

_LARGE = 2**21
"""Pixels of images that are not predicted side by side with others on the CPU, because of the memory that this takes."""


class Predictor:
    """A model with the vocabulary that names its classes, and the views of an image that it blends.

    ``predictor(image)`` takes one picture of any size, (H, W, 3) uint8 RGB, and returns (H, W) uint16 class ids 1..C. A list of
    pictures gives a list. ``vocabulary`` has the trained classes first, then those of ``added``, of which those with a radius
    of -inf get no pixel. ``bias`` (C,) favours trained classes as in :meth:`SegmentationModel.classify`; added classes have a
    bias of 0. Images that do not fit the memory together are predicted one at a time. If one alone does not fit, DataError is
    raised with ``advice`` for the user.
    """

    def __init__(
        self,
        model: SegmentationModel,
        vocabulary: Vocabulary,
        device: torch.device,
        inference: Inference | None = None,
        *,
        added: Sequence[AddedClass] = (),
        checkpoint: Checkpoint | None = None,
        bias: torch.Tensor | None = None,
        advice: str | None = None,
    ):
        self.model = model
        self.vocabulary = extend_vocabulary(vocabulary, added)
        self.device = device
        self.inference = inference or Inference()
        model.arithmetic = PRECISIONS[self.inference.precision]
        self.added = tuple(added)
        self.checkpoint = checkpoint
        self.bias = None if bias is None else bias.to(device)
        self._trained_vocabulary = vocabulary
        self._advice = _advice(self.inference, device) if advice is None else advice
        self._together = True
        self._adds = any(new.radius > -math.inf for new in added)

    @classmethod
    def from_run(
        cls, folder: str | Path, device: str = "auto", checkpoint: str = "newest", inference: Inference | None = None
    ) -> "Predictor":
        """The "newest" or "best" checkpoint of a run with its added classes and calibration. Needs no internet."""
        run = Run.open(folder)
        chosen = choose_device(device)
        model = model_from_config(run.config, len(run.vocabulary), weights=None)
        loaded = run.load(model, checkpoint)
        found: dict[str, Any] = {"added": classes_for_checkpoint(run, loaded), "bias": bias_for_checkpoint(run, loaded)}
        return cls(for_prediction(model, chosen), run.vocabulary, chosen, inference, checkpoint=loaded, **found)

    def without_added_classes(self) -> "Predictor":
        """The same predictor with its trained classes only."""
        kept: dict[str, Any] = {"checkpoint": self.checkpoint, "bias": self.bias, "advice": self._advice}
        return Predictor(self.model, self._trained_vocabulary, self.device, self.inference, **kept)

    def _repr_html_(self) -> str:
        """The model, its classes and its checkpoint as a table, for notebooks."""
        step = self.checkpoint.step if self.checkpoint else None
        parameters = sum(weights.numel() for weights in self.model.parameters())
        rows = [("classes", len(self.vocabulary)), ("parameters", parameters), ("step", step), ("device", str(self.device))]
        return notebook.table((), rows, type(self.model).__name__)

    @overload
    def __call__(self, image: np.ndarray) -> np.ndarray: ...
    @overload
    def __call__(self, image: Sequence[np.ndarray]) -> list[np.ndarray]: ...
    def __call__(self, image: np.ndarray | Sequence[np.ndarray]) -> np.ndarray | list[np.ndarray]:
        """The class ids of one picture, or of each picture of a list; raises ValueError unless they are (H, W, 3) uint8."""
        if isinstance(image, np.ndarray):
            _check(image)
            return self._predict([(None, image, None)])[0][2]
        masks = {index: mask for index, _, mask in self.stream(enumerate(image))}
        return [masks[index] for index in range(len(masks))]

    def stream(
        self, images: Iterable[tuple[Key, np.ndarray]], among: Callable[[Key], np.ndarray] | None = None
    ) -> Iterator[tuple[Key, np.ndarray, np.ndarray]]:
        """Yield (key, image, class ids) for (key, image) pairs, in another order: images of equal padded size go together.

        ``among`` gives the trained classes that an image can have, (n,) integer labels 0..C-1, ascending; the others, and added
        classes, are left out. An empty array restricts nothing. On the CPU, several images are predicted at a time, on some
        cores each.
        """
        batches = (
            [(key, image, None if among is None else among(key)) for key, image in batch] for batch in self._batches(images)
        )
        for predicted in side_by_side(self._predict, batches, self.device, _is_large):
            yield from predicted

    def _batches(self, images: Iterable[tuple[Key, np.ndarray]]) -> Iterator[list[tuple[Key, np.ndarray]]]:
        """Collect images of equal padded size."""
        waiting: dict[Hashable, list[tuple[Key, np.ndarray]]] = {}
        most = self.inference.images_at_a_time
        for key, image in images:
            _check(image)
            size = self.inference.padded_sizes(self.model, image.shape[:2])
            waiting.setdefault(size, []).append((key, image))
            if len(waiting[size]) == most:
                yield waiting.pop(size)
            elif sum(map(len, waiting.values())) == _WAITING * most:
                yield waiting.pop(max(waiting, key=lambda size: len(waiting[size])))
        yield from waiting.values()

    @torch.inference_mode()
    def from_features(self, features: Sequence[np.ndarray], size: tuple[int, int]) -> np.ndarray:
        """The class ids of one picture of ``size`` (H, W) from its features, each (C, h, w), as the model's encoder gives them.

        The picture is seen whole and once, for any :class:`Inference`.
        """
        with self._explaining_out_of_memory(1, size):
            maps = [torch.from_numpy(each)[None].to(self.device).float() for each in features]
            return to_class_ids(self._classify_coarse(self.model.coarse(maps), size, None).cpu().numpy())

    def outputs(self, images: Sequence[np.ndarray]) -> list[torch.Tensor]:
        """The blended embeddings or logits (D, H, W) float32 of images of equal padded size, on the device."""
        with self._explaining_out_of_memory(len(images), images[0].shape[:2]):
            return self.inference.outputs(self.model, self._pixels(images))

    def _pixels(self, images: Sequence[np.ndarray]) -> list[torch.Tensor]:
        """The images as (3, H, W) uint8 on the device."""
        own = [np.require(image, requirements=("C", "W")) for image in images]  # PyTorch warns of read-only arrays
        return [torch.from_numpy(image).permute(2, 0, 1).to(self.device) for image in own]

    def _explaining_out_of_memory(self, images: int, size: Sequence[int]) -> AbstractContextManager:
        """Raise OutOfMemory with advice if an allocation fails on so many images of a ``size`` (H, W)."""
        height, width = size
        what = f"the image is {height} x {width}" if images == 1 else f"{images} images of {height} x {width}"
        return explain_out_of_memory(f"{what}; {self._advice}")

    def _predict(self, batch: Sequence[_Chosen[Key]]) -> list[tuple[Key, np.ndarray, np.ndarray]]:
        """(key, image, class ids) of images of equal padded size, one at a time if any did not fit the memory together."""
        if len(batch) > 1 and self._together:
            with suppress(OutOfMemory):
                return self._predict_together(batch)
            self._together = False
            log.warning("%d images do not fit the memory together; from now on they are predicted one at a time", len(batch))
        return [found for each in batch for found in self._predict_together([each])]

    def _predict_together(self, batch: Sequence[_Chosen[Key]]) -> list[tuple[Key, np.ndarray, np.ndarray]]:
        keys, images, chosen = zip(*batch, strict=True)
        with self._explaining_out_of_memory(len(images), images[0].shape[:2]):
            labels = self._labels(images, chosen)
            masks = [to_class_ids(labels_HW.cpu().numpy()) for labels_HW in labels]
        return list(zip(keys, images, masks, strict=True))

    @torch.inference_mode()
    def _labels(self, images: Sequence[np.ndarray], among: Sequence[np.ndarray | None]) -> list[torch.Tensor]:
        """The labels (H, W) int64, 0..C-1, of each image; each can have the classes ``among``, all of them if that is None."""
        if not self.inference.single_view:
            return [self._classify(*pair) for pair in zip(self.outputs(images), among, strict=True)]
        coarse = self.inference.coarse(self.model, self._pixels(images)).split(1)
        sizes = [image.shape[:2] for image in images]
        return [self._classify_coarse(*each) for each in zip(coarse, sizes, among, strict=True)]

    def _classify_coarse(self, coarse_1Dhw: torch.Tensor, size: tuple[int, ...], among: np.ndarray | None) -> torch.Tensor:
        """Labels (H, W) of an image of ``size`` from the output of the decoder."""
        if among is None and self._adds:
            return self._classify(self.model.upsample(coarse_1Dhw, size)[0], None)
        return self.model.classify_coarse(coarse_1Dhw, size, self.bias, self._chosen(among))[0]

    def _classify(self, output_DHW: torch.Tensor, among: np.ndarray | None) -> torch.Tensor:
        """Labels (H, W) of an image from its embeddings or logits."""
        labels_HW = self.model.classify(output_DHW[None], self.bias, self._chosen(among))[0]
        if among is not None or not self._adds:
            return labels_HW
        return assign_added_classes(self.model, output_DHW, labels_HW, self.added, self.bias)

    def _chosen(self, among: np.ndarray | None) -> torch.Tensor | None:
        """The classes to compare, None for all."""
        return None if among is None or not len(among) else torch.from_numpy(among).to(self.device, torch.int64)


def _advice(inference: Inference, device: torch.device) -> str:
    """What helps if an image does not fit the memory; only some of the commands that predict have the options for windows."""
    window = "a --window, where the command has it" if inference.window is None else "a smaller --window or --batch-size"
    return f"choose {window}" if device.type == "cpu" else f"choose {window}, or --device cpu"


def _check(image: np.ndarray) -> None:
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
        raise ValueError(f"the image is {image.dtype} {image.shape}; expected uint8 (H, W, 3)")


def _is_large(batch: Sequence[_Chosen]) -> bool:
    return sum(image.shape[0] * image.shape[1] for _, image, _ in batch) > _LARGE
