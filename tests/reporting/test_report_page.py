"""The report's content: counts and choices of pictures, curves of trainings, and a page that needs nothing else."""

import base64
import hashlib
import json
import re
import shutil
import sys
from html.parser import HTMLParser

import cv2
import numpy as np
import pytest
from click.testing import CliRunner
from runs import config
from torch.utils.tensorboard import SummaryWriter
from trees import box

from cli.ess import main
from cocolvis.storage.dataset import Dataset
from ess.checkpoint import Run
from ess.data.loader import to_labels
from ess.evaluation.bootstrap import miou_intervals
from ess.evaluation.compare import class_groups
from ess.evaluation.evaluate import Predicted
from ess.evaluation.metrics import Confusion
from ess.evaluation.picture_scores import picture_scores
from ess.inference.views import Inference
from ess.reporting.charts import BOTTOM, HEIGHT, LEFT, WIDTH, line_chart
from ess.reporting.curves import LOSS, MIOU, training_curves
from ess.reporting.embedded import SIDE, examples
from ess.reporting.tally import Kept, tally

NONE = "\u2013"


class Page(HTMLParser):
    """The elements of a page, with all their attributes, and the text of each table row."""

    def __init__(self, text: str):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []
        self._cell = False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag == "tr":
            self.rows.append([])
        self._cell = self._cell or tag in ("td", "th")
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        self._cell = self._cell and tag not in ("td", "th")

    def handle_data(self, data):
        if self._cell:
            self.rows[-1][-1] += data


@pytest.fixture(scope="module")
def text(reported) -> str:
    return reported.path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(text) -> Page:
    return Page(text)


def pictures_of(count: int, seed: int) -> list[Predicted]:
    rng = np.random.default_rng(seed)
    truth = [rng.integers(-1, 4, (6, 6)) for _ in range(count)]
    return [Predicted(n, t, np.where(rng.random(t.shape) < rng.random(), np.maximum(t, 0), 2)) for n, t in enumerate(truth)]


@pytest.mark.parametrize(("count", "shown"), [(20, 3), (5, 3), (1, 2), (0, 2), (4, 0)])
def test_the_tally_keeps_the_worst_and_the_best_pictures(count, shown):
    pictures = pictures_of(count, count)
    found, total = tally(iter(pictures), 4, shown), Confusion(4, matrix=True)
    for picture in pictures:
        total.update(picture.labels, picture.prediction)
    assert (found.confusion.matrix == total.matrix).all() and (found.pictures.total().pixels == total.pixels).all()
    order = [score.image_id for score in picture_scores(found.pictures)]
    half = min(shown, (count + 1) // 2)
    assert [one.score.image_id for one in found.worst] == order[:half]
    assert [one.score.image_id for one in found.best] == order[half:][::-1][:shown]
    for one in (*found.worst, *found.best):
        assert one.truth.dtype == np.uint16 and (one.truth == pictures[one.score.image_id].labels + 1).all()


def test_pictures_without_labels_are_not_kept():
    nothing = Predicted(1, np.full((3, 3), -1), np.zeros((3, 3), int))
    found = tally([nothing], 4, 2)
    assert (found.worst, found.best, found.confusion.images) == ([], [], 1)


def test_the_page_is_small_and_holds_all_that_it_shows(reported, text, page):
    assert reported.path.stat().st_size < 20_000_000 and [path.name for path in reported.path.parent.iterdir()] == [
        "report.html"
    ]
    for tag, attributes in page.elements:
        for name in ("src", "href", "srcset", "action", "poster", "data", "background"):
            assert re.match(r"(data:|#)", attributes.get(name) or "#"), (tag, attributes)
        assert not [name for name in attributes if name.startswith("on") or name == "style"]
    assert "url(" not in text and "@import" not in text and "fetch(" not in text
    policy = next(a["content"] for tag, a in page.elements if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; img-src data:;") and "unsafe" not in policy
    for tag in ("style", "script"):
        (inline,) = re.findall(rf"<{tag}[^>]*>(.*?)</{tag}>", text, re.DOTALL)
        assert base64.b64encode(hashlib.sha256(inline.encode()).digest()).decode() in policy


def test_text_from_files_is_escaped(text):
    assert "<script>alert" not in text and "A &lt;b&gt;curve&lt;/b&gt;" in text
    assert text.count("<script") == 1


def test_the_table_has_the_counts_of_every_class(reported, page):
    rows = {row[0]: row[1:] for row in page.rows if len(row) == 9}
    truth, predicted, right = reported.tallied.confusion.totals()
    split, images = reported.dataset.split("train"), np.zeros(1285, int)
    for index in range(len(split)):
        images[np.unique(split.mask(index))] += 1
    for info in reported.dataset.vocabulary:
        label, found = info.id - 1, rows[f"{info.name} {info.synset}" if info.synset else info.name]
        union = truth[label] + predicted[label] - right[label]
        assert found[:3] == [str(info.id), info.group, info.kind]
        assert found[3:6] == [f"{n:,}" for n in (images[info.id], truth[label], predicted[label])]
        shares = [right[label] / union, right[label] / truth[label]] if truth[label] else [None, None]
        assert found[6:] == [NONE if share is None else f"{100 * share:.1f}" for share in shares]
    assert len(rows) == 1 + 1284


def test_the_scores_are_those_of_the_evaluation_with_their_intervals(reported, text, page):
    scores = reported.tallied.confusion.summary([c.group for c in reported.dataset.vocabulary])
    for name in ("miou", "pixel_accuracy", "mean_accuracy", "fw_iou"):
        assert f"<dd>{100 * scores[name]:.1f}</dd>" in text
    groups = class_groups(reported.dataset.vocabulary)
    rows = {row[0]: row for row in page.rows if row[0] in groups}
    assert [*rows] == [*groups]
    for name, (value, low, high) in miou_intervals([reported.tallied.pictures], groups).items():
        expected = [NONE, NONE] if np.isnan(value) else [f"{100 * value:.1f}", f"{100 * low:.1f} to {100 * high:.1f}"]
        assert rows[name][2:4] == expected
    assert scores["miou"] == pytest.approx(miou_intervals([reported.tallied.pictures], groups)["all"].value)


def test_the_page_names_its_sources_and_changed_settings(reported, run, page, text):
    for digest in (run.listed()[-1].weights_digest(), reported.dataset.index["digest"], reported.dataset.vocabulary.digest):
        assert f"<dd>{digest}</dd>" in text
    assert ["encoder", "mobilenetv2_100", "resnet50.tv_in1k"] in page.rows and ["dim", "64"] in page.rows
    assert "another data set" not in text and "left out, because it is a test" in text


def test_pictures_are_the_right_ones_and_unlabelled_pixels_are_black(reported, text):
    for one in examples(reported.tallied.worst, reported.dataset, "val"):
        for name, embedded in one.panels:
            assert f'alt="{name} of image {one.score.image_id}"' in text and embedded.source in text
            pixels = cv2.imdecode(np.frombuffer(base64.b64decode(embedded.source.split(",")[1]), np.uint8), cv2.IMREAD_COLOR)
            assert pixels.shape[:2] == (embedded.height, embedded.width) and max(pixels.shape) <= SIDE
    one = reported.tallied.worst[0]
    truth, half = one.truth.copy(), one.truth.shape[1] // 2
    truth[:, :half], truth[:, half:] = 0, 7
    (shown,) = examples([Kept(one.score, truth, np.full_like(truth, 1200))], reported.dataset, "val")
    for _, embedded in shown.panels[1:]:
        pixels = cv2.imdecode(np.frombuffer(base64.b64decode(embedded.source.split(",")[1]), np.uint8), cv2.IMREAD_COLOR)
        edge = round(half * embedded.width / truth.shape[1])
        assert not pixels[:, : edge - 2].any() and pixels[:, edge + 2 :].any(axis=2).mean() > 0.9


def test_a_picture_is_that_of_the_evaluated_split_where_another_one_has_its_id(tree):
    for split in ("train", "val"):
        tree.image(1, split, f"{split}2017")
        tree.stuff(1, 92, box(0, 0, 8, 4), f"{split}2017")
    cv2.imwrite(str(tree.picture(1, "val2017")), np.full((8, 8, 3), 200, np.uint8))
    mask = tree.build().split("val").mask(0)
    kept = Kept(picture_scores(tally([Predicted(1, to_labels(mask), to_labels(mask))], 1284, 1).pictures)[0], mask, mask)
    (shown,) = examples([kept], Dataset.open(tree.root / "data"), "val")
    content = base64.b64decode(shown.panels[0][1].source.split(",")[1])
    pixels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
    assert np.abs(pixels.astype(int) - 200).max() < 20


def events(run: Run, points: dict[str, dict[int, float]], purge: int | None = None):
    with SummaryWriter(str(run.folder / "tensorboard" / "ess"), purge_step=purge) as writer:
        for name, values in points.items():
            for step, value in values.items():
                writer.add_scalar(name, value, step)
        writer.add_image("val/1", np.zeros((3, 8, 8), np.uint8), 1)


def test_curves_are_those_of_the_training_and_a_resumed_one_counts_once(run, tmp_path):
    copy = Run.open(shutil.copytree(run.folder, tmp_path / "run"))
    shutil.rmtree(copy.folder / "tensorboard")
    assert training_curves(copy) == {LOSS: [], MIOU: []}
    events(copy, {LOSS: {10: 4.0, 20: 3.0, 30: float("nan"), 40: 9.0}, MIOU: {20: 0.25, 40: 0.9}, "train/lr": {10: 1.0}})
    (first,) = (copy.folder / "tensorboard" / "ess").iterdir()
    first = first.rename(first.with_name("events.out.tfevents.1700000000.host.7.9"))
    events(copy, {LOSS: {40: 2.0, 50: 1.5}, MIOU: {40: 0.5}}, purge=31)
    (second,) = (file for file in first.parent.iterdir() if file != first)
    second.rename(second.with_name("events.out.tfevents.1700000000.host.7.10"))  # of the same second and process as the first
    assert training_curves(copy) == {LOSS: [(10, 4.0), (20, 3.0), (40, 2.0), (50, 1.5)], MIOU: [(20, 0.25), (40, 0.5)]}
    copy.score(4, {"miou": 0.125})
    assert training_curves(copy)[MIOU] == [(4, 0.125), (20, 0.25), (40, 0.5)]


def test_curves_end_where_a_file_is_damaged(run, tmp_path):
    copy = Run.open(shutil.copytree(run.folder, tmp_path / "run"))
    shutil.rmtree(copy.folder / "tensorboard")
    events(copy, {LOSS: {step: float(step) for step in range(1, 200)}})
    (file,) = (copy.folder / "tensorboard" / "ess").iterdir()
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    points = training_curves(copy)[LOSS]
    assert 50 < len(points) < 150 and points == [(step, float(step)) for step in range(1, len(points) + 1)]
    file.write_bytes(b"\xff" * 100)
    assert training_curves(copy)[LOSS] == []


def test_a_real_training_has_a_curve(run):
    assert [step for step, _ in training_curves(run)[LOSS]] == [config().steps]


@pytest.mark.parametrize("points", [[(1, 2.5)], [(10, 0.0), (20, 0.0)], [(n, 1 / n) for n in range(1, 3001)], [(1, 1e-9)]])
def test_charts_stay_inside_their_frame(points):
    chart = line_chart("Loss", points)
    line = [tuple(map(float, point.split(","))) for point in chart.points.split()]
    assert 1 <= len(line) <= 400 and all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in line)
    assert len(chart.across) >= 2 and len(chart.upward) >= 2 and len({tick.text for tick in chart.across}) == len(chart.across)
    assert all(0 <= tick.at <= WIDTH for tick in chart.across) and all(0 <= tick.at <= HEIGHT for tick in chart.upward)
    assert line_chart("Loss", []) is None


def test_a_chart_shows_the_values_at_their_places():
    chart = line_chart("mIoU", [(100, 0.1), (200, 0.4)], percent=True)
    assert [tick.text for tick in chart.upward] == ["0", "10", "20", "30", "40"]
    assert [tick.text for tick in chart.across] == ["0", "50", "100", "150", "200"]
    first, last = (tuple(map(float, point.split(","))) for point in chart.points.split())
    assert first == pytest.approx((chart.across[2].at, chart.upward[1].at), abs=0.1)
    assert last == pytest.approx((chart.across[4].at, chart.upward[4].at), abs=0.1)
    assert (chart.across[0].at, chart.upward[0].at) == (LEFT, HEIGHT - BOTTOM)
    assert chart.text == "mIoU: 10 % at step 100, 40 % at step 200"


def ess_report(run, data, out, *arguments, code=0):
    given = ["report", run, data, "--out", out, "--device", "cpu", "--no-figures", *arguments]
    result = CliRunner().invoke(main, [str(argument) for argument in given])
    assert result.exit_code == code, result.output
    return result


def test_the_command_writes_the_page(run, sample_dataset, tmp_path):
    folder = shutil.copytree(run.folder, tmp_path / "run")
    described = json.loads((folder / "run.json").read_text())
    described["dataset"]["digest"] = "0" * 64
    (folder / "run.json").write_text(json.dumps(described))
    result = ess_report(folder, sample_dataset, tmp_path / "new" / "r.html", "--limit", 3, "--pictures", 1, "--flip")
    text = (tmp_path / "new" / "r.html").read_text()
    assert result.stdout.startswith(f"{tmp_path / 'new' / 'r.html'}: ") and "opens in any browser" in result.stdout
    assert "3 of split val" in text and "mirrored" in text and text.count("<h4>Image") == 2
    assert "was trained on another data set" in text and 'id="figures"' not in text


def test_the_figures_are_those_of_the_scored_weights_although_the_training_goes_on(run, sample_dataset, tmp_path, monkeypatch):
    """A training that keeps one checkpoint removes the scored one while figures are drawn."""
    folder, given = shutil.copytree(run.folder, tmp_path / "run"), []
    weights = Run.open(folder).listed()[-1].weights_digest()

    def collect(run, dataset, out, options, **_):
        given.append(options)
        shutil.rmtree(folder / "checkpoints" / "step-00000004")
        return []

    monkeypatch.setattr("ess.figures.collection.collect", collect)
    shared = ["--limit", "3", "--flip", "--window", "40", "--batch-size", "2", "--precision", "bf16"]
    words = ["report", str(folder), str(sample_dataset), "--out", str(tmp_path / "r.html"), "--device", "cpu", *shared]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 0, result.output
    assert f"<dd>{weights}</dd>" in (tmp_path / "r.html").read_text()
    (options,) = given
    assert options.predictor.inference == Inference(flip=True, window=40, batch_size=2, precision="bf16")
    assert options.predictor.checkpoint.step == 4 and (options.counts.images, options.limit) == (3, 3)


def test_a_missing_package_is_reported_before_anything_else(run, sample_dataset, tmp_path, monkeypatch):
    monkeypatch.setattr("cli.ess.evaluation.report.find_spec", lambda name: None)
    result = ess_report(run.folder, sample_dataset, tmp_path / "r.html", code=1)
    assert result.stderr == "Error: jinja2 is not installed: pip install 'cocolvis-ess[figures]'\n"


def test_figures_need_no_package_that_draws_word_clouds(run, sample_dataset, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wordcloud", None)
    monkeypatch.setattr("ess.figures.collection.collect", lambda *_, **__: [])
    words = ["report", str(run.folder), str(sample_dataset), "--out", str(tmp_path / "r.html"), "--device", "cpu"]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 0, result.output
