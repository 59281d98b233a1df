"""Measure reuse costs, then derive and refine a schedule."""
