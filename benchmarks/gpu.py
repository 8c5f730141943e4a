"""All GPU measurements in one call: the kernels against float64, then losses, search and prediction against others.

    python benchmarks/gpu.py [--classes 1284 ...] [--images 8] [--size 512] [--dtype bfloat16 ...] [--rounds 5] [--json]
    TRITON_INTERPRET=1 python benchmarks/gpu.py --interpret    # tiny, and without a GPU

Exits with 1 if a kernel is wrong or fails. Embeddings and class embeddings are random unit vectors; labels are random. Times
are medians over the rounds, measured by CUDA events, of a forward and backward pass with new leaf tensors. "published" is the
arithmetic of the published code in torch: distances to all classes in chunks, topk, a gather of k + 1 class embeddings per
pixel, norms, cross entropy. "dense" computes logits at a quarter of the resolution and upsamples them. Contenders that would
take too much memory or time get fewer pixels; their figures are scaled and marked. Memory is the peak beyond the inputs.
"""

import json
import math
import os
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from statistics import median
from typing import Any, cast

import click
import torch
import torch.nn.functional as F
from contenders import MOST, NEIGHBOURS, TEMPERATURE, as_rows, dense, dense_logits, linear, linear_losses, published

from ess.kernels.distances import DISTANCES
from ess.losses.cross_entropy import exact_cross_entropy, knn_cross_entropy
from ess.losses.neighbours import nearest

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"

PAIRS = 1 << 34
"""The most pairs of a pixel and a class for contenders that are expected to be slow."""

BOUNDS = {torch.float32: (1e-5, 1e-4, 1e-4), torch.bfloat16: (1e-4, 2**-7, 2**-7)}
"""The relative errors allowed for the value and both gradients."""


def trained(loss: Callable, images: torch.Tensor, labels: torch.Tensor, classes: torch.Tensor) -> list[torch.Tensor]:
    """A mean loss and its gradients by pixel and class embeddings."""
    leaves = [tensor.detach().clone().requires_grad_() for tensor in (images, classes)]
    value = loss(leaves[0], labels, leaves[1])
    value.backward()
    return [value.detach(), *(leaf.grad for leaf in leaves)]


def fused(distance: str, images: torch.Tensor, labels: torch.Tensor, classes: torch.Tensor) -> list[torch.Tensor]:
    """The same with the kernels of ``ess.kernels.gpu.exact``, which are called directly in the interpreter."""
    if not INTERPRETED:
        loss = partial(exact_cross_entropy, temperature=TEMPERATURE, distance=distance, backend="fused")
        return trained(loss, images, labels, classes)
    from ess.kernels.gpu.exact import exact

    labels = labels.flatten(1)
    weights = torch.full(labels.shape, 1 / labels.numel())
    settings: dict[str, Any] = {"temperature": TEMPERATURE, "ignore_index": -1, "gradients": True}
    settings["distance"] = DISTANCES.index(distance)
    losses, by_images, by_classes, _ = exact(images.flatten(2), labels, weights, classes, None, None, **settings)
    return [(losses * weights).sum(), cast(torch.Tensor, by_images).view_as(images), cast(torch.Tensor, by_classes)]


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
    torch_exact = partial(exact_cross_entropy, backend="torch")
    found: dict[str, tuple[Callable, float]] = {
        "published": (partial(trained, partial(published, by_torch)), min(few, slow)),
        "exact, Triton": (partial(fused, "euclidean"), math.inf),
        "exact, cosine, Triton": (partial(fused, "cosine"), math.inf),
        "exact, torch": (partial(trained, torch_exact), slow),
        "exact, cosine, torch": (partial(trained, partial(torch_exact, distance="cosine")), slow),
        "k-NN": (partial(trained, knn_cross_entropy), min(few, slow)),
        "dense": (partial(trained, dense), MOST // count),
    }
    return found | {name: (partial(trained, partial(linear, loss)), slow) for name, loss in installed_losses().items()}


def unit(*shape: int, seed: int = 0) -> torch.Tensor:
    """Random float32 vectors of unit length along dimension 1."""
    return F.normalize(torch.randn(*shape, generator=torch.Generator(DEVICE).manual_seed(seed), device=DEVICE), dim=1)


def batch(count: int, dim: int, images: int, size: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Embeddings (B, D, size, size), labels and class embeddings."""
    labels = torch.randint(count, (images, size, size), device=DEVICE)
    return unit(images, dim, size, size), labels, unit(count, dim, seed=1)


def truth(distance: str, images: torch.Tensor, labels: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """The mean loss, computed from all logits."""
    pixels = as_rows(images)
    if distance == "cosine":
        logits = pixels @ classes.T
    else:
        logits = -torch.cdist(pixels, classes, compute_mode="donot_use_mm_for_euclid_dist")
    return F.cross_entropy(TEMPERATURE * (-logits.square() if distance == "squared" else logits), labels.flatten())


def check(count: int, dim: int, images: int, size: int, dtypes: list[torch.dtype]) -> list[dict]:
    """Relative errors of value, gradients and ids against float64, for pixels far from their classes and near to them."""
    found = []
    for near in (False, True):
        pixels, labels, classes = batch(count, dim, images, size)
        pixels = classes[labels].permute(0, 3, 1, 2) + 0.03 * pixels if near else pixels
        for dtype in dtypes:
            o, e = pixels.to(dtype), classes.to(dtype)
            for distance in DISTANCES:
                expected = trained(partial(truth, distance), o.double(), labels, e.double())
                names = ("value", "gradient of pixels", "gradient of classes")
                rows = zip(names, fused(distance, o, labels, e), expected, BOUNDS[dtype], strict=True)
                for name, mine, theirs, bound in rows:
                    error = ((mine.double() - theirs).norm() / theirs.norm()).item()
                    what = f"{name}, {distance}, {str(dtype).removeprefix('torch.')}{', near' if near else ''}"
                    found.append({"what": what, "error": error, "bound": bound})
        queries, k = as_rows(pixels), min(NEIGHBOURS, count)
        ids = torch.cdist(queries.double(), classes.double()).sort(dim=1, stable=True).indices[:, :k]
        wrong = torch.ne(search(queries, classes, k), ids).double().mean().item()
        found.append({"what": f"ids of the search{', near' if near else ''}", "error": wrong, "bound": 1e-3})
    return found


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


def race(works: Mapping[str, tuple[Callable, int]], pixels: int, rounds: int) -> dict[str, dict]:
    """Name -> figures, for name -> (work, its pixels), relative to the first one. The first round is a warm-up."""
    spent: dict[str, list] = {name: [] for name in works}
    failed = {}
    for _ in range(rounds + 1):
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


def measure_losses(count: int, dim: int, images: int, size: int, dtype: torch.dtype, rounds: int) -> dict[str, dict]:
    """The figures of :func:`race` for the losses of all contenders."""
    pixels, labels, classes = batch(count, dim, images, size)
    works = {}
    for name, (work, most) in contenders(count, dim).items():
        rows = int(max(4, min(size, most // (images * size) // 4 * 4)))
        part = (pixels[:, :, :rows].to(dtype).contiguous(), labels[:, :rows].contiguous(), classes.to(dtype))
        works[name] = (partial(work, *part), images * rows * size)
    return race(works, images * size * size, rounds)


def measure_search(count: int, dim: int, images: int, size: int, rounds: int) -> dict[str, dict]:
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
        return race(works, images * size * size, rounds)


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


@click.command()
@click.option(
    "--classes", "counts", multiple=True, default=(150, 1284, 10_000, 100_000), show_default=True, help="Classes, repeatable."
)
@click.option("--dim", default=12, show_default=True, help="Dimensions of an embedding.")
@click.option("--images", default=8, show_default=True, help="Images of a batch.")
@click.option("--size", default=512, show_default=True, help="Height and width, a multiple of 4.")
@click.option("--dtype", "names", multiple=True, default=("float32", "bfloat16"), show_default=True, help="Types, repeatable.")
@click.option("--rounds", default=5, show_default=True, help="Rounds; each figure is their median.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--interpret", is_flag=True, help="Make a tiny run in Triton's interpreter.")
def main(counts, dim, images, size, names, rounds, as_json, interpret) -> None:
    """Check and time the kernels."""
    if interpret != INTERPRETED:
        raise click.UsageError("--interpret needs TRITON_INTERPRET=1 in the environment, and the other way round")
    if interpret:
        counts, dim, images, size, names, rounds = (7,), 3, 1, 8, ("float32",), 1
    dtypes = [getattr(torch, name) for name in names]
    checks = check(7, 3, 2, 8, dtypes) if interpret else check(300, dim, 4, 128, dtypes)
    losses = {
        f"{count} classes, {name}": measure_losses(count, dim, images, size, dtype, rounds)
        for count in counts
        for name, dtype in zip(names, dtypes, strict=True)
    }
    searches = {f"{count} classes": measure_search(count, dim, images, size, rounds) for count in counts}
    wrong = [check for check in checks if not check["error"] <= check["bound"]]
    tables = losses | searches
    broken = [name for rows in tables.values() for name, row in rows.items() if "Triton" in name and "failed" in row]
    if as_json:
        device = "interpreter" if interpret else torch.cuda.get_device_name()
        about = {"device": device, "torch": torch.__version__}
        print(json.dumps(about | {"checks": checks, "losses": losses, "search": searches}, indent=1))
    else:
        for row in checks:
            print(f"{row['what']:<56}{row['error']:>12.1e}   {'WRONG' if row in wrong else 'ok'}")
        for title, rows in tables.items():
            report(f"{title}, {dim} dimensions, {images} x {size} x {size}", rows, images * size * size)
    sys.exit(1 if wrong or broken else 0)


if __name__ == "__main__":
    main()
