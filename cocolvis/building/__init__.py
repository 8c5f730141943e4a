"""Builds a data set from annotations and pictures: the plan, the tasks of its shards, and the state for resuming."""
