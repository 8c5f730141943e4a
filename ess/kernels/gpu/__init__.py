"""The kernels for GPUs, in Triton, which is optional and slow to import; each is tested against a plain torch formula."""
