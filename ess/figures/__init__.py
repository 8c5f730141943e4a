"""Figures of a run, each with its numbers: class embeddings, pixel embeddings, predictions, and scores over the long tail."""
