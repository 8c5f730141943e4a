"""Sizes beyond which input is refused, wherever it is met."""

MAX_PIXELS = 2**27
"""Masks with more pixels than this are refused: a fault of the data, or an attack on memory."""

MAX_PICTURE = 2**28
"""Bytes of the largest picture that is read; more is an attack on memory."""
