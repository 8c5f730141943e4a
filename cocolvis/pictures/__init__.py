"""Encoded pictures and label files: their size before they are decoded, whether they are damaged, their pixels."""
