"""Time and memory of the losses, forward and backward, compared with the published arithmetic and others in the same run.

    python benchmarks/losses.py [--classes 1284 ...] [--images 4] [--size 512] [--rounds 3] [--memory] [--plot DIR] [--json]

Embeddings and class embeddings are random unit vectors, and labels are random. "published" is the arithmetic of the published
code: a flat search by faiss, a gather of k + 1 class embeddings per pixel, norms, cross entropy. "dense" computes logits at a
quarter of the resolution and upsamples them; "dense, fused" interpolates them in the loss, as the trainer does on a CPU; "dense
at points" interpolates them at one of 21 pixels. Contenders that would not fit into memory, or exceed --seconds per round, get
fewer pixels and are marked. Times are per pixel. Memory is that of a new process beyond the inputs and their gradients.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

import click
import faiss
import faiss.contrib.torch_utils
import torch
import torch.nn.functional as F
from contenders import MOST, NEIGHBOURS, dense, dense_at_points, fused_dense, linear, linear_losses, published

from ess.losses.cross_entropy import exact_cross_entropy, knn_cross_entropy


def search(pixels: torch.Tensor, classes: torch.Tensor, k: int) -> torch.Tensor:
    """The k nearest by a flat index of faiss."""
    index = faiss.IndexFlatL2(classes.shape[1])
    index.add(classes)
    return index.search(pixels.contiguous(), k)[1]


CONTENDERS: dict[str, tuple[Callable, Callable[[int], int]]] = {
    "published": (partial(published, search), lambda count: 12 * (NEIGHBOURS + 1)),
    "exact": (exact_cross_entropy, lambda count: 1),
    "exact, cosine": (partial(exact_cross_entropy, distance="cosine"), lambda count: 1),
    "k-NN": (knn_cross_entropy, lambda count: 1),
    "k-NN, query_stride 4": (partial(knn_cross_entropy, query_stride=4), lambda count: 1),
    "k-NN, clustered": (partial(knn_cross_entropy, search="clustered"), lambda count: 1),
    "dense": (dense, lambda count: count),
    "dense, fused": (fused_dense, lambda count: count // 16 + 1),
    "dense at points": (dense_at_points, lambda count: count // 16 + 1),
    **{name: (partial(linear, loss), lambda count: 1) for name, loss in linear_losses().items()},
}
"""Name -> the loss, and the numbers per pixel in its largest array."""


def problem(count: int, dim: int, images: int, rows: int, size: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Embeddings (B, D, rows, size), labels and class embeddings, made image by image to need little more memory."""
    g = torch.Generator().manual_seed(0)
    classes = F.normalize(torch.randn(count, dim, generator=g), dim=1)
    embeddings = torch.empty(images, dim, rows, size)
    for image in embeddings:
        image.copy_(F.normalize(torch.randn(dim, rows, size, generator=g), dim=0))
    return embeddings, torch.randint(count, (images, rows, size), generator=g), classes


def seconds(loss: Callable, embeddings: torch.Tensor, labels: torch.Tensor, classes: torch.Tensor) -> float:
    """Seconds of a forward and backward pass with new leaf tensors."""
    leaves = [tensor.detach().clone().requires_grad_() for tensor in (embeddings, classes)]
    start = time.perf_counter()
    loss(leaves[0], labels, leaves[1]).backward()
    return time.perf_counter() - start


def fitting_rows(name: str, count: int, images: int, size: int) -> int:
    """The rows of the images, a multiple of 4, for which the largest array fits into memory."""
    return max(4, min(size, MOST // (CONTENDERS[name][1](count) * images * size) // 4 * 4))


def affordable_rows(name: str, inputs: tuple, limit: float) -> int:
    """The rows that fit into memory and, by a small trial, into ``limit`` seconds."""
    loss, _ = CONTENDERS[name]
    embeddings, labels, classes = inputs
    images, _, _, size = embeddings.shape
    fitting = fitting_rows(name, len(classes), images, size)
    for rows in (4, max(4, min(32, fitting // 4 * 4))):  # the first is a warm-up
        part = embeddings[:1, :, :rows].contiguous(), labels[:1, :rows].contiguous(), classes
        spent = seconds(loss, *part)
    return max(4, min(fitting, int(limit / (spent / rows * images)) // 4 * 4))


def time_all(count: int, dim: int, images: int, size: int, rounds: int, limit: float) -> dict[str, dict]:
    """Contender -> {"us_a_pixel", "times_as_fast_as_published", "pixels"}; the first round is a warm-up."""
    embeddings, labels, classes = inputs = problem(count, dim, images, size, size)
    rows = {name: affordable_rows(name, inputs, limit) for name in CONTENDERS}
    times: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    for _ in range(rounds + 1):
        for name, (loss, _) in CONTENDERS.items():
            part = slice(rows[name])
            spent = seconds(loss, embeddings[:, :, part].contiguous(), labels[:, part].contiguous(), classes)
            times[name].append(spent / (images * rows[name] * size) * 1e6)
    return {
        name: {
            "us_a_pixel": median(spent[1:]),
            "times_as_fast_as_published": median(p / s for p, s in zip(times["published"][1:], spent[1:], strict=True)),
            "pixels": images * rows[name] * size,
        }
        for name, spent in times.items()
    }


def status(field: str) -> int:
    """Bytes in one line of this process's status on Linux."""
    return 1024 * int(next(line for line in Path("/proc/self/status").open() if line.startswith(field)).split()[1])


def peak(name: str, count: int, dim: int, images: int, size: int) -> dict[str, float]:
    """The peak memory of this process, which must do nothing else: {"bytes", "pixels", "resident"}."""
    loss, _ = CONTENDERS[name]
    seconds(loss, *problem(40, dim, 1, 32, 32))  # compiles
    inputs = problem(count, dim, images, size, size)
    rows = fitting_rows(name, count, images, size)
    leaves = [inputs[0][:, :, :rows].clone().requires_grad_(), inputs[2].requires_grad_()]
    labels = inputs[1][:, :rows].clone()
    del inputs
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    loss(leaves[0], labels, leaves[1]).backward()
    highest = status("VmHWM")
    beyond = highest - before - sum(leaf.numel() * leaf.element_size() for leaf in leaves)
    return {"bytes": max(0, beyond), "pixels": labels.numel(), "resident": highest}


def memory_all(count: int, dim: int, images: int, size: int) -> dict[str, dict]:
    """Contender -> the result of :func:`peak` in its own process."""
    options = ["--classes", count, "--dim", dim, "--images", images, "--size", size]
    found = {}
    for name in CONTENDERS:
        command = [sys.executable, __file__, "--peak-of", name, *map(str, options)]
        found[name] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    return found


def draw(found: dict[str, dict[int, dict]], folder: Path) -> None:
    """Draw losses-time.svg and losses-memory.svg against the number of classes; points of fewer pixels are hollow."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figures = {
        "time": ("us_a_pixel", 1, "microseconds per pixel"),
        "memory": ("bytes", 1 << 20, "MiB beyond inputs and gradients"),
    }
    for kind, by_count in found.items():
        field, unit, label = figures[kind]
        figure, axes = pyplot.subplots(figsize=(7.5, 4.5), layout="constrained")
        most = {count: max(row["pixels"] for row in rows.values()) for count, rows in by_count.items()}
        for number, name in enumerate(next(iter(by_count.values()))):
            counts = [count for count, rows in by_count.items() if name in rows]
            rows = [by_count[count][name] for count in counts]
            whole = [row["pixels"] == most[count] for count, row in zip(counts, rows, strict=True)]
            scale = [1 if kind == "time" else most[count] / row["pixels"] for count, row in zip(counts, rows, strict=True)]
            values = [
                max(row[field], 1) * by / unit if kind == "memory" else row[field] for row, by in zip(rows, scale, strict=True)
            ]
            (line,) = axes.plot(counts, values, color=f"C{number}", label=name)
            for x, y, filled in zip(counts, values, whole, strict=True):
                axes.plot(x, y, "o", color=line.get_color(), fillstyle="full" if filled else "none")
        axes.set(xscale="log", yscale="log", xlabel="classes", ylabel=label)
        axes.grid(alpha=0.3)
        figure.legend(loc="outside right upper", frameon=False)
        figure.savefig(folder / f"losses-{kind}.svg", metadata={"Date": None})
        pyplot.close(figure)


def show(found: dict[str, dict[int, dict]], images: int, size: int) -> None:
    """Print the results as tables."""
    for count, rows in found["time"].items():
        print(f"\n{count} classes, {images} x {size} x {size} pixels               us per pixel   times as fast")
        for name, row in rows.items():
            mark = "" if row["pixels"] == images * size * size else f"   on {row['pixels']:,} pixels"
            print(f"{name:<48}{row['us_a_pixel']:>15.3f}{row['times_as_fast_as_published']:>16.2f}{mark}")
    for count, rows in found.get("memory", {}).items():
        print(f"\n{count} classes, {images} x {size} x {size} pixels      MiB beyond inputs   MiB of process")
        for name, row in rows.items():
            mark = "" if row["pixels"] == images * size * size else f"   on {row['pixels']:,} pixels"
            print(f"{name:<40}{row['bytes'] / 2**20:>22.1f}{row['resident'] / 2**20:>17.0f}{mark}")


@click.command()
@click.option("--classes", "counts", multiple=True, default=(150, 1284, 10_000, 100_000), show_default=True, help="Repeatable.")
@click.option("--dim", default=12, show_default=True, help="Dimensions of an embedding.")
@click.option("--images", default=4, show_default=True, help="Images of a batch.")
@click.option("--size", default=512, show_default=True, help="Height and width, a multiple of 4.")
@click.option("--rounds", default=3, show_default=True, help="Rounds; each figure is their median.")
@click.option("--seconds", "limit", default=20.0, show_default=True, help="The longest time of one contender per round.")
@click.option("--memory", is_flag=True, help="Measure memory too (Linux).")
@click.option("--plot", type=click.Path(path_type=Path), help="Folder for plots.")
@click.option("--peak-of", type=click.Choice([*CONTENDERS]), hidden=True)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def main(counts, dim, images, size, rounds, limit, memory, plot, peak_of, as_json) -> None:
    """Measure the losses."""
    if peak_of:
        print(json.dumps(peak(peak_of, counts[0], dim, images, size)))
        return
    found = {"time": {count: time_all(count, dim, images, size, rounds, limit) for count in counts} if rounds else {}}
    if memory:
        found["memory"] = {count: memory_all(count, dim, images, size) for count in counts}
    if plot:
        draw({kind: rows for kind, rows in found.items() if rows}, plot)
    if as_json:
        print(json.dumps({"threads": torch.get_num_threads(), "images": images, "size": size, "dim": dim, **found}, indent=1))
    else:
        show(found, images, size)


if __name__ == "__main__":
    main()
