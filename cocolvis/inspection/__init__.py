"""Looks into a finished data set: checks it, compares it, explains it, draws it, and exports its masks."""
