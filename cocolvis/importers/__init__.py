"""Imports other data sets, in the layout of their distribution, into the same shards: a module and a table of classes each."""
