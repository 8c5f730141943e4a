"""docs/gallery.md shows every figure, and its pictures are small."""

from io import BytesIO

import draw_gallery
import numpy as np
from PIL import Image

from ess.figures.collection import MAKERS


def test_the_gallery_shows_every_figure():
    text = draw_gallery.PAGE.read_text()
    assert text.startswith(draw_gallery.HEAD)
    names = {*draw_gallery.OF_DATA, *MAKERS}
    assert {path.name for path in draw_gallery.PICTURES.iterdir()} == {f"{name}.webp" for name in names}
    assert all(f"](pictures/gallery/{name}.webp)" in text for name in names)
    assert sum(path.stat().st_size for path in draw_gallery.PICTURES.iterdir()) < 1.5e6


def test_pictures_become_small_and_stay_the_same(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (600, 2000, 3), np.uint8)
    plot = np.full((600, 800, 3), 255, np.uint8)
    plot[100:200, 300:400] = (31, 111, 139)
    for pixels, width in ((noise, draw_gallery.WIDTH), (plot, 800)):
        Image.fromarray(pixels).save(tmp_path / "a.png")
        found = Image.open(BytesIO(draw_gallery.reduced(tmp_path / "a.png")))
        assert found.format == "WEBP" and found.size == (width, 600 * width // pixels.shape[1])
    assert np.array_equal(np.asarray(found), plot)


def test_the_page_has_a_section_for_each_figure(tmp_path):
    text = draw_gallery.page([("ess analyze", [draw_gallery.Entry("a", "A title", "What it shows.", tmp_path)])])
    assert text.startswith("# Gallery\n") and "\n    ess analyze\n" in text
    assert text.endswith("\n## A title\n\n![A title](pictures/gallery/a.webp)\n\nWhat it shows.\n")
