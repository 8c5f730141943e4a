"""Building a data set from annotations and pictures: the plan, the work on each shard, what survives an interruption."""
