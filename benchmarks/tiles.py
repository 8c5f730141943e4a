"""Times the kernels of the exact loss with every tile that fits, on this GPU: how ``ess.kernels.gpu.exact`` was tuned.

    python benchmarks/tiles.py [--dim 12 ...] [--dtype float32 ...] [--distance euclidean] [--budget 120] [--json]

Tiles whose kernels spill registers are left out. Times are the least of some launches, measured by CUDA events, for a forward
and backward pass over random unit vectors, as in ``benchmarks/gpu.py``. The tile that is in use is marked with an asterisk.
"""

import json
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Executor
from itertools import product
from typing import Any
from unittest.mock import patch

import click
import registers
import torch
from gpu import batch

from ess.kernels.distances import DISTANCES
from ess.kernels.gpu import exact as module
from ess.kernels.gpu.exact import Tile, Tiles

TILES = tuple(map(Tile._make, product((16, 32, 64, 128), (32, 64, 128), (4, 8), (2,))))
"""The tiles to try."""

KERNELS = ("by_pixel", "by_class")


class _Timed:
    """Takes the place of a kernel, and keeps the events around its launches."""

    def __init__(self, kernel: Any):
        self.kernel = kernel
        self.events: list[tuple[Any, Any]] = []

    def __getitem__(self, grid):
        def launch(**arguments):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            self.kernel[grid](**arguments)
            end.record()
            self.events.append((start, end))

        return launch

    def milliseconds(self) -> float:
        """The least time of the launches since the last call."""
        torch.cuda.synchronize()
        least = min(start.elapsed_time(end) for start, end in self.events)
        self.events.clear()
        return least


def spills(tile: Tile, dim: int, distance: int, dtype: torch.dtype) -> dict[str, int]:
    """Kernel -> the registers that it spills with a tile, or -1 if it cannot run. Compiles the kernels for later launches."""
    with patch.object(module, "_tiles", lambda channels: Tiles(tile, tile)):
        launches = registers.launches_of(dim, distance, dtype)
    found = {}
    for name in KERNELS:
        launch = next(launch for launch in launches if launch.name == f"exact.{name}")
        try:
            kernel = launch.kernel.warmup(**launch.arguments, grid=launch.grid)
            kernel._init_handles()
        except Exception:  # the compiler fails in many ways
            found[name] = -1
        else:
            found[name] = kernel.n_spills if kernel.metadata.shared <= registers.SHARED else -1
    return found


def timed(
    dim: int, distance: int, dtype: torch.dtype, counts: int, rounds: int, until: float, pool: Executor
) -> Iterator[dict[str, Any]]:
    """The milliseconds of each kernel with each tile that fits it, those in use first."""
    jobs = {tile: pool.submit(spills, tile, dim, distance, dtype) for tile in TILES}
    fits = {tile: job.result() for tile, job in jobs.items()}
    images, labels, classes = batch(counts, dim, 8, 512)
    images = images.to(dtype, memory_format=torch.channels_last).flatten(2)  # as in training
    classes, labels = classes.to(dtype), labels.flatten(1)
    weights = torch.full(labels.shape, 1 / labels.numel(), device="cuda")
    mine = module._tiles(dim)
    for name in KERNELS:
        now = getattr(mine, name)
        for tile in [now, *(tile for tile, spilled in fits.items() if spilled[name] == 0 and tile != now)]:
            if time.monotonic() > until:
                return
            kernel = _Timed(getattr(module, name))
            with (
                patch.object(module, "_tiles", lambda channels, tile=tile, name=name: mine._replace(**{name: tile})),
                patch.object(module, name, kernel),
            ):
                about = {"kernel": name, "dim": dim, "distance": DISTANCES[distance], "dtype": str(dtype), **tile._asdict()}
                try:
                    for _ in range(rounds + 1):
                        module.exact(
                            images, labels, weights, classes, None, None, ignore_index=-1, temperature=20.0, distance=distance,
                            gradients=True,
                        )  # fmt: skip
                    yield about | {"ms": kernel.milliseconds(), "in_use": tile == now}
                except Exception as error:  # a tile that the GPU refuses must not stop the others
                    yield about | {"failed": f"{type(error).__name__}: {error}"[:200], "in_use": tile == now}


@click.command()
@click.option("--dim", "dims", multiple=True, default=(12, 64), show_default=True, help="Dimensions of an embedding.")
@click.option("--dtype", "names", multiple=True, default=("float32", "bfloat16"), show_default=True, help="Types, repeatable.")
@click.option("--distance", type=click.Choice(DISTANCES), default="euclidean", show_default=True)
@click.option("--classes", default=1284, show_default=True)
@click.option("--rounds", default=3, show_default=True)
@click.option("--budget", default=120.0, show_default=True, help="Seconds after which nothing new is timed.")
@click.option("--best", default=6, show_default=True, help="Tiles of each kernel that are shown.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def main(dims, names, distance, classes, rounds, budget, best, as_json) -> None:
    """Time the tiles; those that are fastest come first."""
    if not torch.cuda.is_available():
        raise click.UsageError("tiles are timed on a GPU, and PyTorch finds none here; see benchmarks/registers.py instead")
    until, found = time.monotonic() + budget, []
    cases = list(product(dims, names))
    pool = registers.processes()
    for left, (dim, name) in zip(range(len(cases), 0, -1), cases, strict=True):
        limit = time.monotonic() + (until - time.monotonic()) / left
        rows = list(timed(dim, DISTANCES.index(distance), getattr(torch, name), classes, rounds, limit, pool))
        found += rows
        if as_json:
            continue
        for kernel in KERNELS:
            good = sorted((row for row in rows if row["kernel"] == kernel and "ms" in row), key=lambda row: row["ms"])
            print(f"\n{kernel}, {dim} dimensions, {name}, {distance}: {len(good)} tiles")
            for place, row in enumerate(good):
                if place < best or row["in_use"]:
                    sizes = f"{row['pixels']:>4} x {row['classes']:<4} {row['warps']} warps {row['stages']} stages"
                    print(f"{'*' if row['in_use'] else ' '} {sizes} {row['ms']:>9.3f} ms", flush=True)
    if as_json:
        json.dump(found, sys.stdout, indent=1)


if __name__ == "__main__":
    main()
