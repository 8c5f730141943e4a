"""COCO+LVIS: what the 1284 labels mean and how their pixels lie on disk. Imports no torch."""
