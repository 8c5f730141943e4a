"""Training: the files of a run, its steps compared with a plain loop, presets, and refusals."""

import copy
import errno
import json
import os
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from click.testing import CliRunner
from effects import Steps
from import_trees import make_picture, write_labels
from runs import config, same, weights
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cli.cocolvis import main as cocolvis
from cocolvis.disk.files import sha256
from cocolvis.errors import DataError
from cocolvis.storage.dataset import Dataset
from ess.config import load, preset_names, variant, variant_names
from ess.data.loader import training_batches
from ess.data.transforms import normalize
from ess.evaluation.evaluate import check_readable, evaluate
from ess.inference.predictor import Predictor
from ess.models.build import model_from_config
from ess.training import journal
from ess.training import loop as training
from ess.training.loop import train
from ess.training.objective import check_device

EXACT = "donot_use_mm_for_euclid_dist"
SMALL_ENCODER = {"encoder": "mobilenetv2_100"}
SIBLINGS = {
    "convnext_base": "convnext_tiny",
    "swin_base_patch4_window7_224": "swin_tiny_patch4_window7_224",
    "vit_base_patch14_dinov2": "vit_small_patch14_dinov2",
    "vit_base_patch16_dinov3": "vit_small_patch16_dinov3",
}
"""Encoder of a variant -> the smallest encoder of its family."""


def test_a_run_holds_settings_vocabulary_and_checkpoints(run, dataset):
    content = json.loads((run.folder / "run.json").read_text())
    assert content["settings"]["batch_size"] == 3
    assert content["vocabulary"]["digest"] == dataset.vocabulary.digest
    assert [path.name for path in run.checkpoints()] == ["step-00000002", "step-00000004"]
    state = json.loads((run.checkpoints()[-1] / "state.json").read_text())
    settings = content["settings"]
    files = state.pop("sha256")
    assert {name: sha256(run.checkpoints()[-1] / name) for name in files} == files and len(files) == 2
    assert state == {"step": 4, "vocabulary": dataset.vocabulary.digest, "scores": None, "settings": settings}
    assert list((run.folder / "tensorboard").rglob("events.*"))


def test_training_moves_every_parameter_group(run):
    before, after = weights(run.folder, 2), weights(run.folder, 4)
    for prefix in ("encoder.", "decoder.", "class_embeddings"):
        assert any(not torch.equal(before[n], after[n]) for n in before if n.startswith(prefix)), prefix


def test_a_run_equals_a_plain_loop(dataset, tmp_path):
    """The published optimiser and schedule, the margin penalty and averaged weights, step by step in plain torch."""
    chosen = config(steps=2, keep=9, loss="exact", margin=1.0, ema=0.5, warmup=1, weight_decay=0.01)
    run = train(dataset, tmp_path / "run", chosen)
    torch.manual_seed(chosen.seed)
    model = model_from_config(chosen, len(dataset.vocabulary), weights=None).train()
    average = copy.deepcopy(model.state_dict())
    rates = {
        "encoder": (chosen.lr * chosen.encoder_lr, chosen.momentum, chosen.power),
        "decoder": (chosen.lr, chosen.momentum, chosen.power),
        "classes": (chosen.lr, chosen.embedding_momentum, chosen.embedding_power),
    }
    groups = [{"params": model.parameter_groups()[name], "momentum": momentum} for name, (_, momentum, _) in rates.items()]
    optimizer = torch.optim.SGD(groups, lr=0, weight_decay=0.01)
    for step, batch in enumerate(training_batches(dataset.split("train"), chosen, 2)):
        for group, (lr, _, power) in zip(optimizer.param_groups, rates.values(), strict=True):
            group["lr"] = max(min(1, (step + 1) / 2) * lr * (1 - step / 2) ** power, chosen.min_lr)
        images, labels, *_ = batch.render(chosen.crop, torch.device("cpu"))
        training.seed_step(chosen.seed, step, 0)
        embeddings, classes = model(normalize(images)).permute(0, 2, 3, 1), model.classes()
        logits = -chosen.temperature * torch.cdist(embeddings.flatten(0, 2), classes, compute_mode=EXACT)
        gaps = torch.cdist(classes, classes, compute_mode=EXACT) + 9 * torch.eye(len(classes))
        loss = F.cross_entropy(logits, labels.flatten().long(), ignore_index=-1) + (1 - gaps.amin(dim=1)).clamp_min(0).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        for name, value in model.state_dict().items():
            average[name] = (average[name] + value) / 2 if value.is_floating_point() else value
    start, kept, raw = weights(run.folder, 0), weights(run.folder, 2), weights(run.folder, 2, "training")
    plain, learned = model.state_dict(), [name for name, _ in model.named_parameters()]
    for group in ("encoder.", "decoder.", "class_embeddings", "running"):
        names = [n for n in plain if (group in n if group == "running" else n in learned and n.startswith(group))]
        moved = sum((plain[n] - start[n]).square().sum() for n in names)
        for found, expected in (({n: raw[f"weights/{n}"] for n in names}, plain), (kept, average)):
            error = sum((found[n] - expected[n]).square().sum() for n in names)
            assert error < 0.02**2 * moved, group


@pytest.mark.parametrize(
    "settings",
    [
        {"loss": "exact"},
        {"search": "clustered", "query_stride": 4},
        {"loss": "exact", "logit_adjustment": 1.0, "class_weight_power": 0.5, "repeat_threshold": 0.5},
        {"loss": "dense"},
        {"negatives": "random"},
        {"negatives": "published", "normalize": "quarter"},
        {"distance": "cosine", "margin": 0.0, "norm": "group"},
        {"precision": "bf16", "accumulate": 3, "norm": "group", "channels_last": True},
        {"precision": "fp16", "optimizer": "adamw", "lr": 1e-4, "warmup": 1, "ema": 0.9},
        {"loss": "exact", "federated": True, "class_crop": 0.5, "color_jitter": 0.5, "dropout": 0.2, "freeze_bn": True},
    ],
)
def test_every_kind_of_training_works(dataset, tmp_path, settings):
    run = train(dataset, tmp_path / "run", config(steps=2, **settings))
    assert all(torch.isfinite(value).all() for value in weights(run.folder, 2).values())


def test_a_run_shows_pictures_embeddings_and_scores_by_group(dataset, tmp_path):
    run = train(dataset, tmp_path / "run", config(steps=1, eval_every=1, eval_limit=2))
    board = EventAccumulator(str(next((run.folder / "tensorboard").iterdir())))
    board.Reload()
    tags = board.Tags()
    assert {"train/loss", "train/lr", "val/miou", "val/miou_stuff"} <= set(tags["scalars"])
    assert len(tags["images"]) == journal.PICTURES
    (labels,) = (run.folder / "tensorboard").rglob("metadata.tsv")
    assert len(labels.read_text().splitlines()) == 1285


def test_without_a_compiler_a_network_is_not_compiled_and_the_run_does_not_begin(dataset, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        DataError, match=r"compile needs a C\+\+ compiler, and there is no \S+; install it, or leave out --compile"
    ):
        train(dataset, tmp_path / "run", config(compile=True))
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif("TRITON_INTERPRET" in os.environ, reason="the interpreter searches on the CPU")
@pytest.mark.parametrize("given", [{"loss": "knn"}, {"loss": "knn", "negatives": "published", "query_stride": 4}])
def test_a_search_that_the_device_does_not_have_is_refused_before_the_run_begins(dataset, tmp_path, given):
    with pytest.raises(DataError, match=r"search is 'triton', .* but the device is cpu; choose --search auto") as caught:
        train(dataset, tmp_path / "run", config(search="triton", device="cpu", **given))
    assert "\n" not in str(caught.value) and not (tmp_path / "run").exists()
    train(dataset, tmp_path / "run", config(search="triton", device="cpu", steps=1, loss="exact"))


def test_more_negatives_than_a_search_finds_are_refused_unless_there_are_fewer_classes(monkeypatch):
    monkeypatch.setattr("ess.kernels.gpu.probe.works", lambda device: True)
    gpu, many = torch.device("cuda"), config(loss="knn", search="triton", k=100)
    with pytest.raises(DataError, match=r"search is 'triton', which finds at most 65 .*, not 101; choose --search auto"):
        check_device(many, 1284, gpu)
    check_device(many, 65, gpu)
    check_device(replace(many, k=64), 1284, gpu)
    check_device(replace(many, negatives="random"), 1284, gpu)


def test_a_loss_that_is_not_finite_stops_with_step_lr_and_images(dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "optimise", lambda *inputs: torch.tensor(torch.nan))
    with pytest.raises(DataError, match=r"loss is nan at step 1, lr 0.01, images \[\d+, \d+, \d+\]"):
        train(dataset, tmp_path / "run", config())


def test_out_of_memory_names_batch_and_crop(dataset, tmp_path, monkeypatch):
    def exhausted(*arguments):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(training, "optimise", exhausted)
    with pytest.raises(DataError, match="out of memory; try a --batch-size below 3, a --crop below 48, or --accumulate"):
        train(dataset, tmp_path / "run", config())


@pytest.mark.parametrize("settings", [{"compile": True, "batch_size": 1}, {"batch_size": 3, "accumulate": 3}])
def test_steps_on_one_image_at_a_time_are_refused_before_the_run_begins(dataset, tmp_path, settings):
    with pytest.raises(DataError, match="BatchNorm of the decoder cannot learn from 1 image at a time"):
        train(dataset, tmp_path / "run", config(**settings))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("part", ["model_from_config", "TrainingState", "_begin", "_resume", "Guard"])
def test_a_network_that_does_not_fit_the_memory_is_one_line(dataset, tmp_path, monkeypatch, part):
    if part == "_resume":
        train(dataset, tmp_path / "run", config(steps=1))
    Steps(monkeypatch)

    def exhausted(*arguments, **settings):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(training, part, exhausted)
    told = r"^out of memory; the network and its optimiser do not fit this device \(cpu, .*\); choose a smaller --encoder or an"
    with pytest.raises(DataError, match=told) as caught:
        train(dataset, tmp_path / "run", config(steps=2), resume=part == "_resume")
    assert "--crop" not in str(caught.value) and "\n" not in str(caught.value)


def assert_preset_trains(dataset, folder, name, **settings):
    """Two steps at 64 pixels without downloaded weights, one of them after a resume; then an evaluation."""
    flags = {"weights": "none", "steps": 1, "batch_size": 2, "crop": 64, "workers": 0, "eval_every": None, "keep": 1}
    train(dataset, folder, load(name, None, flags | settings))
    trained = train(dataset, folder, load(name, None, flags | settings | {"steps": 2}), resume=True)
    assert [path.name for path in trained.checkpoints()] == ["step-00000002"]
    assert evaluate(Predictor.from_run(folder, "cpu"), dataset, limit=1)["images"] == 1


OTHER_SCORES = {"mean_accuracy": 0.5, "fw_iou": 0.5, "groups": {}}

SHORT = ("demo", "coco-lvis", "published", "group-norm", "long-tail", "baseline")
"""Presets and variants of the short form."""


def all_or_few(names):
    """The names, those that are not of the short form left to the long one."""
    return [name if name in SHORT else pytest.param(name, marks=pytest.mark.long) for name in names]


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_evaluates_once_an_epoch_on_some_images(name):
    chosen = load(name)
    assert (chosen.eval_every, chosen.eval_limit) == ("epoch", 8 if name == "demo" else 1000)


def test_a_run_of_a_preset_keeps_its_best_checkpoint(dataset, tmp_path, monkeypatch):
    """Three epochs of ten steps, then two steps of a fourth; the second one is the best."""
    scored = iter([0.1, 0.3, 0.2, 0.1])
    monkeypatch.setattr(training, "scores_of", lambda *a, **k: {"miou": next(scored), "pixel_accuracy": 0.5} | OTHER_SCORES)
    made = Steps(monkeypatch)
    flags = {"steps": 32, "weights": "none", "crop": 16, "batch_size": 3, "workers": 0, "keep": 1, "track": "none"}
    run = train(dataset, tmp_path / "run", load("coco-lvis", None, flags | {"device": "cpu", "eval_limit": 1}))
    assert len(dataset.split("train")) == 30 and len(made) == 32
    assert {c.step: c.scores["miou"] for c in run.listed()} == {20: 0.3, 32: 0.1} and run.best().step == 20


@pytest.mark.parametrize("name", all_or_few(preset_names()))
def test_every_preset_trains_is_resumed_and_evaluated(dataset, tmp_path, name):
    assert_preset_trains(dataset, tmp_path / "run", name, **SMALL_ENCODER)


@pytest.mark.parametrize("name", all_or_few(variant_names()))
def test_every_variant_trains_is_resumed_and_evaluated(dataset, tmp_path, name):
    encoder = SIBLINGS.get(variant(name).get("encoder"), "mobilenetv2_100")
    assert_preset_trains(dataset, tmp_path / "run", f"coco-lvis+{name}", encoder=encoder)


@pytest.mark.long
@pytest.mark.parametrize("name", [name for name in preset_names() if name != "demo"])
@pytest.mark.parametrize("system", ["", "+baseline", "+group-norm", "+baseline+group-norm"])
def test_every_system_of_the_paper(dataset, tmp_path, name, system):
    assert_preset_trains(dataset, tmp_path / "run", name + system)


@pytest.mark.long
@pytest.mark.parametrize("encoder", ["mobilenetv2_100", "resnet50", "resnet101"])
@pytest.mark.parametrize("output_stride", [8, 16])
def test_every_network_of_the_paper(dataset, tmp_path, encoder, output_stride):
    assert_preset_trains(dataset, tmp_path / "run", "coco-lvis", encoder=encoder, output_stride=output_stride)


@pytest.mark.long
def test_the_papers_preset_trains_on_real_images(real, tmp_path):
    flags = {"weights": "none", "steps": 2, "batch_size": 2, "crop": 64, "workers": 0, "eval_limit": 1}
    trained = train(Dataset.open(real.data), tmp_path / "run", load("coco-lvis", None, flags))
    assert all(torch.isfinite(value).all() for value in weights(trained.folder, 2).values())


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ("none", "has no split 'val'; it has train"),
        ("empty", "split val has no images"),
        ("shard", "absent.h5: does not exist"),
        ("picture", "cannot be decoded"),
    ],
)
def test_what_an_evaluation_needs_is_looked_at_before_the_first_step(dataset, tmp_path, monkeypatch, fault, told):
    index = copy.deepcopy(dataset.index)
    if fault == "picture":
        monkeypatch.setattr("cocolvis.pictures.encoded.decode_rgb", broken)
    elif fault == "shard":
        index["shards"] = [s | ({"file": "shards/absent.h5"} if s["split"] == "val" else {}) for s in index["shards"]]
    else:
        index["shards"] = [s for s in index["shards"] if s["split"] != "val"]
        index["splits"] = {n: s for n, s in index["splits"].items() if n != "val"}
        if fault == "empty":
            index["splits"]["val"] = {**dataset.index["splits"]["val"], "images": 0}
    with pytest.raises(
        DataError, match=f"({told}).*evaluations need this; repair it, or train with --eval-every none"
    ) as caught:
        train(Dataset(dataset.folder, index), tmp_path / "run", config(eval_every=2))
    assert "\n" not in str(caught.value) and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("limit", "damaged", "trains"),
    [
        (2, (0, 1), False),
        (1, (0, 3), False),
        (None, (0, 1), True),
        (3, (0, 1), True),
        (1, (3,), True),
        (2, (1, 2, 3), True),
        (9, (0, 1, 2, 3), True),
    ],
)
def test_an_evaluation_that_would_skip_all_its_images_is_refused_before_the_first_step(dataset, limit, damaged, trains):
    images = dataset.split("val")
    contents = [images[index].content for index in damaged]

    def decode(content, *arguments):
        return broken(content) if content in contents else None

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cocolvis.pictures.encoded.decode_rgb", decode)
        if trains:
            check_readable(dataset, "val", limit=limit, skip_damaged=True)
            return
        told = rf"none of the {limit} images to evaluate on can be read; the first: .*evaluations need this"
        with pytest.raises(DataError, match=told):
            check_readable(dataset, "val", limit=limit, skip_damaged=True)


def test_a_tracker_that_cannot_write_is_one_line(dataset, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "tensorboard").write_text("a file")
    with pytest.raises(DataError, match=r"run: the curves of --track tensorboard cannot be written: .+$"):
        train(dataset, tmp_path / "run", config(steps=1))


def test_a_tracker_that_cannot_start_is_one_line_before_the_run_begins(dataset, tmp_path, monkeypatch):
    def refuse(*arguments, **settings):
        raise RuntimeError("No API key configured.\nUse `wandb login` to log in.")

    with monkeypatch.context() as patch:
        patch.setattr(Accelerator, "init_trackers", refuse)
        with pytest.raises(DataError, match=r"the curves of --track tensorboard cannot be written: No API key configured\.$"):
            train(dataset, tmp_path / "run", config(steps=1))
    assert not [*tmp_path.rglob("run.json"), *tmp_path.rglob("checkpoints")]
    train(dataset, tmp_path / "run", config(steps=1))


def test_a_tracker_that_fails_costs_no_step(dataset, tmp_path, monkeypatch, caplog):
    def fail(*arguments, **settings):
        raise ValueError("the server\nis gone")

    monkeypatch.setattr(Accelerator, "log", fail)
    run = train(dataset, tmp_path / "run", config(steps=2, log_every=1))
    assert [path.name for path in run.checkpoints()][-1] == "step-00000002"
    said = [record.getMessage() for record in caplog.records if "curves" in record.getMessage()]
    assert said == ["the curves end here: the server; the training continues without them"]


def test_curves_that_can_no_longer_be_written_cost_no_step(dataset, tmp_path, monkeypatch, caplog, capfd):
    from tensorboard.summary.writer.record_writer import RecordWriter

    def refuse(writer, data, write=RecordWriter.write):
        if b"train/loss" in data:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(writer, data)

    monkeypatch.setattr(RecordWriter, "write", refuse)
    with caplog.at_level("INFO", "ess"):
        run = train(dataset, tmp_path / "run", config(steps=2, log_every=1, eval_every=1, eval_limit=1))
    assert [path.name for path in run.checkpoints()][-1] == "step-00000002"
    said = [record.getMessage() for record in caplog.records if "curves" in record.getMessage()]
    assert said == ["the curves end here: No space left on device; the training continues without them"]
    assert "Traceback" not in capfd.readouterr().err


def broken(content, expected=None):
    raise ValueError("the picture cannot be decoded")


def test_variables_of_accelerate_change_nothing(run, dataset, tmp_path, monkeypatch):
    variables = {
        "GRADIENT_ACCUMULATION_STEPS": "4",
        "MIXED_PRECISION": "bf16",
        "DYNAMO_BACKEND": "inductor",
        "USE_FSDP": "true",
    }
    for name, value in (variables | {"USE_DEEPSPEED": "true", "DOWNCAST_BF16": "yes", "USE_MEGATRON_LM": "true"}).items():
        monkeypatch.setenv(f"ACCELERATE_{name}", value)
    other = train(dataset, tmp_path / "run", config(track="none"))
    assert same(weights(other.folder, 4), weights(run.folder, 4))
    assert os.environ["ACCELERATE_MIXED_PRECISION"] == "bf16"


def test_more_classes_than_an_int16_holds(tmp_path):
    """Each picture is half a class above 32,767 and half one below; training moves the embeddings of both."""
    high, low = 40_000, 7
    masks = np.full((2, 40, 40), low, np.uint16)
    masks[:, 20:] = high
    for split in ("train", "val"):
        for number, mask in enumerate(masks):
            make_picture(tmp_path / "tree" / "images" / split / f"{number}.jpg", (40, 40), number)
            write_labels(tmp_path / "tree" / "masks" / split / f"{number}.png", mask)
    (tmp_path / "tree" / "classes.txt").write_text("".join(f"class {n}\n" for n in range(1, high + 1)))
    how = CliRunner().invoke(
        cocolvis, ["import", "folder", str(tmp_path / "tree"), "--out", str(tmp_path / "data"), "--workers", "1"]
    )
    assert how.exit_code == 0, how.output
    dataset = Dataset.open(tmp_path / "data")
    settings = config(
        steps=1, batch_size=2, dim=4, margin=0.0, weight_decay=0.0, k=3, keep=9, track="none", scale_min=1, scale_max=1
    )
    trained = train(dataset, tmp_path / "run", settings)
    batch = next(training_batches(dataset.split("train"), settings, 1))
    labels = batch.render(48, torch.device("cpu")).labels
    assert labels.unique().tolist() == [-1, low - 1, high - 1]
    before, after = (weights(trained.folder, step)["class_embeddings"] for step in (0, 1))
    moved = (before != after).any(dim=1)
    assert moved[low - 1] and moved[high - 1] and moved.sum() < 4 * 48 * 48 * 2


def test_evaluation_during_training_stands_in_the_checkpoint(dataset, tmp_path):
    run = train(dataset, tmp_path / "run", config(steps=1, eval_every=1, eval_limit=2))
    scores = json.loads((run.checkpoints()[-1] / "state.json").read_text())["scores"]
    assert scores["images"] == 2


def test_an_evaluation_that_does_not_fit_the_memory_gives_advice_for_a_training(dataset, tmp_path, monkeypatch):
    def exhausted(*arguments):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("ess.models.network.SegmentationModel.classify_coarse", exhausted)
    told = r"the image is \d+ x \d+; train with --eval-every none, and evaluate the run with `ess eval --window`$"
    with pytest.raises(DataError, match=told):
        train(dataset, tmp_path / "run", config(steps=1, eval_every=1, track="none"))


def test_the_rate_is_that_of_the_steps_without_the_first_and_without_evaluations(monkeypatch, caplog, tmp_path):
    now, points = [0.0], {}
    monkeypatch.setattr(journal.time, "monotonic", lambda: now[0])

    class Team:
        trackers, is_main_process = [], True
        init_trackers = end_training = staticmethod(lambda *_, **__: None)

        def log(self, values, step):
            points[step] = values.get("train/images_per_second", points.get(step))

    scores = {"miou": 0.5, "pixel_accuracy": 0.5, "mean_accuracy": 0.5, "fw_iou": 0.5, "groups": {}}
    with journal.Journal(Team(), tmp_path, config(batch_size=4, log_every=2), 0, 8) as told, caplog.at_level("INFO", "ess"):
        now[0] += 100  # loaders start, kernels are compiled
        for done in range(1, 9):
            told.step(done, 1.0, 0.1)
            if done == 5:
                now[0] += 50
                told.evaluation(done, scores)
            now[0] += 2
    assert {step: points[step] for step in (2, 4, 6, 8)} == dict.fromkeys((2, 4, 6, 8), 2.0)
    assert "2.0 images/s  ETA 0:00:12" in caplog.text
