"""The annotation files of COCO-Stuff and LVIS: finding them, reading them, and refusing malformed records."""
