"""What the page is told: the costs, what each method computes, and the images with their distances.

- `costs_of(costs, values, operations)`: for the strip and its predicted error
- `images_of(drawer, plan, methods, tell)`: the sheets, and the numbers of every image
- `timeline_of(costs)`: the schematic of a whole run
- `seconds_of(name)`, `average_of(name)`, `longer_on_gpu()`, `timed_on()`: what was measured elsewhere
"""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from PIL import Image

from fastdiff_lab import plot
from fastdiff_lab.calibration.derive import derive_schedule
from fastdiff_lab.calibration.reuse_costs import ReuseCosts
from fastdiff_lab.comparison.fidelity import fidelity
from fastdiff_lab.comparison.measured import measured
from fastdiff_lab.hooks.flops import FlopCount
from fastdiff_lab.key_schedule import KeySchedule
from fastdiff_lab.pipelines import data_file
from fastdiff_lab.sampling.methods import Method

from .drawing import FILM_EVERY, Drawer, Drawn
from .methods import KINDS, Plan
from .sheets import Sheet

IN_SUITE = {
    "baseline": "baseline",
    "plain": "fewer steps ({})",
    "features": "features, derived {}, order 0",
    "fitted": "features, fitted {}, order 0",
    "prediction": "predictions, derived {}, order 0",
    "fittedprediction": "predictions, fitted {}, order 0",
}
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
    """Draw all images, or read them if they are drawn; give sheets and numbers."""
    prompts, counts = [], {}
    for prompt in plan.texts():
        sheet, film, drawn = Sheet(), Sheet(), {}
        for name, method in methods.items():
            drawn[name] = drawer.images(prompt, range(plan.seeds), name, method, filmed=not name.startswith("plain"))
            tell(f"{prompt}: {name}")
        seeds = [
            {name: _shown(sheet, film, one, drawn["baseline"], seed) for name, one in drawn.items()} for seed in range(plan.seeds)
        ]
        prompts.append({"text": prompt, "sheet": sheet.address(), "film": film.address(lossless=False), "seeds": seeds})
        counts = {name: one.counts for name, one in drawn.items()}
    steps = [*range(FILM_EVERY, plan.steps, FILM_EVERY), plan.steps]
    about = {name: counts[name] | _about(name, method, plan) for name, method in methods.items()}
    return {"prompts": prompts, "methods": about, "kinds": KINDS, "counts": list(plan.counts), "steps": plan.steps, "film": steps}


def _about(name: str, method: Method, plan: Plan) -> dict[str, Any]:
    kind, _, count = name.partition("-")
    keys = None if method.schedule is None else list(method.schedule.keys)
    return {"kind": kind, "count": int(count or plan.steps), "keys": keys, "seconds": seconds_of(name), "average": average_of(name)}


def _shown(sheet: Sheet, film: Sheet, drawn: Drawn, baseline: Drawn, seed: int) -> dict[str, Any]:
    """The place of an image on the sheet, and how near it is to the baseline's, null for the same; the first seed's film, too."""
    psnr = _psnr(drawn.images[seed], baseline.images[seed])
    found: dict[str, Any] = {"place": sheet.add([drawn.images[seed]]), "psnr": psnr}
    if seed == 0 and drawn.film:
        apart = [_psnr(one, other) for one, other in zip(drawn.film, baseline.film, strict=True)]
        found |= {"first": film.add(drawn.film), "film": [*apart, psnr]}
    return found


def _psnr(image: Image.Image, reference: Image.Image) -> float | None:
    value = float(fidelity([image], [reference]).iloc[0]["psnr"])
    return None if math.isinf(value) else round(value, 2)


def seconds_of(name: str) -> float | None:
    """The seconds of one image by a method, from the suite; None where it was not timed.

    >>> seconds_of("baseline") > seconds_of("plain-25")
    True
    """
    return _in_suite(name, "seconds")


def average_of(name: str) -> float | None:
    """The averaged PSNR of a method on the suite's 128 images, in dB; None for the baseline, and where it was not measured.

    >>> average_of("fitted-9") > average_of("features-9")
    True
    """
    return _in_suite(name, "psnr")


def longer_on_gpu() -> float:
    """How many times as long fitted features take as fitted predictions at the same keys, on an H200: the median of all pairs.

    >>> longer_on_gpu() > 1
    True
    """
    seconds = measured("suite/ddim-50/nvidia-h200/seconds").set_index("method")["seconds"]
    pairs = {name: name.replace("features", "predictions") for name in seconds.index if re.match("features.*fitted", name)}
    return float(np.median([seconds[features] / seconds[predictions] for features, predictions in pairs.items()]))


def _in_suite(name: str, column: str) -> float | None:
    kind, _, count = name.partition("-")
    found = measured("suite/ddim-50/table").set_index("method")[column].get(IN_SUITE[kind].format(count))
    return None if found is None or not math.isfinite(found) else float(found)


def timed_on() -> str:
    """The machine of these seconds, in words."""
    about = json.loads(data_file("suite/ddim-50/about.json", "the suite's description").read_text())
    return f"{about['processor']}, {about['threads']} threads"


def timeline_of(costs: ReuseCosts, keys: int = 9) -> dict[str, str]:
    """The schematic of a whole run, as the address of an image, with its alternative text."""
    figure = plot.timeline(derive_schedule(costs, keys).keys, costs.num_steps)
    content = base64.b64encode(plot.svg(figure).encode()).decode()
    return {"address": f"data:image/svg+xml;base64,{content}", "alt": str(figure.get_label())}
