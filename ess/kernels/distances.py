"""The ways to measure how near a pixel embedding is to a class embedding, and the numbers that compiled loops use for them."""

DISTANCES = ("euclidean", "squared", "cosine")
"""The names of the distances. "cosine" is the inner product; "squared" ranks classes as "euclidean" does."""

EUCLIDEAN, SQUARED, COSINE = range(len(DISTANCES))
"""The index of each distance in DISTANCES."""
