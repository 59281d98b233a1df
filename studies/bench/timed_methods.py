"""The timed methods: ways of the accelerated sampler, and its rivals."""

from __future__ import annotations

from typing import Any

from diffusers import StableDiffusionControlNetPipeline, StableDiffusionPipeline, StableDiffusionXLPipeline

from fastdiff_lab.comparison.tables import UNTOUCHED
from fastdiff_lab.key_schedule import KeySchedule
from fastdiff_lab.sampling.methods import Arm

RATIO = 0.5  # tomesd's own default
DEEPCACHE_TAKES = (StableDiffusionPipeline, StableDiffusionXLPipeline)  # the systems that its package takes
# SDXL has no attention at the full resolution, so nothing would be merged.
TOKEN_MERGING_TAKES = (StableDiffusionPipeline, StableDiffusionControlNetPipeline)


def bench_arms(pipe: Any, num_steps: int, rows: int, *, is_compiled: bool = False) -> dict[str, Arm]:
    """The baseline, the paper's keys and as many uniform ones in every way, and the rivals.

    >>> import fastdiff_lab as fl
    >>> list(bench_arms(fl.load_pipeline(), 50, rows=2))[:3]
    ['untouched', 'paper, parallel', 'paper, serial']

    `num_steps` counts denoiser calls of a run, `rows` the rows of one call. The rivals are predictions reused at the paper's keys,
    fewer steps, DeepCache and token merging (also combined with ours). The last two are left out if `is_compiled`: switched on,
    they make new classes or functions, which are compiled again and again.
    """
    paper = KeySchedule.of_paper(num_steps)
    keys = len(paper.keys)
    schedules = {"paper": paper, f"uniform {keys}": KeySchedule.uniform(num_steps, keys)}
    arms = {UNTOUCHED: Arm()}
    for name, schedule in schedules.items():
        arms |= {f"{name}, parallel": Arm(schedule), f"{name}, serial": Arm(schedule, parallel_decoding=False)}
        arms[f"{name}, parallel, order 1"] = Arm(schedule, order=1)
        arms[f"{name}, serial, order 1"] = Arm(schedule, order=1, parallel_decoding=False)
    half = -(-max(len(group) for group in paper.groups()) // 2)
    arms[f"paper, parallel, {half} steps at once"] = Arm(paper, max_rows=half * rows)
    arms["paper, predictions held"] = Arm(paper, what="prediction")
    arms |= {f"plain {steps} steps": Arm(steps=steps) for steps in dict.fromkeys((keys, num_steps // 2)) if steps < num_steps}
    if isinstance(pipe, TOKEN_MERGING_TAKES) and not is_compiled:
        arms[f"token merging {RATIO}"] = Arm(token_merging=RATIO)
        arms[f"paper, parallel, token merging {RATIO}"] = Arm(paper, token_merging=RATIO)
    if isinstance(pipe, DEEPCACHE_TAKES) and not is_compiled:
        arms |= {f"DeepCache {interval}": Arm(deepcache=interval) for interval in (2, 3, 5)}
    return arms
