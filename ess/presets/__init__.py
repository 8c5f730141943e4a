"""Shipped settings, one TOML file each: the paper's runs, and the demo."""
