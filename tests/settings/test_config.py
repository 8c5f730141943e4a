"""Settings: which source wins, which values are refused, and what the presets hold."""

import math
from typing import get_args, get_type_hints

import pytest

from cocolvis.errors import DataError
from ess.config import Config, changed, load, preset, preset_names


def test_flag_wins_over_file_wins_over_preset_wins_over_default(tmp_path):
    file = tmp_path / "settings.toml"
    file.write_text("k = 5\ndim = 9\n")
    config = load("coco-lvis", file, {"k": 3})
    assert (config.k, config.dim, config.lr) == (3, 9, preset("coco-lvis")["lr"])
    assert config.flip == Config().flip


def test_steps_on_a_higher_level_replace_epochs_of_a_lower_one(tmp_path):
    file = tmp_path / "settings.toml"
    file.write_text("epochs = 3\n")
    assert load("coco-lvis", None, {"steps": 7}).epochs is None
    assert load(None, file, {"steps": 7}).steps == 7
    assert load(None, file).epochs == 3


def test_unknown_key_is_refused_with_a_suggestion(tmp_path):
    file = tmp_path / "settings.toml"
    file.write_text("batchsize = 5\n")
    with pytest.raises(DataError, match="unknown setting 'batchsize'; did you mean batch_size"):
        load(None, file)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"k": "7"}, "k is '7'; expected int"),
        ({"k": True}, "k is True; expected int"),
        ({"loss": "softmax"}, r"loss is 'softmax'; expected \('knn', 'exact', 'auto', 'dense'\)"),
        ({"steps": 5}, "exactly one"),
        ({"batch_size": 0}, "batch_size is 0; expected 1 or more"),
        ({"temperature": 0.0}, "temperature is 0.0; expected more than 0, at most 1000000"),
        ({"temperature": -1.0}, "temperature is -1.0; expected more than 0, at most 1000000, or 'learnt'"),
        ({"temperature": "warm"}, "temperature is 'warm'; expected float or 'learnt'"),
        ({"points": 100}, "points is 100, but loss is 'auto'; points need the loss 'dense'"),
        ({"eval_every": "step"}, "eval_every is 'step'; expected int or 'epoch' or none"),
        ({"eval_every": 0}, "eval_every is 0; expected 1 or more, at most 99999999, or 'epoch'"),
        ({"loss": "learnt"}, "loss is 'learnt'; expected"),
        ({"scale_min": 3.0}, "scale_min <= scale_max"),
        ({"lr": -1.0}, "lr is -1.0; expected 0 or more"),
        ({"query_stride": 4.0}, r"query_stride is 4.0; expected \(1, 2, 4, 8, 16\)"),
        ({"repeat_threshold": 1.5}, "repeat_threshold is 1.5; expected 0 or more, at most 1"),
        ({"crop": 10**6}, "crop is 1000000; expected 1 or more, at most 16384"),
        ({"workers": 10**5}, "workers is 100000; expected 0 or more, at most 1024, or 'auto'"),
    ],
)
def test_wrong_values_are_refused(settings, message):
    with pytest.raises(DataError, match=message):
        Config(**settings)


NUMBERS = {name: kind for name, kind in get_type_hints(Config).items() if {int, float} & {kind, *get_args(kind)}}


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize(
    "value",
    [math.nan, math.inf, -math.inf, -1, 10**12, 10**5000, -1e-9],
    ids=["nan", "inf", "-inf", "-1", "1e12", "1e5000", "-1e-9"],
)
def test_a_number_that_makes_no_sense_is_one_line(name, value):
    whole = float not in (NUMBERS[name], *get_args(NUMBERS[name]))
    if value == 10**12 and name == "seed":
        return
    with pytest.raises(DataError, match=rf"setting {name} is .*; expected (\d+ or more|more than 0|int)") as caught:
        Config(**{"epochs": None, name: value} if name == "steps" else {name: value})
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 200
    assert whole or "expected int" not in str(caught.value)


@pytest.mark.parametrize("name", ["momentum", "embedding_momentum", "ema", "dropout"])
def test_what_must_be_less_than_one(name):
    with pytest.raises(DataError, match=f"setting {name} is 1.0; expected 0 or more, less than 1"):
        Config(**{name: 1.0})
    assert getattr(Config(**{name: 0.999}), name) == 0.999


@pytest.mark.parametrize("value", ["", "a\0b", "a\nb", "a\udcff"])
def test_text_that_cannot_be_printed_is_refused(value):
    with pytest.raises(DataError, match=r"setting weights is .*; expected text in one line"):
        Config(weights=value)


def test_settings_go_through_their_file(tmp_path):
    config = Config(weights='/päth/\U0001f600 "x"\\', lr=1e-5, seed=2**63 - 1)
    (tmp_path / "settings.toml").write_text(config.to_toml(), encoding="utf-8")
    assert load(None, tmp_path / "settings.toml") == config


@pytest.mark.parametrize("settings", [{"temperature": "learnt"}, {"temperature": 7.5, "dropout": 0.5}])
def test_words_and_numbers_go_through_their_file(tmp_path, settings):
    (tmp_path / "settings.toml").write_text(Config(**settings).to_toml())
    assert load(None, tmp_path / "settings.toml") == Config(**settings) != Config()


def test_none_turns_off_an_optional_setting_of_a_lower_level(tmp_path):
    (tmp_path / "settings.toml").write_text("dropout = 0.5\neval_every = 7\nweights = 'none'\n")
    assert load(None, tmp_path / "settings.toml", {"dropout": "none"}).dropout is None
    (tmp_path / "other.toml").write_text("eval_every = 'none'\nstart_method = 'none'\n")
    assert load(None, tmp_path / "other.toml") == Config()
    run = load(None, tmp_path / "settings.toml")
    assert (run.eval_every, run.weights) == (7, "none")
    assert changed(run, {"eval_every": "none", "steps": 3}) == Config(dropout=0.5, weights="none", steps=3, epochs=None)
    for settings in ({"k": "none"}, {"temperature": "none"}):
        with pytest.raises(DataError, match=r"is 'none'; expected (int|float or 'learnt')$"):
            load(None, None, settings)


@pytest.mark.parametrize("line", ["lr = nan", "lr = inf", "lr = 1979-05-27", "k = [1]", "seed = 0x" + "f" * 5000, "k = true"])
def test_any_toml_value_that_is_wrong_is_one_line(tmp_path, line):
    (tmp_path / "settings.toml").write_text(line)
    with pytest.raises(DataError, match=r"setting (lr|k|seed) is .*; expected"):
        load(None, tmp_path / "settings.toml")


@pytest.mark.parametrize("text", ["k = " + "9" * 5000, "k = " + "[" * 100_000, "k = '\xff'"])
def test_toml_that_python_cannot_read_is_one_line(tmp_path, text):
    (tmp_path / "settings.toml").write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError, match=r"cannot be read as TOML|is not UTF-8") as caught:
        load(None, tmp_path / "settings.toml")
    assert "\n" not in str(caught.value)


def test_integers_are_welcome_where_floats_are_expected():
    assert Config(lr=1, temperature=20).lr == 1


def test_malformed_toml_is_one_line(tmp_path):
    file = tmp_path / "settings.toml"
    file.write_text("k = ")
    with pytest.raises(DataError, match="cannot be read as TOML"):
        load(None, file)
    with pytest.raises(DataError, match=r"absent\.toml: does not exist"):
        load(None, tmp_path / "absent.toml")


def test_unknown_preset_lists_the_presets():
    with pytest.raises(DataError, match="there are coco-lvis, demo, paper-ade20k, paper-cityscapes, paper-coco-lvis"):
        load("coco")


def test_a_preset_changes_its_base():
    paper, voc = preset("paper-coco-lvis"), preset("paper-voc+exact")
    assert voc == paper | {"epochs": 80, "lr": 0.1, "loss": "exact", "points": "none"}
    assert preset("coco-lvis") == paper | {"loss": "dense", "points": 12544, "dim": 64, "precision": "auto"}
    with pytest.raises(DataError, match="flags: unknown setting 'base'"):
        load(None, None, {"base": "coco-lvis"})


def test_the_defaults_are_the_recommended_embedding_model_which_differs_from_the_papers_in_three_settings():
    silent = {"eval_every": "none", "eval_limit": "none"}
    assert load("paper-coco-lvis", None, silent) == Config(dim=12, loss="knn", precision="float32")
    assert load("coco-lvis", None, silent | {"loss": "auto"}) == Config()


def test_a_loss_without_points_turns_off_those_of_a_lower_level(tmp_path):
    (tmp_path / "settings.toml").write_text('loss = "knn"\n')
    assert load("coco-lvis").points == 12544
    assert load("coco-lvis+exact").points is load("coco-lvis", tmp_path / "settings.toml").points is None
    assert load("coco-lvis+exact+points").points == changed(load("coco-lvis"), {"lr": 1.0}).points == 12544
    assert changed(load("coco-lvis"), {"loss": "exact"}).points is None
    with pytest.raises(DataError, match="points need the loss 'dense'"):
        load("coco-lvis", None, {"loss": "exact", "points": 9})


EPOCHS = {"coco-lvis": 40, "ade20k": 80, "cityscapes": 200, "voc": 80, "cocostuff10k": 80}
SPECIAL = {"ade20k": {"batch_size": 10}, "cityscapes": {"scale_min": 1.0, "scale_max": 1.0, "color_jitter": 0.5}}


@pytest.mark.parametrize("name", EPOCHS)
def test_the_settings_of_the_paper(name):
    expected = {"epochs": EPOCHS[name], "lr": 0.1 if name in ("cityscapes", "voc") else 0.01, **SPECIAL.get(name, {})}
    found = load(f"paper-{name}").to_json()
    assert found == Config(dim=12, loss="knn", eval_every="epoch", eval_limit=1000, precision="float32", **expected).to_json()
    assert found["encoder"] == "resnet50.tv_in1k" and (found["dim"], found["k"]) == (12, 7)


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_is_valid(name):
    assert isinstance(load(name), Config)
