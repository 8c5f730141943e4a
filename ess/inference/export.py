"""Exports a run as one file that maps pictures to class ids: ONNX, or PyTorch's exported program."""

import copy
import json
import logging
import warnings
from collections.abc import Callable, Iterator
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
from ess.inference.added import distances
from ess.inference.predictor import Predictor

FORMATS = ("onnx", "torch")
CLASSES = "classes"
"""The key under which a file stores the names of its classes, a JSON list that begins with class 1."""

_BLOCK = 128
"""How many classes pixels are compared with at a time; memory for scores does not grow with the number of classes."""

_EXAMPLE = (97, 131)
"""The size of the picture with which exporters trace the network; its sides are prime."""

_TIE = 1e-3
"""Two classes tie at a pixel if their scores there differ by less than this share of the largest score."""


class Deployed(nn.Module):
    """Everything between a picture's pixels and its class ids.

    It takes a decoded picture of any size, (H, W, 3) uint8 RGB, which callers need not prepare, and returns (H, W) int32 class
    ids 1..C, added classes and the bias of a calibration included, like the predictor for whole images.
    """

    _bias_C: torch.Tensor | None
    _classes_CD: torch.Tensor
    _added_AD: torch.Tensor

    def __init__(self, predictor: Predictor):
        super().__init__()
        self.model = copy.deepcopy(predictor.model)
        _replace_adaptive_pooling(self.model)
        self.register_buffer("_bias_C", predictor.bias)
        if self.model.class_embeddings is None:
            return
        self._cosine = self.model.distance == "cosine"
        self._roots = predictor.bias is not None and self.model.distance == "euclidean"
        classes_CD = self.model.classes().detach()
        added_AD = torch.tensor([new.embedding for new in predictor.added]).view(-1, classes_CD.shape[1])
        self.register_buffer("_classes_CD", classes_CD)
        self.register_buffer("_added_AD", added_AD.to(classes_CD.device))
        self._radii = [new.radius for new in predictor.added]

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """(H, W, 3) uint8 to (H, W) int32."""
        height, width = image.shape[:2]
        images = normalize(image.permute(2, 0, 1)[None])
        images = F.pad(images, (0, self.model.padded(width) - width, 0, self.model.padded(height) - height))
        output = self.model.output(images)[0]
        # a slice would make the exporter treat sizes without padding as a separate case
        output = output.index_select(1, torch.arange(height, device=output.device))
        output = output.index_select(2, torch.arange(width, device=output.device))
        if self.model.class_embeddings is not None:
            labels = self._nearest(output.permute(1, 2, 0))
        else:
            labels = (output if self._bias_C is None else output + self._bias_C[:, None, None]).argmax(dim=0)
        return (labels + 1).to(torch.int32)

    def _nearest(self, pixels_HWD: torch.Tensor) -> torch.Tensor:
        """The nearest class of each pixel: (H, W) int64; ties go to the lower id."""
        squares = pixels_HWD.square().sum(dim=2)
        best, labels = self._best(pixels_HWD, squares, 0)
        for first in range(_BLOCK, len(self._classes_CD), _BLOCK):
            score, label = self._best(pixels_HWD, squares, first)
            labels = torch.where(score > best, label + first, labels)
            best = torch.maximum(score, best)
        for index, radius in enumerate(self._radii):
            nearness = self._nearness(pixels_HWD, self._added_AD[index : index + 1])[..., 0]
            inside = (-nearness if self._cosine else squares - nearness) <= radius
            score = self._rooted(nearness, squares)
            taken = (score > best) & inside
            labels = torch.where(taken, len(self._classes_CD) + index, labels)
            best = torch.where(taken, score, best)
        return labels

    def _best(self, pixels_HWD: torch.Tensor, squares: torch.Tensor, first: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The largest score of each pixel in a block of classes, and its place in the block, both (H, W)."""
        nearness = self._nearness(pixels_HWD, self._classes_CD[first : first + _BLOCK])
        scores = self._rooted(nearness, squares[..., None])
        return (scores if self._bias_C is None else scores + self._bias_C[first : first + _BLOCK]).max(dim=2)

    def _nearness(self, pixels_HWD: torch.Tensor, classes_CD: torch.Tensor) -> torch.Tensor:
        """(H, W, C), larger is nearer: the product with each class, or -|pixel - class|^2 without its part -|pixel|^2."""
        products = pixels_HWD @ classes_CD.T
        return products if self._cosine else 2 * products - classes_CD.square().sum(dim=1)

    def _rooted(self, nearness: torch.Tensor, squares: torch.Tensor) -> torch.Tensor:
        """-|pixel - class| for Euclidean distances with a bias; otherwise the nearness, which ranks classes in the same way."""
        return -(squares - nearness).clamp_min(0).sqrt() if self._roots else nearness


class _AdaptivePooling(nn.Module):
    """``nn.AdaptiveAvgPool2d`` as matrix products for any size; in ONNX it would be fixed to the example's size."""

    def __init__(self, bins: int):
        super().__init__()
        self.bins = bins

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) to (B, C, bins, bins)."""
        return self._means(x.shape[2], x) @ x @ self._means(x.shape[3], x).T

    def _means(self, length: int, like: torch.Tensor) -> torch.Tensor:
        """(bins, length): row i averages the pixels from i * length / bins to (i + 1) * length / bins, rounded outwards."""
        bins, pixels = torch.arange(self.bins, device=like.device)[:, None], torch.arange(length, device=like.device)
        starts, ends = bins * length // self.bins, ((bins + 1) * length + self.bins - 1) // self.bins
        return ((pixels >= starts) & (pixels < ends)) / (ends - starts).to(like.dtype)


def _replace_adaptive_pooling(module: nn.Module) -> None:
    """Replace adaptive poolings to more than one bin, anywhere below a module, by :class:`_AdaptivePooling`."""
    for name, child in module.named_children():
        if isinstance(child, nn.AdaptiveAvgPool2d):
            height, width = child.output_size if isinstance(child.output_size, tuple) else (child.output_size,) * 2
            if height is not None and height == width != 1:
                setattr(module, name, _AdaptivePooling(height))
        _replace_adaptive_pooling(child)


def export(predictor: Predictor, path: Path, kind: str, *, check: bool = True) -> float | None:
    """Write the file ``path`` of this ``kind``, "onnx" or "torch" (a .pt2 of torch.export), whole or not at all.

    The file contains no code and no pickle. With ``check``, it is run on a picture before it gets its name; the result is the
    share of the pixels with the same class as the predictor gives them, otherwise None. Raises DataError if the other pixels
    are not ties, or if PyTorch cannot export the network.
    """
    module = Deployed(predictor).to("cpu").eval()
    names = json.dumps([c.name for c in predictor.vocabulary], ensure_ascii=False)
    write = {"onnx": _write_onnx, "torch": _write_torch}[kind]
    with write_aside(path) as aside:
        try:
            with _quiet(), torch.no_grad():
                write(module, aside, names)
                exported = load(aside, kind)(_picture()) if check else None
        except OSError:
            raise
        except Exception as error:  # exporters and runtimes raise errors of many types
            reason = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
            raise DataError(f"{path}: PyTorch cannot export this network ({type(error).__name__}: {reason})") from error
        return None if exported is None else _agreement(predictor, path, exported)


def load(path: Path, kind: str) -> Callable[[np.ndarray], np.ndarray]:
    """An exported file as a function from (H, W, 3) uint8 to (H, W) int32."""
    if kind == "torch":
        with path.open("rb") as file:
            program = torch.export.load(file).module()
        return lambda image: program(torch.from_numpy(image)).numpy()
    import onnxruntime

    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    return lambda image: session.run(None, {"image": image})[0]


def missing_packages(kind: str) -> list[str]:
    """Those packages for writing ("onnx", "onnxscript") and running ("onnxruntime") such a file that are not installed."""
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
    assert program is not None  # dynamo=True returns a program
    program.model.metadata_props[CLASSES] = names
    program.save(str(path), external_data=False)


def _write_torch(module: Deployed, path: Path, names: str) -> None:
    example, sizes = _example()
    program = torch.export.export(module, (example,), dynamic_shapes=sizes)
    with path.open("wb") as file:
        torch.export.save(program, file, extra_files={f"{CLASSES}.json": names})


def _example() -> tuple[torch.Tensor, dict]:
    """An example picture, and which of its sizes may change."""
    return torch.zeros((*_EXAMPLE, 3), dtype=torch.uint8), {"image": {side: torch.export.Dim.DYNAMIC for side in (0, 1)}}


def _picture() -> np.ndarray:
    """A smooth picture, (75, 109, 3) uint8, of another odd size than the exporter's example."""
    coarse = torch.rand((1, 3, 9, 11), generator=torch.Generator().manual_seed(0))
    return (255 * F.interpolate(coarse, size=(75, 109), mode="bilinear"))[0].permute(1, 2, 0).to(torch.uint8).numpy()


def _agreement(predictor: Predictor, path: Path, exported: np.ndarray) -> float:
    """The share of the pixels of :func:`_picture` on which file and predictor agree.

    Raises DataError unless the others are ties.
    """
    image = _picture()
    expected = predictor(image)
    if exported.shape != expected.shape:
        raise DataError(
            f"{path}: the exported file gives class ids of shape {exported.shape} for a picture of {expected.shape}"
        )
    differ = torch.from_numpy(exported != expected).flatten()
    wrong = (differ & ~_ties(predictor, image, exported, expected)).float().mean().item()
    if wrong:
        raise DataError(f"{path}: the exported file differs from the run on {wrong:.3%} of a picture's pixels; it is not kept")
    return 1 - differ.float().mean().item()


def _ties(predictor: Predictor, image: np.ndarray, exported: np.ndarray, expected: np.ndarray) -> torch.Tensor:
    """(H * W,) bool: where the scores of both class ids are equal except for rounding."""
    output_PD, model = predictor.outputs([image])[0].cpu().flatten(1).T, predictor.model
    pair = [torch.from_numpy(ids.astype(np.int64).ravel()) - 1 for ids in (exported, expected)]
    if model.class_embeddings is None:
        a, b = (output_PD.gather(1, labels[:, None])[:, 0] for labels in pair)
        scale = output_PD.abs().amax(dim=1)
    else:
        added = torch.tensor([new.embedding for new in predictor.added]).view(-1, output_PD.shape[1])
        classes_CD = torch.cat([model.classes().detach().cpu(), added])
        a, b = (-distances(output_PD, classes_CD[labels], model.distance) for labels in pair)
        if predictor.bias is not None and model.distance == "euclidean":
            a, b = -(-a).sqrt(), -(-b).sqrt()
        scale = a.abs().maximum(b.abs())
    if predictor.bias is not None:
        bias = F.pad(predictor.bias.cpu(), (0, len(predictor.added)))
        a, b = (score + bias[labels] for score, labels in zip((a, b), pair, strict=True))
    return (a - b).abs() <= _TIE * scale


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporters, which write to stdout, warn and log."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)
