"""Robust access to files and folders: atomic writes, reads with retries, zip archives, and locks."""
