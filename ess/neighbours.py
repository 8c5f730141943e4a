"""Which class embeddings lie nearest to a pixel embedding: one exact search, by a compiled loop, faiss or plain torch."""

from functools import lru_cache

import torch

DISTANCES = ("euclidean", "squared", "cosine")
"""How near is measured; "cosine" is the inner product, and "squared" ranks as "euclidean" does."""

EUCLIDEAN, SQUARED, COSINE = range(len(DISTANCES))
"""The places of these, which is what compiled loops know them by."""

BACKENDS = ("auto", "numba", "faiss", "torch")
"""Who searches. "auto" is torch on a GPU, where the tensors already lie; on the CPU numba for 2 to _FEW classes, else faiss."""

_FEW = 64

_PAIRS = 1 << 22  # query-class pairs in memory at once


@torch.no_grad()
def nearest(
    queries: torch.Tensor, classes: torch.Tensor, k: int, *, distance: str = "euclidean", backend: str = "auto"
) -> torch.Tensor:
    """The ids of the k classes nearest to each query, the nearest first.

    ``queries`` are (P, D) and ``classes`` (C, D), any floating type, compared in float32; the result is (P, k) int64, ids
    0..C-1. Among equally near classes the lower id comes first, with "faiss" either. A query with a NaN gets arbitrary ids.
    """
    if queries.ndim != 2 or classes.ndim != 2 or queries.shape[1] != classes.shape[1]:
        raise ValueError(f"queries {tuple(queries.shape)} and classes {tuple(classes.shape)}: expected (P, D) and (C, D)")
    if not 1 <= k <= len(classes):
        raise ValueError(f"k is {k}: expected 1..{len(classes)}, the number of classes")
    if distance not in DISTANCES:
        raise ValueError(f"distance is {distance!r}: expected one of {', '.join(DISTANCES)}")
    if backend not in BACKENDS:
        raise ValueError(f"backend is {backend!r}: expected one of {', '.join(BACKENDS)}")
    if backend == "auto":
        backend = "torch" if queries.is_cuda else "numba" if 1 < k <= _FEW else "faiss"
    search = {"numba": _numba, "faiss": _faiss, "torch": _torch}[backend]
    with torch.autocast(queries.device.type, enabled=False):
        queries, classes = (x.detach().float().contiguous() for x in (queries, classes))
        return search(queries, classes, k, distance)


def _numba(queries: torch.Tensor, classes: torch.Tensor, k: int, distance: str) -> torch.Tensor:
    """:func:`nearest` by the compiled loop of ``ess.kernels.search_cpu``."""
    from ess.kernels import search_cpu  # numba is slow to import

    points, threads = (x.cpu().numpy() for x in (queries, classes)), torch.get_num_threads()
    return torch.from_numpy(search_cpu.search(*points, k, products=distance == "cosine", threads=threads)).to(queries.device)


def _faiss(queries: torch.Tensor, classes: torch.Tensor, k: int, distance: str) -> torch.Tensor:
    """:func:`nearest` by a flat faiss index, on the GPU where both the queries and this faiss are."""
    import faiss
    import faiss.contrib.torch_utils  # lets an index take tensors

    index = (faiss.IndexFlatIP if distance == "cosine" else faiss.IndexFlatL2)(classes.shape[1])
    device = queries.device
    if queries.is_cuda and hasattr(faiss, "StandardGpuResources"):
        index = faiss.index_cpu_to_gpu(_gpu_resources(device.index), device.index, index)
    else:
        queries, classes = queries.cpu(), classes.cpu()
    index.add(classes)
    _, ids = index.search(queries, k)
    return ids.clamp_min(0).to(device)  # faiss says -1 where a NaN leaves it nothing


@lru_cache
def _gpu_resources(device_index: int):
    """The scratch memory of faiss on one GPU: by default it would take 1.5 GB, at every search anew."""
    import faiss

    resources = faiss.StandardGpuResources()
    resources.setTempMemory(64 << 20)
    return resources


def _torch(queries: torch.Tensor, classes: torch.Tensor, k: int, distance: str) -> torch.Tensor:
    """:func:`nearest` by comparing everything with everything, some thousand queries at a time."""
    rows = max(1, _PAIRS // len(classes))
    return torch.cat([_smallest(_scores(part, classes, distance), k) for part in queries.split(rows)])


def _scores(queries: torch.Tensor, classes: torch.Tensor, distance: str) -> torch.Tensor:
    """(P, C) float32, smaller is nearer; 0 - x rather than -x, so that there is no negative zero."""
    if distance == "cosine":
        return 0 - queries @ classes.T
    return torch.cdist(queries, classes, compute_mode="donot_use_mm_for_euclid_dist")


def _smallest(scores: torch.Tensor, k: int) -> torch.Tensor:
    """The columns of the k smallest scores of each row, the lower column first among equals.

    The bits of a float32 sort as an integer once those of negative numbers are flipped; the column goes below them.
    """
    if k == 1:
        return scores.argmin(dim=1, keepdim=True)
    bits = scores.view(torch.int32)
    bits = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    columns = torch.arange(scores.shape[1], device=scores.device)
    keys = bits.long().bitwise_left_shift_(32).bitwise_or_(columns)
    return keys.topk(k, largest=False).values & 0xFFFFFFFF
