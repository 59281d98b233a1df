"""Check values and small files from outside."""
