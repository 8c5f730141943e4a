"""What the kernels share: tables of class embeddings, padded and divided into float16 numbers, and a limit."""

import torch
import triton

REGISTERS = 255
"""The registers that a thread may use: all. Left alone, the compiler may spill some of them to run more programs at once."""

_LEAST = 2.0**-100
"""A norm that counts as positive, a power of two."""


def padded(classes: torch.Tensor) -> torch.Tensor:
    """(C, WIDTH): the (C, D) class embeddings, a column of ones, and zeros up to a power of two >= 16.

    The column of ones makes a product also sum the weights. It is absent only if D is a power of two >= 32.
    """
    count, channels = classes.shape
    width = max(16, triton.next_power_of_2(channels + (channels == 16)))
    table = classes.new_zeros(count, width)
    table[:, :channels], table[:, channels : channels + 1] = classes, 1
    return table


def halves(table: torch.Tensor, channels: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """(squared norms (C,), power of two just below the largest norm, high, low) of a :func:`padded` table, for its products.

    ``high`` and ``low``, float16 (C, WIDTH), add up to its first ``channels`` columns / that power, and to the other columns.
    """
    norms = table[:, :channels].square().sum(1)
    largest = torch.exp2(norms.amax().sqrt().clamp_min(_LEAST).log2().floor())
    table = torch.cat([table[:, :channels] / largest, table[:, channels:]], 1)
    high = table.half()
    return norms, largest, high, (table - high).half()
