"""What the tests of the Triton kernels share: the interpreter in which they run without a GPU, and their problems.

Triton decides when it is imported whether it interprets its kernels, and torch's compiler may import it at any time. Without a
GPU, the tests of results therefore run in a separate process that starts with TRITON_INTERPRET=1, so that no other test sees an
interpreted Triton.
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

if importlib.util.find_spec("triton") is None:
    pytest.skip("no Triton here", allow_module_level=True)

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cuda" if torch.cuda.is_available() and not INTERPRETED else "cpu"
ROOT = Path(__file__).parents[3]


def kernel(test):
    """Keep a test of the results of kernels only if they run in this process."""
    return test if INTERPRETED or DEVICE == "cuda" else None


def interpreted(*command):
    """The output of a Python process in which Triton interprets its kernels."""
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def multiply_bfloat16(monkeypatch):
    """Let the interpreter, which stores bfloat16 as bits, multiply it."""
    from triton.language import bfloat16, float32
    from triton.runtime import interpreter

    builder = interpreter.interpreter_builder
    product = type(builder).create_dot

    def widened(x):
        return builder.cast_impl(x, float32) if x.dtype.scalar == bfloat16 else x

    monkeypatch.setattr(type(builder), "create_dot", lambda self, a, b, *rest: product(self, widened(a), widened(b), *rest))


def problem(classes, dim, size, near=None, seed=0):
    """Embeddings (2, D, N), of unit length or at the distance ``near`` of their classes; labels, some ignored; classes."""
    g = torch.Generator().manual_seed(seed)
    e = F.normalize(torch.randn(classes, dim, generator=g), dim=1)
    labels = torch.randint(classes, (2, size), generator=g)
    o = F.normalize(torch.randn(2, size, dim, generator=g), dim=2)
    if near is not None:
        o = e[labels] + near * torch.randn(2, size, dim, generator=g) / dim**0.5
    labels[torch.rand(labels.shape, generator=g) < 0.2] = -1
    return o.transpose(1, 2).contiguous(), labels, e


def error(found, truth):
    return ((found.double() - truth).norm() / truth.norm().clamp_min(1e-300)).item()


def long(*values):
    """Parameters of a test that only the long tests run."""
    return pytest.param(*values, marks=pytest.mark.long)
