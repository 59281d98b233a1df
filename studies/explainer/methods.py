"""The methods that the explainer compares, each at so many calls.

- `Plan`: which images are drawn
- `methods(costs, counts, fitted)`: the methods by their names in files
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from fastdiff_lab.calibration.derive import derive_schedule
from fastdiff_lab.calibration.reuse_costs import ReuseCosts
from fastdiff_lab.comparison.measured import demo
from fastdiff_lab.pipelines import embedded_fit
from fastdiff_lab.propagation.config import PropagationConfig
from fastdiff_lab.sampling.methods import Method

COUNTS = (3, 5, 7, 9, 13, 17, 25)
FITTED = (5, 7, 9, 13, 17)  # keys of shipped fits
KINDS = {
    "features": "features reused",
    "fitted": "features reused, fitted",
    "prediction": "prediction reused",
    "fittedprediction": "prediction reused, fitted",
    "plain": "fewer steps",
}


@dataclass(frozen=True)
class Plan:
    """Which images are drawn: `prompts` of the notebooks, with seeds 0, 1, ..., at these numbers of keys."""

    prompts: int = 6
    seeds: int = 3
    counts: tuple[int, ...] = COUNTS
    steps: int = 50

    def texts(self) -> list[str]:
        """The prompts, each once."""
        return list(dict.fromkeys(demo(self.prompts)[0]))


def methods(costs: ReuseCosts, counts: Sequence[int], fitted: Collection[int] = FITTED) -> dict[str, Method]:
    """The baseline, and at each number of keys features and predictions, reused and fitted. Fewer steps stand beside them."""
    found = {"baseline": Method()}
    for count in counts:
        schedule = replace(derive_schedule(costs, count), measured_on=None)  # predictions are reused at the keys of features
        found[f"features-{count}"] = Method(schedule)
        found[f"prediction-{count}"] = Method(schedule, reuse="prediction")
        if count in fitted:
            found[f"fitted-{count}"] = Method(PropagationConfig.of_fit(embedded_fit(count)))
            found[f"fittedprediction-{count}"] = Method(PropagationConfig.of_fit(embedded_fit(count, "prediction")))
        found[f"plain-{count}"] = Method(steps=count)
    return found
