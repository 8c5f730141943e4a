"""COCO and LVIS as downloaded: zips that are not unpacked, in every layout, intact and damaged."""

import os
import random
import shutil
import tracemalloc
import zipfile
from pathlib import Path

import pytest
import zips
from click.testing import CliRunner
from trees import Tree, faults, five_images
from victims import contents

from cli.cocolvis import main
from cocolvis.building.build import build
from cocolvis.building.coco_lvis import CocoLvisOptions
from cocolvis.disk import archives
from cocolvis.errors import DataError
from cocolvis.sources.inputs import Sources
from cocolvis.sources.locations import Pictures
from cocolvis.storage.dataset import Dataset
from cocolvis.vocabulary import coco_lvis


def sources(coco, lvis):
    return Sources(coco, lvis, coco_lvis())


def line(*arguments, code=1):
    """The last line that a command prints, run in this process; a failure must print exactly one error."""
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == code and (result.exception is None or isinstance(result.exception, SystemExit)), result.output
    assert code == 0 or len([said for said in result.output.splitlines() if said.startswith("Error: ")]) == 1
    return result.output.splitlines()[-1]


def downloaded(built, root):
    """Everything as `cocolvis download` leaves it: five zips in two folders."""
    zips.write_all(built, root)
    return [root / "coco"], [root / "lvis"]


def stored_and_streamed(built, root):
    """Stored members, and members whose sizes follow their bytes; the zips are given one by one."""
    zips.write_all(built, root / "stored", packing=zips.STORED)
    zips.write_all(built, root / "streamed", streamed=True)
    coco = [root / "stored" / "coco" / "train2017.zip", root / "streamed" / "coco" / "val2017.zip"]
    coco += [root / "stored" / "coco" / "stuff_trainval2017.zip"]
    return coco, [root / "streamed" / "lvis" / f"lvis_v1_{split}.json.zip" for split in ("val", "train")]


def of_64_bits(built, root):
    zips.write_all(built, root, zip64=True)
    return [root / "coco"], [root / "lvis"]


def pixel_maps_and_subfolders(built, root):
    """COCO's own stuff archive, pictures in images/, LVIS in annotations/."""
    annotations = zips.stuff(built.coco, "annotations/", maps=True)
    zips.write_zip(root / "coco" / "annotations" / "stuff_annotations_trainval2017.zip", annotations)
    shutil.copytree(built.coco / "train2017", root / "coco" / "images" / "train2017")
    zips.write_zip(root / "coco" / "images" / "val2017.zip", zips.pictures(built.coco, "val"))
    zips.write_zip(root / "lvis" / "annotations" / "lvis_v1_train.json.zip", zips.lvis(built.lvis, "train"))
    shutil.copy(built.lvis / "lvis_v1_val.json", root / "lvis" / "annotations")
    return [root / "coco"], [root / "lvis"]


def annotations_at_the_top(built, root):
    """Everything unpacked, annotations directly in their folders, COCO in two folders."""
    shutil.copytree(built.coco / "train2017", root / "one" / "train2017")
    shutil.copytree(built.coco / "val2017", root / "two" / "val2017")
    for name in ("stuff_train2017", "stuff_val2017"):
        shutil.copy(built.coco / "annotations" / f"{name}.json", root / "two")
    return [root / "one", root / "two"], [built.lvis]


def capital_endings(built, root):
    """Zips whose names end in .ZIP, in folders whose names end in .zip, and one given by its own path."""
    zips.write_all(built, root / "all")
    for path in (root / "all").rglob("*.zip"):
        path.rename(path.with_suffix(".ZIP"))
    coco, lvis = root / "coco.zip", root / "lvis.ZIP"
    (root / "all" / "coco").rename(coco)
    (root / "all" / "lvis").rename(lvis)
    (coco / "val2017.ZIP").rename(root / "VAL2017.ZIP")
    return [coco, root / "VAL2017.ZIP"], [lvis]


def linked_by_name(built, root):
    """Zips that are links, given one by one, to files that a version control names by their content."""
    zips.write_all(built, root)
    (root / "store").mkdir()
    for path in sorted((root / "coco").iterdir()) + sorted((root / "lvis").iterdir()):
        target = root / "store" / f"{path.name.encode().hex()}{'.zip' if 'val' in path.name else ''}"
        path.rename(target)
        path.symlink_to(target)
    return list((root / "coco").iterdir()), list((root / "lvis").iterdir())


def other_names(built, root):
    """Links of any name to zips with their official names."""
    zips.write_all(built, root)
    given = []
    for name in ("coco", "lvis"):
        paths = sorted((root / name).iterdir())
        given.append([root / f"{name}{number}.zip" for number in range(len(paths))])
        for link, path in zip(given[-1], paths, strict=True):
            link.symlink_to(path)
    return given


LAYOUTS = (
    *(downloaded, stored_and_streamed, of_64_bits, pixel_maps_and_subfolders, annotations_at_the_top),
    *(capital_endings, linked_by_name, other_names),
)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_zips_and_folders_make_the_same_bytes(sample, tmp_path, layout):
    build(sources(*layout(sample, tmp_path)), tmp_path / "data", CocoLvisOptions(shard_size=15))
    assert contents(tmp_path / "data") == contents(sample.data)


def test_the_command_line_takes_zips_and_the_oracle_reads_them(sample, tmp_path):
    coco, lvis = stored_and_streamed(sample, tmp_path)
    given = [word for option, paths in (("--coco", coco), ("--lvis", lvis)) for path in paths for word in (option, path)]
    line("build", *given, "--out", tmp_path / "data", "--shard-size", 15, "--workers", 2, code=0)
    assert contents(tmp_path / "data") == contents(sample.data)
    assert "40 masks" in line("verify", tmp_path / "data", "--oracle", *given, code=0)


def test_the_zips_have_64_bit_fields_and_streamed_sizes(sample, tmp_path):
    """The archives of these tests are what they claim to be."""
    content = zips.write_zip(tmp_path / "a.zip", zips.pictures(sample.coco, "val"), zip64=True).read_bytes()
    assert content.count(b"PK\x06\x06") == 1 and content.count(b"\xff\xff\xff\xff") >= 2 * 7
    with zipfile.ZipFile(zips.write_zip(tmp_path / "b.zip", zips.pictures(sample.coco, "val"), streamed=True)) as archive:
        assert all(info.flag_bits & 8 for info in archive.infolist())


def test_image_paths_into_a_zip_are_refused(sample, tmp_path):
    coco, lvis = downloaded(sample, tmp_path)
    refused = line("build", "--coco", *coco, "--lvis", *lvis, "--out", tmp_path / "data", "--images", "path")
    reason = "a picture in a zip has no path; unpack the zip, or use --images embed"
    assert refused.startswith(f"Error: {tmp_path}/coco/") and refused.endswith(f"2017.zip: {reason}")
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("gone", "looked_for"),
    [
        ("coco/train2017.zip", ["coco/train2017", "coco/images/train2017", "coco/train2017.zip", "check --coco"]),
        ("coco/stuff_trainval2017.zip", ["coco/annotations/stuff_train2017.json", "coco/stuff_train2017.json", "check --coco"]),
        ("lvis/lvis_v1_val.json.zip", ["lvis/lvis_v1_val.json", "lvis/annotations/lvis_v1_val.json", "--lvis or --split"]),
    ],
)
def test_a_missing_file_is_reported_with_the_paths_that_were_searched(sample, tmp_path, gone, looked_for):
    coco, lvis = downloaded(sample, tmp_path)
    (tmp_path / gone).unlink()
    said = line("build", "--coco", *coco, "--lvis", *lvis, "--out", tmp_path / "data")
    assert all(words in said for words in looked_for), said
    coco, lvis = list(coco[0].iterdir()), list(lvis[0].iterdir())
    given = [word for option, paths in (("--coco", coco), ("--lvis", lvis)) for path in paths for word in (option, path)]
    said = line("build", *given, "--out", tmp_path / "data")
    assert gone.split("/")[1] in said and looked_for[-1] in said, said
    assert not (tmp_path / "data").exists()


def zipped(tree, packing=zips.DEFLATED, **how):
    """Write five images whose pictures are in a zip; returns its path."""
    five_images(tree).write()
    archive = zips.write_zip(tree.coco / "train2017.zip", zips.pictures(tree.coco, "train"), packing, **how)
    shutil.rmtree(tree.coco / "train2017")
    return archive


def third(number=3):
    return f"train2017/{number:012d}.jpg"


def set_field(field, value):
    """A damage: this field of the third picture's entry has another value."""

    def damage(archive):
        zips.edit_entries(archive, lambda entry: entry.__setitem__(field, value), [third()])

    return damage


def flip_content(archive):
    first, length = zips.place_of(archive, third())
    zips.flip(archive, first + length // 2)


def flip_beginning(archive):
    zips.flip(archive, zips.place_of(archive, third())[0])


def bomb(archive):
    """32 MB of zeros that the central directory declares as 100 bytes."""
    with zipfile.ZipFile(archive) as opened:
        members = {info.filename: opened.read(info) for info in opened.infolist()}
    zips.write_zip(archive, members | {third(): bytes(2**25)})
    set_field(zips.SIZE, 100)(archive)


PICTURE_DAMAGES = {
    "bytes": (flip_content, "unreadable image", ""),
    "first byte": (flip_beginning, "unreadable image", ""),
    "crc": (set_field(zips.CRC, 5), "unreadable image", "do not have the recorded size and CRC-32"),
    "size": (set_field(zips.SIZE, 7), "unreadable image", "do not have the recorded size and CRC-32"),
    "great size": (set_field(zips.SIZE, 2**32 - 2), "unreadable image", "the zip declares 4294967294 bytes for it"),
    "great packed size": (set_field(zips.PACKED, 2**32 - 2), "unreadable image", "the zip declares"),
    "place": (set_field(zips.OFFSET, 3), "unreadable image", "no member begins at byte 3"),
    "place behind the end": (set_field(zips.OFFSET, 2**31), "unreadable image", "no member begins at byte 2147483648"),
    "encrypted": (set_field(zips.FLAGS, 1), "unreadable image", "it is encrypted in "),
    "packed with LZMA": (set_field(zips.PACKING, 14), "unreadable image", "it is packed with LZMA in "),
    "packed with Zstandard": (set_field(zips.PACKING, 93), "unreadable image", "it is packed with Zstandard in "),
    "unknown packing": (set_field(zips.PACKING, 77), "unreadable image", "it is packed with method 77 in "),
    "bomb": (bomb, "unreadable image", ""),
}


@pytest.mark.parametrize("name", PICTURE_DAMAGES)
@pytest.mark.parametrize("packing", [zips.DEFLATED, zips.STORED], ids=["deflated", "stored"])
def test_a_damaged_picture_in_a_zip_is_reported_and_left_out(tree, name, packing):
    damage, kind, reason = PICTURE_DAMAGES[name]
    damage(zipped(tree, packing))
    line("build", "--coco", tree.coco, "--lvis", tree.lvis, "--out", tree.root / "data", "--workers", 1, code=0)
    data = Dataset.open(tree.root / "data")
    assert faults(data) == [(kind, "image", 3, None)]
    assert data.index["report"]["faults"][0]["reason"].startswith(f"{third()}: ")
    assert reason in data.index["report"]["faults"][0]["reason"]
    assert data.split("train").image_ids().tolist() == [1, 2, 4, 5]


@pytest.mark.parametrize("value", [2**32 + 1, 2**63 - 1, 2**64 - 1])
@pytest.mark.parametrize("field", ["size", "packed", "offset"])
def test_impossible_64_bit_sizes_and_offsets_are_refused(tree, field, value):
    zips.edit_zip64(zipped(tree, zip64=True), third(), **{field: value})
    assert faults(tree.build()) == [("unreadable image", "image", 3, None)]


def test_a_zip_bomb_is_not_unpacked(tree):
    archive = zipped(tree)
    bomb(archive)
    place = archives.members(archive)[third()]
    tracemalloc.start()
    with pytest.raises(ValueError, match="do not have the recorded size"):
        place.read()
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 2**22


def replaced(archive):
    with zipfile.ZipFile(archive) as opened:
        members = {info.filename: opened.read(info)[::-1] for info in opened.infolist()}
    zips.write_zip(archive, members)


CHANGES = {
    "emptied": (lambda archive: archive.write_bytes(b""), "unreadable image"),
    "moved on": (lambda archive: archive.write_bytes(b"?" + archive.read_bytes()), "unreadable image"),
    "replaced": (replaced, "unreadable image"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_zip_that_changes_after_planning_only_loses_pictures(tree, name):
    archive, (change, kind) = zipped(tree), CHANGES[name]
    calls = iter([change])
    how = {"progress": lambda done, total: next(calls, str)(archive), "allow_missing": True}
    build(tree.sources(), tree.root / "data", CocoLvisOptions(), **how)
    data = Dataset.open(tree.root / "data")
    assert faults(data) == [(kind, "image", image_id, None) for image_id in range(1, 6)]
    assert data.splits == {"train": 0, "val": 0}


@pytest.mark.parametrize("name", ["emptied", "moved on", "replaced"])
def test_a_changed_zip_is_given_as_the_reason(tree, name):
    archive, (change, _) = zipped(tree), CHANGES[name]
    place = archives.members(archive)[third()]
    change(archive)
    with pytest.raises(
        ValueError, match=f"^{archive} was changed or replaced after the build had read its directory; build again$"
    ):
        place.read()


def test_a_removed_zip_is_named(tree):
    archive = zipped(tree)
    calls = iter([Path.unlink])
    how = {"progress": lambda done, total: next(calls, str)(archive), "allow_missing": True}
    build(tree.sources(), tree.root / "data", CocoLvisOptions(), **how)
    reason = Dataset.open(tree.root / "data").index["report"]["faults"][0]["reason"]
    assert reason.endswith(f": {archive} no longer exists")


def test_the_directory_of_a_replaced_zip_is_read_again(tree):
    archive = zipped(tree)
    assert len(archives.members(archive)) == 5
    zips.write_zip(archive, {"train2017/other.jpg": b"x"})
    assert list(archives.members(archive)) == ["train2017/other.jpg"]
    with pytest.raises(DataError, match="cannot be read as a zip"):
        archives.members(archive.with_name("absent.zip"))


PACKED = {"LZMA": zipfile.ZIP_LZMA, "bzip2": zipfile.ZIP_BZIP2}


@pytest.mark.parametrize("method", PACKED)
def test_an_unsupported_compression_method_is_named(tree, method):
    archive = zipped(tree, PACKED[method])
    build_it = ("build", "--coco", tree.coco, "--lvis", tree.lvis, "--out", tree.root / "data", "--workers", 1)
    reason = f"none of its pictures can be read: 5 are packed with {method}; unpack the zip, or pack it again with Deflate"
    assert line(*build_it) == f"Error: {archive}: {reason}"
    zipped(tree)
    path = zips.write_zip(tree.lvis / "lvis_v1_train.json.zip", zips.lvis(tree.lvis, "train"), PACKED[method])
    tree.path("lvis_v1_train").unlink()
    reason = (
        f"cannot be read: it is packed with {method}, which is not supported; unpack the zip, or pack it again with Deflate"
    )
    assert line(*build_it) == f"Error: {path}: lvis_v1_train.json: {reason}"
    assert not (tree.root / "data").exists()


@pytest.mark.parametrize(
    ("number", "name"),
    [(9, "packed with Deflate64"), (20, "packed with Zstandard"), (93, "packed with Zstandard"), (99, "encrypted")],
)
def test_compression_methods_have_names(tree, number, name):
    archive = zipped(tree)
    set_field(zips.PACKING, number)(archive)
    assert [place.unread for place in archives.members(archive).values()] == ["", "", name, "", ""]


def test_zips_with_backslashes_from_windows_are_read(sample, tmp_path):
    for split in ("train", "val"):
        members = {name.replace("/", "\\"): content for name, content in zips.pictures(sample.coco, split).items()}
        zips.write_zip(tmp_path / "coco" / f"{split}2017.zip", members)
    zips.write_zip(tmp_path / "coco" / "stuff_trainval2017.zip", zips.stuff(sample.coco, "annotations\\"))
    build(sources([tmp_path / "coco"], [sample.lvis]), tmp_path / "data", CocoLvisOptions(shard_size=15))
    assert contents(tmp_path / "data") == contents(sample.data)


def test_of_two_pictures_with_the_same_name_the_one_in_the_folder_is_used(tree):
    archive = zipped(tree)
    own = {name: place.read() for name, place in archives.members(archive).items()}
    others = {name.replace("train2017/", f"{folder}/"): b"other" for name in own for folder in ("masks", "train2017/small")}
    zips.write_zip(archive, others | own)
    assert Pictures("train2017", archive).find(third().rpartition("/")[2]).read() == own[third()]
    zips.write_zip(archive, own | others)
    assert Pictures("train2017", archive).find(third().rpartition("/")[2]).read() == own[third()]


def truncated(path):
    path.write_bytes(path.read_bytes()[:-40])


def set_all(field, value):
    return lambda path: zips.edit_entries(path, lambda entry: entry.__setitem__(field, value))


ZIP_DAMAGES = {
    "truncated": truncated,
    "empty": lambda path: path.write_bytes(b""),
    "not a zip": lambda path: path.write_bytes(b"<html>404</html>"),
    "bytes": lambda path: zips.flip(path, 200),
    "header": lambda path: zips.flip(path, 1),
    "crc": set_all(zips.CRC, 5),
    "great size": set_all(zips.SIZE, 2**32 - 2),
    "size": set_all(zips.SIZE, 7),
    "packed size": set_all(zips.PACKED, 2**32 - 2),
    "place": set_all(zips.OFFSET, 2**31),
    "encrypted": set_all(zips.FLAGS, 1),
    "unknown packing": set_all(zips.PACKING, 93),
    "version": set_all(3, 250),
}


CASES = [(source, name) for source in ("stuff", "lvis") for name in ZIP_DAMAGES]
CASES += [("pictures", name) for name in ("truncated", "empty", "not a zip", "version")]


@pytest.mark.parametrize(("source", "name"), CASES)
def test_an_unusable_zip_is_reported_in_one_line(tree, name, source):
    archive = zipped(tree)
    if source == "stuff":
        archive = zips.write_zip(tree.coco / "stuff_trainval2017.zip", zips.stuff(tree.coco))
        shutil.rmtree(tree.coco / "annotations")
    elif source == "lvis":
        archive = zips.write_zip(tree.lvis / "lvis_v1_train.json.zip", zips.lvis(tree.lvis, "train"))
        tree.path("lvis_v1_train").unlink()
    ZIP_DAMAGES[name](archive)
    said = line("build", "--coco", tree.coco, "--lvis", tree.lvis, "--out", tree.root / "data", "--workers", 1)
    assert str(archive) in said and len(said) < 1000
    assert not (tree.root / "data").exists()


@pytest.mark.long
@pytest.mark.parametrize("seed", range(4))
def test_changing_a_few_bytes_of_a_zip_never_causes_a_traceback(tmp_path, seed):
    rng = random.Random(seed)
    for number in range(150):
        tree = Tree(tmp_path / str(number))
        paths = [zipped(tree), tree.coco / "stuff_trainval2017.zip"]
        zips.write_zip(paths[1], zips.stuff(tree.coco))
        shutil.rmtree(tree.coco / "annotations")
        path = rng.choice(paths)
        content = path.read_bytes()
        start = rng.choice([0, len(content) - 600, len(content) - 60])
        for _ in range(rng.choice([1, 1, 3])):
            zips.flip(path, min(len(content) - 1, max(0, start) + rng.randrange(600)))
        try:
            build(tree.sources(), tmp_path / str(number) / "data", CocoLvisOptions(images="embed"), allow_missing=True)
        except DataError as error:
            assert str(path) in str(error) and len(str(error).splitlines()) == 1
        else:
            data = Dataset.open(tmp_path / str(number) / "data")
            assert len(data.split("train")) + len(faults(data)) >= 5
        shutil.rmtree(tree.root)


@pytest.mark.linux  # other systems refuse such names
def test_folders_with_names_that_are_not_utf8_are_read_by_workers(sample, tmp_path):
    odd = tmp_path / os.fsdecode(b"\xff")
    shutil.copytree(sample.coco, odd / "coco")
    shutil.copytree(sample.lvis, odd / "lvis")
    build(sources(odd / "coco", odd / "lvis"), tmp_path / "data", CocoLvisOptions(shard_size=15), workers=2)
    assert contents(tmp_path / "data") == contents(sample.data)


@pytest.mark.linux  # other systems refuse such names
def test_pictures_that_stay_in_a_folder_whose_name_is_not_utf8_are_found_again(tree):
    five_images(tree).write()
    odd = tree.root / os.fsdecode(b"donn\xe9es")
    tree.coco.rename(odd)
    for mode in ((), ("--resume",), ("--overwrite",)):
        build_it = ("build", "--coco", odd, "--lvis", tree.lvis, "--out", tree.root / "data", "--images", "path", *mode)
        line(*build_it, "--workers", 1, code=0)
    data = Dataset.open(tree.root / "data")
    assert data.image_root == odd and data.find(3).image().shape == (8, 8, 3)
    assert r"donn\udce9es" in (tree.root / "data" / "dataset.json").read_text()


def test_a_folder_that_is_a_link_to_itself_is_one_line(tree):
    five_images(tree).write()
    (tree.root / "loop").symlink_to("loop")
    for coco, lvis in ((tree.root / "loop", tree.lvis), (tree.coco, tree.root / "loop")):
        assert "looked for" in line("build", "--coco", coco, "--lvis", lvis, "--out", tree.root / "data")


@pytest.mark.parametrize("option", ["--coco", "--lvis"])
@pytest.mark.parametrize("name", ["lvis_v1_train.json", "coco.tar.gz"])
def test_files_other_than_zips_are_refused_as_such(tree, option, name):
    five_images(tree).write()
    (tree.root / name).write_bytes(b"{}")
    roots = {"--coco": tree.coco, "--lvis": tree.lvis} | {option: tree.root / name}
    command = ["build", "--out", tree.root / "data", *(word for pair in roots.items() for word in pair)]
    said = CliRunner().invoke(main, [str(word) for word in command])
    reason = f"is neither a folder nor a file ending in .zip; give {option} the folder that holds it, or unpack it"
    assert (said.exit_code, said.stderr.splitlines()) == (1, [f"Error: {tree.root / name}: {reason}"])
