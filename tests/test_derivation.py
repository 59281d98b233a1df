"""The dynamic programme is exact; schedules are derived from costs, and carry what those were measured on."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

import fastdiff_lab as fl
from fastdiff_lab.calibration.derive import optimal_keys
from fastdiff_lab.calibration.reuse_costs import ReuseCosts
from fastdiff_lab.recording.recording import Recording


def total(spans: np.ndarray, keys: tuple[int, ...]) -> float:
    """What the groups of a schedule cost, by their definition."""
    steps, ends, cost = spans.shape[1], (*keys[1:], spans.shape[1]), 0.0
    for place, (key, end) in enumerate(zip(keys, ends, strict=True)):
        gap = key - keys[place - 1] if place else 0
        length = end - key
        if length >= spans.shape[2]:
            return np.inf
        cost += spans[min(gap, len(spans) - 1), key, length]
    assert ends[-1] == steps
    return cost


def by_brute_force(spans: np.ndarray, count: int) -> float:
    steps = spans.shape[1]
    return min(total(spans, (0, *rest)) for rest in combinations(range(1, steps), count - 1))


@st.composite
def span_costs(draw, with_gaps):
    steps = draw(st.integers(1, 7))
    max_span = draw(st.integers(1, steps))
    gaps = max_span + 1 if with_gaps else 1
    # Whole numbers, so that sums are exact; 20 stands for a group that is not allowed.
    costs = draw(npst.arrays(np.int64, (gaps, steps, max_span + 1), elements=st.integers(0, 20))).astype(float)
    return np.where(costs == 20, np.inf, costs)


@pytest.mark.parametrize("with_gaps", [False, True])
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_the_programme_equals_brute_force(with_gaps, data):
    spans = data.draw(span_costs(with_gaps))
    steps = spans.shape[1]
    best = optimal_keys(spans, steps)
    for count in range(1, steps + 1):
        cost = by_brute_force(spans, count)
        assert (count in best) == np.isfinite(cost)
        if count in best:
            keys, found = best[count]
            assert len(keys) == count and found == cost == total(spans, keys)


def costs_of(displacement, gaps=(0,), sensitivity=None, order=0, **measured_on) -> ReuseCosts:
    displacement = torch.as_tensor(displacement, dtype=torch.float32)
    images, _, steps, _ = displacement.shape
    sensitivity = torch.ones(images, steps + 1) if sensitivity is None else torch.as_tensor(sensitivity, dtype=torch.float32)
    about = {"model": "UNet2DConditionModel", "scheduler": "DDIMScheduler", "guidance_scale": 5.0, "order": order}
    return ReuseCosts(displacement, gaps, sensitivity, about | measured_on)


def costs_by_length(steps: int, max_span: int, order: int = 0) -> ReuseCosts:
    """Every span costs its length less one, from wherever it starts."""
    lengths = torch.arange(max_span + 1).clamp_min(1) - 1.0
    gaps = (0,) if order == 0 else (0, 1, 2, 4)
    return costs_of(lengths.expand(1, len(gaps), steps, max_span + 1), gaps, order=order)


@pytest.mark.parametrize("order", [0, 1])
def test_even_costs_give_even_groups(order):
    costs = costs_by_length(12, 12, order)
    for count in (1, 3, 4, 6, 12):
        sizes = [len(group) for group in fl.derive_schedule(costs, count).groups()]
        assert sizes == [12 // count] * count


def test_steps_that_cost_more_get_more_keys():
    lengths = torch.arange(11).clamp_min(1) - 1.0
    weight = torch.tensor([10.0] * 4 + [1.0] * 16)
    costs = costs_of((weight[:, None] * lengths)[None, None])
    schedule = fl.derive_schedule(costs, 6)
    assert sum(key < 4 for key in schedule.keys) >= 3


def test_the_front_falls_and_holds_every_number_of_keys():
    front = fl.schedule_front(costs_by_length(10, 4))
    assert front["num_keys"].tolist() == list(range(3, 11))  # 10 steps in groups of 4 at most
    assert front["cost"].is_monotonic_decreasing and front["cost"].iloc[-1] == 0
    assert [len(schedule.keys) for schedule in front["schedule"]] == front["num_keys"].tolist()
    assert front.set_index("num_keys").loc[5, "schedule"] == fl.derive_schedule(costs_by_length(10, 4), 5)


def test_a_schedule_for_the_worst_image():
    """Two images that suffer in different halves: the mean follows the one that suffers more often, the worst the one that suffers most."""
    lengths = torch.arange(9).clamp_min(1) - 1.0
    early, late = torch.zeros(8), torch.zeros(8)
    early[:4], late[4:] = 3.0, 4.0
    one = (early[:, None] * lengths)[None, None]
    costs = costs_of(torch.cat([one, one, one, (late[:, None] * lengths)[None, None]]))
    mean, worst = (fl.derive_schedule(costs, 3, reduction=reduction) for reduction in ("mean", "worst"))
    assert mean != worst and "worst of 4 images" in worst.source
    assert sum(worst.keys) > sum(mean.keys)
    # Three of four images suffer early only: their median does not see the late half.
    assert max(fl.derive_schedule(costs, 3, reduction="median").keys) <= 4


def test_errors_that_add_up_unsquared():
    """One long group and three without error (3 in all), or two shorter ones (2 + 2): squares prefer the two, plain sums the one."""
    displacement = torch.full((1, 1, 8, 9), 9.0)
    displacement[0, 0, :, 1] = 0.0
    displacement[0, 0, 0, 3] = displacement[0, 0, 3, 5] = 2.0
    displacement[0, 0, 1, 7] = 3.0
    costs = costs_of(displacement)
    squared, plain = (fl.derive_schedule(costs, 2, power=power) for power in (2, 1))
    assert squared.keys == (0, 3) and plain.keys == (0, 1) and "unsquared" in plain.source and "unsquared" not in squared.source
    front = {power: fl.schedule_front(costs, power=power).set_index("num_keys").loc[2] for power in (2, 1)}
    assert front[2]["predicted_error"] == pytest.approx(8**0.5) and front[1]["predicted_error"] == front[1][
        "cost"
    ] == pytest.approx(3)
    assert costs.spans(power=1)[0, 0, 3] == pytest.approx(costs.spans()[0, 0, 3] ** 0.5)


def test_at_order_one_unsquared_errors_lie_between_those_of_measured_gaps():
    displacement = torch.rand(3, 3, 12, 7)
    costs = costs_of(displacement, (0, 1, 4), order=1)
    spans = costs.spans(power=1)
    assert spans[4, 6, 3] == pytest.approx(float(displacement[:, 2, 6, 3].mean()))
    assert spans[2, 6, 3] == pytest.approx(float(displacement[:, 1:, 6, 3].mean()))  # 2 is half-way from 1 to 4 by its logarithm


@pytest.mark.parametrize("power", [0, 3, True, 1.5, "2"])
def test_another_power(power):
    with pytest.raises(ValueError, match="`power` must be one of 1, 2, got"):
        fl.derive_schedule(costs_by_length(10, 4), 5, power=power)


def test_a_derived_schedule_says_where_it_comes_from():
    schedule = fl.derive_schedule(costs_by_length(8, 8), 2)
    assert schedule.measured_on["model"] == "UNet2DConditionModel" and "derived, 2 keys" in schedule.source
    assert fl.KeySchedule.from_json(schedule.to_json()).measured_on == schedule.measured_on


def test_between_measured_gaps_costs_are_interpolated():
    """At gap 2 the displacement is 2, at gap 4 it is 4; at 8, beyond the last, it is that of 4."""
    steps, max_span = 12, 8
    displacement = torch.full((1, 4, steps, max_span + 1), torch.nan)
    for place, gap in enumerate((0, 1, 2, 4)):
        displacement[0, place] = gap if gap else 9.0
    spans = costs_of(displacement, (0, 1, 2, 4), order=1).spans()
    assert spans[2, 6, 3] == pytest.approx(4) and spans[4, 6, 3] == pytest.approx(16) and spans[8, 8, 3] == pytest.approx(16)
    assert spans[3, 6, 3] == pytest.approx((2 + 2 * np.log(3 / 2) / np.log(2)) ** 2)
    assert spans[0, 0, 3] == pytest.approx(81) and np.isinf(spans[0, 1:]).all()
    assert np.isinf(spans[4, 3]).all()  # there is no key 4 steps before step 3
    assert (spans[4, 6, 1], spans[0, 0, 1]) == (0, 0)


def test_the_sensitivity_weighs_the_end_of_a_span():
    sensitivity = torch.ones(1, 9)
    sensitivity[0, 4] = 3.0
    spans = costs_of(torch.ones(1, 1, 8, 5), sensitivity=sensitivity).spans()
    assert spans[0, 1, 3] == 9 and spans[0, 1, 2] == 1 and np.isinf(spans[0, 6, 3])


@pytest.mark.parametrize("order", [0, 1])
def test_250_steps_are_derived(order):
    costs = costs_by_length(250, 250 if order == 0 else 25, order)
    schedule = fl.derive_schedule(costs, 25)
    assert {len(group) for group in schedule.groups()} == {10}


@pytest.mark.parametrize("count", [2, 11, 0, "3", True])
def test_a_number_of_keys_that_there_is_not(count):
    with pytest.raises(ValueError, match=r"num_keys=.* asked; accepted: 3 to 10 \(groups of up to 4 steps were measured\)"):
        fl.derive_schedule(costs_by_length(10, 4), count)


def test_another_statistic_of_the_images():
    with pytest.raises(ValueError, match="`reduction` must be one of mean, median, worst, got 'mode'"):
        fl.schedule_front(costs_by_length(10, 4), reduction="mode")


# ---- the rule of thumb


def recording(change) -> Recording:
    change = torch.as_tensor(change, dtype=torch.float32)[None, :, None]
    ones = torch.ones_like(change)
    statistics = {"mean_square": ones, "change": change**2, "product": ones, "norm": ones}
    return Recording(("down_blocks.0",), ("encoder",), tuple(range(change.shape[1])), statistics)


def test_equal_shares_of_an_even_change_are_uniform():
    schedule = fl.accumulated_change(recording([np.nan, *[1.0] * 11]), 4)
    assert schedule.keys == (0, 3, 6, 9)


def test_keys_go_where_the_change_is():
    schedule = fl.accumulated_change(recording([np.nan, 5, 5, 5, *[0.1] * 8]), 4)
    assert schedule.keys[:3] == (0, 1, 2) and "equal shares" in schedule.source


def test_a_change_all_at_once_still_gives_each_key_once():
    assert fl.accumulated_change(recording([np.nan, *[0.0] * 8, 7.0]), 5).keys == (0, 6, 7, 8, 9)
    with pytest.raises(ValueError, match=r"`num_keys` must be an int from 1 to 10 \(the steps\), got 11"):
        fl.accumulated_change(recording([np.nan, *[1.0] * 9]), 11)
