"""The losses, and the search for the nearest classes."""
