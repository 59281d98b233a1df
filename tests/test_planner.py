"""Which steps a pass decodes: pure arithmetic, without a tensor."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastdiff_lab import KeySchedule
from fastdiff_lab.propagation.planner import BatchPlanner, Share

KEYS = KeySchedule(10, [0, 1, 4])


def passes(schedule: KeySchedule, most: int | None, share: Share | None = None):
    """All passes of a run, one after the other."""
    planner, step = BatchPlanner(schedule, share), 0
    while step < schedule.num_steps:
        planned = planner.coming(step, most, step in planner.keys)
        yield planned
        step = planned.steps.stop


def test_without_a_limit_a_group_is_one_pass():
    planned = list(passes(KEYS, None))
    assert [one.steps for one in planned] == list(KEYS.groups())
    assert all(one.is_key and one.ends_group and one.own == one.steps for one in planned)


def test_a_limit_divides_a_group():
    planned = list(passes(KEYS, 4))
    assert [one.steps for one in planned] == [range(1), range(1, 4), range(4, 8), range(8, 10)]
    assert [one.is_key for one in planned] == [True, True, True, False]
    assert [one.ends_group for one in planned] == [True, True, False, True]
    assert all(one.group == range(4, 10) for one in planned[2:])


def test_one_step_at_once_is_serial_decoding():
    assert [one.steps for one in passes(KEYS, 1)] == [range(step, step + 1) for step in range(10)]


def test_a_step_that_became_a_key_goes_on_to_the_end_of_its_group():
    planned = BatchPlanner(KEYS).coming(6, None, is_key=True)
    assert planned.steps == range(6, 10) and planned.is_key and planned.ends_group


@given(
    st.integers(1, 40).flatmap(lambda steps: st.tuples(st.just(steps), st.sets(st.integers(0, steps - 1)))),
    st.one_of(st.none(), st.integers(1, 9)),
    st.integers(1, 5),
)
def test_every_step_is_decoded_once_and_no_process_decodes_more_than_it_may(steps_and_keys, most, size):
    steps, keys = steps_and_keys
    schedule = KeySchedule(steps, sorted({0, *keys}))
    for rank in range(size):
        planned = list(passes(schedule, most, Share(rank, size)))
        assert [step for one in planned for step in one.steps] == list(range(steps))
        assert {one.steps.start for one in planned if one.is_key} == set(schedule.keys)
        for one in planned:
            assert one.own and set(one.own) <= set(one.steps) and (most is None or len(one.own) <= most)


@pytest.mark.parametrize("size", [1, 2, 3, 7])
@pytest.mark.parametrize("is_key", [True, False])
@pytest.mark.parametrize("count", [1, 2, 5, 20])
def test_every_step_is_owned_by_one_process(size, is_key, count):
    steps, owned, max_span = range(7, 7 + count), [], 0
    for share in (Share(rank, size) for rank in range(size)):
        own = list(share.of(steps, is_key))
        owned += share.alone(steps, is_key)
        max_span = max(max_span, len(own))
        assert own and set(own) <= set(steps) and (not is_key or own[0] == 7)
    assert sorted(owned) == list(steps[1:] if is_key else steps)
    assert share.reach(max_span, is_key) >= count  # so many steps each are enough for the pass
