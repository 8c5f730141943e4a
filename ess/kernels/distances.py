"""How near a pixel embedding and a class embedding are: the distances, and the numbers that compiled loops know them by."""

DISTANCES = ("euclidean", "squared", "cosine")
"""How near is measured; "cosine" is the inner product, and "squared" ranks as "euclidean" does."""


EUCLIDEAN, SQUARED, COSINE = range(len(DISTANCES))
"""The places of these, which is what compiled loops know them by."""
