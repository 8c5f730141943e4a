"""How near the exact loss comes to the arithmetic of one core: cycles for 8 pairs of pixel and class, and their lower bound.

    python benchmarks/bound.py [--classes 1284] [--repeats 20] [--json]

Eight pairs fill a vector of AVX2. The bound counts the multiplications and fused multiply-adds of the compiled loops, which
share two of a core's units: 3 for each dimension (one for the squared distance, two for the gradients) and CONSTANT others (for
the root, the exponential and the weights), two a cycle. Cycles are the least time of a call in one thread, times the clock,
which is measured between the calls by a chain of shifts and exclusive ors that takes 6 cycles a round.
"""

import json
import time

import click
import numba
import numpy as np

from ess.kernels.distances import EUCLIDEAN
from ess.kernels.exact_cpu import exact

CONSTANT = 15
"""Multiplications for 8 pairs that do not depend on the dimensions: 6 for the root with its estimate, 7 for the exponential,
and 2 for the weight of a gradient and its sum."""

PER_CYCLE = 2
"""Fused multiply-adds of 8 numbers that a core of x86-64 starts in a cycle."""

DIMS = (4, 8, 12, 16, 32, 64)

PIXELS, ROUNDS = 2048, 20_000


@numba.njit
def chain(rounds: int, bits: np.uint64) -> np.uint64:
    """A xorshift generator: 6 operations that wait for each other, each of one cycle."""
    for _ in range(rounds):
        bits ^= bits << np.uint64(13)
        bits ^= bits >> np.uint64(7)
        bits ^= bits << np.uint64(17)
    return bits


def clock() -> float:
    """Cycles per second."""
    start = time.thread_time()
    chain(ROUNDS, np.uint64(1))
    return 6 * ROUNDS / (time.thread_time() - start)


def unit(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Random vectors of length 1 along the last axis, float32."""
    vectors = rng.standard_normal(shape)
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


def measure(classes: int, dim: int, repeats: int) -> dict[str, float]:
    """Time and cycles of the loss with its gradients, and without them, for one number of dimensions."""
    rng = np.random.default_rng(0)
    pixels, table = unit(rng, 1, PIXELS, dim).transpose(0, 2, 1), unit(rng, classes, dim)
    labels, weights = rng.integers(classes, size=(1, PIXELS)), np.ones((1, PIXELS), np.float32)
    options = {"ignore_index": -1, "temperature": 20.0, "distance": EUCLIDEAN, "threads": 1}
    best, rate = {True: float("inf"), False: float("inf")}, clock()
    for _ in range(repeats):
        rate = max(rate, clock())
        for gradients in best:
            start = time.thread_time()
            exact(pixels, labels, weights, table, None, None, gradients=gradients, **options)
            best[gradients] = min(best[gradients], time.thread_time() - start)
    vectors = PIXELS * classes / 8
    bound = (3 * dim + CONSTANT) / PER_CYCLE
    cycles = best[True] * rate / vectors
    return {
        "us_a_pixel": best[True] / PIXELS * 1e6,
        "cycles": cycles,
        "without_gradients": best[False] * rate / vectors,
        "bound": bound,
        "ratio": cycles / bound,
        "ghz": rate / 1e9,
    }


@click.command()
@click.option("--classes", default=1284, show_default=True)
@click.option("--repeats", default=20, show_default=True, help="Repeats; each figure is the least of them.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def main(classes, repeats, as_json) -> None:
    """Measure the loss on one core."""
    chain(1, np.uint64(1))
    measure(classes, DIMS[0], 1)  # compiles
    found = {dim: measure(classes, dim, repeats) for dim in DIMS}
    if as_json:
        click.echo(json.dumps({"classes": classes, "dims": found}, indent=1))
        return
    click.echo(
        f"{'d':>4}{'us a pixel':>12}{'GHz':>7}{'cycles for 8 pairs':>21}{'without gradients':>20}{'bound':>8}{'ratio':>8}"
    )
    for dim, row in found.items():
        figures = f"{row['us_a_pixel']:>12.2f}{row['ghz']:>7.2f}{row['cycles']:>21.1f}{row['without_gradients']:>20.1f}"
        click.echo(f"{dim:>4}{figures}{row['bound']:>8.1f}{row['ratio']:>8.2f}")


if __name__ == "__main__":
    main()
