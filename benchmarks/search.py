"""The time of the search for the nearest classes, what the clustered search misses, and the time of predictions.

    python benchmarks/search.py [--classes 1284 ...] [--size 512] [--rounds 3] [--json]

Class embeddings are random unit vectors. Queries are random too, or near a class like those of a trained model. A prediction
starts from the output of a decoder at a quarter of the resolution, for an embedding model and for a dense one, and is made in
two ways: at full resolution, and as models do it, at that of the decoder. The output shows a region of one class for each 32 x
32 pixels. Dense logits of many classes are computed for fewer pixels, which is marked. All times are per pixel.
"""

import json
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import click
import torch
import torch.nn.functional as F
from contenders import MOST
from torch import nn

from ess.losses.neighbours import nearest
from ess.models.network import SegmentationModel

K = 8
SEARCHES = ("numba", "faiss", "clustered")

_REGION = 32
"""The side in pixels of a region of one class, before its edges are smoothed."""


def points(kind: str, count: int, pixels: int, dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Queries (P, D) and class embeddings (C, D), unit vectors."""
    g = torch.Generator().manual_seed(0)
    classes = F.normalize(torch.randn(count, dim, generator=g), dim=1)
    noise = torch.randn(pixels, dim, generator=g)
    if kind == "near":
        noise = classes[torch.randint(count, (pixels,), generator=g)] + 0.1 * noise
    return F.normalize(noise, dim=1), classes


def medians(calls: dict[str, Callable], rounds: int) -> dict[str, float]:
    """Median seconds of each call. The calls take turns, and the first round is a warm-up."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - start)
    return {name: median(spent[1:]) for name, spent in times.items()}


def search_all(kind: str, count: int, dim: int, pixels: int, rounds: int) -> dict[str, dict[str, float]]:
    """Backend -> {"us_a_pixel", "recall_1", "recall"}: its time, and the shares of the nearest and the k nearest it finds."""
    queries, classes = points(kind, count, pixels, dim)
    k = min(K, count)
    found: dict[str, torch.Tensor] = {}

    def search(backend: str) -> None:
        found[backend] = nearest(queries, classes, k, backend=backend)

    times = medians({backend: lambda backend=backend: search(backend) for backend in SEARCHES}, rounds)
    truth = found["numba"]
    return {
        backend: {
            "us_a_pixel": spent / pixels * 1e6,
            "recall_1": (found[backend][:, 0] == truth[:, 0]).float().mean().item(),
            "recall": (found[backend][:, :, None] == truth[:, None]).any(dim=2).float().mean().item(),
        }
        for backend, spent in times.items()
    }


def predict_all(count: int, dim: int, size: int, rounds: int) -> dict[str, float]:
    """Way -> microseconds per pixel, and "dense_pixels", the number of pixels that the dense model predicts."""
    regions = points("near", count, (size // _REGION) ** 2, dim)[0].T.reshape(1, dim, size // _REGION, -1)
    coarse = F.interpolate(regions, scale_factor=_REGION // 4, mode="bilinear")
    coarse = coarse + 0.02 * torch.randn(coarse.shape, generator=torch.Generator().manual_seed(1))
    embedding, dense = (SegmentationModel(nn.Identity(), nn.Identity(), count, each, multiple=4) for each in (dim, None))
    nn.init.normal_(embedding.class_embeddings)
    rows = max(4, min(size, MOST // (count * size) // 4 * 4))
    logits = torch.einsum("cd,bdhw->bchw", embedding.classes().detach(), coarse[:, :, : rows // 4])
    sizes = {"embedding": (size, size), "dense": (rows, size)}
    calls: dict[str, Callable] = {}
    for name, model, output in (("embedding", embedding, coarse), ("dense", dense, logits)):
        calls[f"{name}, full"] = lambda m=model, o=output, s=sizes[name]: m.classify(m.upsample(o, s))
        calls[name] = lambda m=model, o=output, s=sizes[name]: m.classify_coarse(o, s)
    with torch.inference_mode():
        times = medians(calls, rounds)
    pixels = {name: sizes[name.split(",")[0]] for name in calls}
    return {name: spent / (pixels[name][0] * pixels[name][1]) * 1e6 for name, spent in times.items()} | {
        "dense_pixels": rows * size
    }


@click.command()
@click.option("--classes", "counts", multiple=True, default=(150, 1284, 10_000, 100_000), show_default=True, help="Repeatable.")
@click.option("--dim", default=12, show_default=True, help="Dimensions of an embedding.")
@click.option("--size", default=512, show_default=True, type=click.IntRange(_REGION), help="Height and width of an image.")
@click.option("--queries", default=65536, show_default=True, help="Queries of a search.")
@click.option("--rounds", default=3, show_default=True, help="Rounds; each figure is their median.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def main(counts, dim, size, queries, rounds, as_json) -> None:
    """Measure search and prediction."""
    found: dict[int, dict[str, Any]] = {
        count: {
            "prediction": predict_all(count, dim, size, rounds),
            **{kind: search_all(kind, count, dim, queries, rounds) for kind in ("random", "near")},
        }
        for count in counts
    }
    if as_json:
        print(json.dumps({"threads": torch.get_num_threads(), "dim": dim, "size": size, "k": K, "classes": found}, indent=1))
        return
    for count, parts in found.items():
        row = parts.pop("prediction")
        pixels = row.pop("dense_pixels")
        mark = "" if pixels == size * size else f" (dense on {pixels:,} pixels)"
        print(f"\n{count} classes, us per pixel of a prediction{mark}:", end=" ")
        print("; ".join(f"{name} {spent:.4f}" for name, spent in row.items()))
        for kind, rows in parts.items():
            for name, row in rows.items():
                recalls = f"the nearest {row['recall_1']:.3f}, of the {K} nearest {row['recall']:.3f}"
                print(f"  {kind:<8}{name:<12}{row['us_a_pixel']:>9.3f} us per pixel; found: {recalls}")


if __name__ == "__main__":
    main()
