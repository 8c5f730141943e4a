"""The effect of the loss and long-tail settings, compared with plain formulas."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from effects import CPU, changes, harmless, tiny
from runs import config

from ess.data import loader
from ess.data.batches import Batch
from ess.data.loader import training_batches
from ess.data.longtail import Frequencies, tail_of
from ess.losses import cross_entropy, points
from ess.models.build import model_from_config
from ess.training.objective import Objective

CLASSES, SIDE = 23, 12


@pytest.fixture(scope="module")
def batch() -> Batch:
    g = torch.Generator().manual_seed(2)
    images = torch.randint(0, 256, (2, 3, SIDE, SIDE), dtype=torch.uint8, generator=g)
    labels = torch.randint(-1, CLASSES, (2, SIDE, SIDE), dtype=torch.int16, generator=g)
    return Batch(images, labels, torch.arange(2))


def computed(batch, seed=0, classes=CLASSES, tail=None, **settings):
    """(loss, penalty, output (P, D), class embeddings or None, Objective) of a small network with these settings."""
    chosen = config(**{"dim": 4, "dropout": 0.0} | settings)
    torch.manual_seed(0)
    objective = Objective(tiny(chosen, classes), chosen, *([tail] if tail else [])).train()
    outputs = []
    network = objective._network
    objective._network = lambda images: outputs.append(network(images)) or outputs[-1]
    torch.manual_seed(seed)
    with torch.no_grad():
        loss, penalty = objective(batch)
    known = None if chosen.loss == "dense" else objective.model.classes().detach()
    return loss, penalty, outputs[0].permute(0, 2, 3, 1).flatten(0, 2), known, objective


def logits(output, classes, temperature=20.0, distance="euclidean"):
    """The logits (P, C) of every pixel and class."""
    if distance == "cosine":
        return temperature * output @ classes.T
    d = torch.linalg.vector_norm(output[:, None] - classes, dim=2)
    return -temperature * (d if distance == "euclidean" else d**2)


def among(z, targets, ids):
    """The summed loss of the pixels with a label over their target and the classes ``ids`` (P, K)."""
    own = z.gather(1, targets.clamp_min(0)[:, None])
    each = torch.cat([own, z.gather(1, ids)], dim=1).logsumexp(dim=1) - own[:, 0]
    return each[targets >= 0].sum()


def nearest_others(z, targets, k):
    return z.scatter(1, targets.clamp_min(0)[:, None], -torch.inf).topk(k).indices


@changes("loss", "temperature", "distance")
@pytest.mark.parametrize("loss", ["knn", "exact", "auto", "dense"])
@pytest.mark.parametrize(("temperature", "distance"), [(20.0, "euclidean"), (3.0, "squared"), (7.0, "cosine")])
def test_the_loss_is_the_formula(batch, monkeypatch, loss, temperature, distance):
    chosen = {"temperature": temperature, "distance": distance}
    found, _, output, classes, _ = computed(batch, loss=loss, k=2, **chosen)
    targets = batch.labels.flatten().long()
    if loss == "dense":
        assert output.shape == (2 * (SIDE // 4) ** 2, CLASSES) and classes is None  # no logits at full resolution
        coarse = output.view(2, SIDE // 4, SIDE // 4, CLASSES).permute(0, 3, 1, 2)
        z = F.interpolate(coarse, scale_factor=4, mode="bilinear").permute(0, 2, 3, 1).flatten(0, 2)
    else:
        z = logits(output, classes, **chosen)
    full, few = F.cross_entropy(z, targets, ignore_index=-1, reduction="sum"), among(z, targets, nearest_others(z, targets, 2))
    torch.testing.assert_close(found, few if loss == "knn" else full, rtol=1e-4, atol=1e-4)
    assert (full - few).abs() > 0.001 * full  # ten times the tolerance
    for most in (CLASSES, CLASSES - 1):
        monkeypatch.setattr(cross_entropy, "EXACT_UP_TO", most)
        again = computed(batch, loss=loss, k=2, **chosen)[0]
        torch.testing.assert_close(again, few if loss == "auto" and most < CLASSES else found, rtol=1e-4, atol=1e-4)


@changes("temperature")
@pytest.mark.parametrize("loss", ["knn", "exact", "auto", "dense"])
def test_a_learnt_temperature_is_that_of_the_logits_and_gets_a_gradient(batch, loss):
    fixed, *_ = computed(batch, loss=loss, temperature=20)
    learnt, *_, objective = computed(batch, loss=loss, temperature="learnt")
    torch.testing.assert_close(learnt, fixed, rtol=1e-6, atol=0)
    if loss == "dense":
        assert objective.log_temperature is None
        return
    with torch.no_grad():
        objective.log_temperature.fill_(np.log(3.0))
    found = sum(objective(batch))
    torch.testing.assert_close(found, sum(computed(batch, loss=loss, temperature=3.0)[:2]), rtol=1e-5, atol=0)
    found.backward()
    above, below = (computed(batch, loss=loss, temperature=3.0 * math.exp(step))[0] for step in (0.01, -0.01))
    assert objective.log_temperature.grad.item() == pytest.approx((above - below).item() / 0.02, rel=1e-3)


@changes("points")
def test_the_dense_loss_at_points_is_that_of_their_pixels_and_counts_like_all(batch, monkeypatch):
    """With every pixel's middle as a point, it is the dense loss; otherwise it is near to it, and drawn again in each step."""
    dense = computed(batch, loss="dense")[0]
    found = [computed(batch, loss="dense", points=5000, seed=seed)[0] for seed in (0, 0, 1)]
    assert found[0] == found[1] != found[2] and found[0] == pytest.approx(dense.item(), rel=0.1)
    middles = torch.stack(torch.meshgrid(*[torch.arange(SIDE) + 0.5] * 2, indexing="ij"), dim=2).view(-1, 2)
    monkeypatch.setattr(points, "choose_points", lambda *a, **k: middles)
    at_pixels, _, output, *_ = computed(batch, loss="dense", points=1)
    torch.testing.assert_close(at_pixels, dense, rtol=1e-5, atol=0)
    assert output.shape == (2 * (SIDE // 4) ** 2, CLASSES)  # no logits at full resolution


def test_points_see_images_that_are_padded(batch, monkeypatch):
    """With labels on 10 x 9 pixels and maps that cover 12 x 12."""
    cut = Batch(batch.images[..., :10, :9], batch.labels[:, :10, :9], batch.ids)
    middles = torch.stack(torch.meshgrid(torch.arange(10) + 0.5, torch.arange(9) + 0.5, indexing="ij"), dim=2).view(-1, 2)
    monkeypatch.setattr(points, "choose_points", lambda *a, **k: middles)
    torch.testing.assert_close(computed(cut, loss="dense", points=1)[0], computed(cut, loss="dense")[0], rtol=1e-5, atol=0)


@changes("distance")
def test_predictions_use_the_distance():
    o, found = torch.randn(1, 3, 4, 4, generator=torch.Generator().manual_seed(0)), {}
    for distance in ("euclidean", "cosine"):
        torch.manual_seed(0)
        model = model_from_config(config(distance=distance, dim=3, normalize="none"), CLASSES, weights=None)
        found[distance] = model.classify(o)
        expected = logits(o.permute(0, 2, 3, 1).flatten(0, 2), model.classes(), distance=distance).argmax(dim=1)
        assert torch.equal(found[distance].flatten(), expected)
    assert not torch.equal(found["euclidean"], found["cosine"])


@changes("k", "negatives", "query_stride")
@pytest.mark.parametrize("k", [7, 2])
@pytest.mark.parametrize("negatives", ["nearest", "published", "random"])
def test_the_negatives_have_the_given_number_and_kind(batch, k, negatives):
    found, _, output, classes, _ = computed(batch, loss="knn", k=k, negatives=negatives)
    z, targets = logits(output, classes), batch.labels.flatten().long()
    if negatives == "nearest":
        expected = among(z, targets, nearest_others(z, targets, k))
    elif negatives == "published":
        ids = z.topk(k).indices
        expected = among(z, targets, torch.where(ids == targets[:, None], (ids - 1).clamp_min(0), ids))
    else:
        torch.manual_seed(0)
        maps = output.view(2, SIDE, SIDE, -1).permute(0, 3, 1, 2)
        expected = cross_entropy.knn_cross_entropy(maps, batch.labels, classes, k=k, negatives="random", reduction="sum")
        assert expected != computed(batch, loss="knn", k=k, negatives=negatives, seed=1)[0]  # drawn again in each step
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@changes("query_stride")
def test_one_pixel_of_each_block_searches(batch):
    found, _, output, classes, _ = computed(batch, loss="knn", query_stride=4)
    z, targets = logits(output, classes), batch.labels.flatten().long()
    middle = torch.arange(SIDE) // 2 * 2 + 1  # of blocks of 2 x 2
    ids = z.topk(8).indices.view(2, SIDE, SIDE, 8)[:, middle][:, :, middle].view(-1, 8)
    kept = torch.where(ids == targets[:, None], ids[:, -1:], ids)[:, :7]
    torch.testing.assert_close(found, among(z, targets, kept), rtol=1e-4, atol=1e-4)
    assert (found - computed(batch, loss="knn")[0]).abs() > 0.01


@harmless("search")
def test_every_search_finds_the_same_neighbours(batch, monkeypatch):
    """The approximate "clustered" only has to be called."""
    asked = []
    original = cross_entropy.nearest
    monkeypatch.setattr(
        cross_entropy, "nearest", lambda *a, **k: asked.append((k["backend"], original(*a, **k))) or asked[-1][1]
    )
    found = {name: computed(batch, loss="knn", search=name)[0] for name in ("auto", "numba", "torch", "faiss", "clustered")}
    assert [name for name, _ in asked] == [*found]
    for name, ids in asked[:-1]:
        assert torch.equal(ids, asked[0][1]) and found[name] == found["auto"]


@changes("margin")
@pytest.mark.parametrize("margin", [0.0, 0.2, 0.7])
def test_the_penalty_has_the_margin(batch, margin):
    _, penalty, _, classes, _ = computed(batch, margin=margin)
    apart = torch.linalg.vector_norm(classes[:, None] - classes, dim=2) + 9 * torch.eye(CLASSES)
    torch.testing.assert_close(penalty, (margin - apart.amin(dim=1)).clamp_min(0).mean())
    assert (penalty > 0) == (margin > 0.3) or margin == 0.2


TAILS = [{}, {"logit_adjustment": 1.5}, {"class_weight_power": 0.5}, {"federated": True}]


@changes("logit_adjustment", "class_weight_power", "federated")
@pytest.mark.parametrize("settings", TAILS)
def test_the_exact_loss_has_bias_weights_and_mask(dataset, settings):
    chosen = config(loss="exact", **settings)
    split, vocabulary = dataset.split("train"), dataset.vocabulary
    tail = tail_of(split, vocabulary, chosen)
    (raw,) = training_batches(split, chosen, 1, 0, tail)
    batch = raw.render(chosen.crop, CPU)
    found, _, output, classes, objective = computed(batch, classes=1284, tail=tail, loss="exact", **settings)
    pixels = Frequencies.of(split, 1284).pixels.astype(np.float64)
    z, targets = logits(output, classes), batch.labels.flatten().long()
    if chosen.logit_adjustment:
        z = z + torch.from_numpy(1.5 * np.log((pixels + 1) / (pixels + 1).sum())).float()
    if chosen.federated:
        stuff = torch.tensor([c.kind == "stuff" for c in vocabulary])
        here = [split[split.image_ids().tolist().index(i)] for i in batch.ids.tolist()]
        for place, sample in enumerate(here):
            known = stuff.clone()
            known[torch.tensor([c - 1 for c in {*np.unique(sample.mask).tolist(), *sample.neg.tolist()} - {0}])] = True
            z.view(3, -1, 1284)[place, :, ~known] = -torch.inf
    weight = np.where(pixels > 0, np.maximum(pixels, 1) ** -chosen.class_weight_power, 0)
    weight = torch.from_numpy(weight * pixels.sum() / (weight * pixels).sum()).float()
    each = F.cross_entropy(z, targets, ignore_index=-1, reduction="none")
    weights = torch.where(targets < 0, 0, weight[targets.clamp_min(0)])
    torch.testing.assert_close(found, (each * weights).sum(), rtol=1e-4, atol=0)
    torch.testing.assert_close(objective.total_weight(batch), weights.sum(), rtol=1e-4, atol=0)
    plain = computed(batch._replace(classes=None), classes=1284, loss="exact")[0]
    assert (found != plain) == bool(settings)


@changes("repeat_threshold")
@pytest.mark.parametrize("threshold", [0.0, 1.0])
def test_images_of_rare_classes_are_seen_more_often(dataset, threshold):
    chosen = config(repeat_threshold=threshold, crop=8)
    split = dataset.split("train")
    tail = tail_of(split, dataset.vocabulary, chosen)
    shown = [{*np.unique(split.mask(index)).tolist()} - {0} for index in range(len(split))]
    share = {c: sum(c in classes for classes in shown) / len(split) for classes in shown for c in classes}
    factors = np.array([max(1, *((threshold / share[c]) ** 0.5 for c in classes)) for classes in shown])
    steps = 10 * (int(np.ceil(factors.sum())) // chosen.batch_size)
    ids = np.concatenate([raw.ids for raw in training_batches(split, chosen, steps, 0, tail)])
    seen = np.array([(ids == i).sum() for i in split.image_ids().tolist()]) / 10
    assert np.abs(seen - factors).max() <= (0.3 if threshold else 0)
    assert np.ptp(factors) > 0.6 or not threshold


@changes("class_crop")
@pytest.mark.parametrize(("share", "least", "most"), [(0.0, 0, 0), (0.25, 60, 140), (1.0, 400, 400)])
def test_a_share_of_the_crops_is_placed_around_rare_classes(dataset, monkeypatch, share, least, most):
    placed, original = [], loader.random_crop
    monkeypatch.setattr(
        loader, "random_crop", lambda *a, around, **k: placed.append(around) or original(*a, around=around, **k)
    )
    chosen = config(class_crop=share, crop=32, batch_size=4)
    split = dataset.split("train")
    assert len([*training_batches(split, chosen, 100, 0, tail_of(split, dataset.vocabulary, chosen))]) == 100
    assert least <= sum(place is not None for place in placed) <= most and len(placed) == 400
