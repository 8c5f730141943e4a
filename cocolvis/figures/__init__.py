"""Figures of a data set, each with its numbers: the long tail, a word cloud of the classes, and the classes of both sources."""
