"""Shipped settings, one TOML file each: the recommended run, the paper's runs, and the demo."""
