"""How the embedded pipeline was trained: `python -m studies.training`."""
