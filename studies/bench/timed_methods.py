"""The timed methods: ways of the accelerated sampler, and its rivals."""

from __future__ import annotations

from typing import TYPE_CHECKING

from diffusers import StableDiffusionControlNetPipeline, StableDiffusionPipeline, StableDiffusionXLPipeline

from fastdiff_lab.comparison.tables import BASELINE
from fastdiff_lab.key_schedule import KeySchedule
from fastdiff_lab.sampling.methods import Method

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


RATIO = 0.5  # tomesd's own default
DEEPCACHE_TAKES = (StableDiffusionPipeline, StableDiffusionXLPipeline)  # the systems that its package takes
# SDXL has no attention at the full resolution, so nothing would be merged.
TOKEN_MERGING_TAKES = (StableDiffusionPipeline, StableDiffusionControlNetPipeline)


def bench_methods(pipe: DiffusionPipeline, num_steps: int, rows: int, *, is_compiled: bool = False) -> dict[str, Method]:
    """The baseline, the paper's keys and as many uniform ones in every way, and the rivals.

    >>> import fastdiff_lab as fl
    >>> list(bench_methods(fl.load_pipeline(), 50, rows=2))[:3]
    ['baseline', 'paper, parallel', 'paper, serial']

    `num_steps` counts denoiser calls of a run, `rows` the rows of one call. The rivals are predictions reused at the paper's keys,
    fewer steps, DeepCache and token merging (also combined with ours). The last two are left out if `is_compiled`: switched on,
    they make new classes or functions, which are compiled again and again.
    """
    paper = KeySchedule.of_paper(num_steps)
    keys = len(paper.keys)
    schedules = {"paper": paper, f"uniform {keys}": KeySchedule.uniform(num_steps, keys)}
    methods = {BASELINE: Method()}
    for name, schedule in schedules.items():
        methods |= {f"{name}, parallel": Method(schedule), f"{name}, serial": Method(schedule, parallel_decoding=False)}
        methods[f"{name}, parallel, order 1"] = Method(schedule, order=1)
        methods[f"{name}, serial, order 1"] = Method(schedule, order=1, parallel_decoding=False)
    half = -(-max(len(group) for group in paper.groups()) // 2)
    methods[f"paper, parallel, {half} steps at once"] = Method(paper, max_rows=half * rows)
    methods["paper, predictions reused"] = Method(paper, reuse="prediction")
    methods |= {
        f"fewer steps ({steps})": Method(steps=steps) for steps in dict.fromkeys((keys, num_steps // 2)) if steps < num_steps
    }
    if isinstance(pipe, TOKEN_MERGING_TAKES) and not is_compiled:
        methods[f"token merging {RATIO}"] = Method(token_merging=RATIO)
        methods[f"paper, parallel, token merging {RATIO}"] = Method(paper, token_merging=RATIO)
    if isinstance(pipe, DEEPCACHE_TAKES) and not is_compiled:
        methods |= {f"DeepCache {interval}": Method(deepcache=interval) for interval in (2, 3, 5)}
    return methods
