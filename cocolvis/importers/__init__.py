"""Other data sets, as they are distributed, built into the same shards: one module and one table of classes for each."""
