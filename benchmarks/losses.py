"""Time of the losses forward and backward, in units of the published arithmetic; every figure a ratio within one run.

    python benchmarks/losses.py [--classes 1284 ...] [--images 4] [--size 512] [--rounds 3] [--json]

Embeddings and class embeddings are random unit vectors, labels random. "published" is the arithmetic of the published code: a
flat search by faiss, a gather of k + 1 class embeddings a pixel, norms, cross entropy. "dense" makes logits at a quarter of the
resolution, as a convolution does, and enlarges them. Contenders whose arrays would not fit get fewer pixels, and are marked.
"""

import json
import time
from collections.abc import Callable
from functools import partial
from statistics import median

import click
import faiss
import faiss.contrib.torch_utils
import torch
import torch.nn.functional as F

from ess.losses import exact_cross_entropy, knn_cross_entropy

TEMPERATURE, NEIGHBOURS = 20.0, 7

MOST = 1 << 30
"""Numbers in the largest array that a contender may make: 4 GiB in float32."""


def published(embeddings: torch.Tensor, labels: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """Search, gather, norm, cross entropy."""
    pixels, targets = embeddings.permute(0, 2, 3, 1).flatten(0, 2), labels.flatten()
    index = faiss.IndexFlatL2(classes.shape[1])
    index.add(classes.detach())
    _, found = index.search(pixels.detach().contiguous(), min(NEIGHBOURS, len(classes)))
    found = torch.where(found == targets[:, None], (found - 1).clamp_min(0), found)
    candidates = F.embedding(torch.cat([targets[:, None], found], dim=1), classes)
    logits = -TEMPERATURE * (pixels[:, None] - candidates).norm(dim=2)
    return F.cross_entropy(logits, torch.zeros_like(targets))


def dense(embeddings: torch.Tensor, labels: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """The baseline: one logit a class at a quarter of the resolution, enlarged."""
    small = TEMPERATURE * F.conv2d(embeddings[:, :, ::4, ::4], classes[:, :, None, None])
    return F.cross_entropy(F.interpolate(small, size=labels.shape[1:], mode="bilinear"), labels)


def linear(embeddings: torch.Tensor, labels: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """torch's own loss of a linear layer that does not keep its logits."""
    pixels = TEMPERATURE * embeddings.permute(0, 2, 3, 1).flatten(0, 2)
    return F.linear_cross_entropy(pixels, classes, labels.flatten())


CONTENDERS: dict[str, tuple[Callable, Callable[[int], int]]] = {
    "published": (published, lambda count: 12 * (NEIGHBOURS + 1)),
    "exact": (exact_cross_entropy, lambda count: 1),
    "exact, cosine": (partial(exact_cross_entropy, distance="cosine"), lambda count: 1),
    "k-NN": (knn_cross_entropy, lambda count: 1),
    "k-NN, query_stride 4": (partial(knn_cross_entropy, query_stride=4), lambda count: 1),
    "dense": (dense, lambda count: count),
    "linear_cross_entropy": (linear, lambda count: 1),
}
"""Name -> the loss, and numbers a pixel in its largest array."""

if not hasattr(F, "linear_cross_entropy"):
    del CONTENDERS["linear_cross_entropy"]


def seconds(loss: Callable, images: torch.Tensor, labels: torch.Tensor, classes: torch.Tensor) -> float:
    """Forward and backward, of new leaves."""
    leaves = [tensor.detach().clone().requires_grad_() for tensor in (images, classes)]
    start = time.perf_counter()
    loss(leaves[0], labels, leaves[1]).backward()
    return time.perf_counter() - start


def measure(count: int, dim: int, images: int, size: int, rounds: int) -> dict[str, dict]:
    """Contender -> {"us_a_pixel", "times_as_fast_as_published", "pixels"}; the first round warms up."""
    g = torch.Generator().manual_seed(0)
    classes = F.normalize(torch.randn(count, dim, generator=g), dim=1)
    embeddings = F.normalize(torch.randn(images, dim, size, size, generator=g), dim=1)
    labels = torch.randint(count, (images, size, size), generator=g)
    times: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    rows = {
        name: max(4, min(size, MOST // (numbers(count) * images * size) // 4 * 4)) for name, (_, numbers) in CONTENDERS.items()
    }
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


@click.command()
@click.option("--classes", "counts", multiple=True, default=(150, 1284, 10_000), show_default=True, help="Classes, repeatable.")
@click.option("--dim", default=12, show_default=True, help="Dimensions of an embedding.")
@click.option("--images", default=4, show_default=True, help="Images of a batch.")
@click.option("--size", default=512, show_default=True, help="Height and width, a multiple of 4.")
@click.option("--rounds", default=3, show_default=True, help="Rounds; the medians count.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def main(counts, dim, images, size, rounds, as_json) -> None:
    """Time the losses."""
    found = {count: measure(count, dim, images, size, rounds) for count in counts}
    if as_json:
        print(
            json.dumps(
                {"threads": torch.get_num_threads(), "images": images, "size": size, "dim": dim, "classes": found}, indent=1
            )
        )
        return
    for count, contenders in found.items():
        print(f"\n{count} classes, {dim} dimensions, {images} x {size} x {size} pixels    us a pixel   times as fast")
        for name, row in contenders.items():
            mark = "" if row["pixels"] == images * size * size else f"   on {row['pixels']:,} pixels"
            print(f"{name:<48}{row['us_a_pixel']:>15.3f}{row['times_as_fast_as_published']:>16.2f}{mark}")


if __name__ == "__main__":
    main()
