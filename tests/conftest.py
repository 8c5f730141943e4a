"""What several tests share: a tree to draw in, the generated sample, and real data if available."""

import os
import signal
import sys
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch comes: the tests' processes share the cores

import pytest
from trees import Tree

from cocolvis.building.build import build
from cocolvis.building.coco_lvis import CocoLvisOptions
from cocolvis.sample.writer import write_sample
from cocolvis.sources.inputs import Sources
from cocolvis.storage.dataset import Dataset
from cocolvis.vocabulary import coco_lvis


def pytest_configure(config):
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in the background of a shell: processes would inherit it
        signal.signal(signal.SIGINT, signal.default_int_handler)
    config.addinivalue_line("filterwarnings", "ignore:__array__ implementation:DeprecationWarning:pycocotools")


def pytest_runtest_setup(item):
    if sys.platform != "linux" and item.get_closest_marker("linux"):
        pytest.skip("needs Linux")


@pytest.fixture(autouse=True)
def one_core(monkeypatch):
    """Commands that are called in this process start no other ones unless a test asks for them: each takes seconds to start."""
    for command in ("run", "sample"):
        monkeypatch.setattr(f"cli.cocolvis.creation.{command}.cores", lambda: 1)


class Built(NamedTuple):
    """The folders of a COCO + LVIS tree and a data set that was built from it; tests must not change them."""

    coco: Path
    lvis: Path
    data: Path

    def rebuild(self, out: Path, **settings) -> Dataset:
        """Build the same tree again, elsewhere or otherwise; takes what ``build`` and ``CocoLvisOptions`` take."""
        how = {name: settings.pop(name) for name in ("workers", "mode", "progress") if name in settings}
        build(Sources(self.coco, self.lvis, coco_lvis()), out, CocoLvisOptions(**settings), **how)
        return Dataset.open(out)


@pytest.fixture
def tree(tmp_path) -> Tree:
    return Tree(tmp_path)


@pytest.fixture(scope="session")
def sample(tmp_path_factory) -> Built:
    """A generated tree of 40 images, built in shards of 15."""
    root = tmp_path_factory.mktemp("sample")
    write_sample(root, images=40, classes=60, size=64, seed=3)
    built = Built(root / "coco", root / "lvis", root / "data")
    built.rebuild(built.data, shard_size=15)
    return built


@pytest.fixture(scope="session")
def real(tmp_path_factory) -> Built:
    """Real images and annotations from the folder COCOLVIS_REAL_DATA (coco/ and lvis/), built."""
    folder = os.environ.get("COCOLVIS_REAL_DATA")
    if not folder:
        pytest.skip("no real data: set COCOLVIS_REAL_DATA to a folder with coco/ and lvis/")
    built = Built(Path(folder) / "coco", Path(folder) / "lvis", tmp_path_factory.mktemp("real") / "data")
    built.rebuild(built.data)
    return built


@pytest.fixture(scope="session")
def sample_dataset(sample) -> Path:
    """The folder of the data set that was built from the generated sample."""
    return sample.data


@pytest.fixture(scope="session")
def dataset(sample_dataset) -> Dataset:
    """The data set that was built from the generated sample."""
    return Dataset.open(sample_dataset)


@pytest.fixture(scope="session")
def run(dataset, tmp_path_factory):
    """Four undisturbed steps of the small run of ``runs.config``; tests must not change it."""
    from runs import config  # torch is slow to import, and most tests need none of it

    from ess.training.loop import train

    return train(dataset, tmp_path_factory.mktemp("runs") / "run", config())


@pytest.fixture(scope="session")
def untrained_run(sample_dataset, tmp_path_factory) -> Path:
    """A run of one step over the generated sample: a small model whose predictions mean nothing."""
    from ess.config import Config  # torch is slow to import, and most tests need none of it
    from ess.training.loop import train

    settings = {"encoder": "mobilenetv2_100", "weights": "none", "crop": 48, "batch_size": 2, "workers": 0, "dim": 6}
    config = Config(**settings, steps=1, epochs=None, device="cpu")
    return train(Dataset.open(sample_dataset), tmp_path_factory.mktemp("untrained") / "run", config).folder
