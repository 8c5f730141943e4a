"""Checks, compares, explains, draws and exports finished data sets."""
