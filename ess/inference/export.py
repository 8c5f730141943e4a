"""A run as one file that takes a picture and gives class ids: ONNX, or PyTorch's exported program."""

import copy
import json
import logging
import warnings
from collections.abc import Callable
from contextlib import contextmanager, redirect_stdout
from importlib.util import find_spec
from io import StringIO
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from cocolvis.disk.files import write_aside
from cocolvis.errors import DataError
from ess.data.transforms import normalize
from ess.inference.predictor import Predictor

FORMATS = ("onnx", "torch")
CLASSES = "classes"
"""The name under which a file holds the names of its classes, a JSON list from class 1 on."""

_BLOCK = 128
"""Classes that the pixels meet at a time: a picture takes memory for so many scores a pixel, however many classes there are."""

_EXAMPLE = (97, 131)
_TIE = 1e-3
"""Two classes tie at a pixel whose scores differ by less than this share of the largest score there."""


class Deployed(nn.Module):
    """Everything between a picture's bytes and its class ids.

    Takes (H, W, 3) uint8 RGB of any size, which is how pictures lie in memory once they are decoded, so that whoever deploys it
    has nothing to prepare; gives (H, W) int32 class ids 1..C as the predictor does for whole images, added classes included.
    """

    def __init__(self, predictor: Predictor):
        super().__init__()
        self.model = _with_exportable_pooling(copy.deepcopy(predictor.model))
        if self.model.class_embeddings is None:
            return
        self._negative = self.model.distance == "cosine"
        classes = self.model.classes().detach()
        added = torch.tensor([new.embedding for new in predictor.added]).view(-1, classes.shape[1])
        self.register_buffer("_classes", classes)
        self.register_buffer("_added", added.to(classes.device))
        self._radii = [new.radius for new in predictor.added]

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """(H, W, 3) uint8 to (H, W) int32."""
        height, width = image.shape[:2]
        images = normalize(image.permute(2, 0, 1)[None])
        images = F.pad(images, (0, self.model.padded(width) - width, 0, self.model.padded(height) - height))
        output = self.model.output(images)[0]
        # a slice would make the exporter distinguish sizes that need no padding
        output = output.index_select(1, torch.arange(height, device=output.device))
        output = output.index_select(2, torch.arange(width, device=output.device))
        labels = output.argmax(dim=0) if self.model.class_embeddings is None else self._nearest(output.permute(1, 2, 0))
        return (labels + 1).to(torch.int32)

    def _nearest(self, pixels: torch.Tensor) -> torch.Tensor:
        """The nearest class of embeddings (H, W, D): (H, W) int64, the lower among equals."""
        best, labels = self._best(pixels, self._classes[:_BLOCK])
        for first in range(_BLOCK, len(self._classes), _BLOCK):
            score, label = self._best(pixels, self._classes[first : first + _BLOCK])
            labels = torch.where(score > best, label + first, labels)
            best = torch.maximum(score, best)
        offset = 0 if self._negative else pixels.square().sum(dim=2)
        for place, radius in enumerate(self._radii):
            score = self._scores(pixels, self._added[place : place + 1])[..., 0]
            taken = (score > best) & (offset - score <= radius)
            labels = torch.where(taken, len(self._classes) + place, labels)
            best = torch.where(taken, score, best)
        return labels

    def _best(self, pixels: torch.Tensor, classes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self._scores(pixels, classes).max(dim=2)

    def _scores(self, pixels: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        """(H, W, n), larger is nearer: the product with each class, or what is left of -|e - c|^2 without |e|^2."""
        products = pixels @ classes.T
        return products if self._negative else 2 * products - classes.square().sum(dim=1)


class _AdaptivePooling(nn.Module):
    """``nn.AdaptiveAvgPool2d`` as products with matrices made for the size at hand: ONNX's has the example's size built in."""

    def __init__(self, bins: int):
        super().__init__()
        self.bins = bins

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) to (B, C, bins, bins)."""
        return self._means(x.shape[2], x) @ x @ self._means(x.shape[3], x).T

    def _means(self, length: int, like: torch.Tensor) -> torch.Tensor:
        """(bins, length): row i takes the mean of places i * length / bins to (i + 1) * length / bins, rounded outwards."""
        bins, places = torch.arange(self.bins, device=like.device)[:, None], torch.arange(length, device=like.device)
        starts, ends = bins * length // self.bins, ((bins + 1) * length + self.bins - 1) // self.bins
        return ((places >= starts) & (places < ends)) / (ends - starts).to(like.dtype)


def _with_exportable_pooling(module: nn.Module) -> nn.Module:
    """The module after its adaptive poolings to more than one place were replaced."""
    for name, child in module.named_children():
        if isinstance(child, nn.AdaptiveAvgPool2d):
            height, width = child.output_size if isinstance(child.output_size, tuple) else (child.output_size,) * 2
            if height == width != 1:
                setattr(module, name, _AdaptivePooling(height))
        _with_exportable_pooling(child)
    return module


def export(predictor: Predictor, path: Path, kind: str, *, check: bool = True) -> float | None:
    """Write ``path``, "onnx" or "torch" (a .pt2 of torch.export), whole or not at all; nothing of it is code or a pickle.

    With ``check`` it is run on a picture of odd size before it takes its name; the share of the pixels that get the class which
    the predictor gives them. A DataError where the others are not ties, or PyTorch cannot export the network.
    """
    module = Deployed(predictor).to("cpu").eval()
    names = json.dumps([c.name for c in predictor.vocabulary], ensure_ascii=False)
    write = {"onnx": _write_onnx, "torch": _write_torch}[kind]
    with write_aside(path) as aside:
        try:
            with _quiet(), torch.no_grad():
                write(module, aside, names)
                found = load(aside, kind)(_picture()) if check else None
        except OSError:
            raise
        except Exception as error:  # exporters and runtimes fail in ways of their own
            reason = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
            raise DataError(f"{path}: PyTorch cannot export this network ({type(error).__name__}: {reason})") from error
        return None if found is None else _agreement(predictor, path, found)


def load(path: Path, kind: str) -> Callable[[np.ndarray], np.ndarray]:
    """What an exported file does: a function of (H, W, 3) uint8 that gives (H, W) int32."""
    if kind == "torch":
        with path.open("rb") as file:
            program = torch.export.load(file).module()
        return lambda image: program(torch.from_numpy(image)).numpy()
    import onnxruntime

    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    return lambda image: session.run(None, {"image": image})[0]


def missing_packages(kind: str) -> list[str]:
    """The packages that writing ("onnx", "onnxscript") or running ("onnxruntime") such a file needs and that are not here."""
    needed = ("onnx", "onnxscript", "onnxruntime") if kind == "onnx" else ()
    return [name for name in needed if find_spec(name) is None]


def _write_onnx(module: Deployed, path: Path, names: str) -> None:
    example, sizes = _example()
    program = torch.onnx.export(
        module,
        (example,),
        dynamo=True,
        input_names=["image"],
        output_names=[CLASSES],
        dynamic_shapes=sizes,
        verbose=False,
    )
    program.model.metadata_props[CLASSES] = names
    program.save(str(path), external_data=False)


def _write_torch(module: Deployed, path: Path, names: str) -> None:
    example, sizes = _example()
    program = torch.export.export(module, (example,), dynamic_shapes=sizes)
    with path.open("wb") as file:
        torch.export.save(program, file, extra_files={f"{CLASSES}.json": names})


def _example() -> tuple[torch.Tensor, dict]:
    """A picture whose sides nothing divides, and which of its sizes may change."""
    return torch.zeros((*_EXAMPLE, 3), dtype=torch.uint8), {"image": {side: torch.export.Dim.DYNAMIC for side in (0, 1)}}


def _picture() -> np.ndarray:
    """A smooth picture whose sides are odd, and others than the exporter saw: (75, 109, 3) uint8."""
    coarse = torch.rand((1, 3, 9, 11), generator=torch.Generator().manual_seed(0))
    return (255 * F.interpolate(coarse, size=(75, 109), mode="bilinear"))[0].permute(1, 2, 0).to(torch.uint8).numpy()


def _agreement(predictor: Predictor, path: Path, found: np.ndarray) -> float:
    """The share of the pixels of :func:`_picture` on which both agree; a DataError unless the others are ties."""
    image = _picture()
    expected = predictor(image)
    if found.shape != expected.shape:
        raise DataError(f"{path}: the exported file gives class ids of shape {found.shape} for a picture of {expected.shape}")
    differ = torch.from_numpy(found != expected).flatten()
    wrong = (differ & ~_ties(predictor, image, found, expected)).float().mean().item()
    if wrong:
        raise DataError(f"{path}: the exported file differs from the run on {wrong:.3%} of a picture's pixels; it is not kept")
    return 1 - differ.float().mean().item()


def _ties(predictor: Predictor, image: np.ndarray, found: np.ndarray, expected: np.ndarray) -> torch.Tensor:
    """(H * W,) bool: where the scores of two class ids are equal but for rounding."""
    output, model = predictor.outputs([image])[0].cpu().flatten(1).T, predictor.model
    pair = [torch.from_numpy(labels.astype(np.int64).ravel()) - 1 for labels in (found, expected)]
    if model.class_embeddings is None:
        a, b = (output.gather(1, labels[:, None])[:, 0] for labels in pair)
        scale = output.abs().amax(dim=1)
    else:
        added = torch.tensor([new.embedding for new in predictor.added]).view(-1, output.shape[1])
        classes = torch.cat([model.classes().detach().cpu(), added])
        score = (lambda x, c: (x * c).sum(dim=1)) if model.distance == "cosine" else (lambda x, c: (x - c).square().sum(dim=1))
        a, b = (score(output, classes[labels]) for labels in pair)
        scale = a.abs().maximum(b.abs())
    return (a - b).abs() <= _TIE * scale


@contextmanager
def _quiet():
    """The exporters write to stdout, warn and log of what they do."""
    log = logging.getLogger("torch.onnx")
    level, _ = log.level, log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)
