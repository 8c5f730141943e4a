"""Hostile data sets: they are refused in one line, with bounded memory, and nothing outside their folder is touched."""

import json
import os
import re
import resource
import shutil
import signal
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from click.testing import CliRunner
from hostile_indexes import CASES as INDEXES
from hostile_shards import CASES as SHARDS
from hostile_shards import Case, first_shard
from shard_damage import SECRET
from trees import Tree, five_images

from cli.cocolvis import main
from cocolvis.errors import DataError
from cocolvis.inspection.stats import statistics
from cocolvis.inspection.verify import verify
from cocolvis.storage.dataset import Dataset
from cocolvis.storage.shard_reader import ShardReader

CASES = SHARDS + INDEXES
MEMORY = 2**29
"""Bytes that reading a hostile data set may take: far more than five small pictures need, and less than bombs demand."""

NOBODY = 65534
GUARD = 60
"""Seconds after which a process counts as hanging."""


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> dict[str, Path]:
    """A sound data set of five images for each way of storing pictures: option -> folder; ``coco`` is beside it."""
    built = {}
    for images in ("embed", "path"):
        root = tmp_path_factory.mktemp(images)
        five_images(Tree(root)).build(images=images, splits=("train",))
        built[images] = root / "data"
    return built


@pytest.fixture
def outside(tmp_path) -> Path:
    """A folder with a secret in a file and in a shard, and a pipe that blocks any process that opens it."""
    (tmp_path / "secret").write_bytes(SECRET * 1000)
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["data"] = np.frombuffer(SECRET, np.uint8)
    os.mkfifo(tmp_path / "pipe")
    return tmp_path


def hostile(case: Case, sound: dict[str, Path], outside: Path, confined: "Confined") -> Path:
    """The data set of a case."""
    folder = outside / "data"
    shutil.copytree(sound[case.images], folder)
    if case.images == "path":
        shutil.copytree(sound["path"].parent / "coco", outside / "coco")
    case.change(folder, outside)
    shard = first_shard(folder)
    if case.recorded and os.path.isfile(shard) and shard.stat().st_size < 2**28:
        index = json.loads((folder / "dataset.json").read_text())
        index["shards"][0] |= {"bytes": shard.stat().st_size} | confined(checksum, folder)
        index["options"]["image_root"] = str(outside / "coco") if case.images == "path" else None
        (folder / "dataset.json").write_text(json.dumps(index))
    return folder


class Confined:
    """A child process that examines data sets, with ``MEMORY`` more bytes than this process and ``GUARD`` seconds for each."""

    def __init__(self):
        self._child = 0

    def __call__(self, work: Callable[[Path], dict], folder: Path) -> dict:
        """Run ``work``, a function of this module, on a folder; raises AssertionError if the process crashes or hangs."""
        if not self._child:
            self._start()
        self._orders.write(f"{work.__name__} {folder}\n")
        self._orders.flush()
        answer = self._answers.readline()
        if not answer:
            status = os.waitstatus_to_exitcode(os.waitpid(self._child, 0)[1])
            self._child = 0
            raise AssertionError(f"ended with {signal.Signals(-status).name if status < 0 else status}")
        found = json.loads(answer)
        assert "crash" not in found, found["crash"]
        return found

    def _start(self) -> None:
        (orders, self_orders), (self_answers, answers) = os.pipe(), os.pipe()
        self._child = os.fork()
        if self._child == 0:
            try:
                os.close(self_orders)
                pages = int(Path("/proc/self/statm").read_text().split()[0])
                resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY,) * 2)
                with os.fdopen(orders) as orders, os.fdopen(answers, "w") as answers:
                    for order in orders:
                        print(self._answer(*order[:-1].split(" ", 1)), file=answers, flush=True)
            finally:
                os._exit(0)  # never return into the tests
        os.close(orders)
        os.close(answers)
        self._orders, self._answers = os.fdopen(self_orders, "w"), os.fdopen(self_answers)

    def _answer(self, work: str, folder: str) -> str:
        signal.alarm(GUARD)
        try:
            return json.dumps(globals()[work](Path(folder)))
        except BaseException:
            return json.dumps({"crash": traceback.format_exc()})

    def close(self) -> None:
        """End the process."""
        if self._child:
            self._orders.close()
            self._answers.close()
            os.waitpid(self._child, 0)


@pytest.fixture(scope="module")
def confined():
    process = Confined()
    yield process
    process.close()


def checksum(folder: Path) -> dict:
    """The entry of the first shard's checksum in dataset.json, empty if the shard does not open."""
    try:
        return {"checksum": ShardReader(first_shard(folder)).checksum()}
    except DataError:
        return {}


def read(folder: Path) -> bytes:
    """Read everything that a data set holds."""
    data = Dataset.open(folder)
    given = []
    for name in data.splits:
        split = data.split(name)
        given += [split.image_ids(), split.sizes(), *split.present(), split.instances()]
        for row in range(len(split)):
            sample = split[row]
            given += [sample.mask, sample.content, sample.path.encode(), sample.neg, sample.not_exhaustive, sample.image()]
            given.append(np.array([*sample.instances.items()]))
    json.dumps(statistics(data))
    return b"".join(bytes(values) for values in given)


def everything(folder: Path) -> dict:
    """Read and verify a data set: the content, the error of reading, and the lines and exit code of ``cocolvis verify``."""
    try:
        content, fault = read(folder).decode("latin-1"), None
    except DataError as error:
        content, fault = "", str(error)
    shown = CliRunner().invoke(main, ["verify", "--json", str(folder)])
    if not isinstance(shown.exception, SystemExit | None):
        raise shown.exception
    faults = json.loads(shown.stdout)["faults"] if shown.stdout else [shown.stderr.strip().removeprefix("Error: ")]
    return {"content": content, "fault": fault, "verify": faults, "code": shown.exit_code}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_hostile_data_sets_are_refused_in_one_line(case, sound, outside, confined):
    found = confined(everything, hostile(case, sound, outside, confined))
    assert SECRET.decode() not in json.dumps(found)
    lines = found["verify"] + ([found["fault"]] if found["fault"] else [])
    assert all(line.isprintable() and len(line) < 1000 and line.startswith((str(outside), "split ")) for line in lines), lines
    if case.found == "reading":
        assert re.search(case.message, found["fault"] or "was read"), found["fault"]
    else:
        assert found["content"], found["fault"]
    if case.images == "embed":
        assert found["code"] == 1 and any(re.search(case.message, line) for line in found["verify"]), found["verify"]


def test_there_are_many_cases_with_unique_names():
    assert len({case.name for case in CASES}) == len(CASES) > 250


def test_a_sound_data_set_is_read_within_the_same_bounds(sound, confined):
    for folder in sound.values():
        found = confined(everything, folder)
        assert found["content"] and (found["fault"], found["verify"], found["code"]) == (None, [], 0)


def test_shards_may_be_symbolic_links(sound, outside):
    folder = outside / "data"
    shutil.copytree(sound["embed"], folder)
    (folder / "shards").rename(outside / "elsewhere")
    (folder / "shards").mkdir()
    (folder / "shards" / "train-00000.h5").symlink_to(outside / "elsewhere" / "train-00000.h5")
    assert verify(Dataset.open(folder)) == []
    shutil.rmtree(folder / "shards")
    (folder / "shards").symlink_to(outside / "elsewhere")
    assert verify(Dataset.open(folder)) == []


def info(folder: Path) -> dict:
    """What ``cocolvis info`` prints."""
    shown = CliRunner().invoke(main, ["info", str(folder)])
    return {"code": shown.exit_code, "text": shown.stdout}


def test_a_million_faults_are_read(sound, outside, confined):
    folder = hostile(Case(name="", message="", change=lambda *_: None), sound, outside, confined)
    text = (folder / "dataset.json").read_text()
    fault = '{"kind": "no stuff", "source": "stuff", "image_id": 1, "annotation_id": null, "reason": "has no stuff annotation"}'
    report = f'{{"counts": {{"no stuff": 1000000}}, "faults": [{", ".join([fault] * 10**6)}]}}'
    (folder / "dataset.json").write_text(text.replace('{"counts": {}, "faults": []}', report))
    found = confined(info, folder)
    assert found["code"] == 0 and "no stuff: 1000000" in found["text"] and "and 999997 more" in found["text"]


def unprivileged(folder: Path) -> dict:
    """The same without root privileges."""
    before = os.geteuid()
    os.seteuid(before or NOBODY)
    try:
        return everything(folder)
    finally:
        os.seteuid(before)


@pytest.mark.parametrize("name", ["dataset.json", "shards/train-00000.h5", "shards", "."])
def test_missing_permissions_are_reported_in_one_line(name, sound, confined):
    with tempfile.TemporaryDirectory() as root:
        Path(root).chmod(0o755)
        folder = Path(root) / "data"
        shutil.copytree(sound["embed"], folder)
        (folder / name).chmod(0)
        found = confined(unprivileged, folder)
        (folder / name).chmod(0o755)
    lines = [found["fault"], *found["verify"]]
    assert "ermission denied" in found["fault"] and any("ermission denied" in line for line in found["verify"])
    assert found["code"] == 1 and all(line.startswith(root) for line in lines)
