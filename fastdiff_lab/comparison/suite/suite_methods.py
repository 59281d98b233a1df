"""Which arms the suite has.

- `suite_arms(num_steps, costs)`: the arms by name
- `suite_columns(num_steps, costs)`: what each of them is, in tidy columns
- `check_costs(num_steps, costs)`: refuses costs of other runs
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import product

import pandas as pd

from ...calibration.derive import derive_schedule
from ...calibration.reuse_costs import ReuseCosts
from ...key_schedule import KeySchedule
from ...sampling.methods import Arm

COUNTS = (5, 7, 9, 13, 17)
PLAIN_STEPS = (5, 7, 9, 13, 17, 25, 37)
DEEPCACHE_INTERVALS = (2, 3, 5)
PRIOR_NOISE = 0.003
ORDERS = (0, 1)
REUSED = {"encoder": "features", "prediction": "predictions"}

Costs = Mapping[tuple[str, int], ReuseCosts]  # (what, order) -> costs measured with them


@dataclass(frozen=True)
class Entry:
    """An arm of the suite and what it is. `what`: features, predictions, plain, deepcache or untouched. `keys`: where they come from."""

    arm: Arm
    what: str
    keys: str = ""

    @property
    def order(self) -> int | None:
        return self.arm.order if self.arm.schedule is not None and isinstance(self.arm.order, int) else None

    @property
    def num_keys(self) -> int | None:
        """Key steps; steps of a plain run; the interval of DeepCache."""
        return self.arm.steps or self.arm.deepcache or (len(self.arm.schedule.keys) if self.arm.schedule else None)

    @property
    def name(self) -> str:
        if self.arm.schedule is None:
            return {"plain": f"plain {self.num_keys} steps", "deepcache": f"DeepCache {self.num_keys}"}.get(self.what, self.what)
        noise = ", prior noise" if self.arm.prior_noise else ""
        return f"{self.what}, {self.keys} {self.num_keys}, order {self.order}{noise}"


def suite_arms(num_steps: int, costs: Costs, counts: Sequence[int] = COUNTS, refined: Sequence[KeySchedule] = ()) -> dict[str, Arm]:
    """All arms by name, the untouched run first.

    >>> costs = {("encoder", 1): calibrate(pipe, prompts, order=1)}  # doctest: +SKIP
    >>> suite_arms(50, costs)["features, derived 9, order 1"].schedule  # doctest: +SKIP

    Plain runs with fewer steps; features and predictions, held and extrapolated, at uniform and at derived keys; predictions also at the
    keys derived for features; the paper's keys; features at all of these with prior noise, too; DeepCache.
    `num_steps`: denoiser calls of a run. `costs`: (what, order) -> ReuseCosts, with what "encoder" or "prediction" and order 0 or 1;
    arms at keys derived from costs that are not given are left out. `counts`: numbers of keys; those that are not below `num_steps` are left
    out, and at derived keys also those that the costs' spans do not reach. `refined`: schedules of `refine_schedule`, run with what and order
    that they were measured with.

    Raises ValueError for costs of another number of steps or another order than they are given for, and for a refined schedule of another
    number of steps or that does not say what it was measured on.
    """
    return {entry.name: entry.arm for entry in _entries(num_steps, costs, counts, refined)}


def suite_columns(
    num_steps: int, costs: Costs, counts: Sequence[int] = COUNTS, refined: Sequence[KeySchedule] = ()
) -> pd.DataFrame:
    """One row per arm of `suite_arms`: arm, what, order, keys, num_keys, noise, key_steps; arguments and errors as there.

    >>> suite_columns(50, {}).query("what == 'plain'")["num_keys"].tolist()
    [5.0, 7.0, 9.0, 13.0, 17.0, 25.0, 37.0]

    `what`: untouched, plain, features, predictions or deepcache. `keys`: uniform, derived, derived for predictions, refined, or paper.
    `num_keys`: key steps, steps of a plain run, or DeepCache's interval. `order` and `num_keys` are NaN where there are none.
    """
    rows = [
        {
            "arm": entry.name, "what": entry.what, "order": entry.order, "keys": entry.keys, "num_keys": entry.num_keys,
            "noise": entry.arm.prior_noise > 0, "key_steps": "" if entry.arm.schedule is None else str(entry.arm.schedule),
        }
        for entry in _entries(num_steps, costs, counts, refined)
    ]  # fmt: skip
    return pd.DataFrame(rows).astype({"order": float, "num_keys": float})


def _entries(num_steps: int, costs: Costs, counts: Sequence[int], refined: Sequence[KeySchedule]) -> list[Entry]:
    check_costs(num_steps, costs)
    plain = [Entry(Arm(steps=steps), "plain") for steps in PLAIN_STEPS if steps < num_steps]
    deepcache = [Entry(Arm(deepcache=interval), "deepcache") for interval in DEEPCACHE_INTERVALS]
    found = [
        Entry(Arm(), "untouched"),
        *plain,
        *_at_counts(num_steps, costs, counts),
        *_of_refined(num_steps, refined),
        *_of_paper(num_steps, costs),
        *deepcache,
    ]
    return list({entry.name: entry for entry in found}.values())


def check_costs(num_steps: int, costs: Costs) -> None:
    """Raises ValueError for costs of another number of steps, or of another order than they are given for."""
    for (what, order), given in costs.items():
        if what not in REUSED or order not in ORDERS or given.order != order:
            raise ValueError(
                f"costs of order {given.order} given for {(what, order)}; accepted: 'encoder' or 'prediction', with their order"
            )
        if given.num_steps != num_steps:
            raise ValueError(
                f"the costs for {(what, order)} are of runs of {given.num_steps} steps, this one makes {num_steps} denoiser calls; accepted: "
                "costs that were measured with as many"
            )


def _at_counts(num_steps: int, costs: Costs, counts: Sequence[int]) -> Iterator[Entry]:
    """Features without and with prior noise, and predictions, at every number of keys."""
    for count, order, what in product((count for count in counts if count < num_steps), ORDERS, REUSED):
        for keys, schedule in _schedules(num_steps, costs, what, order, count):
            noises = (0.0, PRIOR_NOISE) if what == "encoder" else (0.0,)
            yield from (Entry(Arm(schedule, what, order, prior_noise=noise), REUSED[what], keys) for noise in noises)


def _of_refined(num_steps: int, refined: Sequence[KeySchedule]) -> Iterator[Entry]:
    for schedule in refined:
        on = schedule.measured_on or {}
        what, order = on.get("what"), on.get("order")
        if what not in REUSED or order not in ORDERS or schedule.num_steps != num_steps:
            raise ValueError(
                f"refined schedule {schedule} given, measured with what={what!r} and order={order!r}; accepted: schedules of "
                f"{num_steps} steps that refine_schedule made of derived ones"
            )
        yield Entry(Arm(schedule, what, order), REUSED[what], "refined")


def _schedules(num_steps: int, costs: Costs, what: str, order: int, count: int) -> Iterator[tuple[str, KeySchedule]]:
    """Uniform keys, those derived for features, and for predictions those derived for them, as far as the costs reach."""
    yield "uniform", KeySchedule.uniform(num_steps, count)
    derived = {"derived": "encoder"} | ({"derived for predictions": "prediction"} if what == "prediction" else {})
    for keys, source in derived.items():
        if (source, order) in costs:
            with suppress(ValueError):  # the spans that were measured are too short for so few keys
                schedule = derive_schedule(costs[source, order], count)
                # Used on purpose for something else than it was measured for, it does not carry what it was measured on.
                yield keys, schedule if source == what else KeySchedule(num_steps, schedule.keys, schedule.source)


def _of_paper(num_steps: int, costs: Costs) -> Iterator[Entry]:
    """The paper's keys, and prior noise at them and at as many uniform and derived keys, each with and without."""
    with suppress(ValueError):  # fewer steps than the paper has keys
        paper = KeySchedule.of_paper(num_steps)
        for order in ORDERS:
            yield from (Entry(Arm(paper, what, order), REUSED[what], "paper") for what in REUSED)
            for keys, schedule in [("paper", paper), *_schedules(num_steps, costs, "encoder", order, len(paper.keys))]:
                yield from (
                    Entry(Arm(schedule, "encoder", order, prior_noise=noise), "features", keys) for noise in (0.0, PRIOR_NOISE)
                )
