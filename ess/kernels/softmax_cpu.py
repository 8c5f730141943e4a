"""The softmax of one pixel in compiled loops of the CPU: what the losses share.

A row contains the logits of a pixel in base 2, exp z = 2^(z / ln 2), so the caller divides them by ln 2.
"""

import math

import numpy as np
from llvmlite import ir
from numba import float32, int32
from numba.extending import intrinsic

from cocolvis.compiled import inlined

STRICT = {"contract"}
FAST = STRICT | {"reassoc", "nsz", "arcp", "nnan"}
strict = inlined(fastmath=STRICT, error_model="numpy")
"""Keeps infinities, NaN and the order of additions."""
fast = inlined(fastmath=FAST, error_model="numpy")
"""May reorder additions, as wide instructions must."""


@intrinsic
def _bits(context, number):
    """The bits of a float32 as int32."""
    return int32(float32), lambda context, builder, signature, values: builder.bitcast(values[0], ir.IntType(32))


@intrinsic
def _number(context, bits):
    """The float32 with these bits, given as int32."""
    return float32(int32), lambda context, builder, signature, values: builder.bitcast(values[0], ir.FloatType())


def _extreme(name):
    """LLVM's own maximum or minimum of two float32, which it vectorises over a row; a comparison in Python it does not."""

    def call(context, builder, signature, values):
        kind = ir.FunctionType(ir.FloatType(), [ir.FloatType()] * 2)
        function = builder.module.declare_intrinsic(name, [ir.FloatType()], kind)
        return builder.call(function, values, fastmath=("nnan", "nsz", "reassoc"))

    return intrinsic(lambda context, a, b: (float32(float32, float32), call))


larger, smaller = _extreme("llvm.maxnum"), _extreme("llvm.minnum")

LN_2 = math.log(2)
_ROUND = np.float32(1.5 * 2**23)
"""Adding this to a small float32 rounds it to an integer, which is then in the lowest bits."""
_LEAST = np.float32(-126)
"""The smallest exponent of a normal float32."""
_FIT = np.polynomial.Chebyshev.interpolate(np.exp2, 6, domain=[-0.5, 0.5]).convert(kind=np.polynomial.Polynomial).coef
_C0, _C1, _C2, _C3, _C4, _C5, _C6 = _FIT.astype(np.float32)


@strict
def exp2(x):
    """2^x for x <= 0, float32 within 2 units in the last place, and 2^-126 for x < -126. Free of branches.

    With x = n + f, n an integer and |f| <= 1/2, a polynomial gives 2^f, and n is added to the bits of its exponent.
    """
    x = max(x, _LEAST)
    shifted = x + _ROUND
    f = x - (shifted - _ROUND)
    y = (((((_C6 * f + _C5) * f + _C4) * f + _C3) * f + _C2) * f + _C1) * f + _C0
    return _number(int32(_bits(y) + int32(_bits(shifted) << 23)))  # type: ignore[call-arg]  # numba adds the context


@fast
def exponentials(row, slope, shift):
    """row = 2^(slope * row - shift); returns the sum."""
    total = float32(0)
    for c in range(len(row)):
        value = exp2(slope * row[c] - shift)
        row[c] = value
        total += value
    return total


@strict
def loss(own, best, others):
    """(loss, factor) of a pixel with the logit ``own`` of its class, the largest logit ``best``, and the sum of 2^(z - best)
    over the ``others``. The factor turns exponentials into the derivatives by the logits, s_c - [c = t].
    """
    whole = others + exp2(own - best)
    return math.log1p(others) if own == best else math.log(whole) - LN_2 * (own - best), float32(1) / whole


@strict
def probabilities(row, best, target):
    """Turn the logits of a pixel into its probabilities, less 1 for the target and up to a factor; returns (loss, factor).

    The target does not enter the sum over the others, so that a loss near 0 keeps all its digits.
    """
    own = row[target]
    row[target] = -np.inf
    others = exponentials(row, float32(1), best)
    row[target] = -others
    return loss(own, best, others)
