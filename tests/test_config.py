"""Settings: precedence, refusals, presets."""

import pytest

from cocolvis.errors import DataError
from ess.config import Config, load, preset, preset_names


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
    with pytest.raises(DataError, match="unknown setting 'batchsize'; did you mean 'batch_size'"):
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
        ({"scale_min": 3.0}, "scale_min <= scale_max"),
        ({"lr": -1.0}, "lr is -1.0; expected 0 or more"),
    ],
)
def test_wrong_values_are_refused(settings, message):
    with pytest.raises(DataError, match=message):
        Config(**settings)


def test_integers_are_welcome_where_floats_are_expected():
    assert Config(lr=1, temperature=20).lr == 1


def test_malformed_toml_is_one_line(tmp_path):
    file = tmp_path / "settings.toml"
    file.write_text("k = ")
    with pytest.raises(DataError, match="cannot be read as TOML"):
        load(None, file)
    with pytest.raises(DataError, match="cannot be read as TOML"):
        load(None, tmp_path / "absent.toml")


def test_unknown_preset_lists_the_presets():
    with pytest.raises(DataError, match="cityscapes, coco-lvis, cocostuff10k, demo"):
        load("coco")


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_is_valid(name):
    assert isinstance(load(name), Config)
