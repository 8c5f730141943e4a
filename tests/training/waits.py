"""Counts what makes a process wait for its GPU, without a GPU: on tensors of the CPU, or on fake ones of a GPU."""

from collections import Counter

import torch
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten

_ALWAYS = {aten._local_scalar_dense, aten.nonzero, aten.masked_select, aten._unique2, aten.bincount, aten.equal}
"""Operators whose result, or its size, has to be known before the next one can start."""

_MASKED = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_}
"""Operators that look for the True ones of a mask, if they get one."""

_COPIES = {aten._to_copy, aten.copy_}


class Waits(TorchDispatchMode):
    """``found`` counts, by operator, what a GPU would be waited for; ``launched`` is the number of all operators.

    Copies wait unless they are from pinned memory or, to the CPU, ``non_blocking``. Fake tensors cannot be pinned: what was
    asked to be pinned counts as such.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()
        self.launched = 0
        self._pinned: list[torch.Tensor] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        operator = func.overloadpacket
        if operator is aten._pin_memory:
            self._pinned.append(args[0].clone())
            return self._pinned[-1]
        if func.namespace == "aten":
            self.launched += 1
        masks = args[1] if operator in _MASKED else ()
        waits = operator in _ALWAYS or any(mask is not None and mask.dtype in (torch.bool, torch.uint8) for mask in masks)
        if waits or (operator in _COPIES and self._waits_for_copy(args, kwargs)):
            self.found[str(operator).removeprefix("aten.")] += 1
        return func(*args, **kwargs)

    def _waits_for_copy(self, args, kwargs) -> bool:
        source, target = (args[1].device, args[0].device) if len(args) > 1 else (args[0].device, kwargs.get("device"))
        moved = args[1] if len(args) > 1 else args[0]
        if target is None or source.type == target.type:
            return False
        if target.type == "cpu":
            return not kwargs.get("non_blocking", False)
        return not any(moved is pinned for pinned in self._pinned)
