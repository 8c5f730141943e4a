"""The class embeddings nearest to a pixel embedding: several implementations of the exact search, and an approximate one."""

import os
from functools import lru_cache

import torch

from ess.kernels.distances import DISTANCES
from ess.kernels.gpu import probe

BACKENDS = ("auto", "numba", "triton", "faiss", "torch", "clustered")
"""The implementations. All but "clustered" compare a query with every class. "triton" needs a GPU, on which it is "auto".

On the CPU, "auto" is numba for 2 to FEW classes per query, otherwise faiss. "clustered" is faiss's inverted file: a query is
compared with the classes of the _PROBES nearest of about sqrt(_PROBES * C) clusters, and misses neighbours in other clusters.
With a bias, which faiss does not support, "auto" on the CPU is numba for up to FEW classes per query, otherwise torch.
"""

FEW = 64
"""The most classes per query that the compiled searches are made for."""

_KEPT_BY_TRITON = FEW + 1
"""The most classes per query that the kernel finds: FEW negatives and the target, in the registers of a GPU."""

_KEPT_BY_FAISS = 2048
"""The most classes per query that faiss finds on a GPU."""

_PROBES = 16

_PAIRS = 1 << 22
"""The most pairs of a query and a class in memory at once."""


@torch.no_grad()
def nearest(
    queries: torch.Tensor,
    classes: torch.Tensor,
    k: int,
    *,
    distance: str = "euclidean",
    bias: torch.Tensor | None = None,
    backend: str = "auto",
) -> torch.Tensor:
    """(P, k) int64: the ids 0..C-1 of the k classes nearest to each query, the nearest first.

    ``queries`` (P, D) and ``classes`` (C, D) are of any floating type and compared in float32. With ``bias`` (C,), classes are
    ranked by distance minus bias: by ||o - e_c|| - b_c for "euclidean", ||o - e_c||^2 - b_c for "squared", and -<o, e_c> - b_c
    for "cosine". "faiss" and "clustered" cannot do this. Ties go to the lower id, except that these two may break them either
    way. A query with a NaN gets arbitrary ids. Raises ValueError if an argument does not fit.
    """
    if queries.ndim != 2 or classes.ndim != 2 or queries.shape[1] != classes.shape[1]:
        raise ValueError(f"queries {tuple(queries.shape)} and classes {tuple(classes.shape)}: expected (P, D) and (C, D)")
    if not 1 <= k <= len(classes):
        raise ValueError(f"k is {k}: expected 1..{len(classes)}, the number of classes")
    if distance not in DISTANCES:
        raise ValueError(f"distance is {distance!r}: expected one of {', '.join(DISTANCES)}")
    if backend not in BACKENDS:
        raise ValueError(f"backend is {backend!r}: expected one of {', '.join(BACKENDS)}")
    if bias is not None:
        _check_bias(bias, classes, backend)
    if fault := fault_of(backend, k, queries.device):
        raise ValueError(f"backend is {fault}")
    if backend == "auto":
        backend = _best(queries, k, biased=bias is not None)
    search = {"numba": _numba, "triton": _triton, "faiss": _faiss, "torch": _torch, "clustered": _clustered}[backend]
    with torch.autocast(queries.device.type, enabled=False):
        queries, classes = (x.detach().float().contiguous() for x in (queries, classes))
        return search(queries, classes, k, distance, None if bias is None else bias.detach().to(queries))


def fault_of(backend: str, k: int, device: torch.device) -> str:
    """Why a search for ``k`` classes per query cannot run on a device, as "'triton', which ..."; "" if it can."""
    if backend != "triton":
        return ""
    if device.type != "cuda" and "TRITON_INTERPRET" not in os.environ:
        return f"'triton', which searches on a GPU, but the device is {device}"
    if k > _KEPT_BY_TRITON:
        return f"'triton', which finds at most {_KEPT_BY_TRITON} classes, {FEW} negatives and the target, not {k}"
    return "" if device.type != "cuda" or probe.works(device) else "'triton', which cannot run its kernels here"


def _check_bias(bias: torch.Tensor, classes: torch.Tensor, backend: str) -> None:
    """Raise ValueError unless the bias has a number for each class and the search supports it."""
    if bias.shape != classes.shape[:1]:
        raise ValueError(f"bias has the shape {tuple(bias.shape)}: expected ({len(classes)},), a number for each class")
    if backend in ("faiss", "clustered"):
        raise ValueError(f"backend is {backend!r}, which cannot search with a bias; choose auto, numba, triton or torch")


def _best(queries: torch.Tensor, k: int, biased: bool) -> str:
    if queries.is_cuda:
        return "triton" if k <= FEW and probe.works(queries.device) else "torch"
    if biased:
        return "numba" if k <= FEW else "torch"
    return "numba" if 1 < k <= FEW else "faiss"


def _numba(queries: torch.Tensor, classes: torch.Tensor, k: int, distance: str, bias: torch.Tensor | None) -> torch.Tensor:
    """:func:`nearest` by the compiled loop of ``ess.kernels.search_cpu``."""
    from ess.kernels import search_cpu  # imported late: numba is slow to import

    points, table, threads = queries.cpu().numpy(), classes.cpu().numpy(), torch.get_num_threads()
    how = {"products": distance == "cosine", "roots": distance == "euclidean"}
    subtracted = None if bias is None else bias.cpu().numpy()
    ids = search_cpu.search(points, table, k, **how, threads=threads, bias=subtracted)
    return torch.from_numpy(ids).to(queries.device)


def _triton(queries: torch.Tensor, classes: torch.Tensor, k: int, distance: str, bias: torch.Tensor | None) -> torch.Tensor:
    """:func:`nearest` by the kernel of ``ess.kernels.gpu.search``."""
    from ess.kernels.gpu import search  # imported late: triton is optional

    how = {"products": distance == "cosine", "roots": distance == "euclidean"}
    return search.search(queries, classes, k, **how, bias=bias)


def _faiss(queries: torch.Tensor, classes: torch.Tensor, k: int, distance: str, bias: torch.Tensor | None) -> torch.Tensor:
    """:func:`nearest` without a bias by a flat faiss index, on the GPU if the queries are there and faiss supports it."""
    import faiss
    import faiss.contrib.torch_utils  # makes indexes accept tensors

    index: faiss.Index = (faiss.IndexFlatIP if distance == "cosine" else faiss.IndexFlatL2)(classes.shape[1])
    device = queries.device
    if queries.is_cuda and k <= _KEPT_BY_FAISS and hasattr(faiss, "StandardGpuResources"):
        index = faiss.index_cpu_to_gpu(_gpu_resources(device.index), device.index, index)
    else:
        queries, classes = queries.cpu(), classes.cpu()
    index.add(classes)
    _, ids = index.search(queries, k)
    return ids.clamp_min(0).to(device)  # faiss returns -1 for queries with a NaN


def _clustered(queries: torch.Tensor, classes: torch.Tensor, k: int, distance: str, bias: torch.Tensor | None) -> torch.Tensor:
    """:func:`nearest` without a bias, on the CPU, among the classes of the nearest clusters.

    It is exact for queries whose clusters hold too few.
    """
    import faiss
    import faiss.contrib.torch_utils

    points, table = queries.cpu(), classes.cpu()
    clusters = max(1, min(len(table) // 4, round((_PROBES * len(table)) ** 0.5)))
    products = distance == "cosine"
    coarse = (faiss.IndexFlatIP if products else faiss.IndexFlatL2)(table.shape[1])
    metric = faiss.METRIC_INNER_PRODUCT if products else faiss.METRIC_L2
    index = faiss.IndexIVFFlat(coarse, table.shape[1], clusters, metric)
    index.cp.niter, index.cp.min_points_per_centroid, index.cp.max_points_per_centroid = 6, 1, 32
    index.nprobe = _PROBES
    index.train(table)
    index.add(table)
    ids = index.search(points, k)[1]
    missed = (ids < 0).any(dim=1).nonzero().squeeze(1)
    if len(missed):
        ids[missed] = _faiss(points[missed], table, k, distance, bias)
    return ids.to(queries.device)


@lru_cache
def _gpu_resources(device_index: int):
    """The scratch memory of faiss on one GPU. By default faiss would allocate 1.5 GB for every search."""
    import faiss

    resources = faiss.StandardGpuResources()
    resources.setTempMemory(64 << 20)
    return resources


def _torch(queries: torch.Tensor, classes: torch.Tensor, k: int, distance: str, bias: torch.Tensor | None) -> torch.Tensor:
    """:func:`nearest` from the matrix of all distances, some queries at a time."""
    rows = max(1, _PAIRS // len(classes))
    return torch.cat([_smallest(_scores(part, classes, distance, bias), k) for part in queries.split(rows)])


def _scores(queries: torch.Tensor, classes: torch.Tensor, distance: str, bias: torch.Tensor | None) -> torch.Tensor:
    """(P, C) float32, the smaller the nearer."""
    if distance == "cosine":
        scores = 0 - queries @ classes.T  # unlike -x, never a negative zero
    else:
        scores = torch.cdist(queries, classes, compute_mode="donot_use_mm_for_euclid_dist")
    if bias is None:
        return scores
    return (scores.square() if distance == "squared" else scores).sub_(bias)


def _smallest(scores: torch.Tensor, k: int) -> torch.Tensor:
    """The columns of the k smallest scores of each row; ties go to the lower column.

    The bits of a float32 sort like an integer once those of negative numbers are flipped. The column forms the lower bits.
    """
    if k == 1:
        return scores.argmin(dim=1, keepdim=True)
    bits = scores.view(torch.int32)
    bits = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    columns = torch.arange(scores.shape[1], device=scores.device)
    keys = bits.long().bitwise_left_shift_(32).bitwise_or_(columns)
    return keys.topk(k, largest=False).values & 0xFFFFFFFF
