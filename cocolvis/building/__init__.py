"""From annotations and pictures to a data set: plans, the work of a shard, who does it, and what is kept."""
