"""Labels from scores at the decoder's resolution, against interpolating all of them."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ess.kernels import coarse_cpu
from ess.models import coarse_labels, network
from ess.models.build import NORMALIZE
from ess.models.coarse_labels import Scores, largest_class
from ess.models.network import SegmentationModel

SHAPES = [
    ((5, 7), (40, 56), (40, 56)),
    ((5, 7), (40, 56), (33, 50)),
    ((1, 1), (16, 16), (9, 16)),
    ((1, 6), (8, 6), (8, 5)),
    ((4, 3), (18, 13), (17, 13)),
    ((9, 8), (7, 5), (7, 5)),
]
"""(grid, full, size): grids of one point, one that is finer than the picture, and factors that are no integers."""


def interpolated(grid_Chw, full, size):
    whole = F.interpolate(grid_Chw[None].double(), size=full, mode="bilinear", align_corners=False)[0]
    return whole[:, : size[0], : size[1]]


def check(found, grid_Chw, full, size):
    """The scores of the found labels are the largest, up to the rounding of float32."""
    scores = interpolated(grid_Chw, full, size)
    assert found.shape == size and found.dtype == torch.int64
    chosen = scores.gather(0, found[None])[0]
    assert (scores.amax(dim=0) - chosen).max() < 1e-5 * max(1, scores.abs().max())


@pytest.mark.parametrize("way", [largest_class, coarse_labels._interpolated])
@pytest.mark.parametrize(("grid", "full", "size"), SHAPES)
def test_the_largest_interpolated_score_wins(way, grid, full, size):
    torch.manual_seed(0)
    for classes, smooth in ((1, 1.0), (40, 1.0), (40, 0.01)):
        scores = torch.randn(classes, *grid) * smooth + torch.randn(classes, 1, 1)
        found = way(Scores(scores), full, size)
        check(found, scores, full, size)
        assert classes == 1 or smooth < 1 or grid == (1, 1) or len(found.unique()) > 1


@pytest.mark.parametrize("way", [largest_class, coarse_labels._interpolated])
@pytest.mark.parametrize("dim", [1, 6, 64])
@pytest.mark.parametrize(("grid", "full", "size"), SHAPES)
def test_the_largest_product_with_a_class_wins(way, dim, grid, full, size, monkeypatch):
    monkeypatch.setattr("ess.kernels.tiles.TILE", 128)  # several tiles
    torch.manual_seed(0)
    maps, classes = torch.randn(dim, *grid), torch.randn(300, dim)
    scores = Scores(maps, classes)
    whole = torch.einsum("cd,dhw->chw", classes, maps)
    torch.testing.assert_close(scores.rows(0, grid[0]), whole)
    check(way(scores, full, size), whole, full, size)


@pytest.mark.parametrize("way", [largest_class, coarse_labels._interpolated])
def test_a_bias_is_added(way):
    torch.manual_seed(0)
    maps, bias = torch.randn(30, 5, 7), torch.randn(30)
    found = way(Scores(maps, bias=bias), (40, 56), (33, 50))
    check(found, maps + bias[:, None, None], (40, 56), (33, 50))
    assert not torch.equal(found, way(Scores(maps), (40, 56), (33, 50)))


@pytest.mark.parametrize(
    "classes", [None, torch.randn(30, 4, generator=torch.Generator().manual_seed(0))], ids=["maps", "products"]
)
def test_a_score_that_is_no_number_gives_some_class(classes):
    maps = torch.randn(4, 5, 5, generator=torch.Generator().manual_seed(1))
    maps[:, 2, 2] = float("nan")
    found = largest_class(Scores(maps, classes), (40, 40), (40, 40))
    assert found.min() >= 0 and found.max() < (4 if classes is None else 30)


@pytest.mark.parametrize("way", [largest_class, coarse_labels._interpolated])
def test_blocks_of_rows_join_without_a_seam(way, monkeypatch):
    scores = torch.randn(30, 6, 5, generator=torch.Generator().manual_seed(0))
    whole = way(Scores(scores), (48, 40), (45, 37))
    monkeypatch.setattr(coarse_cpu, "_ROWS", 2)
    monkeypatch.setattr(coarse_cpu, "_COLUMNS", 3)
    monkeypatch.setattr(coarse_labels, "_NUMBERS", 3 * 30 * 40)
    assert torch.equal(way(Scores(scores), (48, 40), (45, 37)), whole)


def test_ties_go_to_the_lower_class():
    scores = torch.ones(4, 3, 3)
    scores[0] -= 1
    assert (largest_class(Scores(scores), (12, 12), (12, 12)) == 1).all()


def test_few_classes_are_interpolated_where_the_scores_are_smooth(monkeypatch):
    """The bound is the largest of the smallest scores of the classes; those that reach it nowhere cannot win."""
    grid = np.zeros((2, 2, 3), np.float32)
    grid[..., 0] = 1  # wins everywhere
    grid[0, 0, 1], grid[..., 2] = 0.99, -1
    high, low = np.empty((2, 3), np.float32), np.empty((2, 3), np.float32)
    for column in (0, 1):
        coarse_cpu._extremes(grid[0, column], grid[1, column], high[column], low[column])
    largest = np.empty(3, np.float32)
    bound = coarse_cpu._bound(high[0], low[0], high[1], low[1], largest)
    assert (bound, low[0].tolist(), largest.tolist()) == (1, [1, 0, -1], pytest.approx([1, 0.99, -1]))
    assert (largest >= bound).tolist() == [True, False, False]


def model(normalize, dim, classes=50, factor=8):
    """A model whose decoder gives random features at a fraction of the resolution."""
    torch.manual_seed(1)
    decoder = torch.nn.Conv2d(3, classes if dim is None else dim, factor, stride=factor)
    return SegmentationModel(torch.nn.Identity(), decoder, classes, dim, normalize=normalize, multiple=factor).eval()


@pytest.mark.parametrize("dim", [None, 6])
@pytest.mark.parametrize("normalize", NORMALIZE)
@pytest.mark.parametrize("restricted", [False, True])
@pytest.mark.parametrize("biased", [False, True])
def test_a_model_gives_the_labels_of_its_full_output(dim, normalize, restricted, biased, monkeypatch):
    segmenter, images = model(normalize, dim), torch.randn(2, 3, 45, 61)
    bias = torch.randn(50) * 0.3 if biased else None
    among = torch.arange(3, 50, 4) if restricted else None
    with torch.no_grad():
        coarse = segmenter.coarse(segmenter.encode(images))
        wanted = segmenter.classify(segmenter(images), bias, among)
        called = []
        monkeypatch.setattr(network, "largest_class", lambda *given: called.append(1) or largest_class(*given))
        found = segmenter.classify_coarse(coarse, (45, 61), bias, among)
    assert len(called) == (2 if dim is None or (normalize and not biased) else 0)
    assert found.shape == wanted.shape and len(found.unique()) > 3
    assert (found == wanted).float().mean() > 0.999
    if not biased and not restricted:
        assert torch.equal(segmenter.predict(images), found)


def test_a_decoder_at_half_the_resolution_is_classified_at_the_full_one(monkeypatch):
    monkeypatch.setattr(network, "largest_class", lambda *given: pytest.fail("called"))
    segmenter = model("full", 6, factor=1)
    assert segmenter.predict(torch.randn(1, 3, 20, 20)).shape == (1, 20, 20)
