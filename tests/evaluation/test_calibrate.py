"""The choice of tau compared with a search by plain formulas in float64; what is kept, resumed, used, refused and removed."""

import dataclasses
import json
import re
import shutil
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file
from torch import nn

from cli.ess import main
from cli.ess.evaluation.calibrate import _print_choice as print_choice
from cocolvis.disk.files import sha256
from cocolvis.errors import DamagedImage, DataError
from cocolvis.storage.dataset import Dataset
from cocolvis.vocabulary import Vocabulary
from ess.checkpoint import Run
from ess.evaluation import calibrate as calibrating
from ess.evaluation.calibrate import COUNTS, calibrate, calibration_images, sampled_pixels
from ess.inference.calibration import FILE, Calibration, Trial, read_calibration, store_calibration
from ess.inference.predictor import Predictor
from ess.inference.views import Inference
from ess.models.network import SegmentationModel

TAUS = (-0.1, 0.0, 0.05, 0.1, 0.3, 0.6, 1.2)


@pytest.fixture
def run(untrained_run, tmp_path) -> Run:
    return Run.open(shutil.copytree(untrained_run, tmp_path / "run"))


def colours(dataset) -> torch.Tensor:
    """The mean colour of each class in the split train, normalised, far away for classes without pixels: (C, 3)."""
    split, sums = dataset.split("train"), np.zeros((len(dataset.vocabulary) + 1, 4))
    for index in range(len(split)):
        sample = split[index]
        pixels = np.concatenate([sample.image().reshape(-1, 3), np.ones((sample.mask.size, 1))], axis=1)
        np.add.at(sums, sample.mask.ravel(), pixels)
    mean, std = (torch.tensor(numbers) for numbers in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    found = torch.from_numpy(sums[1:, :3] / np.maximum(sums[1:, 3:], 1) / 255).float()
    found[torch.from_numpy(sums[1:, 3] == 0)] = 3.0
    return (found - mean) / std


@pytest.fixture(scope="module", params=["euclidean", "squared", "dense"])
def model(request, dataset) -> SegmentationModel:
    """A model without a network that classifies by colour, with some noise that makes it worse than it could be."""
    wanted = colours(dataset) + 0.3 * torch.randn(len(dataset.vocabulary), 3, generator=torch.Generator().manual_seed(0))
    if request.param == "dense":
        head = nn.Conv2d(3, len(wanted), 1)
        head.weight.data, head.bias.data = 40 * wanted[:, :, None, None], -20 * wanted.square().sum(dim=1)
        return SegmentationModel(nn.Identity(), head, len(wanted), None, multiple=8).eval()
    model = SegmentationModel(nn.Identity(), nn.Identity(), len(wanted), 3, normalize=None, distance=request.param, multiple=8)
    model.class_embeddings.data = wanted
    return model.eval()


def predictor_of(model: SegmentationModel, run: Run) -> Predictor:
    return Predictor(model, run.vocabulary, torch.device("cpu"), checkpoint=run.listed()[-1])


def by_search(model: SegmentationModel, dataset: Dataset, temperature: float) -> list[float]:
    """The mIoU of the sampled pixels for each of TAUS, from logits minus tau * log prior in float64."""
    split, classes = dataset.split("train"), len(dataset.vocabulary)
    pixels = np.bincount(np.concatenate([split.mask(n).ravel() for n in range(len(split))]), minlength=classes + 1)[1:] + 1
    log_prior = torch.from_numpy(np.log(pixels / pixels.sum()))
    predictor, logits, truth = Predictor(model, dataset.vocabulary, torch.device("cpu")), [], []
    for index in calibration_images(len(split)):
        sample = split[index]
        places = sampled_pixels(sample.mask.astype(int) - 1, index)
        output = predictor.outputs([sample.image()])[0].flatten(1).T[places].double()
        truth.append(sample.mask.ravel()[places].astype(int) - 1)
        if model.class_embeddings is not None:
            e = model.class_embeddings.detach().double()
            apart = (output[:, None] - e).norm(dim=2)
            output = -temperature * (apart**2 if model.distance == "squared" else apart)
        logits.append(output)
    z, t = torch.cat(logits), np.concatenate(truth)
    mious = []
    for tau in TAUS:
        found = (z - tau * log_prior).argmax(dim=1).numpy()
        ious = [((t == c) & (found == c)).sum() / ((t == c) | (found == c)).sum() for c in np.unique(t)]
        mious.append(float(np.mean(ious)))
    return mious


def test_the_choice_is_that_of_a_search_in_float64(model, run, dataset):
    found = calibrate(run, predictor_of(model, run), dataset, taus=[*TAUS[::-1], 0.3])
    expected = by_search(model, dataset, run.config.temperature)
    assert [trial.tau for trial in found.trials] == sorted(TAUS)
    assert [trial.miou for trial in found.trials] == pytest.approx(expected, abs=2e-4)
    assert found.tau == TAUS[int(np.argmax(expected))] != 0
    assert sorted(expected)[-1] - sorted(expected)[-2] > 4e-4  # so that rounding cannot decide
    assert read_calibration(run) == found and not (run.folder / COUNTS).exists()
    assert (found.images, found.dataset) == (len(calibration_images(dataset.splits["train"])), dataset.index["digest"])
    assert np.mean(found.bias) == pytest.approx(0, abs=1e-5)


def test_a_quarter_of_the_images_and_some_of_their_labelled_pixels_count():
    images = calibration_images(41)
    assert len({*images}) == 11 and images == sorted(images) and images[0] >= 0 and images[-1] < 41
    assert {*calibration_images(41, 4)} < {*images} and len(calibration_images(41, 4)) == 4
    assert calibration_images(41, 99) == images and calibration_images(1) == [0]
    labels = np.random.default_rng(0).integers(-1, 3, (80, 90))
    places = sampled_pixels(labels, 5)
    assert len({*places.tolist()}) == 2000 and (labels.ravel()[places] >= 0).all()
    assert (places == sampled_pixels(labels, 5)).all() and (places != sampled_pixels(labels, 6)).any()
    assert abs(places.mean() - 3600) < 150
    assert sampled_pixels(labels[:3], 5).tolist() == np.flatnonzero(labels[:3].ravel() >= 0).tolist()


@pytest.fixture
def plain(run) -> Predictor:
    return Predictor.from_run(run.folder, "cpu")


def test_an_interrupted_calibration_continues_and_finds_the_same(run, plain, dataset, monkeypatch, caplog):
    undisturbed = calibrate(run, plain, dataset, taus=TAUS)
    (run.folder / FILE).unlink()
    outputs, seen = Predictor.outputs, []
    monkeypatch.setattr(Predictor, "outputs", lambda self, images: seen.append(1) or outputs(self, images))

    def stop(done, total):
        if done == 3:
            raise KeyboardInterrupt

    def interrupt():
        with pytest.raises(KeyboardInterrupt):
            calibrate(run, plain, dataset, taus=TAUS, progress=stop)

    interrupt()
    assert (run.folder / COUNTS).exists() and not (run.folder / FILE).exists()
    images, shown = len(calibration_images(dataset.splits["train"])), []
    assert calibrate(run, plain, dataset, taus=TAUS, progress=lambda *done: shown.append(done)) == undisturbed
    assert len(seen) == images and shown == [(done, images) for done in range(3, images + 1)]
    interrupt()
    seen.clear()
    assert calibrate(run, plain, dataset, taus=TAUS[1:]).trials == undisturbed.trials[1:]  # other counts begin again
    assert len(seen) == images
    (run.folder / COUNTS).write_bytes(b"no counts")
    assert calibrate(run, plain, dataset, taus=TAUS) == undisturbed
    assert "the calibration begins again" in caplog.text and not (run.folder / COUNTS).exists()


def test_killed_calibrations_lose_little(run, plain, dataset, monkeypatch):
    monkeypatch.setattr(calibrating, "_SAVED_EVERY", 2)
    written, write = [], calibrating._CountsFile.write
    monkeypatch.setattr(
        calibrating._CountsFile, "write", lambda file, counts: (written.append(counts.done), write(file, counts))
    )
    calibrate(run, plain, dataset, taus=TAUS)
    images = len(calibration_images(dataset.splits["train"]))
    assert written == sorted({*range(2, images + 1, 2), images})


def test_damaged_images_are_left_out_or_end_it(run, plain, dataset, monkeypatch):
    load, first = calibrating._load, calibration_images(dataset.splits["train"])[0]
    monkeypatch.setattr(calibrating, "_load", lambda split, n: DamagedImage("image 7") if n == first else load(split, n))
    with pytest.raises(DamagedImage, match="image 7; --skip-damaged leaves"):
        calibrate(run, plain, dataset, taus=TAUS)
    damaged = []
    found = calibrate(run, plain, dataset, taus=TAUS, damaged=damaged)
    assert len(damaged) == 1 and found.images == len(calibration_images(dataset.splits["train"])) - 1
    monkeypatch.setattr(calibrating, "_load", lambda split, n: DamagedImage("image 7"))
    with pytest.raises(
        DataError, match=r"none of the 1 training images .* has a labelled pixel; the first damaged one: image 7"
    ):
        calibrate(run, plain, dataset, taus=TAUS, limit=1, damaged=[])


@pytest.mark.parametrize("skips", [True, False])
def test_a_continued_calibration_reports_what_was_left_out_or_begins_again(run, plain, dataset, monkeypatch, skips):
    """The picture that was damaged before the interruption is repaired after it."""
    images = calibration_images(dataset.splits["train"])
    load = calibrating._load

    def stop(done, total):
        if done == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(calibrating, "_load", lambda split, n: DamagedImage("image 7") if n == images[1] else load(split, n))
        calibrate(run, plain, dataset, taus=TAUS, damaged=[], progress=stop)
    damaged, shown = [], []
    how = {"damaged": damaged if skips else None, "progress": lambda *done: shown.append(done)}
    found = calibrate(run, plain, dataset, taus=TAUS, **how)
    assert found.images == len(images) - skips and [*map(str, damaged)] == ["image 7"] * skips
    assert shown[0] == (3 * skips, len(images))


def test_images_are_seen_without_the_views_of_the_predictor(run, plain, dataset):
    views = Inference(flip=True, scales=(0.5, 1.0), window=40)
    blending = Predictor.from_run(run.folder, "cpu", inference=views)
    assert calibrate(run, blending, dataset, taus=TAUS) == calibrate(run, plain, dataset, taus=TAUS)


def test_what_cannot_be_calibrated_is_refused(run, plain, dataset, monkeypatch):
    for taus in ([101], [float("nan")], [float("-inf")]):
        with pytest.raises(DataError, match=r"expected -100\.\.100"):
            calibrate(run, plain, dataset, taus=taus)
    other = dataclasses.replace(dataset.vocabulary[1284], name="timber")
    vocabulary = Vocabulary([*dataset.vocabulary.classes[:-1], other])
    with pytest.raises(DataError, match="has another vocabulary than the run was trained with"):
        calibrate(Run(run.folder, run.config, vocabulary), plain, dataset)
    split = dataset.split("train")
    monkeypatch.setattr(type(split), "present", lambda split: tuple(np.zeros(0, int) for _ in range(3)))
    with pytest.raises(DataError, match="no pixel of split train has a class, so there is nothing to calibrate with"):
        calibrate(run, plain, dataset)
    assert not [path.name for path in run.folder.iterdir() if "calibration" in path.name]


def test_ties_go_to_the_value_closest_to_zero(run, plain, dataset, monkeypatch):
    monkeypatch.setattr(calibrating, "_miou", lambda pixels: 0.5)
    assert calibrate(run, plain, dataset, taus=(-0.1, 0.2), limit=1).tau == 0
    monkeypatch.setattr(calibrating, "_counts_of", lambda *_: torch.arange(4)[:, None, None].expand(4, 3, 1284))
    monkeypatch.setattr(calibrating, "_miou", lambda pixels: float(pixels[0, 0] != 1))  # tau 0 is the second
    assert calibrate(run, plain, dataset, taus=(-0.1, 0.2, 0.3), limit=1).tau == -0.1


def ess(command, run, *arguments, code=0):
    result = CliRunner().invoke(main, [command, str(run.folder), *map(str, arguments)])
    assert result.exit_code == code, result.output
    return result


def favoured(run: Run, label: int, tau: float = 0.5) -> Calibration:
    """A calibration that predicts the same class everywhere."""
    bias, trials = [0.0] * len(run.vocabulary), [Trial(0.0, 0.1), Trial(0.5, 0.2)]
    bias[label] = 1000.0
    checkpoint = run.checkpoints()[-1] / "model.safetensors"
    return Calibration(tau, bias, trials, 3, 40, "data", 1, sha256(checkpoint))


def test_the_command_calibrates_shows_and_clears(run, sample_dataset):
    found = json.loads(ess("calibrate", run, sample_dataset, "--taus", "0.25,0.5", "--device", "cpu", "--json").stdout)
    assert set(found) == {"tau", "miou", "miou_before", "images", "pixels", "step", "trials"}
    assert [trial["tau"] for trial in found["trials"]] == [0, 0.25, 0.5] and found["step"] == 1
    assert json.loads(ess("info", run, "--json").stdout)["calibration"] == {"tau": found["tau"], "step": 1}
    store_calibration(run, favoured(run, 4))
    assert "calibrated with tau 0.5 for checkpoint 1" in ess("info", run).stdout
    said = ess("calibrate", run, sample_dataset, "--taus", "0", "--limit", "2", "--device", "cpu").stdout
    assert re.search(r"tau 0 is the best of 1 values: the mIoU of [\d,]+ pixels sampled from 2 training images is 0\.", said)
    assert Predictor.from_run(run.folder, "cpu").bias is None
    assert "predictions are no longer calibrated" in ess("calibrate", run, "--clear").stdout
    assert "has no calibration" in ess("calibrate", run, "--clear").stdout
    assert json.loads(ess("info", run, "--json").stdout)["calibration"] is None
    ess("calibrate", run, code=2)
    ess("calibrate", run, sample_dataset, "--clear", code=2)


@pytest.mark.parametrize("tau", [-0.5, 0.25, 0.5])
def test_the_command_says_what_it_chose_and_how_to_undo_it(run, capsys, tau):
    trials = [Trial(tried, 0.2 if tried == tau else 0.15) for tried in (-0.5, 0.0, 0.25, 0.5)]
    found = msgspec.structs.replace(favoured(run, 4, tau), trials=trials, pixels=5000)
    print_choice(Path("my run"), found)
    first, *more, last = capsys.readouterr().out.splitlines()
    what = "the mIoU of 5,000 pixels sampled from 3 training images"
    assert first == f"tau {tau:g} is the best of 4 values: it raises {what}, from 0.1500 to 0.2000."
    assert more == ["It is the smallest or largest value that was tried; try more with --taus."] * (tau != 0.25)
    assert last.endswith("undo this with `ess calibrate 'my run' --clear`.")


def test_clearing_prints_json_and_refuses_what_it_would_ignore(run):
    store_calibration(run, favoured(run, 4))
    for ignored in (("--taus", "0.5"), ("--limit", 3), ("--skip-damaged",), ("--image-root", "pictures")):
        said = ess("calibrate", run, "--clear", *ignored, code=2).stderr
        assert "--clear is used without --taus, --limit, --skip-damaged and --image-root" in said
    for had_one in (True, False):
        assert json.loads(ess("calibrate", run, "--clear", "--json").stdout) == {"cleared": had_one}


def test_predictions_and_scores_use_it_until_it_is_cleared(run, plain, dataset, sample_dataset):
    image = dataset.split("val")[0].image()
    before = ess("eval", run, sample_dataset, "--limit", 2, "--device", "cpu", "--json").stdout
    store_calibration(run, favoured(run, 4))
    calibrated = Predictor.from_run(run.folder, "cpu")
    assert (calibrated(image) == 5).all() and not (plain(image) == 5).all()
    assert (calibrated.without_added_classes()(image) == 5).all()
    assert ess("eval", run, sample_dataset, "--limit", 2, "--device", "cpu", "--json").stdout != before
    ess("calibrate", run, "--clear")
    assert ess("eval", run, sample_dataset, "--limit", 2, "--device", "cpu", "--json").stdout == before


def test_a_calibration_of_another_checkpoint_is_left_out_with_a_warning(run, caplog):
    store_calibration(run, msgspec.structs.replace(favoured(run, 4), checkpoint="0" * 64))
    assert Predictor.from_run(run.folder, "cpu").bias is None
    (warning,) = caplog.records
    assert "was made with another checkpoint than step-00000001 and is left out; calibrate again" in warning.message


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content.pop("version"), r"format and version are \('ess-calibration', None\)"),
        (lambda content: content.pop("calibration"), "malformed"),
        (lambda content: content["calibration"].update(bias=[1.0]), "the bias is not 1284 finite numbers"),
        (lambda content: content["calibration"].update(tau=0.7), r"the trials lack tau 0\.7 or 0"),
        (lambda content: content.update(version=2), r"\('ess-calibration', 2\), expected \('ess-calibration', 1\)"),
    ],
)
def test_a_changed_file_is_one_line(run, change, message):
    store_calibration(run, favoured(run, 4))
    content = json.loads((run.folder / FILE).read_text())
    change(content)
    (run.folder / FILE).write_text(json.dumps(content))
    with pytest.raises(DataError, match=message) as caught:
        Predictor.from_run(run.folder, "cpu")
    assert "\n" not in str(caught.value)
    ess("calibrate", run, "--clear")
    Predictor.from_run(run.folder, "cpu")


def test_a_run_without_checkpoints_is_refused_in_one_line(run, sample_dataset):
    shutil.rmtree(run.folder / "checkpoints")
    said = ess("calibrate", run, sample_dataset, "--device", "cpu", code=1).stderr
    assert "holds no checkpoint yet" in said and said.strip().count("\n") == 0
    with pytest.raises(DataError, match="holds no"):
        Run.open(run.folder / "absent")
    save_file({"pixels": torch.zeros(1)}, run.folder / COUNTS)  # of an unfinished one
    ess("calibrate", run, "--clear")
    assert not (run.folder / COUNTS).exists()
