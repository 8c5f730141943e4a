"""What an import reports about labels that do not fit its classes, and about pictures that look different in viewers."""

import io
import re
import struct
from pathlib import Path

import cv2
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from cli.cocolvis import main
from cocolvis.building.numbering import advice
from cocolvis.pictures import encoded, remarks
from cocolvis.pictures.tiff_tags import numbers, read_tags, upright
from cocolvis.storage.dataset import Dataset
from cocolvis.vocabulary import ClassInfo, Vocabulary


def classes(*labels: int, ignored: tuple[int, ...] = ()) -> Vocabulary:
    """Classes "a", "b", ... with these labels; 0 is unlabelled if no class has it."""
    infos = [ClassInfo(n, "abcdefgh"[n - 1], "stuff", None, None, {"folder": label}) for n, label in enumerate(labels, 1)]
    return Vocabulary(infos, {"folder": dict.fromkeys({*ignored, *({0} - {*labels})}, "ignored")})


@pytest.mark.parametrize(
    ("vocabulary", "labels", "told"),
    [
        (
            classes(1, 2, 3),
            (0, 1, 2),
            "labels 0..2, and none holds 3, .* if 0 stands for the first class 'a', .* --first-label 0$",
        ),
        (classes(1, 2, 3), (0, 1, 2, 3), None),
        (classes(1, 2, 3), (1, 2), None),
        (classes(1, 2, 3), (0, 2, 3), None),
        (classes(0, 1, 2), (0, 1, 2), None),
        (classes(0, 1, 2), (1, 2, 3), r"label 3, and the 3 classes have 0\.\.2: .* --first-label 1$"),
        (classes(0, 1, 2), (0, 1, 2, 3), "--first-label 1$"),
        (classes(1, 2, 3), (1, 2, 4), r"label 4, and the 3 classes have 1\.\.3: if the list lacks a class.*--ignore 4$"),
        (classes(1, 2, 3), (0, 1, 2, 3, 255), "1 mask holds label 255, .* --ignore 255$"),
        (classes(1, 2, 3), (1, 65535), "1 mask holds label 65535, .* --ignore 65535$"),
        (classes(1, 2, 3, ignored=(255,)), (1, 3, 255), None),
        (classes(1), (0, 255), "only the labels 0 and 255, .* if it stands for 'a', import them with --label a=255$"),
        (classes(1, 2), (0, 255), "stands for 'b', import them with --first-label 0 --label b=255$"),
        (classes(1, 2, 3), (0, 65535), "the class NAME, import them with --label NAME=65535$"),
        (classes(1, 255), (0, 255), None),
        (classes(1, 2), (255,), "^1 mask holds label 255, .* --ignore 255$"),
        (classes(1), (0, 1, 7), "hold 7, and the only class has 1: "),
        (classes(1, 2), (1, 7, 9), r"hold 7, 9, and the 2 classes have 1\.\.2: add the missing classes .* --ignore 7$"),
    ],
)
def test_labels_that_do_not_fit_get_a_line_with_the_right_option(vocabulary, labels, told):
    lines = advice({f"label {label}": 1 for label in labels} | {"rotated": 3}, vocabulary)
    assert len(lines) == (told is not None)
    if told:
        assert re.search(told, lines[0]), lines


def test_a_shift_and_labels_to_ignore_are_both_suggested():
    lines = advice({f"label {label}": 2 for label in (0, 1, 2, 255)}, classes(1, 2, 3))
    assert [line.partition("import them with ")[2] for line in lines] == ["--ignore 255", "--first-label 0"]


def test_other_vocabularies_get_no_advice():
    assert advice({"label 5": 1}, Vocabulary([ClassInfo(1, "a", "stuff", None, None, {"voc": 0})])) == []


def tree(root: Path, names: str, masks: list[np.ndarray], pictures: list[bytes] | None = None) -> Path:
    """A folder data set: pictures of 8 x 12 for train, of which the first is also in val."""
    for number, mask in enumerate(masks):
        for split in ("train", "val")[: 2 if number == 0 else 1]:
            for kind in ("images", "masks"):
                (root / kind / split).mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(root / "masks" / split / f"p{number}.png"), mask)
            content = (pictures or [])[number : number + 1] or [
                cv2.imencode(".png", np.full((8, 12, 3), 99, np.uint8))[1].tobytes()
            ]
            (root / "images" / split / f"p{number}.png").write_bytes(content[0])
    (root / "classes.txt").write_text(names)
    return root


def run(src: Path, out: Path, *more: object, code: int = 0):
    result = CliRunner().invoke(main, ["import", "folder", str(src), "--out", str(out), *map(str, more)])
    assert result.exit_code == code, result.output
    return result


def black_and_white() -> np.ndarray:
    mask = np.zeros((8, 12), np.uint8)
    mask[2:5, 3:9] = 255
    return mask


def test_black_and_white_masks_are_imported_with_the_suggested_option(tmp_path):
    src = tree(tmp_path / "src", "around\nred car\n", [black_and_white()] * 2)
    said = run(src, tmp_path / "a", "--workers", 1).stderr
    assert "if it stands for 'red car', import them with --first-label 0 --label 'red car=255'" in said
    said = run(src, tmp_path / "b", "--workers", 2, "--first-label", 0, "--label", "red car=255").stderr
    assert "--label" not in said
    mask = Dataset.open(tmp_path / "b").split("train")[0].mask
    assert np.array_equal(mask, np.where(black_and_white(), 2, 1))


@pytest.mark.parametrize(
    ("given", "code", "told"),
    [
        (("--label", "sky=300000"), 2, "is not a name with a label in 0..65535"),
        (("--label", "car"), 2, "is not a name with a label"),
        (("--label", "car=7", "--label", "car=9"), 2, "--label car is given as 7 and as 9; a class has one label"),
        (("--label", "sky=9"), 1, "--label names 'sky', which is not a class in that list"),
        (("--label", "car=1"), 1, "'road' and 'car' both have the label 1; change one with --label"),
        (("--label", "car=9", "--ignore", "9"), 1, "label 9 is ignored and also that of a class: classes have 1..9"),
    ],
)
def test_invalid_label_options_are_refused(given, code, told, tmp_path):
    src = tree(tmp_path / "src", "road\ncar\n", [black_and_white()])
    assert told in run(src, tmp_path / "out", *given, code=code).stderr


def test_a_shift_is_reported_once_for_workers_and_parts(tmp_path):
    src = tree(tmp_path / "src", "around\ncar\n", [(black_and_white() > 0).astype(np.uint8)] * 3)
    told = (
        "the masks hold the labels 0..1, and none holds 2, the last class's ('car'): if 0 stands for the first class 'around'"
    )
    assert told in run(src, tmp_path / "a", "--workers", 2, "--shard-size", 1).stderr
    for part in ("1/2", "2/2"):
        assert told not in run(src, tmp_path / "b", "--shard", part, "--shard-size", 1, "--workers", 1).stderr
    assert told in CliRunner().invoke(main, ["join", str(tmp_path / "b")]).stderr
    assert told not in run(src, tmp_path / "c", "--first-label", 0, "--workers", 1).stderr


@pytest.mark.parametrize("settings", [(), ("--class-crop", "0.5"), ("--repeat-threshold", "0.1"), ("--logit-adjustment", "1")])
def test_training_without_any_label_is_refused_before_its_folder_is_written(settings, tmp_path):
    from cli.ess import main as ess

    src = tree(tmp_path / "src", "around\ncar\n", [np.zeros((8, 12), np.uint8)] * 2)
    cv2.imwrite(str(src / "masks/val/p0.png"), np.ones((8, 12), np.uint8))  # labels in val alone do not help training
    run(src, tmp_path / "data", "--workers", 1)
    given = ["train", str(tmp_path / "data"), "--out", str(tmp_path / "run"), "--weights", "none", "--batch-size", "2"]
    result = CliRunner().invoke(
        ess, [*given, "--device", "cpu", "--workers", "0", "--steps", "1", "--loss", "exact", *settings]
    )
    assert result.exit_code == 1 and "no pixel of split train has a class, so there is nothing to learn from" in result.stderr
    assert not (tmp_path / "run").exists()


def rotated(orientation: int, form: str = "PNG", size: tuple[int, int] = (8, 12)) -> bytes:
    memory, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = orientation
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(memory, form, exif=exif, **({"lossless": True} if form == "WEBP" else {}))
    return memory.getvalue()


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pixels_are_as_stored_and_their_orientation_is_known(form, orientation):
    content = rotated(orientation, form)
    assert remarks.orientation(content) == orientation
    assert encoded.decode_file(content).shape == (8, 12, 3)
    if form != "JPEG":
        assert np.array_equal(encoded.decode_file(content), encoded.decode_file(rotated(1, form)))


def dark(most: int) -> bytes:
    values = np.random.default_rng(0).integers(0, most, (8, 12), dtype=np.uint16)
    values[0, 0] = most
    return cv2.imencode(".png", values)[1].tobytes()


def test_an_import_counts_rotated_and_dark_pictures(tmp_path):
    masks = [(black_and_white() > 0).astype(np.uint8)] * 5
    pictures = [rotated(6), rotated(3), dark(4095), dark(4096), rotated(1)]
    said = run(tree(tmp_path / "src", "car\n", masks, pictures), tmp_path / "out", "--workers", 1).stderr
    assert "3 pictures have an EXIF orientation, which is ignored: labels refer to the pixels as stored" in said
    assert "1 picture has 16-bit values that do not exceed 4095" in said
    assert "EXIF" not in run(tree(tmp_path / "good", "car\n", masks), tmp_path / "b", "--workers", 1).stderr


def test_a_mask_with_the_rotated_size_is_explained(tmp_path):
    masks, told = [np.ones((8, 12), np.uint8), np.ones((12, 8), np.uint8), np.ones((12, 8), np.uint8)], []
    run(tree(tmp_path / "src", "car\n", masks, [rotated(1), rotated(6), rotated(3)]), tmp_path / "out", "--workers", 1)
    told = [fault["reason"] for fault in Dataset.open(tmp_path / "out").index["report"]["faults"]]
    said = "images/train/p1.png: is 8 x 12, its mask is 12 x 8"
    assert (
        told[0] == f"{said}; only its EXIF orientation, 6, turns it to that size, and labels must refer to the pixels as stored"
    )
    assert told[1] == "images/train/p2.png: is 8 x 12, its mask is 12 x 8"


def test_masks_of_another_format_are_reported(tmp_path):
    src = tree(tmp_path / "src", "car\n", [np.ones((8, 12), np.uint8)] * 3)
    (src / "masks/train/p1.png").unlink()
    cv2.imwrite(str(src / "masks/train/p1.jpg"), np.ones((8, 12), np.uint8))
    (src / "masks/train/p2.png").write_bytes((src / "masks/train/p1.jpg").read_bytes())
    run(src, tmp_path / "out", "--workers", 1)
    told = [fault["reason"] for fault in Dataset.open(tmp_path / "out").index["report"]["faults"]]
    lossy = "is lossy, and its numbers are not those that were drawn"
    assert told[0] == f"masks/train/p1.png: does not exist; there is p1.jpg, but masks must be PNGs: a JPEG {lossy}"
    assert told[1].startswith("masks/train/p2.png: it is a JPEG, which is lossy")


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("big", [False, True])
def test_tags_of_either_order_and_size(order, big):
    entries = ((258, 3, 1, 32), (277, 3, 1, 5), (339, 3, 1, 3), (274, 3, 1, 6))
    packed = [struct.pack(order + ("HHQHxxxxxx" if big else "HHIHxx"), *entry) for entry in entries]
    start = (b"II" if order == "<" else b"MM") + struct.pack(
        order + ("HHHQ" if big else "HI"), *((43, 8, 0, 16) if big else (42, 8))
    )
    content = start + struct.pack(order + ("Q" if big else "H"), len(packed)) + b"".join(packed) + bytes(8)
    assert read_tags(content, (274,)) == {274: (6,)} and numbers(content) == "32-bit floating-point numbers, 5 a pixel"
    assert read_tags(upright(content), (274, 339)) == {274: (1,), 339: (3,)} and len(upright(content)) == len(content)
    for cut in range(len(content)):
        assert read_tags(content[:cut], (258,)) in ({}, {258: (32,)})
        upright(content[:cut])
