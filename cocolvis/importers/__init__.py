"""Other data sets, as they are distributed, into the same shards: a module and a table of classes each, and what they share."""
