"""Measurements behind docs/results.md, docs/quality.md and docs/scaling.md; each is a command: `python -m studies.NAME`."""
