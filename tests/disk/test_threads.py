"""Work divided among threads: everything once, additions in order, sums independent of the number of threads."""

import threading
import time

import pytest
import torch
import torch.nn.functional as F

from ess.kernels.threads import chunks, parallel_for
from ess.losses.cross_entropy import exact_cross_entropy, knn_cross_entropy


@pytest.mark.parametrize("pixels", [0, 1, 255, 256, 257, 5000, 100_001])
def test_chunks_cover_every_pixel_once(pixels):
    parts = chunks(pixels, 1000)
    assert [p for first, end in parts for p in range(first, end)] == [*range(pixels)]
    assert all(end - first <= 1000 for first, end in parts)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_additions_are_made_in_order(threads):
    added = []

    def worker():
        mine = []

        def compute(number):
            time.sleep(0.02 if number % 3 == 0 else 0)  # a later part often finishes first
            mine.append(number)

        return compute, lambda: added.append(mine.pop())

    parallel_for(worker, [(number,) for number in range(20)], threads)
    assert added == [*range(20)]


@pytest.mark.parametrize("threads", [1, 3])
def test_a_failure_ends_the_work_and_is_raised(threads):
    computed = []

    def compute(number):
        if number == 4:
            raise MemoryError("part 4")
        computed.append(number)

    with pytest.raises(MemoryError, match="part 4"):
        parallel_for(lambda: (compute, lambda: None), [(number,) for number in range(1000)], threads)
    assert len(computed) < 1000
    assert threading.active_count() < 50


@pytest.mark.parametrize("loss", [exact_cross_entropy, pytest.param(knn_cross_entropy, marks=pytest.mark.long)])
def test_losses_are_bit_identical_for_any_number_of_threads(loss):
    g = torch.Generator().manual_seed(0)
    embeddings = F.normalize(torch.randn(2, 12, 96, 110, generator=g), dim=1)
    labels = torch.randint(-1, 50, (2, 96, 110), generator=g)
    classes = F.normalize(torch.randn(50, 12, generator=g), dim=1)
    found, usual = [], torch.get_num_threads()
    try:
        for threads in (1, 2, 3, 3, 3):
            torch.set_num_threads(threads)
            leaves = [x.clone().requires_grad_() for x in (embeddings, classes)]
            value = loss(leaves[0], labels, leaves[1])
            value.backward()
            found.append((value.detach(), *(leaf.grad for leaf in leaves)))
    finally:
        torch.set_num_threads(usual)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))
