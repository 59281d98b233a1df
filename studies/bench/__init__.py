"""Time the accelerated sampler on real architectures, beside what the machine can give."""
