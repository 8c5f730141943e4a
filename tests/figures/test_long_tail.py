"""The plot of the long tail: its steps and lines compared with the counts, at 1284 classes too."""

import cv2
import numpy as np
import pytest
from matplotlib.colors import to_hex

from cocolvis.errors import DataError
from cocolvis.figures.long_tail import COLOURS, draw, plot
from cocolvis.inspection.stats import Counts, statistics, summarise
from cocolvis.storage.dataset import Dataset
from cocolvis.vocabulary import coco_lvis


def long_tailed(images=2000):
    """Statistics of 1284 classes with Zipf's frequencies in train, and of the first half of its images in val."""
    rng = np.random.default_rng(0)
    frequency = np.maximum(1, images / np.arange(1, 1285)).astype(int)
    classes = rng.permutation(np.arange(1, 1285))
    rows = np.concatenate([rng.choice(images, n, replace=False) for n in frequency])
    order = np.argsort(rows, kind="stable")
    rows, shown = rows[order], np.repeat(classes, frequency)[order].astype(np.uint16)
    pixels = rng.integers(1, 9999, len(rows), np.uint32)
    train = Counts(rows, shown, pixels, np.full(images, 10**6))
    half = rows < images // 2
    val = Counts(rows[half], shown[half], pixels[half], np.full(images // 2, 10**6))
    return summarise(coco_lvis(), {"train": train, "val": val})


def test_the_steps_are_the_counts_of_all_classes_and_of_each_group():
    stats = long_tailed()
    panels = np.reshape(draw(stats, ("images", "pixels")).axes, (2, 3))
    for row, split in zip(panels, stats["splits"].values(), strict=True):
        for axes, what in zip(row, ("images", "pixels"), strict=False):
            everything, *groups = [step.get_data().values.tolist() for step in axes.patches]
            assert everything == sorted((c[what] for c in split["classes"]), reverse=True)
            assert [to_hex(step.get_edgecolor()) for step in axes.patches[1:]] == list(COLOURS.values())
            for group, values in zip(COLOURS, groups, strict=True):
                assert values == sorted((c[what] for c in split["classes"] if c["group"] == group), reverse=True)
            shown = " ".join(text.get_text() for text in axes.texts).split()
            first, last = (pick(split["classes"], key=lambda c: c[what]) for pick in (max, min))
            assert f"{first[what]:,}" in shown and f"{last[what]:,}" in shown and first["name"] in shown
    for column in range(3):
        assert panels[0, column].get_xlim() == panels[1, column].get_xlim() == panels[0, 0].get_xlim()
        assert panels[0, column].get_ylim() == panels[1, column].get_ylim()


def test_the_lines_are_cumulative_shares():
    stats = long_tailed()
    split = stats["splits"]["train"]
    for line, what in zip(draw(stats, ("images", "pixels")).axes[2].lines, ("images", "pixels"), strict=True):
        values = sorted((c[what] for c in split["classes"]), reverse=True)
        for n in (0, 1, 10, 500, 1284):
            assert line.get_ydata()[n] == pytest.approx(sum(values[:n]) / sum(values))


def test_no_text_overlaps_or_leaves_the_figure():
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure = draw(long_tailed(), ("images", "pixels"))
    FigureCanvasAgg(figure).draw()
    frame = figure.bbox.padded(1)
    for axes in figure.axes:
        boxes = [text.get_window_extent() for text in (*axes.texts, axes.xaxis.label, axes.yaxis.label) if text.get_text()]
        low, high = axes.get_ylim()
        ticks = zip(axes.get_yticks(), axes.get_yticklabels(), strict=True)
        boxes += [label.get_window_extent() for tick, label in ticks if low <= tick <= high]
        assert all(frame.contains(*corner) for box in boxes for corner in box.get_points())
        for index, box in enumerate(boxes):
            assert not any(box.overlaps(other) for other in boxes[:index])


def test_names_that_look_like_formulas_are_drawn_as_they_are(tmp_path):
    stats = long_tailed()
    for row in stats["splits"]["train"]["classes"]:
        row["name"] = r"a $\frac$ coin"
    plot(stats, tmp_path / "plot.png")
    assert cv2.imread(str(tmp_path / "plot.png")) is not None


def test_an_empty_split_draws_nothing(tmp_path):
    stats = long_tailed()
    empty = summarise(coco_lvis(), {"val": Counts(*(np.zeros(0, kind) for kind in (int, np.uint16, np.uint32, int)))})
    only_train = {"splits": {"train": stats["splits"]["train"]}}
    with_empty = {"splits": only_train["splits"] | empty["splits"]}
    assert len(draw(with_empty, ("images",)).axes) == len(draw(only_train, ("images",)).axes) == 2
    plot(empty, tmp_path / "empty.png")
    assert cv2.imread(str(tmp_path / "empty.png")) is not None and draw(empty, ("images",)).axes == []


def test_the_plot_is_a_picture_with_every_group_in_its_colour(sample, tmp_path):
    plot(statistics(Dataset.open(sample.data)), tmp_path / "plot.png")
    picture = cv2.imread(str(tmp_path / "plot.png"))[..., ::-1].reshape(-1, 3)
    for colour in ((0x1F, 0x6F, 0x8B), (0xE0, 0xA0, 0x30), (0xB5, 0x39, 0x4F), (0x7A, 0x8F, 0x5A)):
        assert (picture == colour).all(axis=1).sum() > 1500  # the key alone has 700 or so
    for path, message in ((tmp_path / "plot.png" / "a.png", "cannot be written"), (tmp_path / "a.xyz", "the plot .*xyz")):
        with pytest.raises(DataError, match=message):
            plot(statistics(Dataset.open(sample.data)), path)
    assert [file.name for file in tmp_path.iterdir()] == ["plot.png"]
