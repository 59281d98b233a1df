"""`apply_encoder_propagation` and its handle: the `with` block's way, without a block."""

from __future__ import annotations

from dataclasses import FrozenInstanceError

import pytest
import torch
from models import pipeline, run, state

import fastdiff_lab as fl
from fastdiff_lab import Extrapolation, KeySchedule, PropagationConfig

KEYS = KeySchedule(6, [0, 2])
WAYS = [{}, {"parallel_decoding": False}, {"reuse": "prediction", "order": 1}]


@pytest.fixture(scope="module")
def pipe():
    """One pipeline for tests that leave it as it was."""
    with torch.no_grad():
        found = pipeline(dtype=torch.float32)
        run(found, 1, images=1)  # a pipeline remembers its last call
    return found


def drawn(pipe) -> torch.Tensor:
    return run(pipe, 6, images=1)


@pytest.mark.parametrize("options", WAYS, ids=str)
def test_a_handle_does_what_the_block_does_and_takes_all_of_it_away(pipe, options):
    baseline, before = drawn(pipe), state(pipe)
    with fl.encoder_propagation(pipe, KEYS, **options) as expected_counts:
        expected = drawn(pipe)
    handle = fl.apply_encoder_propagation(pipe, KEYS, **options)
    assert torch.equal(drawn(pipe), expected) and handle.counts == expected_counts
    handle.remove()
    assert state(pipe) == before and torch.equal(drawn(pipe), baseline)
    handle.remove()  # again: nothing
    assert state(pipe) == before and handle.counts == expected_counts


def test_a_config_says_the_same_as_its_keywords(pipe):
    config = PropagationConfig(KEYS, order=Extrapolation(1), max_rows=4)
    with fl.encoder_propagation(pipe, KEYS, order=1, max_rows=4) as counts:
        expected = drawn(pipe)
    with fl.encoder_propagation(pipe, config) as of_config:
        assert torch.equal(drawn(pipe), expected)
    handle = fl.apply_encoder_propagation(pipe, config)
    assert torch.equal(drawn(pipe), expected)
    handle.remove()
    assert counts == of_config == handle.counts


def test_a_removed_handle_does_not_take_a_later_one_away(pipe):
    baseline = drawn(pipe)
    first = fl.apply_encoder_propagation(pipe, KEYS)
    accelerated = drawn(pipe)
    first.remove()
    second = fl.apply_encoder_propagation(pipe, KEYS)
    first.remove()
    assert torch.equal(drawn(pipe), accelerated) and not torch.equal(accelerated, baseline)
    second.remove()
    assert torch.equal(drawn(pipe), baseline)


def test_a_pipeline_that_is_accelerated_already_is_refused_and_stays_so(pipe):
    handle = fl.apply_encoder_propagation(pipe, KEYS)
    accelerated, before = drawn(pipe), state(pipe)
    message = (
        r"accelerated already \(its UNet2DConditionModel\); leave the outer .* or remove the handle of apply_encoder_propagation"
    )
    for refused in (fl.apply_encoder_propagation, lambda *given: fl.encoder_propagation(*given).__enter__()):
        with pytest.raises(RuntimeError, match=message):
            refused(pipe, KEYS)
    assert state(pipe) == before and torch.equal(drawn(pipe), accelerated)
    handle.remove()


@pytest.mark.parametrize(
    ("schedule", "options", "error", "message"),
    [
        (KEYS, {"max_rows": 0}, ValueError, "max_rows"),
        (KEYS, {"encoder_blocks": 2}, ValueError, "encoder_blocks=2 asked of a UNet2DConditionModel; accepted: None"),
        ([0, 2], {}, TypeError, "accepted: a KeySchedule"),
        (PropagationConfig(KEYS), {"order": 1}, TypeError, "order=1 given beside a PropagationConfig; accepted: one or the other"),
    ],
)
def test_what_is_refused_changes_nothing(pipe, schedule, options, error, message):
    before = state(pipe)
    with pytest.raises(error, match=message):
        fl.apply_encoder_propagation(pipe, schedule, **options)
    with pytest.raises(error, match=message), fl.encoder_propagation(pipe, schedule, **options):
        pass
    assert state(pipe) == before


def test_a_keyword_that_is_none(pipe):
    with pytest.raises(TypeError, match="parallel"):
        fl.apply_encoder_propagation(pipe, KEYS, parallel=False)


def test_a_run_that_was_broken_off(pipe):
    baseline, before = drawn(pipe), state(pipe)

    def stop(pipe, step, time_step, kept):
        if step == 3:
            raise KeyboardInterrupt
        return kept

    handle = fl.apply_encoder_propagation(pipe, KEYS)
    expected = drawn(pipe)
    with pytest.raises(KeyboardInterrupt):
        run(pipe, 6, images=1, callback_on_step_end=stop)
    assert torch.equal(drawn(pipe), expected)
    with pytest.raises(KeyboardInterrupt):
        run(pipe, 6, images=1, callback_on_step_end=stop)
    handle.remove()
    assert state(pipe) == before and torch.equal(drawn(pipe), baseline)


def test_a_handle_as_a_context_manager(pipe):
    before = state(pipe)
    with pytest.raises(ZeroDivisionError), fl.apply_encoder_propagation(pipe, KEYS) as handle:
        drawn(pipe)
        raise ZeroDivisionError
    assert handle.counts.encoder_calls == 2 and state(pipe) == before


def test_a_handle_under_which_nothing_ran_says_so(pipe):
    handle = fl.apply_encoder_propagation(pipe, KEYS)
    with pytest.warns(UserWarning, match="accelerated nothing.*StableDiffusionPipeline made no denoiser call") as said:
        handle.remove()
    assert said[0].filename == __file__


def test_warnings_name_the_line_of_the_user(pipe):
    few = KeySchedule(4, [0, 2])
    with pytest.warns(UserWarning, match="this run has 4 steps") as said:
        handle = fl.apply_encoder_propagation(pipe, few)
        run(pipe, 4, images=1)
        handle.remove()
        with fl.encoder_propagation(pipe, few):
            run(pipe, 4, images=1)
    assert [one.filename for one in said] == [__file__] * 2


def test_a_config_is_a_value():
    assert PropagationConfig(KEYS, 1) == PropagationConfig(KEYS, 1) and hash(PropagationConfig(KEYS)) == hash(
        PropagationConfig(KEYS)
    )
    with pytest.raises(FrozenInstanceError):
        PropagationConfig(KEYS).order = 1
    assert PropagationConfig(KEYS).is_parallel and not PropagationConfig(KEYS, reuse="prediction").is_parallel
