"""The report of a run as one self-contained page: scores, training, classes, pictures, figures and settings."""
