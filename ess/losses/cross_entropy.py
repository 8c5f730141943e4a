"""The losses: cross entropy of pixel embeddings against class embeddings, over all classes or a few of them. Pure functions.

The suffixes of names are the axes listed in ``ess.kernels``: ``o_PD`` are pixel embeddings and ``e_CD`` class embeddings.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from ess.kernels.distances import DISTANCES
from ess.losses import fused
from ess.losses.neighbours import FEW, nearest

NEGATIVES = ("nearest", "random", "published")
"""The negatives of a pixel: the k nearest other classes, k random ones, or the k nearest with the published collision."""

STRIDES = (1, 2, 4, 8, 16)
"""The numbers of pixels that can share one search."""

REDUCTIONS = ("mean", "sum", "none")
"""The result: the mean over all pixels that are not ignored, their sum, or (B, H, W) with 0 where ignored."""

EXACT_UP_TO = 2_000
"""Up to about this many classes the exact loss costs no more than the loss over nearest neighbours; see docs/losses.md."""

_QUERIES = 1 << 18
"""The most pixels in one search."""

_ELEMENTS = 1 << 22
"""The most numbers in the largest intermediate tensor of one chunk of pixels."""

_DISTANCES, _DISTANCES_ON_GPU = 1 << 21, 1 << 26
"""The most distances between class embeddings in memory at once; a GPU needs many of them to be busy."""


def chosen(loss: str, classes: int) -> str:
    """The loss with this name, where "auto" stands for "exact" or "knn", whichever is faster for this number of classes."""
    return loss if loss != "auto" else "exact" if classes <= EXACT_UP_TO else "knn"


def named(loss: str, classes: int) -> str:
    """How messages name a loss, for example "'auto', which is 'exact' for 1284 classes"."""
    meant = chosen(loss, classes)
    return repr(loss) if loss == meant else f"{loss!r}, which is {meant!r} for {classes} classes"


def exact_cross_entropy(
    embeddings: torch.Tensor,
    labels: torch.Tensor,
    classes: torch.Tensor,
    *,
    temperature: float = 20.0,
    distance: str = "euclidean",
    ignore_index: int = -1,
    bias: torch.Tensor | None = None,
    class_weight: torch.Tensor | None = None,
    class_mask: torch.Tensor | None = None,
    reduction: str = "mean",
    backend: str = "auto",
    validate: bool = True,
) -> torch.Tensor:
    """Cross entropy over all classes, logit of class c at pixel p: -T * ||o_p - e_c|| + b_c.

    ``embeddings`` (B, D, H, W) floating, ``labels`` (B, H, W) integer, 0..C-1 or ``ignore_index``, ``classes`` (C, D)
    floating with C >= 2. Neither embedding is normalised here. ``distance`` is "euclidean" as in the paper, "squared" for
    -T * ||o_p - e_c||^2, or "cosine" for T * <o_p, e_c>. If all pixels are ignored, the loss and its gradients are 0.

    ``bias`` (C,) is added to the logits; tau * log prior gives logit adjustment (Menon et al., ICLR 2021). ``class_weight``
    (C,) multiplies the loss of each pixel by the weight of its target, and "mean" divides by the sum of these weights.
    ``class_mask`` (B, C) bool is False for the classes that are left out of the softmax of an image (federated labels); targets
    never are.

    ``backend`` "fused" computes value and gradients in one pass with a compiled kernel (CPU: float32; CUDA: Triton, D <= 256
    and D * H * W up to 2 billion), "torch" with plain formulas; "auto" is "fused" if that is possible. Raises ValueError if an
    argument does not fit. To see whether all labels do, the process has to wait for a GPU; ``validate`` False leaves that out,
    for labels that are known to.
    """
    labels = _checked(embeddings, labels, classes, distance, ignore_index, reduction, validate)
    _check_extras(embeddings, classes, bias, class_weight, class_mask)
    dtype = (classes if class_weight is None else class_weight).dtype
    weights = (labels != ignore_index).to(torch.promote_types(dtype, torch.float32))  # float16 cannot count 65,520 pixels
    if class_weight is not None:
        weights = class_weight.detach()[labels.clamp(0, len(classes) - 1)] * weights
    if reduction == "mean":
        weights = weights / weights.sum().clamp_min(torch.finfo(weights.dtype).tiny)
    if fused.chosen(backend, embeddings, classes):
        settings = fused.Settings(temperature, distance, ignore_index)
        if reduction != "none":
            return fused.weighted_sum(embeddings, classes, bias, labels, weights, class_mask, settings)
        return fused.per_pixel(embeddings, classes, bias, labels, class_mask, settings) * weights
    losses = _exact_by_torch(embeddings, labels, classes, temperature, distance, ignore_index, bias, class_mask) * weights
    return losses if reduction == "none" else losses.sum()


def knn_cross_entropy(
    embeddings: torch.Tensor,
    labels: torch.Tensor,
    classes: torch.Tensor,
    *,
    k: int = 7,
    temperature: float = 20.0,
    distance: str = "euclidean",
    ignore_index: int = -1,
    negatives: str = "nearest",
    search: str = "auto",
    query_stride: int = 1,
    reduction: str = "mean",
    generator: torch.Generator | None = None,
    backend: str = "auto",
    validate: bool = True,
) -> torch.Tensor:
    """Cross entropy over S_p = {t} + k negatives instead of all classes; otherwise like :func:`exact_cross_entropy`.

    ``negatives`` "nearest" are the k classes nearest to o_p other than the target t (all C - 1 if k is larger), "random" k
    distinct others drawn with ``generator``, "published" the k nearest, among which the target is replaced by the class before
    it (0 by 0). ``search`` is the backend of :func:`nearest`, through which no gradient flows. With a ``query_stride`` of 2, 4,
    8 or 16, one pixel of each block of 1 x 2, 2 x 2, 2 x 4 or 4 x 4 pixels searches for all of them. Even then the target of a
    pixel is never one of its negatives, except as published.
    """
    labels = _checked(embeddings, labels, classes, distance, ignore_index, reduction, validate)
    _check_negatives(k, negatives, query_stride)
    compiled = fused.chosen(backend, embeddings, classes)
    on_gpu = compiled and fused.on_gpu(embeddings)
    counted, targets = _targets(labels, ignore_index, everywhere=on_gpu)
    if on_gpu and negatives == "nearest" and query_stride == 1 and search in ("auto", "triton") and k <= FEW:
        candidates = fused.nearest_candidates(embeddings, targets, classes, min(k, len(classes) - 1), distance)
    else:
        if negatives == "random":
            others = _random_others(targets, len(classes), k, generator)
        else:
            others = _search_others(embeddings, counted, targets, classes, k, distance, negatives, search, query_stride)
        candidates = torch.cat([targets.int(), others.int()], dim=1)
    if compiled:
        settings = fused.Settings(temperature, distance, ignore_index)
        losses = fused.over_candidates(embeddings, classes, counted, candidates, settings)
        return _reduce(losses, counted, labels, ignore_index, reduction)

    def loss(o_PD: torch.Tensor, candidates_PK: torch.Tensor, e_CD: torch.Tensor) -> torch.Tensor:
        z_PK = _logits(o_PD, F.embedding(candidates_PK, e_CD), temperature, distance)
        return _cross_entropy(z_PK[:, :1], z_PK[:, 1:])

    pixels, width = _pixels(embeddings, counted), candidates.shape[1] * classes.shape[1]
    return _reduce(_chunked(loss, pixels, candidates, (classes,), width), counted, labels, ignore_index, reduction)


def margin_penalty(classes: torch.Tensor, *, margin: float = 0.2) -> torch.Tensor:
    """The mean over all classes c of max(0, m - min_{j != c} ||e_c - e_j||), which keeps the class embeddings (C, D) apart.

    The search for the nearest other class takes some classes at a time, so that memory grows with C and not C^2. No gradient
    flows through the search.
    """
    _check_classes(classes)
    closest = _nearest_others(classes.detach())
    gaps = torch.linalg.vector_norm(classes - F.embedding(closest, classes), dim=1)
    return F.relu(margin - gaps).mean()


def _nearest_others(classes: torch.Tensor) -> torch.Tensor:
    """(C,) int64: the nearest other class of each class; ties go to the lower id."""
    image = classes.T[None, :, None]
    if fused.on_gpu(image) and fused.chosen("auto", image, classes):
        own = torch.arange(len(classes), device=classes.device)
        return fused.nearest_candidates(image, own, classes, 1, "euclidean")[:, 1].long()
    rows = max(1, (_DISTANCES_ON_GPU if classes.is_cuda else _DISTANCES) // len(classes))
    closest = torch.empty(len(classes), dtype=torch.int64, device=classes.device)
    for first in range(0, len(classes), rows):
        part = slice(first, first + rows)
        closest[part] = _nearest_of_some(classes[part], classes, first)  # a list of results would fragment the heap
    return closest


def _nearest_of_some(some: torch.Tensor, classes: torch.Tensor, first: int) -> torch.Tensor:
    distances = torch.cdist(some, classes, compute_mode="donot_use_mm_for_euclid_dist")
    distances.diagonal(first).fill_(torch.inf)
    return distances.argmin(dim=1)


def dense_cross_entropy(
    logits: torch.Tensor,
    labels: torch.Tensor,
    *,
    ignore_index: int = -1,
    reduction: str = "mean",
    validate: bool = True,
) -> torch.Tensor:
    """The cross entropy of the dense baseline: ``logits`` (B, C, H, W), and the rest as in :func:`exact_cross_entropy`."""
    labels = _check_labels(logits, labels, logits.shape[1], ignore_index, reduction, validate)
    losses = F.cross_entropy(logits, labels, ignore_index=ignore_index, reduction="none" if reduction == "none" else "sum")
    return losses / (labels != ignore_index).sum().clamp_min(1) if reduction == "mean" else losses


def _exact_by_torch(embeddings, labels, classes, temperature, distance, ignore_index, bias, class_mask) -> torch.Tensor:
    """The exact loss of each pixel, (B, H, W), 0 where ignored, by plain formulas."""
    counted_P = (labels != ignore_index).flatten().nonzero().squeeze(1)
    images_P = counted_P // labels[0].numel()
    ids_P2 = torch.stack([labels.flatten()[counted_P], images_P], dim=1)

    def loss(o_PD: torch.Tensor, ids_P2: torch.Tensor, e_CD: torch.Tensor, bias_C: torch.Tensor) -> torch.Tensor:
        target_P1 = ids_P2[:, :1]
        z_PC = _logits(o_PD, e_CD, temperature, distance) + bias_C
        if class_mask is not None:
            z_PC = z_PC.masked_fill(~class_mask[ids_P2[:, 1]].scatter(1, target_P1, True), -torch.inf)
        return _cross_entropy(z_PC.gather(1, target_P1), z_PC.scatter(1, target_P1, -torch.inf))

    bias = classes.new_zeros(len(classes)) if bias is None else bias
    losses = _chunked(loss, _pixels(embeddings, counted_P), ids_P2, (classes, bias), len(classes))
    return losses.new_zeros(labels.numel()).index_copy(0, counted_P, losses).view(labels.shape)


def _logits(o_PD: torch.Tensor, e: torch.Tensor, temperature: float, distance: str) -> torch.Tensor:
    """The logits of pixels: (P, C) for classes ``e`` (C, D), or (P, K) if each pixel has its own candidates ``e`` (P, K, D).

    Differences are taken before they are squared, because ||o||^2 - 2 <o, e> + ||e||^2 loses the digits of small distances,
    which matter most.
    """
    if distance == "cosine":
        return temperature * (o_PD @ e.T if e.ndim == 2 else (e @ o_PD[:, :, None]).squeeze(2))
    if e.ndim == 2:
        d = torch.cdist(o_PD, e, compute_mode="donot_use_mm_for_euclid_dist")
    else:
        d = torch.linalg.vector_norm(o_PD[:, None] - e, dim=2)
    return -temperature * (d.square() if distance == "squared" else d)


def _cross_entropy(target_P1: torch.Tensor, negatives_PK: torch.Tensor) -> torch.Tensor:
    """-log(exp z_t / (exp z_t + sum exp z_n)), (P,), with full precision even if it is small."""
    return -F.logsigmoid(target_P1.squeeze(1) - negatives_PK.logsumexp(dim=1))


def _chunked(loss: Callable, pixels: torch.Tensor, ids: torch.Tensor, shared: tuple, width: int) -> torch.Tensor:
    """``loss(pixels, ids, *shared)`` (P,), for so few pixels at a time that (pixels, width) stays small, also backward."""
    rows = max(1, _ELEMENTS // width)
    dtype = torch.promote_types(torch.promote_types(pixels.dtype, shared[0].dtype), torch.float32)
    shared = tuple(tensor.to(dtype) for tensor in shared)

    def part(o_PD: torch.Tensor, part_ids: torch.Tensor) -> torch.Tensor:
        with torch.autocast(o_PD.device.type, enabled=False):
            return loss(o_PD.to(dtype), part_ids, *shared)

    chunks = zip(pixels.split(rows), ids.split(rows), strict=True)
    return torch.cat([checkpoint(part, o, i, use_reentrant=False, preserve_rng_state=False) for o, i in chunks])


def _pixels(embeddings: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """The embeddings (P, D) of the pixels with indices ``places`` (P,) into all B * H * W."""
    return embeddings.permute(0, 2, 3, 1).reshape(-1, embeddings.shape[1]).index_select(0, places)


def _checked(embeddings, labels, classes, distance, ignore_index, reduction, validate) -> torch.Tensor:
    """The labels as int64. Raises ValueError if an argument does not fit."""
    _check_classes(classes)
    if distance not in DISTANCES:
        raise ValueError(f"distance is {distance!r}: expected one of {', '.join(DISTANCES)}")
    labels = _check_labels(embeddings, labels, len(classes), ignore_index, reduction, validate)
    if embeddings.shape[1] != classes.shape[1]:
        raise ValueError(f"embeddings have {embeddings.shape[1]} channels, but classes {tuple(classes.shape)}: expected (C, D)")
    return labels


def _check_extras(embeddings, classes, bias, class_weight, class_mask) -> None:
    count = len(classes)
    for name, tensor, shape in (
        ("bias", bias, (count,)),
        ("class_weight", class_weight, (count,)),
        ("class_mask", class_mask, (len(embeddings), count)),
    ):
        if tensor is not None and tuple(tensor.shape) != shape:
            raise ValueError(f"{name} has the shape {tuple(tensor.shape)}: expected {shape}")
    if class_mask is not None and class_mask.dtype != torch.bool:
        raise ValueError(f"class_mask is {class_mask.dtype}: expected bool, False for classes that are left out")


def _check_negatives(k: int, negatives: str, query_stride: int) -> None:
    if k < 1:
        raise ValueError(f"k is {k}: expected 1 or more negatives")
    if query_stride not in STRIDES:
        raise ValueError(f"query_stride is {query_stride}: expected one of {', '.join(map(str, STRIDES))}")
    if negatives not in NEGATIVES:
        raise ValueError(f"negatives is {negatives!r}: expected one of {', '.join(NEGATIVES)}")


def _check_classes(classes: torch.Tensor) -> None:
    if classes.ndim != 2 or len(classes) < 2:
        raise ValueError(f"classes have the shape {tuple(classes.shape)}: expected (C, D) with at least 2 classes")


def _check_labels(
    maps: torch.Tensor, labels: torch.Tensor, classes: int, ignore_index: int, reduction: str, validate: bool
) -> torch.Tensor:
    """The labels as int64.

    Raises ValueError unless they fit ``maps`` (B, channels, H, W) and, with ``validate``, are in 0..classes-1.
    """
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction is {reduction!r}: expected one of {', '.join(REDUCTIONS)}")
    if maps.ndim != 4 or labels.shape != (maps.shape[0], *maps.shape[2:]):
        raise ValueError(
            f"labels {tuple(labels.shape)} do not fit the map {tuple(maps.shape)}: expected (B, H, W) and (B, D, H, W)"
        )
    return as_labels(labels, classes, ignore_index, validate)


def as_labels(labels: torch.Tensor, classes: int, ignore_index: int, validate: bool = True) -> torch.Tensor:
    """The labels as int64. Raises ValueError unless they are integers and, with ``validate``, fit the number of classes."""
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise ValueError(f"labels are {labels.dtype}: expected an integer type")
    labels = labels.long()
    if not validate:
        return labels
    wrong = labels[(labels != ignore_index) & ((labels < 0) | (labels >= classes))]
    if len(wrong):
        raise ValueError(f"labels hold {wrong[0].item()}: expected 0..{classes - 1}, or {ignore_index} where ignored")
    return labels


def _reduce(losses, counted, labels, ignore_index, reduction) -> torch.Tensor:
    """The losses (P,) of the pixels at ``counted``, 0 where ignored, after the ``reduction``."""
    if reduction == "none":
        return losses.new_zeros(labels.numel()).index_copy(0, counted, losses).view(labels.shape)
    return losses.sum() / (labels != ignore_index).sum().clamp_min(1) if reduction == "mean" else losses.sum()


def _targets(labels: torch.Tensor, ignore_index: int, *, everywhere: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """(P,) the indices of the pixels that are not ignored, and (P, 1) their labels.

    With ``everywhere``, these are all pixels and -1 where ignored, because a GPU would have to wait for a number of others.
    """
    if everywhere:
        return torch.arange(labels.numel(), device=labels.device), torch.where(labels == ignore_index, -1, labels).view(-1, 1)
    counted = (labels != ignore_index).flatten().nonzero()
    return counted.squeeze(1), labels.flatten()[counted]


@torch.no_grad()
def _search_others(embeddings, counted, targets, classes, k, distance, negatives, search, stride) -> torch.Tensor:
    """(P, k) int32: the negatives of the pixels at ``counted``, some pixels at a time because their embeddings are copied.

    For "nearest", k + 1 classes are found. If the target is one of them, the last one takes its place.
    """
    k = min(k, len(classes) - 1 if negatives == "nearest" else len(classes))
    settings = {"distance": distance, "backend": search}
    wanted = k + (negatives == "nearest")
    points = embeddings.flatten(2)
    if stride > 1:
        grid, blocks = _block_queries(embeddings, counted, stride)
        shared = nearest(grid, classes, wanted, **settings).int()
    others = []
    for first in range(0, max(1, len(counted)), _QUERIES):
        part, target = slice(first, first + _QUERIES), targets[first : first + _QUERIES].int()
        if stride > 1:
            ids = shared[blocks[part]]
        else:
            image, pixel = counted[part] // points.shape[2], counted[part] % points.shape[2]
            ids = nearest(points[image, :, pixel], classes, wanted, **settings).int()
        if negatives == "nearest":
            others.append(torch.where(ids == target, ids[:, -1:], ids)[:, :k])
        else:
            others.append((ids - (ids == target).int()).clamp_min(0))
    return torch.cat(others)


def _block_queries(embeddings: torch.Tensor, counted: torch.Tensor, stride: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(Q, D) embeddings from the middle of each block of ``stride`` pixels, and (P,) the block of each counted pixel."""
    height, width = embeddings.shape[2:]
    tall = 1 << (stride.bit_length() - 1) // 2
    wide = stride // tall
    rows = torch.arange(tall // 2, height + tall // 2, tall, device=counted.device).clamp_max(height - 1)
    columns = torch.arange(wide // 2, width + wide // 2, wide, device=counted.device).clamp_max(width - 1)
    queries = embeddings[:, :, rows][..., columns].permute(0, 2, 3, 1).flatten(0, 2)
    image, y, x = counted // (height * width), counted // width % height, counted % width
    return queries, (image * len(rows) + y // tall) * len(columns) + x // wide


def _random_others(targets: torch.Tensor, classes: int, k: int, generator: torch.Generator | None) -> torch.Tensor:
    """(P, k) distinct classes other than the target, all sets equally likely, by Floyd's algorithm over the C - 1 others."""
    k = min(k, classes - 1)
    drawn = targets.new_empty((len(targets), 0))
    for last in range(classes - 1 - k, classes - 1):
        new = torch.randint(last + 1, targets.shape, generator=generator, device=targets.device)
        new = torch.where((drawn == new).any(dim=1, keepdim=True), last, new)
        drawn = torch.cat([drawn, new], dim=1)
    return drawn + (drawn >= targets).long()
