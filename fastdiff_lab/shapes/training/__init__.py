"""Training of the embedded pipeline."""
