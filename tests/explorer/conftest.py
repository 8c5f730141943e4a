"""Workspaces over the generated sample and predictions for it; the cache is a temporary folder."""

from pathlib import Path

import pytest
from predictions import shifted, write_predictions

from cocolvis.explorer.site.app import application
from cocolvis.explorer.workspace import Workspace


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch) -> Path:
    """A cache of its own for each test."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("COCOLVIS_CACHE", str(folder))
    return folder


@pytest.fixture(scope="session")
def predictions(dataset, tmp_path_factory) -> Path:
    """Predictions for val that are wrong in a known way."""
    return write_predictions(dataset, tmp_path_factory.mktemp("predictions") / "shifted", shifted)


@pytest.fixture(scope="session")
def workspace(sample_dataset, predictions, tmp_path_factory) -> Workspace:
    """The sample and its predictions, prepared."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COCOLVIS_CACHE", str(tmp_path_factory.mktemp("shared-cache")))
        found = Workspace(sample_dataset, [predictions])
        found.prepare()
    return found


@pytest.fixture(scope="session")
def app(workspace):
    """The application over that workspace."""
    return application(workspace)
