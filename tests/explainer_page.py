"""A small explainer page of plain colours, for tests: no network draws anything."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from PIL import Image

from fastdiff_lab.hooks.flops import FlopCount
from fastdiff_lab.pipelines import embedded_costs
from fastdiff_lab.sampling.methods import Method
from studies.explainer.drawing import Drawn
from studies.explainer.measured import costs_of, images_of
from studies.explainer.methods import Plan, methods
from studies.explainer.page import whole_page

PLAN = Plan(prompts=2, seeds=2, counts=(5, 9))


def small_data() -> dict[str, Any]:
    """Data of images of one colour; the prediction is nearest, then features."""
    costs = embedded_costs()
    ways = methods(costs, PLAN.counts, ())
    images = images_of(SimpleNamespace(images=_drawn), PLAN, ways, tell=lambda said: None)
    return {
        **costs_of(costs, 1024, FlopCount(3, 2, 1)),
        **images,
        "machine": "no machine",
        "timeline": {"address": "data:,", "alt": "a run"},
        "times": list(range(costs.num_steps, 0, -1)),
    }


def _drawn(prompt: str, seeds: range, name: str, method: Method, filmed: bool) -> Drawn:
    off = {"baseline": 0, "prediction": 8, "features": 24, "plain": 48}[name.partition("-")[0]]
    image = Image.new("RGB", (64, 64), (120 + off, 120, 120))
    film = [Image.new("RGB", (64, 64), (120 + off, 120, 20 * part)) for part in range(9)] if filmed else []
    calls = len(method.schedule.keys) if method.schedule else method.steps or PLAN.steps
    counts = {"encoder_calls": calls, "decoder_calls": PLAN.steps if name.startswith("features") else calls, "forward_calls": calls}
    return Drawn([image] * len(seeds), film, counts)


def written(folder: Path, data: dict[str, Any]) -> str:
    """The page in a file, as its address."""
    page = folder / "explainer.html"
    page.write_text(whole_page(data), encoding="utf-8")
    return page.as_uri()
