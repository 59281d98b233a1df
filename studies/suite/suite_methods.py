"""The methods of the suite.

- `suite_methods(num_steps, costs)`: the methods by name
- `suite_columns(num_steps, costs)`: what each of them is, in tidy columns
- `check_costs(num_steps, costs)`: refuse costs of other runs
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import product
from typing import TypeAlias

import pandas as pd

from fastdiff_lab.calibration.derive import derive_schedule
from fastdiff_lab.calibration.reuse_costs import ReuseCosts
from fastdiff_lab.key_schedule import KeySchedule
from fastdiff_lab.propagation.config import PropagationConfig
from fastdiff_lab.propagation.fit import PropagationFit
from fastdiff_lab.sampling.methods import Method

from ..deepcache_fit import FittedDeepCache

COUNTS = (5, 7, 9, 13, 17)
FEWER_STEPS = (5, 7, 9, 13, 17, 25, 37)
DEEPCACHE_INTERVALS = (2, 3, 5)
PRIOR_NOISE, NOISE_AT = 0.003, 9  # keys; and at the paper's
ORDERS, EXTRAPOLATED_FROM = (0, 1), 9  # with 9 keys it fails, so fewer are not run
REUSED = {"encoder": "features", "prediction": "predictions"}

Costs = Mapping[tuple[str, int], ReuseCosts]  # (reuse, order) -> their costs
Further: TypeAlias = KeySchedule | PropagationFit | FittedDeepCache


@dataclass(frozen=True)
class Entry:
    """A method of the suite: `kind` is features, predictions, fewer steps, deepcache or baseline; `keys` says where keys come from."""

    method: Method
    kind: str
    keys: str = ""

    @property
    def order(self) -> int | None:
        config = self.method.propagation
        return config.order if config is not None and isinstance(config.order, int) else None

    @property
    def num_keys(self) -> int | None:
        """Key steps; or the number of fewer steps; or DeepCache's interval."""
        keys = len(self.method.schedule.keys) if self.method.schedule else None
        return self.method.steps or self.method.about()["deepcache"] or keys

    @property
    def name(self) -> str:
        if self.method.schedule is None:
            fitted = ", fitted" if self.keys else ""
            names = {"fewer steps": f"fewer steps ({self.num_keys})", "deepcache": f"DeepCache {self.num_keys}{fitted}"}
            return names.get(self.kind, self.kind)
        noise = ", prior noise" if self.method.prior_noise else ""
        return f"{self.kind}, {self.keys} {self.num_keys}, order {self.order}{noise}"


def suite_methods(
    num_steps: int, costs: Costs, counts: Sequence[int] = COUNTS, further: Sequence[Further] = ()
) -> dict[str, Method]:
    """All methods by name, the baseline first.

    >>> costs = {("encoder", 1): calibrate(pipe, prompts, order=1)}  # doctest: +SKIP
    >>> suite_methods(50, costs)["features, derived 9, order 1"].schedule  # doctest: +SKIP

    They are fewer steps; features and predictions at uniform and derived keys, and from 9 keys on extrapolated; predictions also
    at the keys of features; the paper's keys; features with prior noise; DeepCache.

    Args:
        num_steps: Denoiser calls of a run.
        costs: (reuse, order) -> ReuseCosts. Without some costs, there are no methods at keys derived from them.
        counts: Numbers of keys, as far as the run and the costs allow them.
        further: Schedules of `refine_schedule`, run with the reuse and order that they were measured with; fits, also of DeepCache.

    Raises:
        ValueError: Costs or a refined schedule of another number of steps or order.
    """
    return {entry.name: entry.method for entry in _entries(num_steps, costs, counts, further)}


def suite_columns(num_steps: int, costs: Costs, counts: Sequence[int] = COUNTS, further: Sequence[Further] = ()) -> pd.DataFrame:
    """One row per method of `suite_methods`: method, kind, order, keys, num_keys, noise, key_steps; arguments and errors as there.

    >>> suite_columns(50, {}).query("kind == 'fewer steps'")["num_keys"].tolist()
    [5.0, 7.0, 9.0, 13.0, 17.0, 25.0, 37.0]

    `num_keys` counts key steps or fewer steps, or is DeepCache's interval. `order` and `num_keys` are NaN if there are none.
    """
    rows = [
        {
            "method": entry.name, "kind": entry.kind, "order": entry.order, "keys": entry.keys, "num_keys": entry.num_keys,
            "noise": entry.method.prior_noise > 0, "key_steps": "" if entry.method.schedule is None else str(entry.method.schedule),
        }
        for entry in _entries(num_steps, costs, counts, further)
    ]  # fmt: skip
    return pd.DataFrame(rows).astype({"order": float, "num_keys": float})


def _entries(num_steps: int, costs: Costs, counts: Sequence[int], further: Sequence[Further]) -> list[Entry]:
    check_costs(num_steps, costs)
    fewer = [Entry(Method(steps=steps), "fewer steps") for steps in FEWER_STEPS if steps < num_steps]
    deepcache = [Entry(Method(deepcache=interval), "deepcache") for interval in DEEPCACHE_INTERVALS]
    found = [
        Entry(Method(), "baseline"),
        *fewer,
        *_at_counts(num_steps, costs, counts),
        *(_further(num_steps, one) for one in further),
        *_of_paper(num_steps, costs),
        *deepcache,
    ]
    return list({entry.name: entry for entry in found}.values())


def check_costs(num_steps: int, costs: Costs) -> None:
    """Raise ValueError for costs of another number of steps, or of another order than their name's."""
    for (reuse, order), given in costs.items():
        if reuse not in REUSED or order not in ORDERS or given.order != order:
            raise ValueError(
                f"costs of order {given.order} given for {(reuse, order)}; accepted: 'encoder' or 'prediction', with their order"
            )
        if given.num_steps != num_steps:
            raise ValueError(
                f"the costs for {(reuse, order)} are of runs of {given.num_steps} steps, this one makes {num_steps} denoiser "
                "calls; accepted: "
                "costs that were measured with as many"
            )


def _at_counts(num_steps: int, costs: Costs, counts: Sequence[int]) -> Iterator[Entry]:
    """Features and predictions at every number of keys; features with prior noise at one."""
    for count, order, reuse in product((count for count in counts if count < num_steps), ORDERS, REUSED):
        if order and count < EXTRAPOLATED_FROM:
            continue
        for keys, schedule in _schedules(num_steps, costs, reuse, order, count):
            noises = (0.0, PRIOR_NOISE) if (reuse, order, count) == ("encoder", 0, NOISE_AT) else (0.0,)
            yield from (
                Entry(Method(schedule, reuse=reuse, order=order, prior_noise=noise), REUSED[reuse], keys) for noise in noises
            )


def _further(num_steps: int, given: Further) -> Entry:
    if isinstance(given, FittedDeepCache):
        return Entry(Method(around=given), "deepcache", "fitted")
    return _of_fit(num_steps, given) if isinstance(given, PropagationFit) else _of_refined(num_steps, given)


def _of_refined(num_steps: int, schedule: KeySchedule) -> Entry:
    on = schedule.measured_on or {}
    reuse, order = on.get("reuse"), on.get("order")
    if reuse not in REUSED or order not in ORDERS or schedule.num_steps != num_steps:
        raise ValueError(
            f"refined schedule {schedule} given, measured with reuse={reuse!r} and order={order!r}; accepted: schedules of "
            f"{num_steps} steps that refine_schedule made of derived ones"
        )
    return Entry(Method(schedule, reuse=reuse, order=order), REUSED[reuse], "refined")


def _of_fit(num_steps: int, fit: PropagationFit) -> Entry:
    if fit.schedule.num_steps != num_steps:
        raise ValueError(f"a fit for {fit.schedule.num_steps} steps given; accepted: fits of schedules of {num_steps} steps")
    return Entry(Method(PropagationConfig.of_fit(fit)), REUSED[fit.reuse], _keys_of_fit(fit))


def _keys_of_fit(fit: PropagationFit) -> str:
    source, measured_on = fit.schedule.source, fit.schedule.measured_on or {}
    if "refined in" in source:
        return "refined, fitted"
    if source.startswith("uniform"):
        return "uniform, fitted"
    return "derived for predictions, fitted" if measured_on.get("reuse") == "prediction" else "fitted"


def _schedules(num_steps: int, costs: Costs, reuse: str, order: int, count: int) -> Iterator[tuple[str, KeySchedule]]:
    """Uniform keys, derived keys, and for predictions their own derived keys, as far as the costs reach."""
    yield "uniform", KeySchedule.uniform(num_steps, count)
    derived = {"derived": "encoder"} | ({"derived for predictions": "prediction"} if reuse == "prediction" else {})
    for keys, source in derived.items():
        if (source, order) in costs:
            with suppress(ValueError):  # the measured spans are too short for so few keys
                schedule = derive_schedule(costs[source, order], count)
                # Without `measured_on`, so that this deliberate use does not warn.
                yield keys, schedule if source == reuse else KeySchedule(num_steps, schedule.keys, schedule.source)


def _of_paper(num_steps: int, costs: Costs) -> Iterator[Entry]:
    """The paper's keys, and as many uniform and derived keys, each with and without prior noise."""
    with suppress(ValueError):  # the paper has more keys than there are steps
        paper = KeySchedule.of_paper(num_steps)
        yield from (Entry(Method(paper, reuse=reuse), REUSED[reuse], "paper") for reuse in REUSED)
        for keys, schedule in [("paper", paper), *_schedules(num_steps, costs, "encoder", 0, len(paper.keys))]:
            yield from (Entry(Method(schedule, prior_noise=noise), "features", keys) for noise in (0.0, PRIOR_NOISE))
