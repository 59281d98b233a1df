"""Measurements behind the documents; each is a command: `python -m studies.NAME`."""
