"""`record` -> `Recording` -> tidy tables."""
