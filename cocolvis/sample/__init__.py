"""Generates a small COCO + LVIS tree with exact annotations."""
