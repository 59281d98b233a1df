"""What the page is told: the costs, what each method computes, and the images with their distances.

- `costs_of(costs, values, operations)`: for the strip and its predicted error
- `images_of(drawer, plan, methods)`: the sheets, and the numbers of every image
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from fastdiff_lab.calibration.reuse_costs import ReuseCosts
from fastdiff_lab.comparison.fidelity import fidelity
from fastdiff_lab.hooks.flops import FlopCount
from fastdiff_lab.key_schedule import KeySchedule
from fastdiff_lab.sampling.methods import Method

from .drawing import FILM_EVERY, Drawer, Drawn
from .methods import KINDS, Plan
from .sheets import Sheet

DIGITS = 6  # of an error: fewer could change which keys are best


def costs_of(costs: ReuseCosts, values: int, operations: FlopCount) -> dict[str, Any]:
    """The error that each span makes, per value of the latents; null where not measured.

    Args:
        costs: Of order 0.
        values: Of one image's latents.
        operations: Of one denoiser call.
    """
    errors = np.sqrt(costs.spans()[0] / values)
    rows = [[float(f"{error:.{DIGITS}g}") if math.isfinite(error) else None for error in row] for row in errors]
    return {
        "errors": rows,
        "paper": list(KeySchedule.of_paper(costs.num_steps).keys),
        "operations": {"encoder": operations.encoder, "decoder": operations.decoder + operations.rest},
    }


def images_of(drawer: Drawer, plan: Plan, methods: Mapping[str, Method], tell: Callable[[str], object]) -> dict[str, Any]:
    """Draw all images, or read them if they are drawn; give sheets, numbers and the fastest of all seconds."""
    prompts, seconds = [], defaultdict(list)
    about: dict[str, dict[str, Any]] = {}
    for prompt in dict.fromkeys(text for text, _ in plan.images()):
        sheet, seeds = Sheet(), []
        for seed in range(plan.seeds):
            filmed = seed == 0
            drawn = {
                name: drawer.image(prompt, seed, name, method, filmed and not name.startswith("plain")) for name, method in methods.items()
            }
            seeds.append({name: _shown(sheet, one, drawn["baseline"]) for name, one in drawn.items()})
            for name, one in drawn.items():
                seconds[name].append(one.about["seconds"])
                about[name] = {key: value for key, value in one.about.items() if key != "seconds"}
        prompts.append({"text": prompt, "sheet": sheet.address(), "seeds": seeds})
        tell(f"{len(prompts)} of {plan.prompts}: {prompt}")
    for name, method in methods.items():
        kind, _, count = name.partition("-")
        keys = None if method.schedule is None else list(method.schedule.keys)
        about[name] |= {"kind": kind, "count": int(count or plan.steps), "keys": keys, "seconds": min(seconds[name])}
    film = [*range(FILM_EVERY, plan.steps, FILM_EVERY), plan.steps]
    return {"prompts": prompts, "methods": about, "kinds": KINDS, "counts": list(plan.counts), "steps": plan.steps, "film": film}


def _shown(sheet: Sheet, drawn: Drawn, baseline: Drawn) -> dict[str, Any]:
    """The place of an image on the sheet, right after its film, and how near it is to the baseline's; null for the same."""
    first = sheet.add([*drawn.film, drawn.image])
    near = fidelity([drawn.image], [baseline.image]).iloc[0]
    psnr = None if math.isinf(near["psnr"]) else round(float(near["psnr"]), 2)
    found = {"place": first + len(drawn.film), "psnr": psnr}
    if drawn.film:
        pairs = [fidelity([one], [other]).iloc[0]["psnr"] for one, other in zip(drawn.film, baseline.film, strict=True)]
        found |= {"first": first, "film": [None if math.isinf(value) else round(float(value), 1) for value in pairs]}
    return found
