"""Timings: how near the accelerated sampler comes to what the machine can give, on the real architectures."""
