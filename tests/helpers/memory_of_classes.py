"""What margin penalty and evaluation take of memory with few classes and with many, beyond the class table and its gradient.

python tests/helpers/memory_of_classes.py COUNT... prints {"penalty COUNT": bytes at the peak, ...}. Each is measured in a
process of its own, forked from one that has only imported.
"""

import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

from ess.evaluation.evaluate import scores_of
from ess.evaluation.metrics import Confusion
from ess.evaluation.reports import frequency_curve
from ess.losses.cross_entropy import margin_penalty

DIM = 64


def _resident(what: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(what)).split()[1])


def penalty(count: int) -> int:
    """Forward and backward of a step."""
    classes = torch.nn.functional.normalize(torch.randn(count, DIM), dim=1).requires_grad_()
    before = _resident("VmRSS")
    margin_penalty(classes, margin=2.0).backward()
    assert classes.grad.count_nonzero() > 0
    return _resident("VmHWM") - before - classes.grad.nbytes


def evaluation(count: int) -> int:
    """Two images of each of two processes, and everything that is reported about them."""
    before = _resident("VmRSS")
    rng, parts = np.random.default_rng(0), [Confusion(count), Confusion(count)]
    for part in parts * 2:
        part.update(rng.integers(-1, count, (200, 300)), rng.integers(0, count, (200, 300)))
    parts[0] += parts[1]
    scores = scores_of(parts[0], SimpleNamespace(vocabulary=[SimpleNamespace(group="stuff")] * count))
    assert scores["images"] == 4 and len(frequency_curve(parts[0].iou(), np.arange(count))) == count
    return _resident("VmHWM") - before


def main(counts: list[int]) -> None:
    """Measure and print."""
    found = {}
    for measure in (penalty, evaluation):
        for count in counts:
            reader, writer = os.pipe()
            if not (child := os.fork()):
                torch.set_num_threads(1)
                os.write(writer, str(measure(count)).encode())
                os._exit(0)
            os.close(writer)
            with os.fdopen(reader) as said:
                found[f"{measure.__name__} {count}"] = int(said.read())
            os.waitpid(child, 0)
    print(json.dumps(found))


if __name__ == "__main__":
    main([int(count) for count in sys.argv[1:]])
