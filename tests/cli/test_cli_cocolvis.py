"""The command line `cocolvis`: every command works and has help and documentation; messages and exit codes."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import click
import cv2
import numpy as np
import pytest
from click.testing import CliRunner
from trees import box, five_images

from cli.cocolvis import main
from cli.commands import UNCHANGED, Group
from cocolvis.errors import DataError
from cocolvis.storage.dataset import Dataset
from cocolvis.vocabulary import coco_lvis

DOCUMENT = (Path(__file__).parents[2] / "docs" / "cocolvis.md").read_text()


def run(*arguments, code=0):
    """Run a command in this process and return its result; the exit code must be ``code``."""
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result


def read(*arguments):
    """Run a command with --json and return what it prints."""
    return json.loads(run(*arguments, "--json").stdout)


def shell(*arguments, **settings):
    """Run a command in its own process."""
    command = [sys.executable, "-m", "cli.cocolvis", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, **settings)


COMMANDS = main.commands | {f"import {name}": command for name, command in main.commands["import"].commands.items()}


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_has_help_and_documentation(name):
    command = COMMANDS[name]
    assert f"\n## {name.split()[0]}\n" in DOCUMENT
    assert f"    cocolvis {name.split()[0]} " in DOCUMENT
    assert "Example:" in command.help and f"cocolvis {name} " in command.help
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"{name} {parameter.name}"
            assert all(flag in DOCUMENT for flag in parameter.opts), f"{name} {parameter.name}"
    assert run(*name.split(), "--help").stdout.startswith("Usage:")
    assert len(command.get_short_help_str(200)) > 20


def test_documented_options_exist():
    flags = {flag for command in COMMANDS.values() for option in command.params for flag in option.opts}
    mentioned = {word for word in DOCUMENT.replace("`", " ").replace("|", " ").split() if re.match(r"--\w", word)}
    assert mentioned - flags <= {"--help"} and len(mentioned) > 15
    for name in ("build", *(name for name in COMMANDS if name.startswith("import "))):
        assert {o for p in COMMANDS[name].params for o in p.opts} - mentioned <= {"--coco", "--lvis", "--out", "src"}, name


def test_the_whole_path(tmp_path):
    assert (
        "Build it with" in run("sample", "--out", tmp_path, "--images", 24, "--classes", 40, "--size", 48, "--seed", 1).stdout
    )
    where = ("--coco", tmp_path / "coco", "--lvis", tmp_path / "lvis")
    data = tmp_path / "data"
    result = run("build", *where, "--out", data, "--workers", 1, "--shard-size", 10)
    assert "train      18       2" in result.stdout and "The data set is in" in result.stdout
    assert "build: 24/24 images in " in result.stderr and "B in " in result.stderr
    assert read("build", *where, "--out", data, "--workers", 1, "--shard-size", 10, "--resume") == read("info", data)
    assert "all as recorded" in run("verify", data, "--oracle", *where).stdout
    assert read("verify", data, "--oracle", *where) == {"shards": 3, "masks": 24, "skipped_annotations": 0, "faults": []}
    assert "24 masks" in run("export", data, "--format", "png", "--out", tmp_path / "masks").stdout
    assert len(list((tmp_path / "masks").rglob("*.png"))) == 24
    first, second = Dataset.open(data).split("train").image_ids()[:2].tolist()
    lines = run("show", data, first, second, "--out", tmp_path / "shown").stdout.split()
    assert [Path(line).name for line in lines] == [f"{first:012d}.png", f"{second:012d}.png"]
    assert all(cv2.imread(line).shape[1] > 3 * 300 for line in lines)


def test_stats_and_its_json(sample, tmp_path):
    result = run("stats", sample.data, "--plot", tmp_path / "plot.png")
    for word in ("most common", "least common", "frequent", "quantile", "classes per image", "train: 30 images"):
        assert word in result.stdout
    assert cv2.imread(str(tmp_path / "plot.png")) is not None
    found = read("stats", sample.data)
    assert set(found["splits"]) == {"train", "val"}
    train = found["splits"]["train"]
    assert train["images"] == 30 and train["classes_present"] == len(train["classes"])
    assert {"class", "name", "images", "pixels"} <= train["classes"][0].keys()
    assert train["classes"] == sorted(train["classes"], key=lambda row: (-row["images"], -row["pixels"], row["class"]))


def test_vocab_and_its_json():
    found = read("vocab")["classes"]
    assert [c["class"] for c in found] == list(range(1, 1285))
    assert found[0].items() >= {"class": 1, "name": "aerosol_can", "kind": "thing", "group": "common"}.items()
    assert (found[0]["synset"], found[0]["sources"]) == ("aerosol.n.02", {"lvis": 1})
    assert found[180]["sources"] == {"lvis": 181, "stuff": 98}
    assert [c["name"] for c in read("vocab", "--search", "cabinet")["classes"]] == ["cabinet", "locker", "file_cabinet"]
    lines = run("vocab", "--search", "cabinet").stdout.splitlines()
    assert len(lines) == 4 and lines[1].split() == [
        "181",
        "cabinet",
        "both",
        "frequent",
        "cabinet.n.01",
        "lvis:181",
        "stuff:98",
    ]
    assert len(run("vocab").stdout.splitlines()) == 1285


def test_info_and_build_list_the_first_faults_of_each_kind(tree):
    five_images(tree)
    bad = [tree.thing(2, 9, [[1, 2]]) for _ in range(5)]
    tree.build()
    result = run("info", tree.root / "data")
    assert f"image 2, annotation {bad[0]} (lvis): the segmentation has a polygon of 2 numbers" in result.stdout
    assert "malformed annotation: 5" in result.stdout and "... and 2 more, listed in" in result.stdout
    assert f"annotation {bad[3]}" not in result.stdout
    report = read("info", tree.root / "data")["report"]
    assert report["counts"] == {"malformed annotation": 5} and len(report["faults"]) == 5
    where = ("--coco", tree.coco, "--lvis", tree.lvis, "--workers", 1)
    assert run("build", *where, "--out", tree.root / "again").stdout.count("annotation ") >= 3
    assert "--strict: 5 faults" in run("build", *where, "--out", tree.root / "strict", "--strict", code=1).stderr


def test_diff_and_its_json(tree):
    five_images(tree)
    tree.stuff(1, 93, box(0, 0, 1, 8))
    where = ("--coco", tree.coco, "--lvis", tree.lvis, "--workers", 1)
    tree.write()
    for name, extra in (("a", ()), ("b", ("--compat", "essnet", "--limit", 3))):
        run("build", *where, "--out", tree.root / name, *extra)
    found = read("diff", tree.root / "a", tree.root / "b")
    assert found["images"]["common"] == 3 and found["images"]["only_a"] == [["train", 4], ["train", 5]]
    assert found["pairs"][0].keys() == {"a", "a_name", "b", "b_name", "pixels"}
    assert sum(pair["pixels"] for pair in found["pairs"]) == found["pixels"]["differing"] > 0
    text = run("diff", tree.root / "a", tree.root / "b").stdout
    assert "of 3 common images differ" in text and "only in the first: 2 images: train 4, train 5" in text
    assert f"{found['pairs'][0]['a']} {found['pairs'][0]['a_name']}" in text


def test_verify_ends_with_1_on_a_fault(tree):
    five_images(tree).build()
    shard = tree.root / "data" / "shards" / "train-00000.h5"
    content = bytearray(shard.read_bytes())
    content[content.index(b"\xff\xd8") + 40] ^= 1  # inside a picture: the file still opens
    shard.write_bytes(content)
    assert "has the digest" in run("verify", tree.root / "data", code=1).stdout
    result = run("verify", tree.root / "data", "--json", code=1)
    image_fault, data_fault = json.loads(result.stdout)["faults"]
    assert re.search("image [0-9]+ has the digest", image_fault)
    assert "its digest is" in data_fault


def test_images_none_needs_no_pictures_and_small_on_top_is_recorded(tree):
    five_images(tree).write()
    for picture in tree.coco.rglob("*.jpg"):
        picture.unlink()
    where = ("--coco", tree.coco, "--lvis", tree.lvis, "--workers", 1, "--out", tree.root / "data")
    run("build", *where, "--images", "none", "--overlap", "small-on-top", "--split", "train")
    info = read("info", tree.root / "data")
    assert info["splits"].keys() == {"train"} and info["splits"]["train"]["images"] == 5
    assert (info["options"]["images"], info["options"]["overlap"]) == ("none", "small-on-top")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("info", "absent"), 1, "Error: absent: holds no dataset.json; expected a folder that `cocolvis build` wrote"),
        (("build", "--coco", "x", "--lvis", "y", "--out", "z"), 1, "Error: no LVIS annotations of split train: looked for /"),
        (("sample", "--out", "z", "--classes", "1"), 1, "Error: "),
        (
            ("sample", "--out", "z", "--preset", "scale", "--classes", "99"),
            1,
            "Error: sample: classes is 99, expected 100..10000",
        ),
        (
            ("sample", "--out", "z", "--preset", "longtail-tiny", "--images", "9"),
            2,
            "--images cannot be combined with --preset",
        ),
        (("sample", "--out", "z", "--workers", "2"), 2, "--workers needs --preset"),
        (("build",), 2, "Missing option"),
        (("build", "--coco", "x", "--lvis", "y", "--out", "z", "--images", "all"), 2, "'all' is not one of"),
        (("build", "--coco", "x", "--lvis", "y", "--out", "z", "--workers", "0"), 2, "0 is not in the range"),
        (("verify", "absent", "--oracle"), 2, "--oracle, --coco and --lvis are used together"),
        (("verify", "absent", "--coco", "x", "--lvis", "y"), 2, "--oracle, --coco and --lvis are used together"),
        (("verify", "absent", "--coco", "x"), 2, "--coco and --lvis are used together"),
        (("verify", "absent", "--image-root", "x"), 2, "--image-root needs --decode"),
        (("stats", "absent", "--coco", "x", "--lvis", "y"), 2, "--coco and --lvis are only used with --figures"),
        (("show", "absent", "one", "--out", "x"), 2, "'one' is not a valid int"),
        (("images", "absent", "--any"), 2, "--any needs --class"),
        (("statistics",), 2, "No such command"),
        (("join", "x" * 300), 1, "holds no shards of"),
        (("sample", "--out", "x" * 300), 1, "cannot write the sample: File name too long"),
        (("info", ""), 2, "the path is empty; expected a file or folder, such as . for the current one"),
        (("build", "--coco", "", "--lvis", "y", "--out", "z"), 2, "the path is empty"),
        (("build", "--coco", "x", "--lvis", "y", "--out", "z", "--shard", "1/" + "9" * 5000), 2, "is not a part I/N"),
        (("sample", "--out", "z", "--size", "1000000000"), 1, "size is 1000000000 pixels, expected 32..8192"),
    ],
)
def test_errors_are_one_line_on_stderr_with_an_exit_code(arguments, code, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run(*arguments, code=code)
    assert message in result.stderr and result.stdout == ""
    assert code == 2 or len(result.stderr.strip().splitlines()) == 1 + result.stderr.startswith("build:")


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (DataError("the data are wrong"), 1, "Error: the data are wrong\n"),
        (KeyboardInterrupt(), 130, "interrupted; nothing was changed\n"),
        (OSError(28, "No space left on device", "x"), 1, "Error: [Errno 28] No space left on device: 'x'\n"),
        (ImportError("libGL.so.1: cannot open shared object file"), 1, "apt-get install libgl1\n"),
        (ImportError("libgthread-2.0.so.0: cannot open shared object file"), 1, "apt-get install libglib2.0-0\n"),
    ],
)
def test_errors_that_users_can_fix_have_no_traceback(error, code, message):
    @click.group(cls=Group)
    def group():
        pass

    @group.command(interrupted=UNCHANGED)
    def fail():
        raise error

    result = CliRunner().invoke(group, ["fail"])
    assert (result.exit_code, result.stdout) == (code, "")
    assert result.stderr.endswith(message) and len(result.stderr.splitlines()) == 1


def test_other_import_errors_are_not_hidden():
    @click.group(cls=Group)
    def group():
        pass

    @group.command(interrupted=UNCHANGED)
    def fail():
        raise ImportError("No module named 'cv2'")

    assert isinstance(CliRunner().invoke(group, ["fail"]).exception, ImportError)


def test_it_runs_as_a_module_and_as_a_command(sample):
    assert shell("info", sample.data).stdout == subprocess.check_output(
        [Path(sys.executable).with_name("cocolvis"), "info", sample.data], text=True
    )
    assert shell("--version").stdout.startswith("cocolvis, version ")


def test_a_closed_pipe_is_quiet():
    reader, writer = os.pipe()
    os.close(reader)
    result = subprocess.run([sys.executable, "-m", "cli.cocolvis", "vocab"], stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)
    assert result.stderr == b""


def test_names_in_the_statistics_are_the_vocabulary(sample):
    for row in read("stats", sample.data)["splits"]["val"]["classes"]:
        assert coco_lvis().name(row["class"]) == row["name"] and np.isfinite(row["pixels"])


@pytest.mark.parametrize(("cores", "given", "expected"), [(3, (), 3), (64, (), 8), (64, ("--workers", 12), 12)])
def test_a_build_has_a_process_for_each_core_up_to_eight(sample, tmp_path, monkeypatch, cores, given, expected):
    seen = []

    def started(**how):
        seen.append(how["workers"])
        raise DataError("enough is known")

    monkeypatch.setattr("cli.cocolvis.creation.run.cores", lambda: cores)
    monkeypatch.setattr("cocolvis.building.build.Build", started)
    run("build", "--coco", sample.coco, "--lvis", sample.lvis, "--out", tmp_path / "data", *given, code=1)
    assert seen == [expected]
