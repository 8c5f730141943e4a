"""Evaluates a model: counts pixels by class, computes scores from the counts, and writes reports."""
