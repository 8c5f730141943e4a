"""The tables of benchmarks/evidence.py: their rows, their data, their runs, and their scores."""
