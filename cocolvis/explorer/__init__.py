"""The explorer in the browser: the pages of ``cocolvis view``, over a data set and the predictions of runs on it."""
