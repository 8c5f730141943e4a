"""Predictions of several pictures at a time on the CPU: the same results, in order, whatever goes wrong."""

import threading

import numpy as np
import pytest
import torch
from test_predict import CPU, few, network, photo

from ess.inference.predictor import Predictor
from ess.inference.side_by_side import side_by_side


@pytest.fixture
def four_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    assert torch.get_num_threads() == 4
    torch.set_num_threads(before)


def never(batch) -> bool:
    return False


def test_batches_are_computed_at_the_same_time_with_a_share_of_the_threads(four_threads):
    barrier = threading.Barrier(4, timeout=60)  # is passed only by four threads at the same time

    def compute(number):
        barrier.wait()
        return number, torch.get_num_threads()

    assert list(side_by_side(compute, range(8), CPU, never)) == [(number, 1) for number in range(8)]


def test_a_large_batch_has_all_threads_to_itself(four_threads):
    running, seen = set(), {}

    def compute(number):
        running.add(number)
        seen[number] = torch.get_num_threads(), set(running)
        torch.ones(100, 100) @ torch.ones(100, 100)
        running.remove(number)
        return number

    assert list(side_by_side(compute, range(20), CPU, lambda number: number == 9)) == list(range(20))
    assert seen[9] == (4, {9}) and {threads for number, (threads, _) in seen.items() if number != 9} == {1}


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_one_batch_or_a_gpu_needs_no_other_thread(four_threads, device):
    batches = range(1 if device == "cpu" else 5)
    found = side_by_side(lambda number: threading.current_thread(), batches, torch.device(device), never)
    assert set(found) == {threading.main_thread()}


def test_few_batches_are_taken_before_their_results_are_wanted(four_threads):
    taken = []
    results = side_by_side(lambda number: number, (taken.append(n) or n for n in range(100)), CPU, never)
    assert next(results) == 0 and len(taken) <= 5
    results.close()
    assert len(taken) <= 5


def test_an_exception_ends_the_iteration(four_threads):
    def compute(number):
        if number == 3:
            raise ValueError("picture 3")
        return number

    results, found = side_by_side(compute, range(100), CPU, never), []
    with pytest.raises(ValueError, match="picture 3"):
        found.extend(iter(lambda: next(results), None))
    assert found == [0, 1, 2]


@pytest.mark.parametrize("head", ["embedding", "dense"])
def test_the_predictions_are_those_of_one_thread(four_threads, head):
    predictor = Predictor(network(head), few(20), CPU)
    images = [photo(40 + 8 * (seed % 3), 50 + 9 * (seed % 4), seed) for seed in range(12)]
    together = predictor(images)
    torch.set_num_threads(1)
    alone = [predictor(image) for image in images]
    torch.set_num_threads(4)
    assert all(np.array_equal(*pair) for pair in zip(together, alone, strict=True))
