"""Measures the time and memory of training, prediction and loading."""
