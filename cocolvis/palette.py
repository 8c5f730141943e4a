"""The colours of classes, the same in every picture, plot and page."""

from functools import lru_cache

import numpy as np


@lru_cache(maxsize=8)
def palette(classes: int) -> np.ndarray:
    """The colours of classes: (classes + 1, 3) uint8 RGB, read-only; 0 is black. A colour does not depend on ``classes``.

    Hue, lightness and chroma follow a low-discrepancy sequence in Oklab, where distances match perceived differences.
    """
    steps = np.arange(1, classes + 1)[:, None] * [0.8191725134, 0.6710436067, 0.5497004779]
    hue, lightness, chroma = (steps % 1).T
    angle, lightness, chroma = 2 * np.pi * hue, 0.5 + 0.38 * lightness, 0.08 + 0.1 * chroma
    colours = np.zeros((classes + 1, 3), np.uint8)
    colours[1:] = _srgb(lightness, chroma * np.cos(angle), chroma * np.sin(angle))
    colours.setflags(write=False)
    return colours


def _srgb(lightness: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Convert Oklab to (n, 3) uint8 sRGB, clipped."""
    cone = np.stack([lightness, a, b], 1) @ [[1, 1, 1], [0.3963377774, -0.1055613458, -0.0894841775],
                                             [0.2158037573, -0.0638541728, -1.2914855480]]  # fmt: skip
    linear = cone**3 @ [[4.0767416621, -1.2684380046, -0.0041960863], [-3.3077115913, 2.6097574011, -0.7034186147],
                        [0.2309699292, -0.3413193965, 1.7076147010]]  # fmt: skip
    linear = linear.clip(0, 1)
    return np.rint(255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)).astype(np.uint8)
