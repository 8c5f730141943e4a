"""The data set on disk: its shards, its index dataset.json, and the checks that both must pass before they are used."""
