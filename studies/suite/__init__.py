"""Compare every rival at the same numbers of keys: `python -m studies.suite`."""
