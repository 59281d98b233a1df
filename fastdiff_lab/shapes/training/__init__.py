"""Train the embedded pipeline."""
