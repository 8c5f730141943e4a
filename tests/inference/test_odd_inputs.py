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
from cocolvis.errors import DataError
from cocolvis.pictures import remarks
from cocolvis.pictures.encoded import image_size
from cocolvis.pictures.label_files import open_labels
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


@pytest.mark.parametrize("skip_existing", [False, True])
@pytest.mark.parametrize("content", ['[{"file_name": 3}]', '[{"file_name": "a", "frame": "x"}]', "{}", "[1]"])
def test_what_is_no_list_of_results_is_not_taken_for_one(content, skip_existing, tmp_path, small):
    write(tmp_path / "in", "a.png")
    (tmp_path / "predictions.json").write_text(content)
    with pytest.raises(DataError, match="is not a list of results"):
        predict_files(small, find_inputs([str(tmp_path / "in")]), tmp_path, ("rle",), skip_existing=skip_existing)
    assert (tmp_path / "predictions.json").read_text() == content


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


@pytest.mark.parametrize("how", ["", "*", "**/*"])
def test_every_format_that_is_read_is_taken_from_folders_and_globs(how, tmp_path, small):
    names = [f"{ending}.{ending}" for ending in ("jpg", "png", "bmp", "gif", "pbm", "pgm", "ppm", "tif", "webp")]
    (tmp_path / "in").mkdir()
    for name in names:
        Image.fromarray(photo(9, 8)).convert({"pbm.pbm": "1", "pgm.pgm": "L"}.get(name, "RGB")).save(tmp_path / "in" / name)
    assert predict_files(small, find_inputs([str(tmp_path / "in" / how)]), tmp_path / "out", ("png",)) == []
    assert {path.stem for path in (tmp_path / "out").iterdir()} == {Path(name).stem for name in names}


def test_remarks_are_one_line_each_in_the_end(tmp_path, small, caplog):
    exif = Image.Exif()
    exif[0x0112] = 6
    for name in "ab":
        Image.fromarray(photo(9, 8)).save(tmp_path / f"{name}.jpg", exif=exif)
    cv2.imwrite(str(tmp_path / "c.png"), np.full((9, 8), 4095, np.uint16))
    (tmp_path / "d.tif").write_bytes(tiff(mode="L", save_all=True, append_images=[Image.new("L", (8, 9))]))
    (tmp_path / "e.tif").write_bytes(tiff(np.full((9, 8), 4000, np.uint16)))
    for name in ("f.gif", "g.png", "h.webp"):
        several = [Image.fromarray(photo(9, 8, seed=seed)) for seed in (1, 2)]
        several[0].save(tmp_path / name, save_all=True, append_images=several[1:])
        several[0].save(tmp_path / f"one {name}")
    assert not predict_files(small, find_inputs([str(tmp_path)]), tmp_path / "out", ("png",))
    told = [record.getMessage().replace(f"{tmp_path}/", "") for record in caplog.records]
    assert told[0].startswith("2 pictures (a.jpg, ...) have an EXIF orientation, which is ignored: labels refer to the pixels")
    assert told[1].startswith("2 pictures (c.png, ...) have 16-bit values that do not exceed 4095")
    several = "4 pictures (d.tif, ...) have several pictures in one file, of which only the first is read"
    assert told[2] == several and len(told) == 3
    for name in ("f.gif", "g.png", "h.webp"):
        assert remarks.of_picture((tmp_path / name).read_bytes()) == [remarks.PAGES]
        assert remarks.of_picture((tmp_path / f"one {name}").read_bytes()) == []
    assert remarks.of_picture((tmp_path / "f.gif").read_bytes()[:20]) == []
    assert cv2.imread(str(tmp_path / "out" / "a.png"), cv2.IMREAD_UNCHANGED).shape == (9, 8)


@pytest.mark.parametrize("name", ["photo" * 47 + ".png", "\u6f22" * 82 + ".png"])  # 239 and 250 bytes
def test_a_result_that_cannot_be_named_costs_only_its_picture(name, tmp_path, small):
    write(tmp_path / "in", "a.png", name)
    inputs, out, calls = find_inputs([str(tmp_path / "in")]), tmp_path / "out", []
    assert predict_files(small, inputs, out, ("png",)) == []
    faults = predict_files(small, inputs, out, ("png", "overlay"), progress=lambda *call: calls.append(call))
    longest = len(os.fsencode(name)) + len("_overlay")
    refused = f"{tmp_path / 'in' / name}: the name of its result would have {longest} bytes; file systems accept at most 255"
    assert [fault.partition(": rename it")[0] for fault in faults] == ([refused] if longest > 255 else [])
    assert (out / "a_overlay.png").exists() and (out / name).exists() and calls[-1] == (2, 2)
    assert predict_files(small, inputs, out, ("rle",)) == []


@pytest.mark.parametrize("pattern", ["absent/**/*.png", "absent/*.png", "in/**/*.gif", "in/a.png/**/x.png"])
def test_a_glob_that_matches_nothing_is_one_line(pattern, tmp_path):
    write(tmp_path / "in", "a.png")
    with pytest.raises(DataError) as error:
        find_inputs([str(tmp_path / pattern)])
    assert "\n" not in str(error.value)


def test_an_empty_input_is_not_the_current_folder(tmp_path, monkeypatch):
    write(tmp_path, "a.png")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"^an input is empty; expected a picture"):
        find_inputs([""])


def test_results_may_not_go_to_a_link_to_itself(tmp_path):
    write(tmp_path, "a.png")
    (tmp_path / "loop").symlink_to("loop")
    (one,) = find_inputs([str(tmp_path)], exclude=tmp_path / "loop")
    with pytest.raises(DataError, match="cannot be written"):
        predict_files(Predictor(PerPixel().eval(), few(5), CPU), [one], tmp_path / "loop", ("png",))


@pytest.mark.parametrize("out", [".", "in", "in/deep"])
def test_pictures_are_not_left_out_in_silence_because_the_results_go_to_their_folder(out, tmp_path, monkeypatch):
    write(tmp_path / "in" / "deep", "a.png")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="holds all pictures and videos; results go there, so choose another --out"):
        find_inputs(["in"], exclude=Path(out))


FOREIGN = {
    b"\0\0\0\x18ftypheic" + bytes(50): "a HEIC",
    b"\0\0\0\x18ftypavif" + bytes(50): "an AVIF",
    b"\n<!DOCTYPE html><title>404</title>": "a web page or an XML file",
    b"version https://git-lfs.github.com/spec/v1\noid sha256:00": "a pointer of Git LFS",
    bytes(600): "a file that begins with zeros",
}


@pytest.mark.parametrize("content", FOREIGN)
def test_files_that_are_no_pictures_are_named(content, tmp_path):
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(ValueError, match=f"it is {FOREIGN[content]}.*; expected one of JPEG, PNG, BMP"):
        read_picture(tmp_path / "a.jpg")
    with pytest.raises(ValueError, match=f"it is {FOREIGN[content]}.*; expected a JPEG or PNG"):
        image_size(content)
    with pytest.raises(ValueError, match=f"it is {FOREIGN[content]}.*; expected a PNG"):
        open_labels(content)
