"""A run's folder: run.json (settings, vocabulary, data set), and checkpoints as safetensors files with readable JSON."""

import logging
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from cocolvis.disk.files import read_json, read_versioned, reason, sha256, sweep, sync_folder, write_aside, write_json
from cocolvis.errors import DataError
from cocolvis.vocabulary import Vocabulary
from ess.config import Config
from ess.setting import NONE

FORMAT = "ess-run"
VERSION = 1

_SETTINGS = "settings.toml"
_NAME = re.compile(r"step-\d{8}")
"""Only folders of such names are checkpoints: whatever else users keep beside them is left alone."""

_FIXED = ("arch", "encoder", "weights", "output_stride", "features", "norm", "dim", "normalize", "distance", "optimizer")
"""The settings of a run that never change: they describe its tensors, what those began as, or how embeddings are compared."""

_OTHER_TENSORS = {"loss": "dense", "temperature": "learnt"}
"""Setting -> the value that changes which tensors a run has. Between the other values, the setting may change."""

_TENSORS = ("model.safetensors", "training.safetensors")

log = logging.getLogger("ess")


class Checkpoint(NamedTuple):
    """A checkpoint according to its state.json: its folder, the steps done, and the scores of an evaluation at that step.

    ``temperature`` is the learnt one. ``evaluated`` says on what: the digest of the data set, and the most images; None if an
    older version wrote the scores. ``weights`` is the SHA-256 of the weights, None if an older version wrote them.
    """

    folder: Path
    step: int
    scores: dict[str, Any] | None
    temperature: float | None = None
    evaluated: dict[str, Any] | None = None
    weights: str | None = None

    def training(self) -> dict[str, torch.Tensor]:
        """Everything except the weights, as :meth:`ess.training.state.TrainingState.tensors` returned it."""
        return _load_tensors(self.folder / "training.safetensors")

    def weights_digest(self) -> str:
        """The SHA-256 of the weights; a training may have removed their file since they were loaded."""
        return self.weights or sha256(self.folder / "model.safetensors")

    @property
    def miou(self) -> float:
        """The mIoU of the evaluation, or -1."""
        miou = (self.scores or {}).get("miou")
        return -1.0 if miou is None else miou


class Run:
    """The folder that ``ess train`` writes: settings, vocabulary and checkpoints of one training run.

    ``dataset`` is the digest of the data set that it is trained on, None if an older version began the run. ``earlier`` lists
    the data sets before it as {"digest", "steps"}: the digest, and the number of steps done when the run left it. ``machine``
    says on what device, and how, the training was last begun or resumed.
    """

    def __init__(
        self,
        folder: Path,
        config: Config,
        vocabulary: Vocabulary,
        dataset: str | None = None,
        earlier: Sequence[Mapping[str, Any]] = (),
        machine: Mapping[str, Any] | None = None,
    ):
        self.folder = folder
        self.config = config
        self.vocabulary = vocabulary
        self.dataset = dataset
        self.earlier = list(earlier)
        self.machine = machine

    def begin(self, model: torch.nn.Module, training: Mapping[str, torch.Tensor], temperature: float | None = None) -> None:
        """Save the untrained model as step 0, then run.json, so that every existing run can be resumed without a download."""
        self.save(0, model, training, temperature)
        self.write()

    @classmethod
    def find(cls, folder: Path) -> "Run | None":
        """The run in a folder, or None; raises DataError if run.json cannot be read, or is missing next to checkpoints.

        An untrained step 0 alone is not a run: it is left by a process that was killed in :meth:`begin`.
        """
        if os.path.lexists(folder / "run.json"):
            return cls.open(folder)
        steps = [path.name for path in sorted(folder.glob("checkpoints/step-*"))]
        if steps and (steps != ["step-00000000"] or (folder / _SETTINGS).exists()):
            raise DataError(
                f"{folder}: holds checkpoints up to {steps[-1]} but no run.json, which describes them;"
                " put it back, or choose another --out"
            )
        return None

    @classmethod
    def open(cls, folder: str | Path) -> "Run":
        """Read run.json; raises DataError if it is missing, malformed or in another format."""
        folder = Path(folder)
        path = folder / "run.json"
        if not os.path.lexists(path):
            raise DataError(f"{folder}: holds no run.json; expected a folder that `ess train` wrote")
        content = read_versioned(path, FORMAT, VERSION)
        try:
            config = Config(**content["settings"])
            vocabulary = Vocabulary.from_json(content.get("vocabulary", {}))
        except (KeyError, TypeError) as error:
            raise DataError(f"{path}: malformed settings: {error}") from None
        except DataError as error:
            raise DataError(f"{path}: {error}") from None
        data = content.get("dataset")
        try:
            digest, earlier = (data["digest"], [*map(dict, data["earlier"])]) if data else (None, [])
            if not isinstance(digest, str | None):
                raise TypeError(f"digest is {digest!r}")
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{path}: malformed dataset: {error}") from None
        return cls(folder, config, vocabulary, digest, earlier, content.get("machine"))

    def temperature(self, checkpoint: Checkpoint) -> float:
        """T, the factor of distances in the logits of a checkpoint's model, whether it was set or learnt."""
        set_or_learnt = checkpoint.temperature if self.config.temperature == "learnt" else self.config.temperature
        if not isinstance(set_or_learnt, int | float):
            raise DataError(f"{checkpoint.folder / 'state.json'}: lacks the learnt temperature")
        return set_or_learnt

    def change(self, config: Config) -> list[str]:
        """Continue with other settings, and return the changes, as "lr 0.1 -> 0.2".

        Raises DataError if they describe another model, or other weights than it began with.
        """
        for name in (*_FIXED, *_OTHER_TENSORS):
            old, new = getattr(self.config, name), getattr(config, name)
            if new != old and _OTHER_TENSORS.get(name, new) in (old, new):
                raise DataError(f"{self.folder}: was begun with {name} {old!r}, not {new!r}; it cannot change on --resume")
        before, self.config = self.config.to_json(), config
        changes = {name: (before[name], new) for name, new in config.to_json().items() if new != before[name]}
        return [f"{name} {_shown(old)} -> {_shown(new)}" for name, (old, new) in changes.items()]

    def change_data(self, digest: str, steps: int, *, allowed: bool) -> None:
        """Continue after ``steps`` steps with the data set of this digest.

        Raises DataError if it is another one than before and not ``allowed``.
        """
        if self.dataset is None:
            log.info("%s: the data set of the run is recorded from now on; an older version began it", self.folder)
        elif digest != self.dataset:
            if not allowed:
                raise DataError(
                    f"{self.folder}: was trained on the data set of digest {self.dataset[:12]}..., not {digest[:12]}...;"
                    " continue with the former, or with the new one by --allow-other-data"
                )
            log.warning("%s: continues with another data set, of digest %s...", self.folder, digest[:12])
            self.earlier.append({"digest": self.dataset, "steps": steps})
        self.dataset = digest

    def write(self) -> None:
        """Write run.json, and then settings.toml, the settings as a file for ``--config``."""
        content = {"format": FORMAT, "version": VERSION, "settings": self.config.to_json(), "machine": self.machine}
        content["dataset"] = {"digest": self.dataset, "earlier": self.earlier} if self.dataset else None
        write_json(self.folder / "run.json", content | {"vocabulary": self.vocabulary.to_json()})
        with write_aside(self.folder / _SETTINGS) as aside:
            aside.write_text(self.config.to_toml(), encoding="utf-8")

    def checkpoints(self) -> list[Path]:
        """Folders of checkpoints, oldest first."""
        return [path for path in sorted(self.folder.glob("checkpoints/step-*")) if _NAME.fullmatch(path.name) and path.is_dir()]

    def save(
        self, step: int, model: torch.nn.Module, training: Mapping[str, torch.Tensor], temperature: float | None = None
    ) -> Path:
        """Write checkpoint ``step``: model.safetensors, training.safetensors (optimiser) and state.json, without scores.

        state.json shows the learnt ``temperature``; training.safetensors has all its digits.

        The folder appears whole or not at all. Then earlier ones are removed, except the ``config.keep`` newest and the best.
        """
        folder = self._checkpoint(step)
        aside = folder.with_name(f".{folder.name}.tmp")
        try:
            for left in folder.parent.glob(".step-*.tmp"):  # left by a process that was killed
                shutil.rmtree(left, ignore_errors=True)
            aside.mkdir(parents=True)
            _save_tensors(aside / "model.safetensors", model.state_dict())
            _save_tensors(aside / "training.safetensors", training)
            state = {"step": step, "vocabulary": self.vocabulary.digest, "scores": None, "settings": self.config.to_json()}
            state |= {} if temperature is None else {"temperature": temperature}
            write_json(aside / "state.json", state | {"sha256": {name: sha256(aside / name) for name in _TENSORS}})
            sync_folder(aside)
            if os.path.lexists(folder):
                _remove(folder)
            os.replace(aside, folder)
            sync_folder(folder.parent)
        except OSError as error:
            raise DataError(f"{folder}: cannot be written: {reason(error)}") from error
        except SafetensorError as error:  # a full disk, too
            raise DataError(f"{folder}: cannot be written: {error}") from error
        finally:
            shutil.rmtree(aside, ignore_errors=True)
        self._tidy(folder)
        return folder

    def score(self, step: int, scores: Mapping[str, Any]) -> None:
        """Add the scores of an evaluation to checkpoint ``step``, then remove earlier checkpoints as :meth:`save` does."""
        folder = self._checkpoint(step)
        sweep(folder)
        evaluated = {"dataset": self.dataset, "limit": self.config.eval_limit}
        write_json(folder / "state.json", read_json(folder / "state.json") | {"scores": scores, "evaluated": evaluated})
        self._tidy(folder)

    def _checkpoint(self, step: int) -> Path:
        return self.folder / "checkpoints" / f"step-{step:08d}"

    def _tidy(self, newest: Path) -> None:
        """Remove checkpoints that are not kept; later ones than ``newest``, which were damaged and skipped, stay.

        One that cannot be removed is reported: the new one is complete in any case.
        """
        best = self.best()
        kept = best and best.folder
        earlier = [folder for folder in self.checkpoints() if folder <= newest][: -self.config.keep]
        for folder in (folder for folder in earlier if folder != kept):
            try:
                _remove(folder)
            except OSError as error:
                log.warning("%s: cannot be removed: %s; the training continues", folder, reason(error))

    def load(self, model: torch.nn.Module, which: str = "newest") -> Checkpoint:
        """Load the weights of the "newest" checkpoint, or of the "best" as in :meth:`best`, into ``model``.

        A damaged checkpoint is skipped with a warning, and the next one is used. Raises DataError if none is intact, if the
        best is requested and none was evaluated, or if the weights do not fit the model.
        """
        checkpoint, tensors = self._first_intact(which)
        try:
            model.load_state_dict(tensors)
        except RuntimeError as error:
            reason = str(error).splitlines()[-1].strip()
            raise DataError(f"{checkpoint.folder}: does not fit the model of run.json: {reason}") from None
        return checkpoint

    def _first_intact(self, which: str) -> tuple[Checkpoint, dict[str, torch.Tensor]]:
        """The first candidate whose files are unchanged since they were written, and its weights."""
        fault: DataError | None = None
        for folder in self.candidates(which):
            try:
                checkpoint = _read(folder, self.vocabulary)
                return checkpoint, _load_tensors(folder / "model.safetensors")
            except _Damaged as error:
                log.warning("%s; looking for another checkpoint", error)
                fault = error
        assert fault is not None  # there is a candidate
        raise fault

    def candidates(self, which: str = "newest") -> list[Path]:
        """The folders, at least one, of which :meth:`load` takes the first intact one; nothing is read of their weights.

        Raises DataError if there are none.
        """
        if which == "best":
            folders = [checkpoint.folder for checkpoint in self._scored()]
            if not folders:
                raise DataError(f"{self.folder}: no checkpoint was evaluated; train with --eval-every, or take the newest")
            return folders
        if folders := self.checkpoints()[::-1]:
            return folders
        raise DataError(f"{self.folder}: holds no checkpoint yet; `ess train` writes one every save_every steps and at the end")

    def listed(self) -> list[Checkpoint]:
        """The checkpoints with a readable state.json, oldest first; their tensors are not read."""
        checkpoints = []
        for folder in self.checkpoints():
            try:
                checkpoints.append(_described(folder)[0])
            except DataError:
                continue
        return checkpoints

    def best(self) -> Checkpoint | None:
        """The checkpoint with the highest mIoU, or None if none was evaluated; ties go to the oldest.

        Only checkpoints that were evaluated on the same images as the newest evaluated one are compared.
        """
        return next(iter(self._scored()), None)

    def _scored(self) -> list[Checkpoint]:
        """Checkpoints that were evaluated on the images of the newest evaluated one, the best first.

        Scores of older versions, which do not say on what images, are compared with all others.
        """
        scored = [checkpoint for checkpoint in self.listed() if checkpoint.miou >= 0]
        comparable = (None, scored[-1].evaluated) if scored else ()
        return sorted((each for each in scored if each.evaluated in comparable), key=lambda c: -c.miou)


class _Damaged(DataError):
    """A file of a checkpoint is missing, unreadable, or changed since it was written."""


def _described(folder: Path) -> tuple[Checkpoint, dict[str, Any]]:
    """A checkpoint according to its state.json, and the content of that file; raises DataError if it has another shape."""
    path = folder / "state.json"
    state = read_json(path)
    if not isinstance(state, dict) or state.get("step") != int(folder.name.removeprefix("step-")) or "scores" not in state:
        raise DataError(f"{path}: is not the state of this checkpoint")
    checkpoint = Checkpoint(folder, state["step"], state["scores"], state.get("temperature"), state.get("evaluated"))
    if not (checkpoint.scores is None or (isinstance(checkpoint.scores, dict) and isinstance(checkpoint.miou, int | float))):
        raise DataError(f"{path}: holds malformed scores")
    if not isinstance(checkpoint.temperature, int | float | None):
        raise DataError(f"{path}: holds a malformed temperature")
    return checkpoint, state


def _read(folder: Path, vocabulary: Vocabulary) -> Checkpoint:
    """Read a checkpoint and compare its files with their digests, which checkpoints of older versions lack."""
    try:
        checkpoint, state = _described(folder)
        digests = state.get("sha256", {})
        for name, digest in digests.items():
            if sha256(folder / name) != digest:
                raise _Damaged(f"{folder / name}: was changed: its SHA-256 differs from that in state.json")
    except (DataError, AttributeError) as error:
        raise error if isinstance(error, _Damaged) else _Damaged(f"{folder}: cannot be read: {error}") from None
    if state.get("vocabulary") != vocabulary.digest:
        raise DataError(f"{folder}: was trained with another vocabulary than run.json names")
    return checkpoint._replace(weights=digests.get("model.safetensors"))


def _shown(value: Any) -> str:
    """The value of a setting, as flags and TOML files name it."""
    return NONE if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _remove(folder: Path) -> None:
    """Remove a checkpoint; of one that was moved elsewhere, only the link that replaces it."""
    if folder.is_symlink():
        folder.unlink()
    else:
        shutil.rmtree(folder)


def _save_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path)
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _load_tensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise _Damaged(f"{path}: cannot be read: {error}") from None
