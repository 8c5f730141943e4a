"""Prediction of odd inputs: unreadable ones are named and affect no others, and no two pictures share an id."""

import errno
import io
import json
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from made_pngs import header, join
from PIL import Image
from test_predict import CPU, PerPixel, few, photo

from cli.ess import main
from ess.inference.image_ids import image_ids
from ess.inference.inputs import find_inputs, read_picture
from ess.inference.predictor import Predictor
from ess.inference.results import predict_files
from ess.inference.views import Inference


@pytest.fixture
def small() -> Predictor:
    torch.manual_seed(0)
    return Predictor(PerPixel().eval(), few(5), CPU, Inference(batch_size=2))


def write(root: Path, *names: str) -> None:
    for seed, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imencode(Path(name).suffix, photo(9, 8, seed=seed))[1].tofile(root / name)


def spoil(folder: Path) -> set[str]:
    """Put files that are not pictures next to good ones; returns their names."""
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "text.png").write_text("no picture")
    (folder / "cut.jpg").write_bytes(cv2.imencode(".jpg", photo(90, 80))[1].tobytes()[:500])
    (folder / "bomb.png").write_bytes(join(header(60_000, 60_000), (b"IDAT", b"")))
    (folder / "folder.jpg").mkdir()
    (folder / "lost.jpg").symlink_to("nowhere.jpg")
    (folder / "lost too.jpg").symlink_to("nowhere.jpg")
    (folder / "loop.png").symlink_to("loop.png")
    os.mkfifo(folder / "pipe.jpg")
    return {path.name for path in folder.iterdir()} - {"good.png", "deep"}


@pytest.mark.parametrize("how", ["", "*", "**/*"])
def test_a_folder_with_bad_pictures_is_predicted_and_each_is_named(how, untrained_run, tmp_path):
    write(tmp_path / "in", "good.png", "deep/good.jpg", "folder of.jpg/good.jpg")
    bad = spoil(tmp_path / "in") - {"folder of.jpg"}
    out = tmp_path / "out"
    given = ["predict", str(untrained_run), str(tmp_path / "in" / how), "--out", str(out), "--format", "png", "--device", "cpu"]
    result = CliRunner().invoke(main, given)
    assert result.exit_code == 1 and isinstance(result.exception, SystemExit)
    told = {
        Path(line.partition(": ")[2].partition(": ")[0]).name for line in result.stderr.splitlines() if line[:7] == "Error: "
    }
    assert told - {"folder of.jpg"} == bad
    assert (out / "good.png").exists() and (out / "deep" / "good.png").exists() == (how != "*")


def test_a_picture_that_may_not_be_read_is_named(tmp_path, monkeypatch):
    def refused(path):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    write(tmp_path, "a.png")
    monkeypatch.setattr(Path, "read_bytes", refused)
    with pytest.raises(ValueError, match="cannot be read: Permission denied"):
        read_picture(tmp_path / "a.png")


@pytest.mark.parametrize(
    ("names", "ids"),
    [
        ({"000000000139.jpg": "a", "285.png": "b"}, [139, 285]),
        ({"000139.jpg": "000139.jpg", "139.png": "139.png"}, ["000139.jpg", "139.png"]),
        ({"x/1.jpg": "a/1.jpg", "x/b/1.jpg": "b/1.jpg", "2.jpg": "2.jpg"}, ["a/1.jpg", "b/1.jpg", 2]),
        ({"a/1.jpg": "1.jpg", "b/1.jpg": "1.jpg"}, ["a/1.jpg", "b/1.jpg"]),
        ({"1.jpg": "1.jpg", "\u0661.jpg": "\u0661.jpg", "\xb2.jpg": "\xb2.jpg"}, [1, "\u0661.jpg", "\xb2.jpg"]),
        ({f"{2**63 - 1}.jpg": "a", f"{2**63}.jpg": "b", f"{'9' * 5000}.jpg": "c"}, [2**63 - 1, "b", "c"]),
        ({"/a/1.jpg": "1.jpg", "/b/1.jpg": "1.jpg", "/x/y.jpg": "/a/1.jpg"}, ["/a/1.jpg", "/b/1.jpg", "/x/y.jpg"]),
    ],
)
def test_a_number_is_the_id_where_no_other_file_has_it(names, ids):
    found = image_ids(names)
    if ids[-1] != "/x/y.jpg":
        assert list(found.values()) == ids
    assert len({*found.values()}) == len(names)


def entries(out: Path) -> dict[str, set]:
    """File -> the ids of its entries."""
    found: dict[str, set] = {}
    for entry in json.loads((out / "predictions.json").read_text()):
        found.setdefault(Path(entry["file_name"]).name, set()).add(entry["image_id"])
    return found


def test_ids_are_those_of_one_run_however_often_it_goes_on(tmp_path, small):
    write(tmp_path / "in", "000139.jpg", "139.png", "7.jpg", "b/x.png", "c/x.png")
    inputs, out = find_inputs([str(tmp_path / "in")]), tmp_path / "out"
    predict_files(small, [one for one in inputs if one.path.name in ("139.png", "7.jpg")], out, ("rle",))
    assert entries(out) == {"139.png": {139}, "7.jpg": {7}}
    predict_files(small, [one for one in inputs if one.path.name != "7.jpg"], out, ("rle",), skip_existing=True)
    expected = {"000139.jpg": {"000139.jpg"}, "139.png": {"139.png"}, "7.jpg": {7}, "x.png": {"b/x.png", "c/x.png"}}
    assert entries(out) == expected
    predict_files(small, inputs, tmp_path / "whole", ("rle",))
    assert entries(tmp_path / "whole") == expected


@pytest.mark.parametrize("content", ['[{"file_name": 3}]', '[{"file_name": "a", "frame": "x"}]', "{}", "[1]"])
def test_what_is_no_list_of_results_is_not_taken_for_one(content, tmp_path, small):
    from cocolvis.errors import DataError

    write(tmp_path / "in", "a.png")
    (tmp_path / "predictions.json").write_text(content)
    with pytest.raises(DataError, match="is not a list of results"):
        predict_files(small, find_inputs([str(tmp_path / "in")]), tmp_path, ("rle",), skip_existing=True)


def tiff(array: np.ndarray | None = None, mode: str = "", **options) -> bytes:
    memory = io.BytesIO()
    (Image.new(mode, (8, 9)) if array is None else Image.fromarray(array)).save(memory, "TIFF", **options)
    return memory.getvalue()


def complex_tiff() -> bytes:
    return tiff(np.zeros((9, 8), np.float32)).replace(*(b"S\x01\x03\0\x01\0\0\0" + bytes([kind]) for kind in (3, 6)))


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (tiff(np.zeros((9, 8), np.float32)), "it holds 32-bit floating-point numbers; expected pixels of 8 or 16 bits"),
        (tiff(np.zeros((9, 8), np.int32)), "it holds 32-bit signed integers; expected pixels of 8 or 16 bits"),
        (complex_tiff(), "it holds 32-bit complex numbers; expected pixels of 8 or 16 bits"),
    ],
)
def test_numbers_that_are_no_pixels_are_refused_in_words(content, told, tmp_path):
    (tmp_path / "a.tif").write_bytes(content)
    with pytest.raises(ValueError, match=told):
        read_picture(tmp_path / "a.tif")


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "CMYK", "I;16", "YCbCr"])
def test_other_kinds_of_pixels_are_read(mode, tmp_path):
    (tmp_path / "a.tif").write_bytes(tiff(mode=mode))
    assert read_picture(tmp_path / "a.tif").shape == (9, 8, 3)


def test_remarks_are_one_line_each_in_the_end(tmp_path, small, caplog):
    exif = Image.Exif()
    exif[0x0112] = 6
    for name in "ab":
        Image.fromarray(photo(9, 8)).save(tmp_path / f"{name}.jpg", exif=exif)
    cv2.imwrite(str(tmp_path / "c.png"), np.full((9, 8), 4095, np.uint16))
    (tmp_path / "d.tif").write_bytes(tiff(mode="L", save_all=True, append_images=[Image.new("L", (8, 9))]))
    (tmp_path / "e.tif").write_bytes(tiff(np.full((9, 8), 4000, np.uint16)))
    assert not predict_files(small, find_inputs([str(tmp_path)]), tmp_path / "out", ("png",))
    told = [record.getMessage().replace(f"{tmp_path}/", "") for record in caplog.records]
    assert told[0].startswith("2 pictures (a.jpg, ...) have an EXIF orientation, which is ignored: labels refer to the pixels")
    assert told[1].startswith("2 pictures (c.png, ...) have 16-bit values that do not exceed 4095")
    assert told[2] == "1 picture (d.tif) has several pictures in one file, of which only the first is read" and len(told) == 3
    assert cv2.imread(str(tmp_path / "out" / "a.png"), cv2.IMREAD_UNCHANGED).shape == (9, 8)
