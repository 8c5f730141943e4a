"""Predictions with a class bias, and among some classes only, compared with plain formulas in float64."""

import numpy as np
import pytest
import torch
from test_predict import few, photo
from torch import nn

from ess.inference.added import AddedClass
from ess.inference.predictor import Predictor
from ess.inference.views import Inference
from ess.kernels.distances import DISTANCES
from ess.models.network import SegmentationModel

CLASSES = 20
AMONG = np.array([1, 4, 5, 17])
VIEWS = [Inference(), Inference(flip=True, scales=(0.75, 1.0)), Inference(window=24, batch_size=2)]


def made(head: str) -> SegmentationModel:
    """A model that looks at a few pixels; ``head`` is a distance or "dense"."""
    torch.manual_seed(0)
    dense = head == "dense"
    decoder = nn.Conv2d(3, CLASSES if dense else 6, 3, padding=1)
    how = {} if dense else {"distance": head, "normalize": None if head == "cosine" else "full"}
    return SegmentationModel(nn.Identity(), decoder, CLASSES, None if dense else 6, multiple=8, **how).eval()


def bias(scale: float = 0.5) -> torch.Tensor:
    return scale * torch.randn(CLASSES, generator=torch.Generator().manual_seed(3))


@torch.no_grad()
def scores(predictor: Predictor, image: np.ndarray, bias_C) -> torch.Tensor:
    """(H, W, C) float64, the larger the better."""
    output, model = predictor.outputs([image])[0].movedim(0, 2).double(), predictor.model
    if model.class_embeddings is None:
        return output + bias_C
    e = model.classes().double()
    apart = (output[:, :, None] - e).norm(dim=3)
    return bias_C - {"euclidean": apart, "squared": apart**2, "cosine": -output @ e.T}[model.distance]


@pytest.mark.parametrize("inference", VIEWS)
@pytest.mark.parametrize("head", [*DISTANCES, "dense"])
def test_a_bias_and_a_choice_of_classes(head, inference):
    model, image, zeros = made(head), photo(61, 43), torch.zeros(CLASSES)
    for bias_C in (None, bias()):
        predictor = Predictor(model, few(CLASSES), torch.device("cpu"), inference, bias=bias_C)
        expected = scores(predictor, image, zeros if bias_C is None else bias_C.double())
        whole = predictor(image)
        assert (whole == expected.argmax(dim=2).numpy() + 1).mean() > 0.999
        ((_, _, some),) = predictor.stream([(0, image)], lambda key: AMONG)
        assert (some == AMONG[expected[:, :, AMONG].argmax(dim=2).numpy()] + 1).mean() > 0.999
        assert (some != whole).any()
        ((_, _, unrestricted),) = predictor.stream([(0, image)], lambda key: AMONG[:0])
        assert (unrestricted == whole).all()
    plain = Predictor(model, few(CLASSES), torch.device("cpu"), inference)
    assert (plain(image) != whole).any() and len(np.unique(whole)) > 1


@torch.no_grad()
@pytest.mark.parametrize("distance", DISTANCES)
def test_added_classes_have_a_bias_of_zero(distance):
    model, image, bias_C = made(distance), photo(61, 43), bias(0.2)
    plain = Predictor(model, few(CLASSES), torch.device("cpu"))
    pixels = plain.outputs([image])[0].flatten(1).T
    radius = -1.0 if distance == "cosine" else 0.05
    added = [AddedClass(f"new {n}", pixels[n].tolist(), radius, [], 1, "") for n in (0, 2000)]
    found = Predictor(model, few(CLASSES), torch.device("cpu"), added=added, bias=bias_C)(image)
    best, labels = scores(plain, image, bias_C.double()).flatten(0, 1).max(dim=1)
    for label, new in enumerate(added, CLASSES):
        e = torch.tensor(new.embedding).double()
        apart = (pixels.double() - e).norm(dim=1)
        near = {"euclidean": -apart, "squared": -(apart**2), "cosine": pixels.double() @ e}[distance]
        taken = (near > best) & ((-near if distance == "cosine" else apart**2) <= radius)
        labels, best = torch.where(taken, label, labels), torch.where(taken, near, best)
    assert (found.ravel() == labels.numpy() + 1).mean() > 0.999
    assert {CLASSES + 1, CLASSES + 2} <= set(np.unique(found).tolist())
    among = Predictor(model, few(CLASSES), torch.device("cpu"), added=added, bias=bias_C)
    ((_, _, some),) = among.stream([(0, image)], lambda key: AMONG)
    assert set(np.unique(some).tolist()) <= {*(AMONG + 1).tolist()}


def test_rows_of_logits_are_added_to_a_few_at_a_time(monkeypatch):
    monkeypatch.setattr("ess.models.network._ROWS", 7)
    logits = torch.randn(2, CLASSES, 61, 5)
    expected = (logits + bias()[:, None, None]).argmax(dim=1)
    assert torch.equal(made("dense").classify(logits, bias()), expected)
