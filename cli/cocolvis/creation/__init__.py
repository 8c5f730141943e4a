"""Commands of ``cocolvis`` that create data sets, or fetch and generate what data sets are built from."""
