"""Finds and reads the annotation files of COCO-Stuff and LVIS, and refuses malformed records."""
