"""What is fused: one module a kernel, each beside the plain torch formula that its tests compare with."""
