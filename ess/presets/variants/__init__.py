"""What can be added to a shipped preset, one TOML file each: the systems and ablations of the paper, and other networks."""
