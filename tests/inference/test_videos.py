"""Videos: frames never replace other files, all are there when a video is finished, and one that breaks off is reported."""

import errno
import os
import resource
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from test_predict import CPU, PerPixel, few

from cocolvis.disk.files import Unwritable
from cocolvis.errors import DataError
from ess.inference import results
from ess.inference.inputs import check_complete, find_inputs
from ess.inference.predictor import Predictor
from ess.inference.results import predict_files
from ess.inference.views import Inference


@pytest.fixture
def small() -> Predictor:
    torch.manual_seed(0)
    return Predictor(PerPixel().eval(), few(5), CPU, Inference(batch_size=2))


def film(path: Path, frames: int = 4, codec: str = "MJPG", rate: float = 10.0, size: tuple[int, int] = (64, 48)) -> Path:
    """A video of noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*codec), rate, size)
    assert writer.isOpened()
    rng = np.random.default_rng(0)
    for _ in range(frames):
        writer.write(rng.integers(0, 256, (size[1], size[0], 3), np.uint8))
    writer.release()
    return path


def picture(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.zeros((9, 8, 3), np.uint8))
    return path


def cut(path: Path, share: float = 0.5) -> None:
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])


@pytest.mark.parametrize("ending", [".jpg", ".png.avi"])
def test_a_result_with_the_name_of_a_frame_is_refused(ending, tmp_path):
    film(tmp_path / "in" / "street.avi")
    (film if ending.endswith("avi") else picture)(tmp_path / "in" / "street" / f"000001{ending}")
    inputs = find_inputs([str(tmp_path / "in")])
    told = rf"000001{ending}: would be written as street/000001.png, like a frame of .*street.avi; predict it to another --out"
    with pytest.raises(DataError, match=told):
        predict_files(None, inputs, tmp_path / "out")


def test_other_results_in_the_folder_of_a_video_are_written(tmp_path, small):
    film(tmp_path / "in" / "street.avi")
    for name in ("photo.png", "00001.png", "000001.jpg.png", "deep/000001.png"):
        picture(tmp_path / "in" / "street" / name)
    assert predict_files(small, find_inputs([str(tmp_path / "in")]), tmp_path / "out", ("png",)) == []
    frames = {f"street/00000{n}.png" for n in range(4)}
    others = {"street/photo.png", "street/00001.png", "street/000001.jpg.png", "street/deep/000001.png"}
    assert {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.png")} == frames | others


@pytest.mark.parametrize("linked", [None, "links/link.png"])
def test_a_picture_that_a_frame_would_replace_is_refused(linked, tmp_path):
    film(tmp_path / "street.avi")
    given = picture(tmp_path / "street" / "000001.png")
    content = given.read_bytes()
    if linked:
        (tmp_path / linked).parent.mkdir()
        (tmp_path / linked).symlink_to(given)
        given = tmp_path / linked
    inputs = find_inputs([str(tmp_path / "street.avi"), str(given)])
    with pytest.raises(DataError, match=r"a frame of .*street.avi would overwrite it; choose another --out"):
        predict_files(None, inputs, tmp_path, ("png",))
    assert (tmp_path / "street" / "000001.png").read_bytes() == content


@pytest.mark.parametrize("spoil", [lambda frame: frame.unlink(), lambda frame: frame.write_bytes(b"")])
@pytest.mark.parametrize("formats", [("png",), ("png", "overlay")])
def test_a_video_is_finished_if_every_frame_is_there(formats, spoil, tmp_path, small):
    inputs, out = find_inputs([str(film(tmp_path / "street.avi"))]), tmp_path / "out"
    predict_files(small, inputs, out, formats)
    mask = (out / "street" / "000002.png").read_bytes()
    passes = len(small.model.passes)
    predict_files(small, inputs, out, formats, skip_existing=True)
    assert len(small.model.passes) == passes
    spoil(out / "street" / "000002.png")
    predict_files(small, inputs, out, formats, skip_existing=True)
    assert (out / "street" / "000002.png").read_bytes() == mask


@pytest.mark.parametrize("formats", [("png",), ("png", "overlay"), ("rle",)])
def test_a_video_that_breaks_off_is_reported_whenever_it_is_predicted(formats, tmp_path, small):
    path, out = film(tmp_path / "street.avi", 20), tmp_path / "out"
    check_complete(path)
    cut(path)
    for skip_existing in (False, True):
        (fault,) = predict_files(small, find_inputs([str(path)]), out, formats, skip_existing=skip_existing)
        read = int(fault.partition("breaks off: ")[2].split()[0])
        assert f"street.avi: the video breaks off: {read} of the 20 frames in its header can be read" in fault
        assert 5 <= read <= 15 and (formats == ("rle",) or len([*(out / "street").iterdir()]) == read)


def test_an_mp4_that_breaks_off_behind_its_header_is_reported(tmp_path):
    path = film(tmp_path / "street.mp4", 20, "mp4v")
    content = path.read_bytes()
    start = content.index(b"moov") - 4
    moov = bytearray(content[start:])
    place = moov.index(b"stco") + 12  # as in files for the web, the header comes first, so its places of frames move
    moov[place : place + 4] = (int.from_bytes(moov[place : place + 4]) + len(moov)).to_bytes(4)
    path.write_bytes(content[: content.index(b"free") - 4] + moov + content[content.index(b"free") - 4 : start])
    check_complete(path)
    cut(path, 0.9)
    with pytest.raises(ValueError, match=r"the video breaks off: .* of the 20 frames"):
        check_complete(path)


def test_a_header_that_only_estimates_its_frames_is_not_a_fault(tmp_path):
    """A complete file with fewer frames than it states, and one of unknown length, as if it was written to a pipe."""
    path = film(tmp_path / "street.avi", 20)
    content = bytearray(path.read_bytes())
    stated, length = content.index(b"avih") + 24, slice(4, 8)
    content[stated : stated + 4] = (90).to_bytes(4, "little")
    streams = content.index(b"strh") + 40
    content[streams : streams + 4] = (90).to_bytes(4, "little")
    path.write_bytes(content)
    assert cv2.VideoCapture(str(path)).get(cv2.CAP_PROP_FRAME_COUNT) == 90
    check_complete(path)
    for unknown in (0, 2**32 - 1):
        content[length] = unknown.to_bytes(4, "little")
        path.write_bytes(content)
        check_complete(path)


def test_an_overlay_video_that_the_disk_cuts_off_does_not_get_its_name(tmp_path, small):
    """OpenCV reports nothing. Files may have 20 kB here, as if the disk were full."""
    inputs, out = find_inputs([str(film(tmp_path / "street.avi", 20))]), tmp_path / "out"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        with pytest.raises(Unwritable, match=r"street_overlay\.mp4: cannot be written: the file breaks off"):
            predict_files(small, inputs, out, ("overlay",))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [*out.iterdir()] == []
    predict_files(small, inputs, out, ("overlay",), skip_existing=True)
    assert (out / "street_overlay.mp4").stat().st_size > 20_000


@pytest.mark.parametrize("rate", [211.222, 66.667, 200 / 3, 65.5351, 1000 / 3, 655.3501, 29.97, 30000 / 1001, 10.0, 0.002])
def test_an_overlay_has_the_rate_of_its_video(rate, tmp_path):
    """To a thousandth."""
    writer = results._film(tmp_path / "a.mp4", np.zeros((48, 64, 3), np.uint8), rate)
    for _ in range(3):
        writer.write(np.zeros((48, 64, 3), np.uint8))
    writer.release()
    assert cv2.VideoCapture(str(tmp_path / "a.mp4")).get(cv2.CAP_PROP_FPS) == pytest.approx(rate, rel=1e-3, abs=1e-3)


@pytest.mark.parametrize(("rate", "written"), [(0.0, 25), (float("nan"), 25), (-1.0, 25), (1e-5, 0.002), (90_000.0, 65_535)])
def test_an_overlay_of_an_impossible_rate_has_the_closest(rate, written, tmp_path):
    assert results._film_rate(rate) == written
    assert results._film(tmp_path / "a.mp4", np.zeros((48, 64, 3), np.uint8), rate).isOpened()


def test_an_overlay_that_cannot_be_written_costs_only_its_video(tmp_path, small):
    """MPEG-4 has at most 8191 pixels in a row."""
    paths = [film(tmp_path / "wide.avi", size=(8400, 16)), film(tmp_path / "fast.avi", rate=200.0)]
    faults = predict_files(small, find_inputs([str(path) for path in paths]), tmp_path / "out", every=3)
    what = "its overlay video of 8400 x 16 pixels at 3.333 frames per second"
    assert faults == [f"{paths[0]}: {what} cannot be written; choose --format png"]
    assert cv2.VideoCapture(str(tmp_path / "out" / "fast_overlay.mp4")).get(cv2.CAP_PROP_FPS) == pytest.approx(66.67)
    assert not [path for path in (tmp_path / "out").iterdir() if path.name.startswith(".")]


def test_a_disk_that_takes_no_overlay_is_not_a_fault_of_the_video(tmp_path, small, monkeypatch):
    def full(path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "touch", full)
    with pytest.raises(Unwritable, match=r"street_overlay\.mp4: cannot be written: No space left on device"):
        predict_files(small, find_inputs([str(film(tmp_path / "street.avi"))]), tmp_path / "out")


def test_a_path_that_is_not_utf_8_costs_only_its_video(tmp_path, small):
    odd = film(tmp_path / "in" / "odd.avi").rename(tmp_path / "in" / os.fsdecode(b"odd\xff.avi"))
    good = film(tmp_path / "in" / "street.avi")
    picture(tmp_path / "in" / "picture.png").rename(tmp_path / "in" / os.fsdecode(b"picture\xff.png"))
    inputs, refused = find_inputs([str(tmp_path / "in")]), "is not UTF-8, which OpenCV cannot open; rename it"
    assert predict_files(small, inputs, tmp_path / "out") == [f"{odd}: its path {refused}"]
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {"street_overlay.mp4", os.fsdecode(b"picture\xff.png")}
    out = tmp_path / os.fsdecode(b"out\xff")
    assert predict_files(small, find_inputs([str(good)]), out) == [f"{good}: the path of its overlay {refused}"]
    assert predict_files(small, find_inputs([str(good)]), out, ("png",)) == []
