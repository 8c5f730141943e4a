"""A run's folder: run.json (settings, vocabulary) and checkpoints, each safetensors beside readable JSON."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from cocolvis.errors import DataError
from cocolvis.files import read_json, sync_folder, write_json
from cocolvis.vocabulary import Vocabulary
from ess.config import Config

FORMAT = "ess-run"
VERSION = 1

_KEEP = 2
"""Checkpoints that are kept, the newest."""


class Run:
    """The folder that ``ess train`` writes: settings, vocabulary and checkpoints of one training run."""

    def __init__(self, folder: Path, config: Config, vocabulary: Vocabulary):
        self.folder = folder
        self.config = config
        self.vocabulary = vocabulary

    def begin(self, model: torch.nn.Module, training: Mapping[str, torch.Tensor]) -> None:
        """Save the untrained model as step 0, then run.json: a run that exists can always be resumed, without any download."""
        for left in self.checkpoints():
            shutil.rmtree(left)
        self.save(0, model, training, None)
        self._write()

    @classmethod
    def open(cls, folder: str | Path) -> "Run":
        """Read run.json; a DataError when there is none, or its format is another."""
        folder = Path(folder)
        if not (folder / "run.json").exists():
            raise DataError(f"{folder}: holds no run.json; expected a folder that `ess train` wrote")
        content = read_json(folder / "run.json")
        found = (content.get("format"), content.get("version")) if isinstance(content, dict) else None
        if found != (FORMAT, VERSION):
            raise DataError(f"{folder / 'run.json'}: format and version are {found}, expected {(FORMAT, VERSION)}")
        try:
            config = Config(**content["settings"])
        except (KeyError, TypeError) as error:
            raise DataError(f"{folder / 'run.json'}: malformed settings: {error}") from None
        return cls(folder, config, Vocabulary.from_json(content.get("vocabulary")))

    def update(self, config: Config) -> None:
        """Go on with other settings, and record them; a DataError where they would make another model."""
        for name in ("arch", "encoder", "output_stride", "norm", "dim", "normalize", "loss"):
            old, new = getattr(self.config, name), getattr(config, name)
            if new != old and not (name == "loss" and "dense" not in (old, new)):
                raise DataError(f"{self.folder}: was begun with {name} {old!r}, not {new!r}; it cannot change on --resume")
        self.config = config
        self._write()

    def checkpoints(self) -> list[Path]:
        """Folders of whole checkpoints, oldest first."""
        return sorted(self.folder.glob("checkpoints/step-*"))

    def save(self, step: int, model: torch.nn.Module, training: Mapping[str, torch.Tensor], scores: Mapping | None) -> Path:
        """Write checkpoint ``step``: model.safetensors, training.safetensors (optimiser and random state) and state.json.

        The folder appears whole or not at all; older checkpoints but the newest are then removed.
        """
        folder = self.folder / "checkpoints" / f"step-{step:08d}"
        aside = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
        try:
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir(parents=True)
            _save_tensors(aside / "model.safetensors", model.state_dict())
            _save_tensors(aside / "training.safetensors", training)
            state = {"step": step, "vocabulary": self.vocabulary.digest, "scores": scores, "settings": self.config.to_json()}
            write_json(aside / "state.json", state)
            shutil.rmtree(folder, ignore_errors=True)
            os.replace(aside, folder)
            sync_folder(folder.parent)
        except OSError as error:
            raise DataError(f"{folder}: cannot be written: {error.strerror or error}") from error
        finally:
            shutil.rmtree(aside, ignore_errors=True)
        for old in self.checkpoints()[:-_KEEP]:
            shutil.rmtree(old)
        return folder

    def load_model(self, model: torch.nn.Module) -> dict[str, Any]:
        """Fill ``model`` with the newest checkpoint and return its state.json; a DataError when none is there, or none fits."""
        folder = self._newest()
        state = read_json(folder / "state.json")
        if state.get("vocabulary") != self.vocabulary.digest:
            raise DataError(f"{folder}: was trained with another vocabulary than run.json names")
        try:
            model.load_state_dict(_load_tensors(folder / "model.safetensors"))
        except RuntimeError as error:
            raise DataError(f"{folder}: does not fit the model of run.json: {str(error).splitlines()[-1].strip()}") from None
        return state

    def load_training(self) -> dict[str, torch.Tensor]:
        """The optimiser and random state of the newest checkpoint."""
        return _load_tensors(self._newest() / "training.safetensors")

    def _write(self) -> None:
        settings, vocabulary = self.config.to_json(), self.vocabulary.to_json()
        write_json(
            self.folder / "run.json", {"format": FORMAT, "version": VERSION, "settings": settings, "vocabulary": vocabulary}
        )

    def _newest(self) -> Path:
        found = self.checkpoints()
        if not found:
            raise DataError(
                f"{self.folder}: holds no checkpoint yet; `ess train` writes one every save_every steps and at the end"
            )
        return found[-1]


def _save_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path)
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _load_tensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from None
