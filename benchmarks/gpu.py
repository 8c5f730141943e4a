"""The GPU kernels against float64 and for spilled registers, then losses, search and prediction against others; in two calls.

    python benchmarks/gpu.py check     # are the kernels right, and do they fit into the registers of this GPU?
    python benchmarks/gpu.py measure   # [--classes 1284 ...] [--dtype bfloat16 ...] [--budget 200] [--json]
    TRITON_INTERPRET=1 python benchmarks/gpu.py check --interpret    # tiny, and without a GPU; measure --interpret too

Each is meant to take less than 4 minutes and exits with 1 if a kernel is wrong or fails. `measure` begins no table and no round
of one after the seconds of --budget, except the first round of a table. Embeddings and class embeddings are random unit
vectors; labels are random. Times are medians over the rounds, measured by CUDA events, of a forward and backward pass with new
leaf tensors. "published" is the arithmetic of the published code in torch: distances to all classes in chunks, topk, a gather
of k + 1 class embeddings per pixel, norms, cross entropy. "dense" computes logits at a quarter of the resolution and upsamples
them; "dense at points" interpolates them at one of 21 pixels. Contenders that would take too much memory or time get fewer
pixels; their figures are scaled and marked. Memory is the peak beyond the inputs.
"""

import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import product
from statistics import median
from typing import Any

import click
import registers
import torch
import torch.nn.functional as F
from contenders import (
    MOST,
    NEIGHBOURS,
    TEMPERATURE,
    as_rows,
    dense,
    dense_at_points,
    dense_logits,
    linear,
    linear_losses,
    published,
)

from ess.kernels.distances import DISTANCES
from ess.losses import fused
from ess.losses.cross_entropy import exact_cross_entropy, knn_cross_entropy
from ess.losses.neighbours import nearest

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"

PAIRS = 1 << 34
"""The most pairs of a pixel and a class for contenders that are expected to be slow."""

BOUNDS = {torch.float32: (1e-5, 2**-11, 2**-11), torch.bfloat16: (1e-4, 2**-7, 2**-7)}
"""The relative errors allowed for the value and both gradients."""

CHECKED = tuple(str(dtype).removeprefix("torch.") for dtype in BOUNDS)
"""The types that can be checked. In float16, the gradients of a mean over many pixels underflow without a scaled loss."""


def trained(loss: Callable, images: torch.Tensor, labels: torch.Tensor, classes: torch.Tensor) -> list[torch.Tensor]:
    """A mean loss and its gradients by pixel and class embeddings."""
    leaves = [tensor.detach().clone().requires_grad_() for tensor in (images, classes)]
    value = loss(leaves[0], labels, leaves[1])
    value.backward()
    return [value.detach(), *(leaf.grad for leaf in leaves)]


def by_kernels(loss: Callable, distance: str = "euclidean") -> Callable:
    """The loss of a batch and its gradients, by the kernels of ``ess.kernels.gpu``."""
    return partial(trained, partial(loss, temperature=TEMPERATURE, distance=distance, backend="fused"))


def search(queries: torch.Tensor, classes: torch.Tensor, k: int, distance: str = "euclidean") -> torch.Tensor:
    """The nearest classes, by ``ess.kernels.gpu.search``."""
    if not INTERPRETED:
        return nearest(queries, classes, k, distance=distance, backend="triton")
    from ess.kernels.gpu.search import search as by_kernel

    return by_kernel(queries, classes, k, products=distance == "cosine")


def by_torch(pixels: torch.Tensor, classes: torch.Tensor, k: int) -> torch.Tensor:
    """The k nearest classes, from the distances to all classes, in chunks."""
    parts = pixels.split(max(1, (1 << 27) // len(classes)))
    return torch.cat([torch.cdist(part, classes).topk(k, largest=False).indices for part in parts])


def installed_losses() -> dict[str, Callable]:
    """Losses of linear layers from other packages, as far as these are installed."""
    found = linear_losses()
    try:
        from cut_cross_entropy import linear_cross_entropy

        found["cut-cross-entropy"] = linear_cross_entropy
    except ImportError:
        pass
    try:
        from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

        liger = LigerFusedLinearCrossEntropyLoss()
        found["Liger"] = lambda pixels, classes, targets: liger(classes, pixels, targets)
    except ImportError:
        pass
    return found


def contenders(count: int, dim: int) -> dict[str, tuple[Callable, float]]:
    """Name -> a function that computes a loss and its gradients, and the most pixels it may get."""
    few, slow = MOST // (dim * (NEIGHBOURS + 1)), PAIRS // count
    torch_exact, torch_knn = (partial(loss, backend="torch") for loss in (exact_cross_entropy, knn_cross_entropy))
    found: dict[str, tuple[Callable, float]] = {
        "published": (partial(trained, partial(published, by_torch)), min(few, slow)),
        "exact, Triton": (by_kernels(exact_cross_entropy), math.inf),
        "exact, cosine, Triton": (by_kernels(exact_cross_entropy, "cosine"), math.inf),
        "k-NN, Triton": (by_kernels(knn_cross_entropy), math.inf),
        "dense": (partial(trained, dense), MOST // count),
        "dense at points": (partial(trained, dense_at_points), 16 * MOST // count),
        "exact, torch": (partial(trained, torch_exact), slow),
        "exact, cosine, torch": (partial(trained, partial(torch_exact, distance="cosine")), slow),
        "k-NN, torch": (partial(trained, torch_knn), min(few, slow)),
    }
    return found | {name: (partial(trained, partial(linear, loss)), slow) for name, loss in installed_losses().items()}


def unit(*shape: int, seed: int = 0) -> torch.Tensor:
    """Random float32 vectors of unit length along dimension 1."""
    return F.normalize(torch.randn(*shape, generator=torch.Generator(DEVICE).manual_seed(seed), device=DEVICE), dim=1)


def batch(count: int, dim: int, images: int, size: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Embeddings (B, D, size, size), labels and class embeddings."""
    labels = torch.randint(count, (images, size, size), device=DEVICE)
    return unit(images, dim, size, size), labels, unit(count, dim, seed=1)


def truth(
    distance: str, images: torch.Tensor, labels: torch.Tensor, classes: torch.Tensor, k: int | None = None
) -> torch.Tensor:
    """The mean loss, computed from all logits, over all classes or the target and the ``k`` nearest others."""
    pixels, targets = as_rows(images), labels.flatten()[:, None]
    if distance == "cosine":
        logits = pixels @ classes.T
    else:
        logits = -torch.cdist(pixels, classes, compute_mode="donot_use_mm_for_euclid_dist")
        logits = -logits.square() if distance == "squared" else logits
    others = logits.scatter(1, targets, -torch.inf)
    others = others if k is None else others.topk(min(k, len(classes) - 1), dim=1).values
    return -F.logsigmoid(TEMPERATURE * logits.gather(1, targets).squeeze(1) - (TEMPERATURE * others).logsumexp(1)).mean()


def check_all(count: int, dim: int, images: int, size: int, dtypes: list[torch.dtype]) -> Iterator[dict]:
    """Relative errors of value, gradients and ids against float64, for pixels far from their classes and near to them."""
    losses = {"exact": (exact_cross_entropy, None), "k-NN": (knn_cross_entropy, NEIGHBOURS)}
    for near in (False, True):
        pixels, labels, classes = batch(count, dim, images, size)
        pixels = classes[labels].permute(0, 3, 1, 2) + 0.03 * pixels if near else pixels
        for dtype, distance, (kind, (loss, k)) in product(dtypes, DISTANCES, losses.items()):
            o, e = pixels.to(dtype), classes.to(dtype)
            expected = trained(partial(truth, distance, k=k), o.double(), labels, e.double())
            found = by_kernels(loss, distance)(o, labels, e)
            names = ("value", "gradient of pixels", "gradient of classes")
            for name, mine, theirs, bound in zip(names, found, expected, BOUNDS[dtype], strict=True):
                error = ((mine.double() - theirs).norm() / theirs.norm()).item()
                what = f"{kind}, {distance}, {str(dtype).removeprefix('torch.')}{', near' if near else ''}: {name}"
                yield {"what": what, "error": error, "bound": bound}
        queries, k = as_rows(pixels), min(NEIGHBOURS, count)
        ids = torch.cdist(queries.double(), classes.double()).sort(dim=1, stable=True).indices[:, :k]
        wrong = torch.ne(search(queries, classes, k), ids).double().mean().item()
        yield {"what": f"ids of the search{', near' if near else ''}", "error": wrong, "bound": 1e-3}


def once(work: Callable) -> tuple[float, float]:
    """(seconds, peak MiB beyond the memory in use before)."""
    if INTERPRETED:
        begun = time.perf_counter()
        work()
        return time.perf_counter() - begun, 0.0
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    work()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3, (torch.cuda.max_memory_allocated() - before) / 2**20


def race(works: Mapping[str, tuple[Callable, int]], pixels: int, rounds: int, until: float = math.inf) -> dict[str, dict]:
    """Name -> figures, for name -> (work, its pixels), relative to the first one. The first round is a warm-up.

    No round after the second starts later than ``until``, a time of the monotonic clock.
    """
    spent: dict[str, list] = {name: [] for name in works}
    failed = {}
    for done in range(rounds + 1):
        if done > 1 and time.monotonic() > until:
            break
        for name, (work, _) in works.items():
            try:
                if name not in failed:
                    spent[name].append(once(work))
            except Exception as error:  # a fault of one contender must not stop the others
                failed[name] = f"{type(error).__name__}: {error}"[:200]
    first = next(iter(works))
    seconds = {name: median(s for s, _ in spent[name][1:]) / works[name][1] for name in works if name not in failed}
    return {
        name: {"failed": failed[name]}
        if name in failed
        else {
            f"times_as_fast_as_{first}": seconds.get(first, math.nan) / seconds[name],
            "ms": seconds[name] * pixels * 1e3,
            "mib": max(mib for _, mib in spent[name]),
            "pixels": part,
        }
        for name, (_, part) in works.items()
    }


def measure_losses(
    count: int, dim: int, images: int, size: int, *, dtype: torch.dtype, rounds: int, until: float
) -> dict[str, dict]:
    """The figures of :func:`race` for the losses of all contenders."""
    pixels, labels, classes = batch(count, dim, images, size)
    works = {}
    for name, (work, most) in contenders(count, dim).items():
        rows = int(max(4, min(size, most // (images * size) // 4 * 4)))
        part = (pixels[:, :, :rows].to(dtype).contiguous(), labels[:, :rows].contiguous(), classes.to(dtype))
        works[name] = (partial(work, *part), images * rows * size)
    return race(works, images * size * size, rounds, until)


def measure_search(count: int, dim: int, images: int, size: int, *, rounds: int, until: float) -> dict[str, dict]:
    """The figures of :func:`race` for the search of the nearest classes and for prediction."""
    pixels, _, classes = batch(count, dim, images, size)
    k = min(NEIGHBOURS + 1, count)

    def work(find: Callable, most: float) -> tuple[Callable, int]:
        rows = int(max(4, min(size, most // (images * size) // 4 * 4)))
        part = pixels[:, :, :rows].contiguous()
        return partial(find, part), images * rows * size

    with torch.no_grad():
        works = {
            "dense": work(lambda part: dense_logits(part, classes).argmax(dim=1), MOST // count),
            "k = 1, Triton": work(lambda part: search(as_rows(part), classes, 1), math.inf),
            "k = 1, torch": work(lambda part: nearest(as_rows(part), classes, 1, backend="torch"), PAIRS // count),
            f"k = {k}, Triton": work(lambda part: search(as_rows(part), classes, k), math.inf),
            f"k = {k}, torch": work(lambda part: nearest(as_rows(part), classes, k, backend="torch"), PAIRS // count),
        }
        return race(works, images * size * size, rounds, until)


def report(title: str, rows: dict[str, dict], pixels: int) -> None:
    """Print a table."""
    first = next(iter(rows))
    print(f"\n{title:<48}{'x ' + first:>14}{'ms':>12}{'MiB':>10}")
    for name, row in rows.items():
        if "failed" in row:
            print(f"{name:<48}{row['failed']}")
            continue
        mark = "" if row["pixels"] == pixels else f"   scaled from {row['pixels']:,} pixels"
        print(f"{name:<48}{row[f'times_as_fast_as_{first}']:>14.2f}{row['ms']:>12.3f}{row['mib']:>10.0f}{mark}")


@click.group()
def main() -> None:
    """Check and time the kernels."""


def prepare(interpret: bool) -> dict[str, str]:
    """The device and the version of torch. In the interpreter, the losses take CPU tensors for those of a GPU."""
    if interpret != INTERPRETED:
        raise click.UsageError("--interpret needs TRITON_INTERPRET=1 in the environment, and the other way round")
    if interpret:
        fused.on_gpu = lambda embeddings: True
    return {"device": "interpreter" if interpret else torch.cuda.get_device_name(), "torch": torch.__version__}


@main.command()
@click.option("--dim", default=12, show_default=True, help="Dimensions of an embedding.")
@click.option(
    "--dtype", "names", multiple=True, type=click.Choice(CHECKED), default=CHECKED, show_default=True, help="Types, repeatable."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--interpret", is_flag=True, help="Make a tiny run in Triton's interpreter, which compiles nothing.")
def check(dim: int, names: tuple[str, ...], as_json: bool, interpret: bool) -> None:
    """Compare the kernels with float64, and count the registers that they spill on this GPU."""
    about: dict[str, Any] = dict(prepare(interpret))
    sizes = (7, 3, 2, 8) if interpret else (300, dim, 4, 124)  # bfloat16 cannot count so many pixels
    about["checks"], about["registers"] = [], []
    for row in check_all(*sizes, [getattr(torch, name) for name in (("float32",) if interpret else names)]):
        about["checks"].append(row)
        if not as_json:
            print(f"{row['what']:<64}{row['error']:>12.1e}   {'ok' if row['error'] <= row['bound'] else 'WRONG'}", flush=True)
    if not interpret:
        major, minor = torch.cuda.get_device_capability()
        for row in registers.all_rows((10 * major + minor,), registers.DIMS):
            about["registers"].append(row)
            if not as_json:
                print(registers.line_of(row), flush=True)
    if as_json:
        print(json.dumps(about, indent=1))
    right = all(row["error"] <= row["bound"] for row in about["checks"]) and all(row["fits"] for row in about["registers"])
    sys.exit(0 if right else 1)


@main.command()
@click.option(
    "--classes", "counts", multiple=True, default=(1284, 150, 10_000, 100_000), show_default=True, help="Classes, repeatable."
)
@click.option("--dim", default=12, show_default=True, help="Dimensions of an embedding.")
@click.option("--images", default=8, show_default=True, help="Images of a batch.")
@click.option("--size", default=512, show_default=True, help="Height and width, a multiple of 4.")
@click.option("--dtype", "names", multiple=True, default=("float32", "bfloat16"), show_default=True, help="Types, repeatable.")
@click.option("--rounds", default=5, show_default=True, help="Rounds; each figure is their median.")
@click.option("--budget", default=200.0, show_default=True, help="Seconds after which nothing new is timed.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--interpret", is_flag=True, help="Make a tiny run in Triton's interpreter.")
def measure(counts, dim, images, size, names, rounds, budget, as_json, interpret) -> None:
    """Time the losses, the search and predictions; each table is printed when it is complete."""
    until, about = time.monotonic() + budget, prepare(interpret)
    if interpret:
        counts, dim, images, size, names, rounds = (7,), 3, 1, 8, ("float32",), 1
    tables: dict[str, dict[str, dict]] = {}
    for count in counts:
        works = {f"{count} classes, {name}": partial(measure_losses, dtype=getattr(torch, name)) for name in names}
        for title, work in {**works, f"{count} classes, search": measure_search}.items():
            if time.monotonic() > until:
                print(f"{title}: left out, because the {budget:g} seconds of --budget are over", file=sys.stderr)
                continue
            tables[title] = work(count, dim, images, size, rounds=rounds, until=until)
            if not as_json:
                report(f"{title}, {dim} dimensions, {images} x {size} x {size}", tables[title], images * size * size)
    if as_json:
        print(json.dumps(about | {"tables": tables}, indent=1))
    broken = [name for rows in tables.values() for name, row in rows.items() if "Triton" in name and "failed" in row]
    sys.exit(1 if broken else 0)


if __name__ == "__main__":
    main()
