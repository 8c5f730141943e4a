"""Decompression bombs and damaged pictures: every reader refuses them in one line and with a few megabytes of memory."""

import io
import json
import struct
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from click.testing import CliRunner
from made_pngs import bomb, header, join, made
from PIL import Image
from trees import Tree, box, faults, five_images

from cli.cocolvis import main
from cocolvis.errors import DataError
from cocolvis.masks.runlength import Runs
from cocolvis.pictures import encoded
from cocolvis.pictures.label_files import open_labels
from cocolvis.storage.dataset import Dataset
from cocolvis.storage.samples import Sample
from cocolvis.storage.shard_reader import ShardReader
from cocolvis.storage.shard_writer import ShardWriter
from ess.inference.examples import read_examples
from ess.inference.inputs import read_picture, video_facts

HUGE = 9_000, 8_000
"""A size within the general limit: 72 million pixels, 216 MB as RGB."""

ALLOWED = 40
"""The MB by which a refusal may raise the peak memory of a process."""


def jpeg(height: int = 8, width: int = 8, declared: tuple[int, int] | None = None) -> bytes:
    """A JPEG of noise whose frame header may declare another size."""
    pixels = np.random.default_rng(7).integers(0, 256, (height, width, 3), dtype=np.uint8)
    content = bytearray(cv2.imencode(".jpg", pixels)[1].tobytes())
    if declared:
        at = content.index(b"\xff\xc0") + 5
        content[at : at + 4] = struct.pack(">HH", *declared)
    return bytes(content)


def saved(form: str, **options) -> bytes:
    memory = io.BytesIO()
    Image.new("L", options.pop("size")).save(memory, form, **options)
    return memory.getvalue()


def tiff_of_one_tile(side: int) -> bytes:
    """8 x 8 pixels in a tile that declares a much larger size."""
    short = [(256, 8), (257, 8), (258, 8), (259, 8), (262, 1), (277, 1)]
    entries = [struct.pack("<HHIHH", tag, 3, 1, value, 0) for tag, value in short]
    entries += [struct.pack("<HHII", tag, 4, 1, value) for tag, value in ((322, side), (323, side), (324, 200), (325, 20))]
    start = b"II*\0" + struct.pack("<IH", 8, len(entries)) + b"".join(entries) + bytes(4)
    return start.ljust(200, b"\0") + bytes(20)


def peak(code: str, *arguments: object, quiet: bool = True) -> tuple[int, list]:
    """Run code in a child process: (MB by which its peak memory grew after ``before()``, what it passed to ``say``)."""
    if sys.platform != "linux":
        pytest.skip("reads /proc")
    start = """
import json, sys
said, grown = [], [0]
def high():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) // 1024
def before(): grown[0] = high()
say = lambda value: said.append(str(value))
"""
    child = [sys.executable, "-c", f"{start}{code}\nprint(json.dumps([high() - grown[0], said]))", *map(str, arguments)]
    done = subprocess.run(child, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0 and not (quiet and done.stderr.strip()), done.stderr
    return tuple(json.loads(done.stdout.splitlines()[-1]))


@pytest.fixture(scope="module")
def bombs(tmp_path_factory) -> Path:
    """A folder of small files that declare many pixels."""
    folder = tmp_path_factory.mktemp("bombs")
    tags = {tag: struct.pack("<HHI", tag, 4, 1) for tag in (256, 257)}
    tiff = saved("TIFF", size=(9, 8)).replace(tags[256] + b"\x09\0\0\0", tags[256] + struct.pack("<I", 11_000))
    content = {
        "png": bomb(*HUGE),
        "gray.png": bomb(*HUGE, colour=0),
        "larger.png": join(header(18_000, 11_000), *made(8, 8)[1:]),
        "jpg": jpeg(declared=(65500, 65500)),
        "larger.tif": tiff.replace(tags[257] + b"\x08\0\0\0", tags[257] + struct.pack("<I", 18_000)),
        "larger.gif": saved("GIF", size=(9, 8)).replace(b"\x09\0\x08\0", struct.pack("<HH", 11_000, 18_000)),
        "larger.webp": saved("WEBP", size=(9, 8), lossless=True).replace(b"\x2f\x08\xc0\x01\0", b"\x2f\xff\xff\xff\x0f"),
        "larger.pgm": b"P5 18000 11000 255\n",
        "larger.bmp": saved("BMP", size=(9, 8)).replace(struct.pack("<ii", 9, 8), struct.pack("<ii", 11_000, 18_000)),
        "tile.tif": tiff_of_one_tile(20_000),
    }
    for name, one in content.items():
        (folder / f"bomb.{name}").write_bytes(one)
    assert all(file.stat().st_size < 700_000 for file in folder.iterdir())
    return folder


def sample(content: bytes, image_id: int = 5) -> Sample:
    none = np.zeros(0, np.uint16)
    runs = Runs.of(np.zeros((8, 8), np.uint16))
    return Sample(
        image_id=image_id, path=f"train2017/{image_id}.jpg", runs=runs, content=content, neg=none, not_exhaustive=none
    )


def test_a_shard_of_bombs_is_refused_before_they_are_decoded(bombs, tmp_path):
    files = sorted(bombs.iterdir())
    with ShardWriter(tmp_path / "train-00000.h5", {"split": "train", "images": "embed", "vocabulary": "none"}) as writer:
        for number, file in enumerate(files):
            writer.add(sample(file.read_bytes(), number))
    code = """
from pathlib import Path
from cocolvis.errors import DataError
from cocolvis.storage.shard_reader import ShardReader
reader = ShardReader(Path(sys.argv[1]))
reader.sample(0)
before()
for row in range(len(reader)):
    for ask in ("image", "check_image"):
        try:
            getattr(reader.sample(row), ask)()
        except DataError as error:
            say(error)
"""
    grown, said = peak(code, tmp_path / "train-00000.h5")
    assert len(said) == 2 * len(files)
    shard = tmp_path / "train-00000.h5"
    assert said[0] == said[1] and f"{shard}: image 1 (train2017/1.jpg): is 65500 x 65500, its mask 8 x 8" in said
    assert all("its mask 8 x 8" in line or "expected a JPEG or PNG" in line for line in said)
    assert grown < ALLOWED


def test_files_with_too_many_pixels_are_refused_in_words(bombs, tmp_path):
    code = """
from pathlib import Path
from cocolvis.pictures import other_formats
from ess.inference.inputs import read_picture
before()
for path in sorted(Path(sys.argv[1]).glob("*larger.*")) + [*Path(sys.argv[1]).glob("*tile.*")]:
    try:
        read_picture(path)
    except ValueError as error:
        say(f"{path.name}: {error}")
"""
    grown, said = peak(code, bombs)
    assert len(said) == 7 and grown < ALLOWED
    told = "the picture cannot be decoded: 18000 x 11000 pixels are not in 1..134217728"
    assert f"bomb.larger.png: {told}" in said and f"bomb.larger.tif: {told}" in said and f"bomb.larger.gif: {told}" in said
    with pytest.raises(ValueError, match="65500 x 65500 pixels are not in"):
        read_picture(bombs / "bomb.jpg")


def test_a_mask_is_compared_with_its_picture_before_it_is_decoded(bombs, tmp_path):
    (tmp_path / "a.jpg").write_bytes(jpeg())
    code = """
from pathlib import Path
from cocolvis.pictures import other_formats
from cocolvis.errors import DataError
from ess.inference.examples import read_examples
before()
for mask in sorted(Path(sys.argv[1]).iterdir()):
    try:
        list(read_examples([(Path(sys.argv[2]), mask)]))
    except DataError as error:
        say(error)
"""
    grown, said = peak(code, bombs, tmp_path / "a.jpg")
    assert len(said) == 10 and grown < ALLOWED
    assert f"{bombs}/bomb.png: is 9000 x 8000, its picture {tmp_path}/a.jpg is 8 x 8; expected equal sizes" in said


def folder_tree(root: Path, label: bytes) -> Path:
    """Three pictures of 8 x 8 with label files, the second being ``label``."""
    good = join(*made(8, 8, bits=1, colour=0))
    for split in ("train", "val"):
        for name in "abc":
            for kind, content in (("images", jpeg()), ("masks", label if (split, name) == ("train", "b") else good)):
                path = root / kind / split / f"{name}.{'jpg' if kind == 'images' else 'png'}"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
    (root / "classes.txt").write_text("one\n")
    return root


def test_a_label_file_is_compared_with_its_picture_before_it_is_decoded(bombs, tmp_path):
    code = """
from pathlib import Path
from functools import partial
from cocolvis.building import build
from cocolvis.importers.folder import find
from cocolvis.importers.labelled import LabelOptions, LabelPlan
root = Path(sys.argv[1])
for name in ("good", "bomb"):
    make = lambda: LabelPlan(find(root / name, ("train", "val"), first_label=1, ignored=()), LabelOptions(dataset="folder"))
    before()
    index = build.Build().run(make, root / f"{name}-out")
say(json.dumps(index["report"]["faults"]))
"""
    folder_tree(tmp_path / "good", join(*made(8, 8, bits=1, colour=0)))
    folder_tree(tmp_path / "bomb", (bombs / "bomb.gray.png").read_bytes())
    grown, said = peak(code, tmp_path)
    (fault,) = json.loads(said[0])
    assert fault["kind"] == "wrong image size"
    assert fault["reason"] == "images/train/b.jpg: is 8 x 8, its mask is 9000 x 8000"
    assert grown < ALLOWED


def test_checking_a_png_takes_little_memory(bombs):
    code = """
from pathlib import Path
from cocolvis.pictures import png
content = Path(sys.argv[1]).read_bytes()
before()
png.check(content)
say(png.read_header(content).height)
"""
    grown, said = peak(code, bombs / "bomb.gray.png")
    assert said == ["9000"] and grown < ALLOWED


@pytest.mark.parametrize("kind", [b"iCCP", b"zTXt", b"iTXt"])
def test_compressed_texts_and_profiles_are_not_decompressed(kind, tmp_path):
    import zlib

    start = {b"iCCP": b"x\0\0", b"zTXt": b"x\0\0", b"iTXt": b"x\0\1\0\0\0"}[kind] + zlib.compress(bytes(2**26))
    chunks = made(8, 8, bits=8, colour=0)
    (tmp_path / "a.png").write_bytes(join(chunks[0], (kind, start), *chunks[1:]))
    code = """
from pathlib import Path
from cocolvis.pictures import encoded, other_formats
from cocolvis.pictures.label_files import open_labels
content = Path(sys.argv[1]).read_bytes()
before()
try:
    open_labels(content).read()
except ValueError as error:
    say(error)
"""
    assert peak(code, tmp_path / "a.png")[0] < ALLOWED


def test_a_broken_profile_of_a_png_prints_nothing_and_changes_no_pixel(tmp_path, capfd):
    plain = made(8, 8, bits=8, colour=2)
    with_profile = join(plain[0], (b"iCCP", b"x\0\0\1"), (b"tRNS", bytes(6)), *plain[1:])
    assert np.array_equal(encoded.decode_rgb(with_profile), encoded.decode_rgb(join(*plain)))
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("form", ["BMP", "GIF", "PPM", "TIFF", "WEBP"])
def test_pictures_of_other_formats_are_predicted_as_they_look(form, tmp_path):
    pixels = cv2.resize(np.random.default_rng(0).integers(0, 256, (4, 5, 3), dtype=np.uint8), (30, 20))
    for mode in ("RGB", "L") if form != "WEBP" else ("RGB",):
        Image.fromarray(pixels).convert(mode).save(tmp_path / "a", form, **({"lossless": True} if form == "WEBP" else {}))
        expected = np.asarray(Image.open(tmp_path / "a").convert("RGB"))
        assert np.array_equal(read_picture(tmp_path / "a"), expected)
    (tmp_path / "b").write_bytes((tmp_path / "a").read_bytes()[:60])
    with pytest.raises(ValueError, match="the picture cannot be decoded: "):
        read_picture(tmp_path / "b")


def test_16_bit_pictures_are_reduced_to_their_upper_8_bits(tmp_path):
    values = np.random.default_rng(0).integers(0, 2**16, (20, 30), dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "a.tif")
    assert np.array_equal(read_picture(tmp_path / "a.tif"), np.repeat((values >> 8).astype(np.uint8)[..., None], 3, 2))
    Image.fromarray(values.astype(np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(ValueError, match="holds 32-bit floating-point numbers; expected pixels of 8 or 16 bits"):
        read_picture(tmp_path / "a.tif")


@pytest.mark.parametrize("most", [300, 4095, 65535])
def test_16_bit_pgms_are_read_as_pillow_scales_them(most, tmp_path):
    values = np.random.default_rng(0).integers(0, most + 1, (20, 30), dtype=np.uint16)
    (tmp_path / "a.pgm").write_bytes(b"P5 30 20 %d\n" % most + values.astype(">u2").tobytes())
    expected = np.rint(values * (65535 / most)).astype(np.uint16) >> 8
    found = read_picture(tmp_path / "a.pgm")
    assert found.shape == (20, 30, 3) and np.abs(found[..., 0].astype(int) - expected).max() <= 1


def test_masks_may_be_label_files_of_8_or_16_bits(tmp_path):
    (tmp_path / "a.jpg").write_bytes(jpeg())
    values = np.random.default_rng(0).integers(0, 300, (8, 8), dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png")
    Image.fromarray(values).save(tmp_path / "a.tif")
    ((_, _, marked),) = read_examples([(tmp_path / "a.jpg", tmp_path / "a.png")], int(values[0, 0]))
    assert np.array_equal(marked, values == values[0, 0])
    with pytest.raises(DataError, match=r"a\.tif: the mask cannot be decoded: it is a TIFF; expected a PNG"):
        list(read_examples([(tmp_path / "a.jpg", tmp_path / "a.tif")]))


@pytest.mark.parametrize("size", [(60_000, 50_000), (16_000, 12_000)])
def test_a_video_with_huge_frames_is_refused(size, tmp_path):
    path = tmp_path / "a.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 5, (64, 48))
    for _ in range(3):
        writer.write(np.zeros((48, 64, 3), np.uint8))
    writer.release()
    assert video_facts(path)[0] == 3
    content = path.read_bytes().replace(struct.pack("<II", 64, 48), struct.pack("<II", *size))
    path.write_bytes(content.replace(struct.pack(">HH", 48, 64), struct.pack(">HH", *size[::-1])))
    code = """
from pathlib import Path
from ess.inference.inputs import frames, video_facts
before()
for read in (video_facts, lambda one: list(frames(one))):
    try:
        read(Path(sys.argv[1]))
    except ValueError as error:
        say(error)
"""
    grown, said = peak(code, path, quiet=False)
    assert len(said) == 2 and all("the video" in line for line in said), said
    assert grown < 100


def test_damaged_pngs_are_left_out_of_a_build(tree):
    five_images(tree)
    tree.picture(1).write_bytes(join(*made(8, 8)))
    broken = bytearray(join(*made(8, 8)))
    broken[80] ^= 4
    tree.picture(2).write_bytes(bytes(broken))
    tree.picture(3).write_bytes(join(header(8, 8), *made(7, 8)[1:]))
    tree.picture(4).write_bytes(bomb(*HUGE))
    data = tree.build()
    assert [fault[0] for fault in faults(data)] == ["unreadable image", "unreadable image", "wrong image size"]
    reasons = [fault["reason"].split(": ", 1)[1] for fault in data.index["report"]["faults"]]
    assert reasons[0] == "the PNG is damaged: the CRC of its chunk IDAT does not match"
    assert reasons[1].startswith("the PNG's pixels are truncated: ")
    assert data.split("train").image_ids().tolist() == [1, 5]
    assert "decode" not in data.index["options"]


def damaged_tree(root: Path) -> Tree:
    """Five images of 64 x 64; the second JPEG is damaged inside and the fourth is cut, with intact headers."""
    tree = Tree(root)
    for image_id in range(1, 6):
        tree.image(image_id, size=(64, 64))
        tree.stuff(image_id, 100, box(0, 0, 8, 8))
    whole = tree.picture(2).read_bytes()
    tree.picture(2).write_bytes(whole[:1500] + whole[1600:])
    tree.picture(4).write_bytes(tree.picture(4).read_bytes()[:1500] + b"\xff\xd9")
    return tree.write()


def run(*arguments: object, code: int = 0):
    result = CliRunner().invoke(main, list(map(str, arguments)))
    assert result.exit_code == code, result.output
    return result


@pytest.mark.parametrize("workers", [1, 2])
def test_build_with_decode_leaves_out_damaged_jpegs(tmp_path, workers):
    tree = damaged_tree(tmp_path)
    given = ("--coco", tree.coco, "--lvis", tree.lvis, "--workers", workers)
    run("build", *given, "--out", tmp_path / "plain")
    plain = Dataset.open(tmp_path / "plain")
    assert plain.splits["train"] == 5 and faults(plain) == []
    run("build", *given, "--out", tmp_path / "data", "--decode")
    data = Dataset.open(tmp_path / "data")
    assert faults(data) == [("unreadable image", "image", image_id, None) for image_id in (2, 4)]
    assert data.index["options"] == plain.index["options"] | {"decode": True}
    assert [data.find(i).content == plain.find(i).content for i in (1, 3, 5)] == [True] * 3
    assert "decode True" in run("info", tmp_path / "data").stdout
    refused = run("build", *given, "--out", tmp_path / "plain", "--decode", "--resume", code=1)
    assert "of other inputs or options" in refused.stderr
    none = run("build", *given, "--out", tmp_path / "none", "--decode", "--images", "none", code=1)
    assert "--decode reads the pictures" in none.stderr


@pytest.mark.parametrize("images", ["embed", "path"])
def test_verify_with_decode_names_each_damaged_picture(tmp_path, images):
    data = damaged_tree(tmp_path).build(images=images)
    assert "all as recorded" in run("verify", data.folder).stdout
    lines = run("verify", data.folder, "--decode", code=1).stdout.splitlines()
    shard = data.folder / "shards" / "train-00000.h5"
    assert [line.partition(".jpg): ")[0] + ".jpg)" for line in lines[:2]] == [
        f"{shard}: image {i} (train2017/{i:012d}.jpg)" for i in (2, 4)
    ]
    assert lines[2:] == ["1 shard, 5 pictures: 2 faults"]
    found = json.loads(run("verify", data.folder, "--decode", "--json", code=1).stdout)
    assert found == {"shards": 1, "pictures": 5, "faults": lines[:2]}
    if images == "path":
        Tree(tmp_path).picture(1).unlink()
        lines = run("verify", data.folder, "--decode", code=1).stdout.splitlines()
        assert f"{shard}: image 1 (" in lines[0] and "does not exist" in lines[0]
        (tmp_path / "coco").rename(tmp_path / "elsewhere")
        assert "3 faults" in run("verify", data.folder, "--decode", "--image-root", tmp_path / "elsewhere", code=1).stdout


def test_verify_with_decode_accepts_intact_pictures_and_refuses_data_sets_without(sample_dataset, tree):
    assert "40 pictures: all as recorded" in run("verify", sample_dataset, "--decode").stdout
    data = five_images(tree).build(images="none")
    refused = run("verify", data.folder, "--decode", code=1)
    assert "so it has no pictures to check" in refused.stderr and "verify:" not in refused.stderr
    assert "5 pictures: all as recorded" in run("verify", data.folder, "--decode", "--image-root", tree.coco).stdout


def test_verify_prints_what_it_found_before_a_comparison_that_fails_or_is_left_out(tmp_path):
    data = damaged_tree(tmp_path).build()
    sources = ("--oracle", "--coco", tmp_path / "nowhere", "--lvis", tmp_path / "nowhere")
    found = run("verify", data.folder, "--decode", *sources, code=1)
    assert found.stdout.splitlines()[-1] == "1 shard, 5 pictures: 2 faults" and "nowhere" in found.stderr
    with (data.folder / "shards" / "train-00000.h5").open("ab") as shard:
        shard.write(b"x")
    assert "the masks were not compared" in run("verify", data.folder, *sources, code=1).stderr


def test_import_with_decode_leaves_out_damaged_jpegs(tmp_path):
    root = folder_tree(tmp_path / "src", join(*made(8, 8, bits=1, colour=0)))
    whole = jpeg()
    (root / "images" / "val" / "a.jpg").write_bytes(whole[:-60] + b"\xff\xd9")
    run("import", "folder", root, "--out", tmp_path / "plain", "--workers", 1)
    assert Dataset.open(tmp_path / "plain").splits["val"] == 3
    run("import", "folder", root, "--out", tmp_path / "data", "--workers", 1, "--decode")
    data = Dataset.open(tmp_path / "data")
    assert data.splits == {"train": 3, "val": 2} and [fault[0] for fault in faults(data)] == ["unreadable image"]


def test_a_damaged_label_file_is_unreadable(tmp_path):
    broken = bytearray(join(*made(8, 8, bits=8, colour=0)))
    broken[-30] ^= 1
    with pytest.raises(ValueError, match="the PNG is damaged: the CRC of its chunk IDAT"):
        open_labels(bytes(broken)).read()


def test_show_refuses_a_picture_that_was_replaced_by_a_bomb(tree, bombs, tmp_path):
    data = five_images(tree).build(images="path")
    tree.picture(3).write_bytes((bombs / "bomb.png").read_bytes())
    shown = run("show", data.folder, 3, "--out", tmp_path / "shown", code=1)
    assert "image 3 (train2017/000000000003.jpg): is 9000 x 8000, its mask 8 x 8" in shown.stderr
    with pytest.raises(DataError, match="is 9000 x 8000"):
        data.find(3).image()


def test_a_truncated_picture_of_a_shard_is_reported_instead_of_filled_with_grey(tmp_path):
    with ShardWriter(tmp_path / "train-00000.h5", {"split": "train", "images": "embed", "vocabulary": "none"}) as writer:
        writer.add(sample(jpeg()[:-20]))
    with pytest.raises(DataError, match=r"image 5 \(train2017/5.jpg\): the JPEG breaks off"):
        ShardReader(tmp_path / "train-00000.h5").sample(0).image()
