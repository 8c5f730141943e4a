"""What a training consists of, looked at before anything is computed: its images, their long tail, and the number of steps."""

from typing import NamedTuple

from cocolvis.errors import DataError
from cocolvis.storage.dataset import Dataset, Split
from ess.config import MOST_STEPS, Config
from ess.data.loader import epoch_length, training_split
from ess.data.longtail import Tail, tail_of
from ess.evaluation.evaluate import check_readable


class Plan(NamedTuple):
    """The images to train on, what their long tail changes, and the steps of an epoch and of the whole training."""

    split: Split
    tail: Tail
    epoch: int
    steps: int


def planned(dataset: Dataset, config: Config) -> Plan:
    """What a training consists of; raises DataError if the data set has nothing to learn, or nothing to evaluate on."""
    split = training_split(dataset, config)
    tail = tail_of(split, dataset.vocabulary, config)
    epoch = epoch_length(len(split), tail.repeats) // config.batch_size
    steps = _steps(config, epoch)
    if config.eval_every is not None:
        check_readable(dataset, "val", limit=config.eval_limit, skip_damaged=config.skip_damaged)
    return Plan(split, tail, epoch, steps)


def _steps(config: Config, epoch: int) -> int:
    """The number of steps of the whole training, given those of an epoch.

    Raises DataError if it has more digits than the names of checkpoints.
    """
    if config.steps is not None:
        return config.steps
    assert config.epochs is not None  # Config has exactly one of the two
    steps = config.epochs * epoch
    if steps > MOST_STEPS:
        raise DataError(f"{config.epochs} epochs are {steps} steps; expected at most {MOST_STEPS}")
    return steps
