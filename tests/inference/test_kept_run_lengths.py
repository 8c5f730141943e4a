"""Run lengths survive the end of the process, and a place where they cannot be written is found before the work."""

import json
import os
import signal
import sys
from pathlib import Path
from subprocess import run as run_process

import cv2
import pytest
import torch
from test_predict import CPU, PerPixel, few, photo

from cocolvis.disk import lock
from cocolvis.errors import DataError
from ess.inference import results
from ess.inference.inputs import find_inputs
from ess.inference.predictor import Predictor
from ess.inference.results import predict_files

KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_kept_run_lengths import find_inputs, predict_files, results, small_predictor
results._SAVED_EVERY = 0.0

def kill(done, total):
    if done == 2:
        os.kill(os.getpid(), signal.SIGKILL)

predict_files(small_predictor(), find_inputs([sys.argv[2]]), Path(sys.argv[3]), ("rle",), progress=kill)
"""


def small_predictor() -> Predictor:
    torch.manual_seed(0)
    return Predictor(PerPixel().eval(), few(5), CPU)


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "in").mkdir()
    for number in range(5):
        cv2.imwrite(str(tmp_path / "in" / f"{number}.png"), photo(9, 8, seed=number))
    return tmp_path / "in"


def test_a_process_that_was_killed_is_continued(folder, tmp_path):
    out = tmp_path / "out"
    command = [sys.executable, "-c", KILLED, str(Path(__file__).parent), str(folder), str(out)]
    killed = run_process(command, capture_output=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    kept = {entry["file_name"] for entry in json.loads((out / "predictions.json").read_text())}
    assert len(kept) >= 2
    predictor = small_predictor()
    predict_files(predictor, find_inputs([str(folder)]), out, ("rle",), skip_existing=True)
    assert len(predictor.model.passes) == 5 - len(kept)
    continued = (out / "predictions.json").read_text()
    predict_files(predictor, find_inputs([str(folder)]), out, ("rle",))
    assert (out / "predictions.json").read_text() == continued


def test_a_call_that_is_interrupted_keeps_what_an_earlier_one_has_finished(folder, tmp_path):
    def interrupt(done, total):
        raise KeyboardInterrupt

    for number in range(5, 20):  # more than are predicted ahead
        cv2.imwrite(str(folder / f"{number}.png"), photo(9, 8, seed=number))
    inputs, out = find_inputs([str(folder)]), tmp_path / "out"
    predict_files(small_predictor(), inputs, out, ("rle",))
    before = (out / "predictions.json").read_text()
    with pytest.raises(KeyboardInterrupt):
        predict_files(small_predictor(), inputs, out, ("rle",), progress=interrupt)
    assert (out / "predictions.json").read_text() == before


def test_results_of_other_pictures_are_kept(folder, tmp_path):
    inputs = find_inputs([str(folder)])
    for some in (inputs[:2], inputs[2:]):
        predict_files(small_predictor(), some, tmp_path / "parts", ("rle",))
    predict_files(small_predictor(), inputs, tmp_path / "whole", ("rle",))
    parts, whole = (json.loads((tmp_path / name / "predictions.json").read_text()) for name in ("parts", "whole"))
    assert parts == whole and {entry["file_name"] for entry in whole} == {str(one.path) for one in inputs}


@pytest.mark.parametrize("skip_existing", [False, True])
def test_a_picture_that_is_given_by_another_path_has_one_result(skip_existing, folder, tmp_path, monkeypatch):
    predict_files(small_predictor(), find_inputs([str(folder)]), tmp_path / "out", ("rle",))
    before = json.loads((tmp_path / "out" / "predictions.json").read_text())
    monkeypatch.chdir(tmp_path)
    predictor, inputs = small_predictor(), find_inputs([folder.name])
    predict_files(predictor, inputs, tmp_path / "out", ("rle",), skip_existing=skip_existing)
    found = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert found == [entry | {"file_name": str(Path(entry["file_name"]).relative_to(tmp_path))} for entry in before]
    assert len(predictor.model.passes) == (0 if skip_existing else 5)


def test_one_call_at_a_time_writes_run_lengths(folder, tmp_path):
    inputs, out = find_inputs([str(folder)]), tmp_path / "out"
    with lock.held(out, None, print, "a prediction"):
        with pytest.raises(DataError, match=r"a prediction .* is running there"):
            predict_files(small_predictor(), inputs, out, ("png", "rle"))
        predict_files(small_predictor(), inputs, out, ("png",))
    assert len([*out.iterdir()]) == 5

    def take_over(done, total):
        for path in out.glob(".build-*.lock"):
            path.unlink()

    with pytest.raises(lock.LockLost):
        predict_files(small_predictor(), inputs, out, ("rle",), progress=take_over)
    assert not (out / "predictions.json").exists()


def test_an_input_is_looked_up_and_not_searched(folder, tmp_path):
    class NoSearch(dict):
        def __iter__(self):
            pytest.fail("all entries are searched for one input")

    kept = results._Results(small_predictor(), (), tmp_path, ("rle",), True)
    one, other = find_inputs([str(folder)])[:2]
    kept.entries = NoSearch({(str(one.path), -1): []})
    assert kept.exist(one) and not kept.exist(other)


def test_saves_take_at_most_a_small_share_of_the_time(folder, tmp_path, monkeypatch):
    """A clock that only saves move: 3 units each, after which none is due for 60."""
    now, saves = [0.0], []
    monkeypatch.setattr(results.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(results, "_SAVED_EVERY", 5.0)
    kept = results._Results(small_predictor(), (), tmp_path, ("rle",), False)

    def save():
        saves.append(now[0])
        now[0] += 3

    monkeypatch.setattr(kept, "save", save)
    for time in range(130):
        now[0] = max(now[0], float(time))
        kept.save_if_due()
    assert saves == [5, 68]


@pytest.mark.parametrize("spoil", [lambda out: out.touch(), lambda out: (out / "predictions.json").mkdir(parents=True)])
def test_a_place_where_nothing_can_be_written_is_refused_before_the_work(spoil, folder, tmp_path):
    spoil(tmp_path / "out")
    predictor = small_predictor()
    with pytest.raises(DataError, match=r"predictions.json: cannot be written: "):
        predict_files(predictor, find_inputs([str(folder)]), tmp_path / "out", ("rle",))
    assert predictor.model.passes == []
