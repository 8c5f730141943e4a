"""Embedding-based scalable segmentation: more than a thousand classes on a single GPU."""
