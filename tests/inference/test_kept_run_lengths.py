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
