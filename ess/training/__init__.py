"""The training loop, what a step minimises, and what a run reports."""
