"""What makes a fit, and where it holds: `python -m studies.fit_ablation`.

- `ablation(pipe, schedule, scenes, prompts, ...)`: one table of all questions
- `only(schedule, kept)`: fits with some of the known tensors
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any
from unittest import mock

import numpy as np
import pandas as pd
import torch
import typer

from fastdiff_lab.calibration import fitting
from fastdiff_lab.calibration.derive import derive_schedule
from fastdiff_lab.calibration.least_squares import Products, solved
from fastdiff_lab.key_schedule import KeySchedule
from fastdiff_lab.pipelines import EMBEDDED_GUIDANCE, embedded_costs, load_pipeline, with_settings_of
from fastdiff_lab.propagation.config import PropagationConfig
from fastdiff_lab.propagation.fit import columns_of
from fastdiff_lab.sampling.methods import Method
from fastdiff_lab.shapes.data import calibration_scenes, held_out_prompts

from .key_rules import compare_ways, write_ways
from .options import RULES_STORE, Captions, Jobs, Kept, Output, Seeds, Threads

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    from fastdiff_lab.shapes.scenes import Scene

IMAGES = (1, 2, 4, 8, 16, 32)
GUIDANCES = (2.0, 5.0, 7.5)
SCHEDULERS = ("ddim", "euler", "dpm-solver++", "unipc")  # at the same keys of as many steps
WITHOUT = ("latent", "key", "older", "missed", "ahead")
HELD, FITTED = "reused", "fitted"
Methods = Mapping[str, Method]


def ablation(
    pipe: DiffusionPipeline,
    schedule: KeySchedule,
    scenes: Sequence[Scene],
    prompts: Sequence[str],
    *,
    images: Sequence[int] = IMAGES,
    guidances: Sequence[float] = GUIDANCES,
    schedulers: Sequence[str] = SCHEDULERS,
    num_inference_steps: int = 50,
    guidance_scale: float = EMBEDDED_GUIDANCE,
    **kept: Any,
) -> pd.DataFrame:
    """Answer each question on the same images: PSNR with the schedule's features reused, and with fits of different making.

    >>> scenes = calibration_scenes(32)
    >>> ablation(pipe, fl.derive_schedule(fl.embedded_costs(), 9), scenes, held_out_prompts(32))  # doctest: +SKIP

    Args:
        schedule: Where features are reused, with order 0.
        scenes: Those to fit on, one of each pair with two objects; half of them if nothing else is said.
        prompts: To compare on, half of them of two objects. None is of `scenes`.
        images: Numbers of images to fit on.
        guidances: Guidance scales that the fit for `guidance_scale` is used with.
        schedulers: Each with a fit of its own. Other arguments as for `compare_images`.

    Returns:
        Columns question and those of `compare_ways`. The lead is that of the usual fit.
    """
    schedule = replace(schedule, measured_on=None)
    run: dict[str, Any] = {"num_inference_steps": num_inference_steps, "guidance_scale": guidance_scale}
    captions = [scene.caption() for scene in scenes]
    usual = captions[: len(captions) // 2]

    def fit(on: Sequence[str] = usual, **options: Any) -> Method:
        return Method(PropagationConfig.of_fit(fitting.fit_propagation(pipe, schedule, on, **run, **options)))

    def compared(methods: Methods, on: Sequence[str] = prompts, **other: Any) -> pd.DataFrame:
        with warnings.catch_warnings():  # elsewhere than fitted, on purpose
            warnings.simplefilter("ignore", UserWarning)
            return compare_ways(pipe, {len(schedule.keys): methods}, on, ours=FITTED, **run | other, **kept)

    both = {HELD: Method(schedule), FITTED: fit()}
    tables = {
        "images": compared(both | {f"{count} images": fit(captions[:count]) for count in images}),
        "known tensors": compared(both | {f"without {name}": _without(schedule, name, fit) for name in WITHOUT}),
        "seeds": compared(both | {"other seeds": fit(seeds=range(1000, 1000 + len(usual)))}),
        "order": compared(both | {"extrapolated": Method(schedule, order=1), "on lines": fit(order=1)}),
    }
    tables |= {f"guidance {scale:g}": compared(both, guidance_scale=scale) for scale in guidances}
    of_kind = {count: [scene.caption() for scene in scenes if len(scene.things) == count] for count in (1, 2)}
    by_kind = both | {f"fitted on {count} objects": fit(of_kind[count]) for count in (1, 2)}
    halves = {1: prompts[: len(prompts) // 2], 2: prompts[len(prompts) // 2 :]}
    tables |= {f"captions of {count} objects": compared(by_kind, on=halves[count]) for count in (1, 2)}
    tables |= {f"scheduler {name}": table for name, table in _by_scheduler(pipe, schedulers, schedule, fit, compared)}
    return pd.concat(tables, names=["question"]).reset_index("question").reset_index(drop=True)


def _without(schedule: KeySchedule, name: str, fit: Callable[[], Method]) -> Method:
    with only(schedule, lambda known: not known.startswith(name)):
        return fit()


def _by_scheduler(
    pipe: DiffusionPipeline, names: Sequence[str], schedule: KeySchedule, fit: Callable[[], Method], compared: Callable
) -> Iterator[tuple[str, pd.DataFrame]]:
    own = pipe.scheduler
    try:
        for name in names:
            pipe.scheduler = with_settings_of(own, name)
            yield name, compared({HELD: Method(schedule), FITTED: fit()})
    finally:
        pipe.scheduler = own


@contextmanager
def only(schedule: KeySchedule, kept: Callable[[str], bool]) -> Iterator[None]:
    """While the block lasts, fits of this schedule use those known tensors alone whose names are kept.

    >>> with only(schedule, lambda name: name != "latent"):  # doctest: +SKIP
    ...     fit = fl.fit_propagation(pipe, schedule, prompts)
    """
    groups = iter([names for names in columns_of(schedule, "encoder") if names])

    def of_kept(products: Products, weights: np.ndarray) -> np.ndarray:
        chosen = np.flatnonzero([kept(name) for name in next(groups)])
        part = Products(products.columns[:, chosen][:, :, chosen], products.missing[:, chosen], products.squared)
        found = np.zeros(products.missing.shape[1])
        found[chosen] = solved(part, weights)
        return found

    with mock.patch.object(fitting, "solved", of_kept):
        yield


def main(
    output: Output,
    count: Captions = 32,
    seeds: Seeds = 2,
    keys: Annotated[int, typer.Option(help="Number of keys.")] = 9,
    threads: Threads = 2,
    jobs: Jobs = None,
    store: Kept = RULES_STORE,
) -> None:
    """Ask what makes a fit, on the embedded pipeline (DDIM, 50 steps, guidance 5)."""
    torch.set_num_threads(threads)
    schedule, scenes = derive_schedule(embedded_costs(), keys), calibration_scenes(max(IMAGES))
    table = ablation(load_pipeline(), schedule, scenes, held_out_prompts(count), seeds=range(seeds), n_jobs=jobs, store=store)
    write_ways(table, output)


if __name__ == "__main__":
    typer.run(main)
