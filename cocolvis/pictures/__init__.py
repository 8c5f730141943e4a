"""Reads pictures and label files: checks their size and integrity before decoding, then their pixels."""
