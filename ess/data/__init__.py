"""A data set as training batches: crops, augmentation, long tails, damaged images."""
