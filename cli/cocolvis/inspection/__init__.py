"""Commands of ``cocolvis`` that inspect a data set."""
