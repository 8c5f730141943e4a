"""The official archives over HTTP."""
