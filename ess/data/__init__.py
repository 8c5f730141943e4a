"""A data set as batches."""
