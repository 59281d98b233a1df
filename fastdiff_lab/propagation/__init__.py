"""Encoder propagation: the engine, its caches, checks and devices; prior noise."""
