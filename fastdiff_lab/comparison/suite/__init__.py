"""Compare every rival at the same numbers of keys.

>>> from fastdiff_lab.comparison.suite import held_out_prompts, run_suite
>>> table, images = run_suite(pipe, costs, held_out_prompts(32), store="runs/suite.sqlite")  # doctest: +SKIP
"""

from .run import held_out_prompts, run_suite

__all__ = ["held_out_prompts", "run_suite"]
