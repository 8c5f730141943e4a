"""Numba caches exactly one compiled form of each function that Python calls, and it computes the same bits as any other."""

import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from numba.core.dispatcher import Dispatcher

from cocolvis.masks import merge_kernels, polygon_kernels, reading_kernels, run_kernels, runlength
from cocolvis.masks.merge import Region, merge
from cocolvis.masks.rasterize import rasterize
from ess.kernels import candidates_cpu, exact_cpu_loops, search_cpu
from ess.losses.cross_entropy import exact_cross_entropy, knn_cross_entropy
from ess.losses.neighbours import nearest

SEGMENTATIONS = [
    [[1, 1, 9, 1, 9, 9]],
    [[1.5, 1, 9, 1, 9, 9.25], [0, 0, 3, 0, 3, 3]],
    {"size": [12, 16], "counts": [4, 8, 180]},
    {"size": [12, 16], "counts": "48d5"},
]


def dispatchers(module):
    return [value for value in vars(module).values() if isinstance(value, Dispatcher) and value.__module__ == module.__name__]


def merge_and_store():
    spans = [rasterize(json.dumps(segmentation).encode(), 12, 16) for segmentation in SEGMENTATIONS]
    for unusual in (b"[[1,1,9e0,1,9,9]]", b'{"size": [12, 16], "counts": "48d5", "id": 7}'):  # not read by the compiled loop
        spans.append(rasterize(unusual, 12, 16))
    mask = merge([], [Region(class_id, found) for class_id, found in enumerate(spans, 1)], 12, 16).mask()
    fixed = mask.copy()
    fixed.flags.writeable = False
    for variant in (mask, fixed, np.asfortranarray(mask), mask[:, ::2], mask[:1, :3]):
        classes, lengths = runlength.encode(variant)
        assert np.array_equal(runlength.decode(classes, lengths, *variant.shape), variant)
        runlength.pixel_counts(classes, lengths)
        runlength.Runs(classes, lengths, *variant.shape).window(slice(0, 1), slice(1, 2))


def lose():
    images, labels = torch.randn(2, 4, 6, 8), torch.randint(5, (2, 6, 8))
    classes, mask = torch.randn(5, 4), torch.ones(2, 5, dtype=torch.bool)
    for layout in (torch.contiguous_format, torch.channels_last):
        for extras in ({}, {"bias": torch.randn(5)}, {"class_mask": mask}, {"class_weight": torch.rand(5)}):
            for reduction in ("mean", "none"):
                o = images.contiguous(memory_format=layout).requires_grad_()
                for maps, targets in ((o, labels), (o[:, :, ::2, 1:], labels[:, ::2, 1:]), (o[:1], labels[:1].int())):
                    own = {name: value[: len(maps)] if name == "class_mask" else value for name, value in extras.items()}
                    for wanted in (classes, classes.T.contiguous().T):
                        exact_cross_entropy(maps, targets, wanted, reduction=reduction, **own).sum().backward()
                        knn_cross_entropy(maps, targets, wanted, reduction=reduction, k=3, query_stride=2).sum().backward()


def search():
    queries, classes = torch.randn(30, 4), torch.randn(9, 4)
    for points in (
        queries,
        queries[::2],
        queries.T.contiguous().T,
        queries.requires_grad_(),
        queries.double(),
        queries.expand(30, 4),
    ):
        for distance in ("euclidean", "cosine"):
            for k, bias in ((1, None), (3, None), (3, torch.randn(9)), (1, torch.randn(9, 2)[:, 0])):
                nearest(points, classes, k, distance=distance, bias=bias, backend="numba")


@pytest.mark.parametrize(
    ("module", "work"),
    [
        (merge_kernels, merge_and_store),
        (polygon_kernels, merge_and_store),
        (reading_kernels, merge_and_store),
        (run_kernels, merge_and_store),
        (exact_cpu_loops, lose),
        (search_cpu, search),
        (candidates_cpu, lose),
    ],
)
def test_what_is_cached_has_one_form(module, work):
    work()
    cached = [function for function in dispatchers(module) if function.stats.cache_path]
    assert cached
    for function in cached:
        assert len(function.signatures) == 1, (function.__name__, function.signatures)


@pytest.mark.parametrize(("module", "work"), [(exact_cpu_loops, lose), (search_cpu, search), (candidates_cpu, lose)])
def test_fast_sums_are_compiled_once(module, work):
    """A call to another function of the module would run the copy that stands alone, or the one that was cached."""
    work()
    cached = [function for function in dispatchers(module) if function.stats.cache_path]
    place = "".join(f"{len(part)}{part}" for part in module.__name__.split("."))
    for function in cached:
        own = f"_ZN{place}{len(name := function.py_func.__qualname__)}{name}"
        for compiled in function.overloads.values():
            calls = set(re.findall(rf"call [^@\n]*@(_ZN{place}\w+)", str(compiled.library._get_module_for_linking())))
            assert calls and {call for call in calls if not call.startswith(own)} == set()


_HASHES = """
import hashlib, torch
from ess.losses.cross_entropy import exact_cross_entropy, knn_cross_entropy
torch.manual_seed(0)
maps, labels, classes = torch.randn(2, 12, 24, 24), torch.randint(-1, 40, (2, 24, 24)), torch.randn(40, 12)
for distance in ("euclidean", "squared", "cosine"):
    for loss, settings in ((exact_cross_entropy, {}), (knn_cross_entropy, {"k": 7, "search": "numba"})):
        o, e = maps.clone().requires_grad_(), classes.clone().requires_grad_()
        found = loss(o, labels, e, temperature=1.0, distance=distance, reduction="none", **settings)
        found.sum().backward()
        for tensor in (found.detach(), o.grad, e.grad):
            print(hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest())
"""


@pytest.mark.long
def test_the_process_that_compiles_and_those_that_load_get_the_same_bits(tmp_path):
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-c", _HASHES]
    first, second = (subprocess.check_output(command, env=environment, text=True) for _ in range(2))
    assert any(tmp_path.rglob("*.nbc")) and len(first.split()) == 18
    assert first == second
