"""Predicted masks next to pixel embeddings as colours: their three principal components are red, green and blue."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ess.figures.analysis import Analysis, scikit_learn
from ess.figures.figure import Figure, write_figure
from ess.figures.style import fitted, named_mask, new_figure, show_picture

NAME, TITLE = "masks_and_embeddings", "Predicted masks and pixel embeddings as colours"

_CLIPPED = 1.0
"""The percentage of pixels at each end of a component whose colour is clipped."""


class Colours(NamedTuple):
    """The map from embeddings (..., d) to colours: ``(x - mean) @ components.T`` from ``low`` to ``high`` becomes 0 to 1.

    ``components`` (n, d) are unit vectors, n at most 3; ``share`` (n,) is the part of the variance that each explains.
    """

    mean: np.ndarray
    components: np.ndarray
    share: np.ndarray
    low: np.ndarray
    high: np.ndarray

    def __call__(self, embeddings: np.ndarray) -> np.ndarray:
        """The colours of embeddings (..., d): (..., 3) uint8 RGB; missing components are 0."""
        values = (embeddings - self.mean) @ self.components.T
        scaled = ((values - self.low) / np.maximum(self.high - self.low, 1e-12)).clip(0, 1)
        padded = np.pad(scaled, (*[(0, 0)] * (scaled.ndim - 1), (0, 3 - scaled.shape[-1])))
        return np.rint(255 * padded).astype(np.uint8)


def make(analysis: Analysis, folder: Path) -> Figure:
    """Write the figure; the colours are those of all its images together."""
    scikit_learn("decomposition")
    embeddings = [analysis.pixel_embeddings(image) for image in analysis.shown]
    colours = fit(embeddings)
    columns = ("component", "variance_share", "low", "high", *(f"weight_{n}" for n in range(1, colours.mean.size + 1)))
    rows: list[list[Any]] = [["mean", None, None, None, *colours.mean.tolist()]]
    numbers = zip(colours.share, colours.low, colours.high, strict=True)
    rows += [
        [name, *map(float, found), *weights.tolist()]
        for name, found, weights in zip(("red", "green", "blue"), numbers, colours.components, strict=False)
    ]
    share = 100 * colours.share.sum()
    caption = (
        "The predictions of the run next to the embeddings of the pixels. Red, green and blue are the first three principal"
        f" components of the embeddings of all pixels of these images, which hold {share:.0f} % of their variance;"
        f" the {_CLIPPED:g} % of pixels at each end are clipped."
    )
    return write_figure(folder, NAME, TITLE, caption, _draw(analysis, embeddings, colours), columns, rows)


def fit(embeddings: Sequence[np.ndarray]) -> Colours:
    """The map to colours for the pixels of several images, (H, W, d) float32 each.

    The largest weight of each component is positive, because its sign is arbitrary.
    """
    pixels = np.concatenate([image.reshape(-1, image.shape[-1]) for image in embeddings])
    model = scikit_learn("decomposition").PCA(min(3, *pixels.shape)).fit(pixels)
    components = model.components_
    largest = np.take_along_axis(components, np.abs(components).argmax(axis=1)[:, None], axis=1)
    components = components * np.sign(largest)
    low, high = np.percentile((pixels - model.mean_) @ components.T, [_CLIPPED, 100 - _CLIPPED], axis=0)
    return Colours(model.mean_, components, model.explained_variance_ratio_, low, high)


def _draw(analysis: Analysis, embeddings: Sequence[np.ndarray], colours: Colours) -> Any:
    heights = [min(image.picture.shape[0] / image.picture.shape[1], 1.5) for image in analysis.shown]
    figure = new_figure(9.6, sum(3.1 * height + 0.35 for height in heights) + 0.3)
    grid = figure.subplots(len(heights), 3, squeeze=False, height_ratios=heights)
    for panels, image, found in zip(grid, analysis.shown, embeddings, strict=True):
        show_picture(panels[0], fitted(image.picture), f"image {image.sample.image_id}")
        show_picture(panels[1], named_mask(image.prediction, analysis.vocabulary), "prediction")
        show_picture(panels[2], fitted(colours(found)), "pixel embeddings")
    figure.supxlabel(f"red, green, blue: {', '.join(f'{share:.0%}' for share in colours.share)} of the variance", fontsize=9)
    return figure
