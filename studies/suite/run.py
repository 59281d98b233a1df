"""Run every rival at the same numbers of keys, and make one table.

- `run_suite(pipe, costs, prompts, ...)`: the table, and the rows per image behind it
- `suite_images`, `suite_table`: its two halves
- `check_held_out(costs, prompts)`: refuses prompts that costs were measured on
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from fastdiff_lab.comparison.compare import compare_images, with_costs
from fastdiff_lab.inputs.plain_values import prompts_of
from fastdiff_lab.sampling.methods import denoiser_calls

from .suite_methods import COUNTS, Costs, Further, suite_columns, suite_methods

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from distributed import Client


def run_suite(
    pipe: DiffusionPipeline,
    costs: Costs,
    prompts: Sequence[str],
    *,
    seeds: Sequence[int] = (0, 1),
    num_inference_steps: int = 50,
    guidance_scale: float | None = None,
    reference_steps: int | None = 1000,
    repeats: int = 3,
    batch_size: int = 16,
    n_jobs: int | Client | None = None,
    store: str | Path | None = None,
    counts: Sequence[int] = COUNTS,
    further: Sequence[Further] = (),
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Run all methods of `suite_methods` on each prompt and seed.

    >>> table, images = run_suite(pipe, costs, held_out_prompts(32), store="runs/suite.sqlite")  # doctest: +SKIP

    Args:
        prompts: None that `costs` were measured on. Other arguments as for `compare` and `suite_methods`.

    Returns:
        The table of `compare` with the columns of `suite_columns`, and the table of `compare_images`.

    Raises:
        ValueError: Prompts of `costs`, and as `compare` and `suite_methods` raise.
        ModuleNotFoundError: DeepCache's package is not installed.
    """
    images = suite_images(
        pipe, costs, prompts, seeds=seeds, num_inference_steps=num_inference_steps, guidance_scale=guidance_scale,
        reference_steps=reference_steps, batch_size=batch_size, n_jobs=n_jobs, store=store, counts=counts, further=further,
    )  # fmt: skip
    table = suite_table(
        pipe,
        costs,
        images,
        num_inference_steps=num_inference_steps,
        guidance_scale=guidance_scale,
        repeats=repeats,
        counts=counts,
        further=further,
    )
    return table, images


def suite_images(
    pipe: DiffusionPipeline,
    costs: Costs,
    prompts: Sequence[str],
    *,
    num_inference_steps: int = 50,
    counts: Sequence[int] = COUNTS,
    further: Sequence[Further] = (),
    **options: Any,
) -> pd.DataFrame:
    """The rows per image of `run_suite`; arguments as there.

    >>> images = suite_images(pipe, costs, held_out_prompts(32), store="runs/suite.sqlite")  # doctest: +SKIP
    """
    methods, prompts = suite_methods(denoiser_calls(pipe, num_inference_steps), costs, counts, further), prompts_of(prompts)
    check_held_out(costs, prompts)
    return compare_images(pipe, methods, prompts, num_inference_steps=num_inference_steps, rivals=False, **options)


def check_held_out(costs: Costs, prompts: Sequence[str]) -> None:
    """Raise ValueError for a prompt that costs were measured on, because it would judge keys derived from it."""
    known = {str(prompt) for given in costs.values() for prompt in given.about.get("prompts", ())}
    seen = next((prompt for prompt in prompts if prompt in known), None)
    if seen is not None:
        raise ValueError(
            f"the costs were measured on {seen!r}, a prompt of this comparison; accepted: prompts that calibration has not seen"
        )


def suite_table(
    pipe: DiffusionPipeline,
    costs: Costs,
    images: pd.DataFrame,
    *,
    num_inference_steps: int = 50,
    counts: Sequence[int] = COUNTS,
    further: Sequence[Further] = (),
    **options: Any,
) -> pd.DataFrame:
    """The table of `run_suite` from its rows per image, with costs measured now; arguments as there.

    >>> table = suite_table(pipe, costs, images)  # doctest: +SKIP
    """
    calls = denoiser_calls(pipe, num_inference_steps)
    found = with_costs(
        pipe, suite_methods(calls, costs, counts, further), images, num_inference_steps=num_inference_steps, **options
    )
    return suite_columns(calls, costs, counts, further).merge(found, on="method", validate="one_to_one")
