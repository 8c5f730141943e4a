"""A data set on disk: its shards, its index, and what must hold of files that may come from anywhere."""
