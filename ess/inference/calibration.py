"""The calibration of a run by logit adjustment: the file RUN/calibration.json, and the bias that its predictions use."""

import logging
from collections.abc import Sequence

import msgspec
import numpy as np
import torch

from cocolvis.disk.files import is_absent, read_versioned, reason, write_json
from cocolvis.errors import DataError
from ess.checkpoint import Checkpoint, Run

FILE = "calibration.json"
FORMAT = "ess-calibration"
VERSION = 1

log = logging.getLogger("ess")


class Trial(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A value of tau, and the mIoU of the sampled pixels with it, 0..1."""

    tau: float
    miou: float


class Calibration(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The result of :func:`ess.evaluation.calibrate.calibrate` for a checkpoint.

    Logit adjustment after training (Menon et al., ICLR 2021, equation 9) predicts the class with the largest logit_c - tau *
    log prior_c. ``bias`` (C,) favours classes accordingly: it is subtracted from the distances of an embedding model, where it
    is tau / T * (mean log prior - log prior_c), or added to the logits of a dense head, where T is 1. Its mean is 0.

    ``trials`` are the values of tau that were tried, on ``pixels`` sampled pixels of ``images`` training images of the data set
    with the digest ``dataset``. ``step`` and ``checkpoint``, the SHA-256 of its weights, name the checkpoint.
    """

    tau: float
    bias: list[float]
    trials: list[Trial]
    images: int
    pixels: int
    dataset: str
    step: int
    checkpoint: str

    def miou(self, tau: float) -> float:
        """The mIoU of the sampled pixels with one of the values that were tried."""
        return next(trial.miou for trial in self.trials if trial.tau == tau)


class _File(msgspec.Struct, forbid_unknown_fields=True):
    format: str
    version: int
    calibration: Calibration


def read_calibration(run: Run) -> Calibration | None:
    """The calibration of a run, None if it has none; raises DataError if calibration.json is malformed."""
    path = run.folder / FILE
    if is_absent(path):
        return None
    advice = "remove it with `ess calibrate RUN --clear`, and calibrate again"
    try:
        found = msgspec.convert(read_versioned(path, FORMAT, VERSION), _File).calibration
    except msgspec.ValidationError as error:
        raise DataError(f"{path}: malformed: {error}; {advice}") from None
    if len(found.bias) != len(run.vocabulary) or not np.isfinite(found.bias).all():
        raise DataError(f"{path}: malformed: the bias is not {len(run.vocabulary)} finite numbers; {advice}")
    if not {0.0, found.tau} <= {trial.tau for trial in found.trials}:
        raise DataError(f"{path}: malformed: the trials lack tau {found.tau} or 0; {advice}")
    return found


def store_calibration(run: Run, calibration: Calibration) -> None:
    """Write calibration.json, from now on used for predictions with the checkpoint that it names."""
    write_json(run.folder / FILE, msgspec.to_builtins(_File(FORMAT, VERSION, calibration)))


def clear_calibration(run: Run, names: Sequence[str] = (FILE,)) -> bool:
    """Remove the files with these names from a run; return whether it had a calibration. Raises DataError if that fails."""
    had_one = not is_absent(run.folder / FILE)
    for name in names:
        try:
            (run.folder / name).unlink(missing_ok=True)
        except OSError as error:
            raise DataError(f"{run.folder / name}: cannot be removed: {reason(error)}") from None
    return had_one


def bias_for_checkpoint(run: Run, checkpoint: Checkpoint) -> torch.Tensor | None:
    """The bias (C,) float32 of a run's calibration; None without one, or with tau 0.

    A calibration of another checkpoint is left out, and the log warns about it.
    """
    found = read_calibration(run)
    if found is None:
        return None
    if found.checkpoint != checkpoint.weights_digest():
        log.warning(
            "%s: was made with another checkpoint than %s and is left out; calibrate again with `ess calibrate`",
            run.folder / FILE,
            checkpoint.folder.name,
        )
        return None
    return torch.tensor(found.bias, dtype=torch.float32) if found.tau else None
