"""The command line ``ess``: from training to prediction, refused input, help and documentation."""

import json
import re
import shutil
from pathlib import Path

import click
import cv2
import numpy as np
import pytest
from click.testing import CliRunner

from cli.ess import main
from cli.run_options import inference_options
from ess.config import Config
from ess.inference.views import Inference

DOCS = Path(__file__).parents[2] / "docs" / "ess.md"
SMALL = ["--encoder", "mobilenetv2_100", "--weights", "none", "--crop", "48", "--batch-size", "2", "--workers", "0"]


@pytest.mark.parametrize(
    ("given", "flip", "scales"),
    [
        ("", False, (1.0,)),
        ("--flip --scales 0.5,1", True, (0.5, 1.0)),
        ("--tta", True, (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)),
        ("--tta --scales 1,2", True, (1.0, 2.0)),
    ],
)
def test_options_give_the_views_of_an_image(given, flip, scales):
    @click.command()
    @inference_options
    def look(**settings):
        assert Inference(**settings) == Inference(flip=flip, scales=scales)

    assert CliRunner().invoke(look, given.split()).exit_code == 0


def ess(*arguments, code=0):
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result


@pytest.fixture(scope="module")
def run(sample_dataset, tmp_path_factory):
    out = tmp_path_factory.mktemp("cli") / "run"
    ess("train", sample_dataset, "--out", out, *SMALL, "--steps", 2, "--log-every", 1)
    return out


def test_train_logs_loss_rate_and_eta(run, sample_dataset, tmp_path):
    result = ess("train", sample_dataset, "--out", tmp_path / "run", *SMALL, "--steps", 2, "--log-every", 1)
    assert "step 2/2  loss " in result.stderr and "images/s  ETA 0:00:00" in result.stderr
    assert f"ess eval {tmp_path / 'run'} {sample_dataset}" in result.stdout


def test_resume_goes_on_with_the_settings_of_the_run(run, sample_dataset):
    result = ess("train", sample_dataset, "--out", run, "--resume", "--steps", 3, "--log-every", 1)
    assert "at step 2" in result.stderr and "step 3/3" in result.stderr
    settings = json.loads((run / "run.json").read_text())["settings"]
    assert (settings["steps"], settings["crop"]) == (3, 48)
    result = ess(
        "train", sample_dataset, "--out", run, *SMALL, "--preset", "coco-lvis", "--loss", "auto", "--steps", 4, "--resume"
    )
    assert "resumed" in result.stderr and "step 4/4" in result.stderr
    message = ess("train", sample_dataset, "--out", run, "--preset", "coco-lvis", "--loss", "auto", "--resume", code=1).stderr
    assert "was begun with encoder 'mobilenetv2_100', not 'resnet50.tv_in1k'" in message


def test_resume_without_flags_keeps_the_recorded_settings_whatever_changed_since(sample_dataset, tmp_path, monkeypatch):
    """All defaults and the preset change between the two commands."""
    ess("train", sample_dataset, "--out", tmp_path / "run", *SMALL, "--preset", "demo", "--steps", 1, "--eval-every", "none")
    before = json.loads((tmp_path / "run" / "run.json").read_text())["settings"]
    others = {"lr": 0.7, "flip": 0.9, "margin": 0.9, "eval_every": 1, "clip_norm": 3.0, "keep": 7, "k": 3, "epochs": 9}
    for name, value in others.items():
        assert before[name] != value
        monkeypatch.setitem(Config.__init__.__kwdefaults__, name, value)
    assert Config().k == 3
    monkeypatch.setattr("ess.config.preset", lambda name: others)
    assert "at step 1" in ess("train", sample_dataset, "--out", tmp_path / "run", "--resume").stderr
    assert json.loads((tmp_path / "run" / "run.json").read_text())["settings"] == before
    assert "step 2/2" in ess("train", sample_dataset, "--out", tmp_path / "run", "--resume", "--steps", 2).stderr
    after = json.loads((tmp_path / "run" / "run.json").read_text())["settings"]
    assert after == before | {"steps": 2} and before["eval_every"] is None


def test_a_run_can_be_repeated_from_the_settings_that_it_keeps(run, sample_dataset, tmp_path):
    ess("train", sample_dataset, "--out", tmp_path / "again", "--config", run / "settings.toml", "--steps", 2)
    first, again = (json.loads((folder / "run.json").read_text())["settings"] for folder in (run, tmp_path / "again"))
    assert again == first | {"steps": 2}


def test_flags_of_the_search_need_the_loss_that_searches(sample_dataset, tmp_path):
    told = ess("train", sample_dataset, "--out", tmp_path / "run", *SMALL, "--steps", 1, "--query-stride", 4, code=1).stderr
    expected = "--query-stride 4 has no effect: loss is 'auto', which is 'exact' for 1284 classes; choose --loss knn"
    assert expected in told and not (tmp_path / "run").exists()
    arguments = ("--preset", "coco-lvis", "--k", 3)
    told = ess("train", sample_dataset, "--out", tmp_path / "run", *SMALL, "--steps", 1, *arguments, code=1).stderr
    assert "--k 3 has no effect: loss is 'dense'; choose --loss knn, or leave it out" in told
    ess("train", sample_dataset, "--out", tmp_path / "run", *SMALL, "--steps", 1, "--k", 3, "--loss", "knn")


def test_flags_and_variants_of_embeddings_need_a_loss_that_has_some(sample_dataset, tmp_path):
    arguments = ("train", sample_dataset, "--out", tmp_path / "run", *SMALL, "--steps", 1)
    told = ess(*arguments, "--loss", "dense", "--dim", 12, code=1).stderr
    assert "--dim 12 has no effect: loss is 'dense'; choose --loss exact or knn, or leave it out" in told
    told = ess(*arguments, "--preset", "coco-lvis+no-margin", code=1).stderr
    assert "the variant no-margin has no effect: loss is 'dense'; choose --loss exact or knn, or leave it out" in told
    assert not (tmp_path / "run").exists()
    ess(*arguments, "--preset", "coco-lvis+exact+no-margin")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("--arch fpn --output-stride 8", "--output-stride 8 has no effect: arch is 'fpn', .*; choose --arch deeplabv3plus, or"),
        ("--arch unet --dropout 0.2", "--dropout 0.2 has no effect: arch is 'unet', whose decoder has no dropout; choose"),
        ("--loss knn --negatives random --search torch", "--search torch has no effect: negatives is 'random', .*; choose --n"),
        ("--loss knn --negatives random --query-stride 4", "--query-stride 4 has no effect: negatives is 'random'"),
        ("--loss dense --embedding-momentum 0.5", "--embedding-momentum 0.5 has no effect: loss is 'dense'; choose --loss ex"),
        ("--eval-limit 9", "--eval-limit 9 has no effect: eval_every is none, .*; choose --eval-every epoch, or"),
        ("--preset ", "no preset ''; there are coco-lvis, demo"),
        ("--preset coco-lvis+", "no variant ''; there are baseline"),
    ],
)
def test_flags_without_an_effect_are_refused_in_one_line(sample_dataset, tmp_path, arguments, told):
    how = ("train", sample_dataset, "--out", tmp_path / "run", *SMALL, "--steps", 1, *arguments.split(" "))
    said = ess(*how, code=1).stderr
    assert re.search(told, said) and said.strip().count("\n") == 0 and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        "--arch linear --dropout 0.2 --encoder resnet18",
        "--preset coco-lvis+random-negatives --k 3 --eval-limit 1",
        pytest.param(
            "--preset paper-ade20k+swin-upernet --encoder swin_tiny_patch4_window7_224 --eval-limit 1", marks=pytest.mark.long
        ),
        "--preset coco-lvis+published+baseline --output-stride 8 --eval-limit 1",
    ],
)
def test_flags_presets_and_variants_that_combine_train(sample_dataset, tmp_path, arguments):
    ess("train", sample_dataset, "--out", tmp_path / "run", *SMALL, "--steps", 1, *arguments.split())
    assert (tmp_path / "run" / "checkpoints" / "step-00000001" / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("predict absent data --out out --format shards --every 5", "--format shards is used without --every"),
        ("add-class absent --list --value 3", "--value is used with --name, --images and --masks"),
        ("add-class absent --remove a --value 0", "--value is used with --name, --images and --masks"),
        ("add-class absent --list --images a.png", "expected one of"),
        ("add-class absent --remove a --masks a.png", "expected one of"),
        ("add-class absent --name a --images a.png", "expected one of"),
        ("report absent data --out r.html --no-figures --coco c --lvis l", "--no-figures is used without --coco and --lvis"),
        ("bench --only train --data x --budget 1e-9", "--data is only used for loading; add --only loading, or leave it out"),
        ("bench --only train --workers 3 --budget 1e-9", "--workers is only used for loading; add --only loading, or leave it"),
    ],
)
def test_options_that_would_be_ignored_are_wrong_usage(arguments, told):
    assert told in ess(*arguments.split(), code=2).stderr


def test_other_data_can_only_be_allowed_on_resume(sample_dataset, tmp_path):
    told = ess("train", sample_dataset, "--out", tmp_path / "run", *SMALL, "--allow-other-data", code=2).stderr
    assert "--allow-other-data is used with --resume" in told and not (tmp_path / "run").exists()


def test_weights_cannot_change_on_resume(run, sample_dataset):
    told = ess("train", sample_dataset, "--out", run, "--resume", "--weights", "other.safetensors", code=1).stderr
    assert "was begun with weights 'none', not 'other.safetensors'; it cannot change on --resume" in told
    assert json.loads((run / "run.json").read_text())["settings"]["weights"] == "none"


def test_resume_names_the_settings_that_change(sample_dataset, tmp_path):
    how = ("train", sample_dataset, "--out", tmp_path / "run", "--track", "none")
    ess(*how, *SMALL, "--steps", 1, "--lr", 0.003)
    assert "settings change" not in ess(*how, "--resume").stderr
    told = ess(*how, "--resume", "--steps", 2, "--ema", 0).stderr
    assert "settings change: steps 1 -> 2" in told.splitlines()
    (tmp_path / "some.toml").write_text('encoder = "mobilenetv2_100"\nweights = "none"\ncrop = 64\nbatch_size = 3\nsteps = 3\n')
    told = ess(*how, "--resume", "--config", tmp_path / "some.toml", "--workers", 0).stderr
    assert "settings change: steps 2 -> 3, batch_size 2 -> 3, lr 0.003 -> 0.01, crop 48 -> 64" in told.splitlines()
    told = ess(*how, "--resume", "--epochs", 1, "--freeze-bn").stderr
    assert "settings change: freeze_bn false -> true, steps 3 -> none, epochs none -> 1" in told.splitlines()


def test_info_prints_settings_and_checkpoints(sample_dataset, tmp_path):
    more = ("--eval-every", 1, "--eval-limit", 1, "--save-every", 1, "--keep", 3)
    ess("train", sample_dataset, "--out", tmp_path / "run", *SMALL, "--steps", 2, *more)
    found = json.loads(ess("info", tmp_path / "run", "--json").stdout)
    assert (found["classes"], found["steps"], found["changed"]["crop"]) == (1284, 2, 48) and "dim" not in found["changed"]
    assert [c["step"] for c in found["checkpoints"]] == [0, 1, 2] and sum(c["best"] for c in found["checkpoints"]) == 1
    text = ess("info", tmp_path / "run").stdout
    assert "deeplabv3plus with mobilenetv2_100, loss exact, 1284 classes" in text and text.count("best") == 1


def test_info_prints_a_learnt_temperature(sample_dataset, tmp_path):
    ess("train", sample_dataset, "--out", tmp_path / "run", *SMALL, "--steps", 1, "--temperature", "learnt")
    assert json.loads((tmp_path / "run" / "run.json").read_text())["settings"]["temperature"] == "learnt"
    found = [c["temperature"] for c in json.loads(ess("info", tmp_path / "run", "--json").stdout)["checkpoints"]]
    text = ess("info", tmp_path / "run").stdout
    assert found[0] == pytest.approx(20) and 1 <= found[1] != found[0]
    assert f"{found[1]:.2f}" in text.splitlines()[-1] and "temperature" in text
    told = ess("train", sample_dataset, "--out", tmp_path / "run", "--resume", "--temperature", 5, code=1).stderr
    assert "was begun with temperature 'learnt', not 5.0; it cannot change on --resume" in told
    told = ess("train", sample_dataset, "--out", tmp_path / "new", "--temperature", "warm", code=2).stderr
    assert "'warm' is not a valid float or one of the words learnt" in told


def test_info_lets_no_file_steer_the_terminal(run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "run")
    described = json.loads((copy / "run.json").read_text())
    described["settings"] |= {"weights": "\x1b[31m\u202e.safetensors", "track": "\x9b2J\u200b"}
    (copy / "run.json").write_text(json.dumps(described))
    said = ess("info", copy, code=1).stderr
    assert not {c for c in said if not c.isprintable()} - {"\n"} and r"\x1b[31m\u202e" in said
    (copy / "run.json").write_text((run / "run.json").read_text().replace('"auto"', '"a\x1b[31mo"'))
    assert "\x1b" not in ess("info", copy, code=1).stderr


def test_the_log_lets_no_file_steer_the_terminal(run, sample_dataset, tmp_path):
    """Of a training, its progress is logged, and of all commands the warnings."""
    copy = shutil.copytree(run, tmp_path / "a\x1b[31m\u202e\n")
    said = ess("train", sample_dataset, "--out", copy, "--resume", "--steps", 6, "--log-every", 1).stderr
    assert said.count("step 6/6  loss ") == 1 and said.count(rf"resumed {tmp_path}/a\x1b[31m\u202e\n at step") == 1
    (copy / "checkpoints" / "step-00000006" / "model.safetensors").write_bytes(b"")
    said += (told := ess("eval", copy, sample_dataset, "--limit", 1).stderr)
    assert told.count(r"a\x1b[31m\u202e\n/checkpoints/step-00000006/model.safetensors: was changed") == 1
    assert not {c for c in said if not c.isprintable()} - {"\n"}


def test_eval_prints_a_table_and_json(run, sample_dataset):
    assert "pixel accuracy" in ess("eval", run, sample_dataset, "--limit", 2).stdout
    scores = json.loads(ess("eval", run, sample_dataset, "--limit", 2, "--json").stdout)
    assert set(scores) == {"miou", "pixel_accuracy", "mean_accuracy", "fw_iou", "groups", "images", "skipped"}
    assert scores["images"] == 2


def test_predict_writes_labels_and_overlay_at_the_pictures_size(run, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (61, 83, 3), dtype=np.uint8)
    cv2.imwrite(str(tmp_path / "photo.png"), pixels)
    ess("predict", run, tmp_path / "photo.png", "--out", tmp_path / "out", "--device", "cpu")
    labels = cv2.imread(str(tmp_path / "out" / "photo.png"), cv2.IMREAD_UNCHANGED)
    assert labels.shape == (61, 83) and labels.dtype == np.uint16
    assert labels.min() >= 1 and labels.max() <= 1284
    assert (tmp_path / "out" / "photo_overlay.png").exists()


def test_predict_refuses_wrong_inputs_before_it_starts(run, tmp_path):
    (tmp_path / "a").mkdir()
    for path in (tmp_path / "photo.png", tmp_path / "a" / "photo.png"):
        cv2.imwrite(str(path), np.zeros((8, 8, 3), np.uint8))
    arguments = (tmp_path / "photo.png", tmp_path / "a" / "photo.png")
    assert "would be written as photo.png" in ess("predict", run, *arguments, "--out", tmp_path / "out", code=1).stderr
    assert "is not a file" in ess("predict", run, tmp_path / "absent.jpg", "--out", tmp_path / "out", code=1).stderr
    (tmp_path / "text.jpg").write_text("no picture")
    assert "cannot be decoded" in ess("predict", run, tmp_path / "text.jpg", "--out", tmp_path / "out", code=1).stderr
    assert not list(tmp_path.glob("out/*.png"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--arch", "deeplabv3plus", "--encoder", "resnet5"], "did you mean resnet50"),
        (["--arch", "deeplab"], "did you mean deeplabv3plus"),
        (["--batch-size", "5000"], "choose --batch-size"),
        (["--device", "cuda:9"], "device 'cuda:9' cannot be used"),
        (["--epochs", "1", "--steps", "1"], "exactly one"),
        (["--weights", "absent.safetensors"], "absent.safetensors"),
    ],
)
def test_train_refuses_in_one_line(sample_dataset, tmp_path, arguments, message):
    result = ess("train", sample_dataset, "--out", tmp_path / "run", *SMALL, *arguments, code=1)
    assert message in result.stderr
    assert result.stderr.strip().count("\n") == 0
    assert not (tmp_path / "run" / "run.json").exists()


def test_unknown_key_in_a_file_is_refused(sample_dataset, tmp_path):
    (tmp_path / "s.toml").write_text("temprature = 3.0\n")
    result = ess("train", sample_dataset, "--out", tmp_path / "run", "--config", tmp_path / "s.toml", code=1)
    assert "unknown setting 'temprature'; did you mean temperature" in result.stderr


def test_weights_that_cannot_be_fetched_are_reported_in_one_line(sample_dataset, tmp_path, monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *arguments, **settings: None)
    result = ess("train", sample_dataset, "--out", tmp_path / "run", *SMALL, "--weights", "imagenet", "--steps", 1, code=1)
    assert "--weights none" in result.stderr and result.stderr.strip().count("\n") == 0


def test_models_lists_the_pairs():
    rows = {line.split()[0]: line.split()[1:] for line in ess("models").stdout.splitlines()}
    assert rows["resnet50"][:3] == ["a1_in1k", "deeplabv3plus", "unet"]
    assert rows["vit_base_patch14_dinov2"] == ["lvd142m", "upernet", "segformer", "dpt", "linear"]
    pairs = json.loads(ess("models", "--arch", "deeplabv3plus", "--json").stdout)["pairs"]
    assert {"arch": "deeplabv3plus", "encoder": "mobilenetv2_100"} in pairs
    assert {pair["arch"] for pair in pairs} == {"deeplabv3plus"}
    assert "expected one of" in ess("models", "--arch", "deeplab", code=1).stderr
    assert "no architecture is named 'bogus'" in ess("models", "--arch", "bogus", "--encoder", "resnet50", code=1).stderr
    assert "dpt does not work with 'resnet50'" in ess("models", "--arch", "dpt", "--encoder", "resnet50", code=1).stderr
    assert "resnet50" in ess("models", "--arch", "unet", "--encoder", "resnet50").stdout


def test_models_describes_one_encoder():
    about = json.loads(ess("models", "--encoder", "vit_small_patch14_dinov2", "--json").stdout)
    assert 21e6 < about["parameters"] < 23e6 and about["strides"] == [14]
    assert about["decoders"] == ["upernet", "segformer", "dpt", "linear"] and about["tags"] == ["lvd142m"]
    shown = ess("models", "--encoder", "convnext_tiny.fb_in22k").stdout
    assert "27.8 M" in shown and "4, 8, 16, 32" in shown and "fb_in22k_ft_in1k_384" in shown
    assert "did you mean convnext_tiny" in ess("models", "--encoder", "convnext_tin", code=1).stderr
    assert "no weights tagged" in ess("models", "--encoder", "convnext_tiny.fb", code=1).stderr


def test_preset_lists_and_prints():
    assert "coco-lvis" in ess("preset").stdout
    assert json.loads(ess("preset", "coco-lvis", "--json").stdout)["presets"]["coco-lvis"]["crop"] == 512
    name = "paper-ade20k+baseline+group-norm"
    both = json.loads(ess("preset", name, "--json").stdout)["presets"][name]
    assert (both["loss"], both["norm"], both["epochs"], both["batch_size"]) == ("dense", "group", 80, 10)
    assert json.loads(ess("preset", "--json").stdout)["variants"]["baseline"] == {"loss": "dense", "points": "none"}
    assert "there are coco-lvis, demo, paper-ade20k" in ess("preset", "coco", code=1).stderr
    assert "no variant 'base'; there are baseline" in ess("preset", "demo+base", code=1).stderr


@pytest.mark.parametrize("name", sorted(main.commands))
def test_every_command_and_option_has_help_and_documentation(name):
    command = main.commands[name]
    assert command.help and "Example:" in command.help
    assert all(option.help for option in command.params if isinstance(option, click.Option))
    text = DOCS.read_text()
    assert f"\n## {name}\n" in text
    section = text.split(f"\n## {name}\n")[1].split("\n## ")[0]
    if "](#shared-options)" in section:
        section += text.split('<a id="shared-options"></a>')[1].split("\n## ")[0]
    for option in command.params:
        if isinstance(option, click.Option):
            assert any(f"`{flag}" in section for flag in option.opts), option.opts
