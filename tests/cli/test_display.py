"""What the command lines show: progress, sizes and tables; and no text from a file can steer the terminal."""

import json
import logging
import re
import unicodedata
from pathlib import Path

import click
import h5py
import numpy as np
import pytest
from click.testing import CliRunner
from trees import box, five_images

from cli import display
from cli.cocolvis import main
from cli.commands import UNCHANGED, Group
from cli.display import BYTES, Size, log_to_stderr, print_json, print_table, progress, say
from cocolvis.building.build import Mode, build
from cocolvis.building.coco_lvis import CocoLvisOptions
from cocolvis.inspection.oracle import check
from cocolvis.inspection.stats import statistics
from cocolvis.sources.inputs import Sources
from cocolvis.storage.dataset import Dataset
from cocolvis.text import escaped, human_size
from cocolvis.vocabulary import coco_lvis

HOSTILE = "\x1b[2J\x1b]0;owned\x07 a\rb\nc\x9b31m \u202egnp.\u2066 \u200b\u200d\ufeff \u2028\u2029 \x7f\x00 \U000e0041"
"""Escapes, line ends, marks that change direction or have no width, and other characters that a terminal obeys or hides."""


@pytest.fixture
def clock(monkeypatch):
    """A list that holds the current time as its only number."""
    now = [100.0]
    monkeypatch.setattr(display.time, "monotonic", lambda: now[0])
    return now


def obeyed(text: str) -> set[str]:
    """The characters that a terminal would obey or hide, except line feeds and tabs, which the commands print themselves."""
    return {c for c in text if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp")} - {"\n", "\t"}


def test_time_counts_from_the_start_and_rates_from_the_first_image(clock, capsys):
    with progress("build") as show:
        clock[0] += 300  # planning
        show(50, 100)  # what an earlier run finished
        clock[0] += 30  # starting
        for done in range(51, 71):
            show(done, 100)
            clock[0] += 1
    assert capsys.readouterr().err.splitlines() == [
        "build: 50/100 images",
        "build: 51/100 images",
        "build: 56/100 images, 1.0 images/s, 44 s left",
        "build: 61/100 images, 1.0 images/s, 39 s left",
        "build: 66/100 images, 1.0 images/s, 34 s left",
        "build: 70/100 images in 5 min 50 s",
    ]


def test_phases_are_shown_with_sizes(clock, capsys):
    with progress("build") as show:
        show.phase("reading small.json", 0, 1000)
        show.phase("reading large.json", 0, 1_100_000_000)
        for done in (100, 200, 300):
            clock[0] += 4
            show.phase("reading large.json", done * 10**6, 1_100_000_000)
        show.line("large.json: is not in the usual format")
    assert capsys.readouterr().err.splitlines() == [
        "build: reading large.json: 1.10 GB",
        "build: reading large.json: 200 MB of 1.10 GB, 25.0 MB/s, 36 s left",
        "large.json: is not in the usual format",
    ]


def test_bytes_are_shown_as_sizes(clock, capsys):
    with progress("download", BYTES) as show:
        for done in range(0, 31, 10):
            show(done * 10**9, 40 * 10**9)
            clock[0] += 3600
    assert capsys.readouterr().err.splitlines()[-2:] == [
        "download: 30.0 GB of 40.0 GB, 2.78 MB/s, 1 h 0 min left",
        "download: 30.0 GB of 40.0 GB in 4 h 0 min",
    ]


def test_progress_is_a_bar_in_a_terminal(monkeypatch, capsys):
    monkeypatch.setattr(display.sys.stderr, "isatty", lambda: True)
    with progress("build") as show:
        show.phase(f"reading [red]{HOSTILE}", 0, 10**9)
        show.line(f"[bold]{HOSTILE}")
        for done in range(11):
            show(done, 10)
    captured = capsys.readouterr()
    assert captured.out == "" and "10/10 images" in captured.err and "images/s" in captured.err
    assert f"build: reading [red]{escaped(HOSTILE)}"[:40] in captured.err and f"[bold]{escaped(HOSTILE)}" in captured.err
    assert not obeyed(re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\r", "", captured.err))


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 bytes"),
        (1, "1 byte"),
        (999, "999 bytes"),
        (1000, "1.00 kB"),
        (9994, "9.99 kB"),
        (9996, "10.0 kB"),
        (64_026_968, "64.0 MB"),
        (999_499_999, "999 MB"),
        (999_500_000, "1.00 GB"),
        (19_336_861_798, "19.3 GB"),
        (1.23e15, "1,230 TB"),
    ],
)
def test_sizes_have_three_digits_and_a_unit(count, text):
    assert human_size(count) == text


def test_columns_line_up(capsys):
    print_table(("name", "count", "share", "size"), [("a", 1234567, 0.5, Size(10**9)), ("longer", 8, None, Size(7))])
    assert capsys.readouterr().out == (
        "name        count  share     size\na       1,234,567   0.50  1.00 GB\nlonger          8         7 bytes\n"
    )


def test_warnings_are_lines_above_the_bar(monkeypatch, capsys):
    monkeypatch.setattr(display.sys.stderr, "isatty", lambda: True)
    with log_to_stderr(), progress("predict") as show:
        show(1, 2)
        logging.getLogger("ess").warning("odd\x1b[2J.jpg")
    assert "\x1b[2Kodd\\x1b[2J.jpg\n" in capsys.readouterr().err


@pytest.mark.parametrize("package", ["ess", "ess.part", "PIL"])
def test_warnings_of_every_command_are_one_line_that_steers_no_terminal(package):
    @click.group(cls=Group)
    def group():
        pass

    @group.command(interrupted=UNCHANGED)
    def warn():
        logging.getLogger(package).warning("skipped %s", HOSTILE)
        logging.getLogger("PIL").info("of no interest")

    before = logging.getLogger().handlers[:]
    result = CliRunner().invoke(group, ["warn"])
    assert (result.stdout, result.stderr) == ("", f"skipped {escaped(HOSTILE)}\n") and not obeyed(result.stderr)
    assert logging.getLogger().handlers == before


def test_every_character_that_a_terminal_obeys_becomes_an_escape(capsys):
    every = "".join(obeyed("".join(map(chr, range(0xE1000))))) + "\n\t"
    assert len(every) > 2000 and escaped(every).isascii() and escaped(every).isprintable()
    assert escaped("a\x1b[31m\u202e\u200b\n") == r"a\x1b[31m\u202e\u200b\n"
    for fine in ("chaise longue", "école", "椅子", "стул", "🪑", "a\u00a0b"):
        assert escaped(fine) == fine
    say(HOSTILE)
    print_table(("head",), [(HOSTILE,)])
    print_json({HOSTILE: [HOSTILE, "\U000e0041 \ud800"]})
    out = capsys.readouterr().out
    assert not obeyed(out) and len(out.splitlines()) == 3 + 6
    assert json.loads("\n".join(out.splitlines()[3:])) == {HOSTILE: [HOSTILE, "\U000e0041 \ud800"]}


def test_the_command_lines_print_only_through_display():
    for path in Path(display.__file__).parent.rglob("*.py"):
        if path.name != "display.py":
            assert not re.search(r"click\.s?echo|\bprint\(|std(out|err)\.write", path.read_text()), path.name


@pytest.fixture
def hostile(tree):
    """A data set in which every text is hostile: names of pictures, reasons of faults, options, inputs."""
    five_images(tree).build()
    folder = tree.root / "data"
    path = folder / "shards" / "train-00000.h5"
    with h5py.File(path, "r+") as file:
        place = file["path/bytes"]
        text = np.frombuffer((HOSTILE * 50).encode()[: len(place)], np.uint8)
        place[: len(text)] = text
    index = json.loads((folder / "dataset.json").read_text())
    fault = {"kind": "malformed annotation", "source": "lvis", "image_id": 1, "annotation_id": 2, "reason": HOSTILE}
    index["report"] = {"counts": {"malformed annotation": 1, HOSTILE: 1}, "faults": [fault, fault | {"kind": HOSTILE}]}
    index["options"] |= {"image_root": HOSTILE, "limit": None}
    index["inputs"] = {HOSTILE: "0" * 64}
    (folder / "dataset.json").write_text(json.dumps(index))
    return tree


@pytest.mark.parametrize(
    "words",
    [
        ["info"],
        ["info", "--json"],
        ["images"],
        ["images", "--json"],
        ["images", "--split", HOSTILE.replace("\0", "")],
        ["images", "--class", HOSTILE.replace("\0", "")],
        ["stats"],
        ["verify"],
        ["verify", "--decode"],
        ["verify", "--json"],
        ["show", "1", "7", "--out", "out"],
        ["why", "1", "0", "0", "--coco", "coco", "--lvis", "lvis"],
        ["diff", "data"],
        ["export", "--out", "masks"],
    ],
    ids=" ".join,
)
def test_no_command_lets_a_file_steer_the_terminal(hostile, words, monkeypatch):
    monkeypatch.chdir(hostile.root)
    result = CliRunner().invoke(main, [words[0], "data", *words[1:]])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.output and not obeyed(result.output)


def test_hostile_annotations_are_reported_and_do_not_steer_the_terminal(tree):
    five_images(tree)
    tree.json["stuff_train2017"]["images"][0]["width"] = HOSTILE
    tree.json["lvis_v1_train"]["images"][1]["coco_url"] = f"http://x/{HOSTILE}/1.jpg"
    tree.json["lvis_v1_train"]["images"][1]["file_name"] = HOSTILE
    tree.write()
    where = ["--coco", str(tree.coco), "--lvis", str(tree.lvis), "--out", str(tree.root / "d"), "--workers", "1"]
    result = CliRunner().invoke(main, ["build", *where])
    assert result.exit_code == 0 and not obeyed(result.output)
    path = tree.path("stuff_train2017")
    assert f"{path}: contains something that the official files do not; it is read record by record" in result.stderr


def reported(work):
    """The phases and lines that ``work`` reports: {what: [(done, total), ...]}, [line, ...]."""
    phases, lines = {}, []
    work(lines.append, lambda what, done, total: phases.setdefault(what, []).append((done, total)))
    return phases, lines


def test_reading_annotation_files_is_reported(tree):
    five_images(tree).write()
    sources = []
    phases, lines = reported(lambda *to: sources.append(Sources(tree.coco, tree.lvis, coco_lvis(), *to).things("train")))
    size = tree.path("lvis_v1_train").stat().st_size
    assert phases == {"reading lvis_v1_train.json": [(0, 0), (0, size)]} and lines == []
    tree.path("lvis_v1_train").write_text(tree.path("lvis_v1_train").read_text().replace('"height": 8', '"height": NaN', 1))
    phases, lines = reported(lambda *to: sources.append(Sources(tree.coco, tree.lvis, coco_lvis(), *to).things("train")))
    assert len(lines) == 1 and lines[0].startswith(f"{tree.path('lvis_v1_train')}: ") and "record by record" in lines[0]
    (what, calls), *_ = phases.items()
    assert what == "reading lvis_v1_train.json" and calls == sorted(calls) and calls[-1][0] > size // 2


def test_hashing_finished_shards_is_reported(sample, tmp_path):
    def stop(done, total):
        if done > 30:
            raise KeyboardInterrupt

    out, size = tmp_path / "data", 0
    with pytest.raises(KeyboardInterrupt):
        sample.rebuild(out, shard_size=5, progress=stop)
    size = sum(path.stat().st_size for path in (out / "shards").glob("*.h5"))
    sources = Sources(sample.coco, sample.lvis, coco_lvis())
    phases, _ = reported(
        lambda line, phase: build(sources, out, CocoLvisOptions(shard_size=5), mode=Mode.RESUME, announce=line, phase=phase)
    )
    calls = phases["checking finished shards"]
    assert calls == sorted(calls) and (calls[0], calls[-1]) == ((0, size), (size, size)) and len(calls) > 3


def test_statistics_and_the_oracle_report_progress(sample):
    data, calls = Dataset.open(sample.data), []
    statistics(data, lambda *call: calls.append(call))
    assert calls == [(15, 40), (30, 40), (40, 40)]
    phases, _ = reported(lambda _, phase: check(data, sample.coco, sample.lvis, phase=phase))
    assert {"reading lvis_v1_train.json", "reading stuff_train2017.json"} <= phases.keys()


def test_why_reports_what_it_reads(tree, monkeypatch):
    tree.image(1)
    tree.thing(1, 5, box(0, 0, 8, 8))
    tree.build()
    said = []
    monkeypatch.setattr(display, "_LARGE", 1)
    monkeypatch.setattr(display.click, "echo", lambda text="", err=False: said.append((text, err)))
    CliRunner().invoke(
        main, ["why", str(tree.root / "data"), "1", "0", "0", "--coco", str(tree.coco), "--lvis", str(tree.lvis)]
    )
    assert any(text.startswith("why: reading lvis_v1_train.json: ") and err for text, err in said), said
