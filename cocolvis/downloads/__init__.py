"""Fetches the official COCO, COCO-Stuff and LVIS archives over HTTP."""
