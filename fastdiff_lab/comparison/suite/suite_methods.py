"""The methods of the suite.

- `suite_arms(num_steps, costs)`: the methods by name
- `suite_columns(num_steps, costs)`: what each of them is, in tidy columns
- `check_costs(num_steps, costs)`: refuse costs of other runs
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

Costs = Mapping[tuple[str, int], ReuseCosts]  # (what, order) -> their costs


@dataclass(frozen=True)
class Entry:
    """A method of the suite: `what` is features, predictions, plain, deepcache or untouched; `keys` says where keys come from."""

    arm: Arm
    what: str
    keys: str = ""

    @property
    def order(self) -> int | None:
        return self.arm.order if self.arm.schedule is not None and isinstance(self.arm.order, int) else None

    @property
    def num_keys(self) -> int | None:
        """Key steps; or the number of fewer steps; or DeepCache's interval."""
        return self.arm.steps or self.arm.deepcache or (len(self.arm.schedule.keys) if self.arm.schedule else None)

    @property
    def name(self) -> str:
        if self.arm.schedule is None:
            return {"plain": f"plain {self.num_keys} steps", "deepcache": f"DeepCache {self.num_keys}"}.get(self.what, self.what)
        noise = ", prior noise" if self.arm.prior_noise else ""
        return f"{self.what}, {self.keys} {self.num_keys}, order {self.order}{noise}"


def suite_arms(num_steps: int, costs: Costs, counts: Sequence[int] = COUNTS, refined: Sequence[KeySchedule] = ()) -> dict[str, Arm]:
    """All methods by name, the baseline first.

    >>> costs = {("encoder", 1): calibrate(pipe, prompts, order=1)}  # doctest: +SKIP
    >>> suite_arms(50, costs)["features, derived 9, order 1"].schedule  # doctest: +SKIP

    They are fewer steps; features and predictions at uniform and derived keys, of order 0 and 1; predictions also at the keys
    of features; the paper's keys; features with prior noise; DeepCache.

    Args:
        num_steps: Denoiser calls of a run.
        costs: (what, order) -> ReuseCosts. Without some costs, there are no methods at keys derived from them.
        counts: Numbers of keys, as far as the run and the costs allow them.
        refined: Schedules of `refine_schedule`, run with the what and order that they were measured with.

    Raises:
        ValueError: Costs or a refined schedule of another number of steps or order.
    """
    return {entry.name: entry.arm for entry in _entries(num_steps, costs, counts, refined)}


def suite_columns(
    num_steps: int, costs: Costs, counts: Sequence[int] = COUNTS, refined: Sequence[KeySchedule] = ()
) -> pd.DataFrame:
    """One row per method of `suite_arms`: arm, what, order, keys, num_keys, noise, key_steps; arguments and errors as there.

    >>> suite_columns(50, {}).query("what == 'plain'")["num_keys"].tolist()
    [5.0, 7.0, 9.0, 13.0, 17.0, 25.0, 37.0]

    `num_keys` counts key steps or fewer steps, or is DeepCache's interval. `order` and `num_keys` are NaN if there are none.
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
    """Raise ValueError for costs of another number of steps, or of another order than their name's."""
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
    """Uniform keys, derived keys, and for predictions their own derived keys, as far as the costs reach."""
    yield "uniform", KeySchedule.uniform(num_steps, count)
    derived = {"derived": "encoder"} | ({"derived for predictions": "prediction"} if what == "prediction" else {})
    for keys, source in derived.items():
        if (source, order) in costs:
            with suppress(ValueError):  # the measured spans are too short for so few keys
                schedule = derive_schedule(costs[source, order], count)
                # Without `measured_on`, so that this deliberate use does not warn.
                yield keys, schedule if source == what else KeySchedule(num_steps, schedule.keys, schedule.source)


def _of_paper(num_steps: int, costs: Costs) -> Iterator[Entry]:
    """The paper's keys, and as many uniform and derived keys, each with and without prior noise."""
    with suppress(ValueError):  # the paper has more keys than there are steps
        paper = KeySchedule.of_paper(num_steps)
        for order in ORDERS:
            yield from (Entry(Arm(paper, what, order), REUSED[what], "paper") for what in REUSED)
            for keys, schedule in [("paper", paper), *_schedules(num_steps, costs, "encoder", order, len(paper.keys))]:
                yield from (
                    Entry(Arm(schedule, "encoder", order, prior_noise=noise), "features", keys) for noise in (0.0, PRIOR_NOISE)
                )
