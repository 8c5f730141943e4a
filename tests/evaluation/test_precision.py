"""The figures of benchmarks/precision.py, compared with plain counts over all pixels of a split."""

import numpy as np
import precision
import pytest
import torch
from torch import nn

from cocolvis.progress import ignore
from ess.inference.predictor import Predictor
from ess.models.network import SegmentationModel


@pytest.fixture
def predictors(dataset, monkeypatch) -> dict[str, Predictor]:
    """Two models without a network, one with the class embeddings of the other one moved a little; three images per turn."""
    monkeypatch.setattr(precision, "_TURN", 3)
    models = [SegmentationModel(nn.Identity(), nn.Identity(), len(dataset.vocabulary), 3, normalize=None) for _ in range(2)]
    colours = torch.randn(len(dataset.vocabulary), 3, generator=torch.Generator().manual_seed(0))
    models[0].class_embeddings.data, models[1].class_embeddings.data = colours, colours + 0.02 * colours.roll(1, 0)
    made = [Predictor(model.eval(), dataset.vocabulary, torch.device("cpu")) for model in models]
    return dict(zip(("float32", "bf16"), made, strict=True))


def miou(truth: np.ndarray, predicted: np.ndarray) -> float:
    known = truth > 0
    found = [(truth == c, (predicted == c) & known) for c in np.unique(truth[known])]
    return float(np.mean([(a & b).sum() / (a | b).sum() for a, b in found]))


def test_the_figures_are_those_of_plain_counts(dataset, predictors):
    samples = [dataset.split("val")[index] for index in range(7)]
    truth = np.concatenate([sample.mask.ravel() for sample in samples])
    ours, theirs = (np.concatenate([each(s.image()).ravel() for s in samples]) for each in predictors.values())
    found = precision.compared(predictors, dataset, "val", range(7), ignore)
    alike = ours == theirs
    assert 0.5 < alike.mean() < 0.99 and alike.mean() != alike[truth > 0].mean()
    assert found["same_class"] == pytest.approx(alike.mean())
    assert found["same_class_labelled"] == pytest.approx(alike[truth > 0].mean())
    assert found["miou_float32"] == pytest.approx(miou(truth, ours))
    assert found["miou_bf16"] == pytest.approx(miou(truth, theirs))
    value, low, high = found["miou_difference"]
    assert value == pytest.approx(miou(truth, theirs) - miou(truth, ours))
    assert low < value < high and found["images"] == 7


def test_a_model_agrees_with_itself(dataset, predictors):
    found = precision.compared(dict.fromkeys(predictors, predictors["bf16"]), dataset, "val", range(4), ignore)
    assert found["same_class"] == found["same_class_labelled"] == 1
    assert found["miou_difference"] == [0, 0, 0]
