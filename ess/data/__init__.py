"""Turns a data set into training batches: crops, augmentation, long tails, damaged images."""
