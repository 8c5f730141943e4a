"""What can be added to a shipped preset, one TOML file each: systems and ablations of the paper, other losses and networks."""
