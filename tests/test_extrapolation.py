"""Features extrapolated along the line through the last key steps: the same laws as for reused ones."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from laws import CLOSE, FEW, IMAGE, KEYS, adapter_arguments, distance
from models import (
    FAMILIES,
    SCHEDULERS,
    conditions,
    controlnet_pipeline,
    denoiser_calls,
    denoiser_pipe,
    loop,
    pipeline,
    run,
    state,
)
from oracle import AlongALine, oracle
from short_suite import long_but

import fastdiff_lab as fl
from fastdiff_lab import KeySchedule
from fastdiff_lab.hooks.denoiser import denoiser_of
from fastdiff_lab.propagation.extrapolation import Extrapolation, History

# ---- the weights


def test_weights_one_can_check_by_head():
    assert Extrapolation(0).weights([3.0], 5.0) == (1.0,)
    assert Extrapolation(1).weights([4.0, 8.0], 10.0) == (-0.5, 1.5)
    assert Extrapolation(1, damping=0.5).weights([4.0, 8.0], 10.0) == (-0.25, 1.25)
    assert Extrapolation(2).weights([0.0, 1.0, 2.0], 3.0) == (1.0, -3.0, 3.0)


@settings(max_examples=50, deadline=None)
@given(
    order=st.integers(0, 2), damping=st.floats(0, 1), place=st.floats(-50, 50), coefficients=st.lists(st.floats(-2, 2), min_size=3)
)
def test_a_polynomial_of_the_order_is_met_exactly(order, damping, place, coefficients):
    def value(at):
        return sum(c * at**power for power, c in enumerate(coefficients[: order + 1]))

    places = [1.0, 3.0, 4.5][: order + 1]
    weights = Extrapolation(order, damping=damping).weights(places, place)
    assert sum(weights) == pytest.approx(1, abs=1e-6)
    found = sum(w * value(at) for w, at in zip(weights, places, strict=True))
    assert found == pytest.approx(damping * value(place) + (1 - damping) * value(places[-1]), rel=1e-6, abs=1e-6)


def test_a_history_remembers_as_much_as_the_order_needs():
    history = History(Extrapolation(1))
    for place in (0.0, 2.0, 2.0, 6.0):  # the second stage of a step replaces the first
        history.add(place, torch.tensor([place**2]))
    assert [place for place, _ in history.points] == [2.0, 6.0]
    assert history.at([6.0, 7.0], history.values).tolist() == [36.0, 44.0]


# ---- the laws


@pytest.mark.parametrize("name", long_but(("plain", "dit"), FAMILIES))
def test_every_step_a_key_is_the_baseline_denoiser(name):
    pipe, given = denoiser_pipe(name), conditions(name)
    baseline = loop(pipe, 3, given)
    for order in (1, 2) if name == "plain" else (1 + list(FAMILIES).index(name) % 2,):
        with fl.encoder_propagation(pipe, KeySchedule(3, range(3)), order=order):
            assert torch.equal(loop(pipe, 3, given), baseline)


@pytest.mark.parametrize("name", long_but(("plain", "unet3d", "dit"), FAMILIES))
def test_non_key_steps_are_those_of_the_line_by_hand(name):
    """Of the plain one serial and parallel; of the others one of both, since test_systems.py compares them."""
    pipe, given = denoiser_pipe(name), conditions(name)
    by_hand = loop(pipe, 6, given, predict=AlongALine(oracle(denoiser_of(pipe), FEW.keys)))
    for parallel in (False, True) if name == "plain" else (list(FAMILIES).index(name) % 2 > 0,):
        with fl.encoder_propagation(pipe, FEW, order=1, parallel_decoding=parallel) as counts:
            assert distance(loop(pipe, 6, given), by_hand) < CLOSE
        assert (counts.encoder_calls, counts.decoder_calls, counts.forward_calls) == (3, 6, 3 if parallel else 6)
    if FAMILIES[name].frames_axis is None:  # videos take long, and test_systems.py shows that they change
        with fl.encoder_propagation(pipe, FEW):
            assert distance(by_hand, loop(pipe, 6, given)) > 1e-4


SAMPLED = [(name, (0.0, 0.05)[place % 2]) for place, name in enumerate(SCHEDULERS)]
# Several states; two calls in a step.
FEW_SAMPLED = [case for case in SAMPLED if case[0] in ("dpm-solver++", "heun")]


@pytest.mark.parametrize(("name", "noise"), long_but(FEW_SAMPLED, SAMPLED))
def test_parallel_decoding_is_serial_decoding(name, noise):
    pipe = pipeline(name)
    steps = 4 if name in ("heun", "kdpm2", "pndm") else 7  # these call the denoiser twice in a step
    schedule = KeySchedule.uniform(denoiser_calls(pipe, steps), 3)

    def accelerated(**options):
        injection = fl.prior_noise_injection(pipe, weight=noise) if noise else contextlib.nullcontext()
        with injection, fl.encoder_propagation(pipe, schedule, **options):
            return run(pipe, steps, images=1)

    serial = accelerated(order=1, parallel_decoding=False)
    assert distance(serial, accelerated(order=0)) > 1e-4
    for cap in (None, 2, 4, 5) if name in ("ddim", "heun") else (None, 5):
        assert distance(serial, accelerated(order=1, max_rows=cap)) < CLOSE


@pytest.mark.parametrize(("part", "names"), [("skips", ("skips",)), ("bottleneck", ("bottleneck",))])
def test_a_part_of_the_features_is_extrapolated(part, names):
    pipe, given = denoiser_pipe(), conditions()
    by_hand = loop(pipe, 6, given, predict=AlongALine(oracle(pipe.unet, FEW.keys), names))
    for parallel in (False, True):
        with fl.encoder_propagation(pipe, FEW, order=Extrapolation(1, parts=part), parallel_decoding=parallel):
            assert distance(loop(pipe, 6, given), by_hand) < CLOSE


def test_order_two_and_another_axis_are_the_same_in_both_modes():
    pipe, given = denoiser_pipe(), conditions()
    results = {}
    for extrapolation in (Extrapolation(1), Extrapolation(2), Extrapolation(1, axis="log_snr"), Extrapolation(1, damping=0.5)):
        for parallel in (False, True):
            with fl.encoder_propagation(pipe, FEW, order=extrapolation, parallel_decoding=parallel):
                results[extrapolation, parallel] = loop(pipe, 6, given)
        assert distance(results[extrapolation, False], results[extrapolation, True]) < CLOSE
    serial = [result for (_, parallel), result in results.items() if not parallel]
    assert all(distance(a, b) > 1e-5 for i, a in enumerate(serial) for b in serial[:i])


def test_no_damping_at_all_is_reuse():
    pipe, given = denoiser_pipe(), conditions()
    results = []
    for order in (0, Extrapolation(1, damping=0)):
        with fl.encoder_propagation(pipe, FEW, order=order):
            results.append(loop(pipe, 6, given))
    assert torch.equal(*results)


# ---- what users put on a UNet


def test_freeu_does_not_write_into_what_is_remembered():
    pipe = denoiser_pipe()
    pipe.unet.enable_freeu(s1=0.9, s2=0.2, b1=1.5, b2=1.6)
    by_hand = loop(pipe, 6, conditions(), predict=AlongALine(oracle(pipe.unet, FEW.keys)))
    for parallel in (False, True):
        with fl.encoder_propagation(pipe, FEW, order=1, parallel_decoding=parallel):
            assert distance(loop(pipe, 6, conditions()), by_hand) < CLOSE


def test_freeu_does_not_write_into_the_only_key_step_that_was_seen():
    pipe, keys = denoiser_pipe(), KeySchedule(6, [0, 3])
    pipe.unet.enable_freeu(s1=0.9, s2=0.2, b1=1.5, b2=1.6)
    by_hand = loop(pipe, 6, conditions(), predict=AlongALine(oracle(pipe.unet, keys.keys)))
    for parallel in (False, True):
        with fl.encoder_propagation(pipe, keys, order=1, parallel_decoding=parallel):
            assert distance(loop(pipe, 6, conditions()), by_hand) < CLOSE


def test_t2i_adapter():
    pipe, given = denoiser_pipe(), adapter_arguments()
    by_hand = loop(pipe, 6, given, predict=AlongALine(oracle(pipe.unet, FEW.keys)))
    for parallel in (False, True):
        with fl.encoder_propagation(pipe, FEW, order=1, parallel_decoding=parallel):
            assert distance(loop(pipe, 6, given), by_hand) < CLOSE


@pytest.mark.long
def test_a_controlnet_moves_with_the_encoder():
    pipe = controlnet_pipeline()
    results = {}
    for order in (0, 1):
        for parallel in (False, True):
            with fl.encoder_propagation(pipe, FEW, order=order, parallel_decoding=parallel) as counts:
                results[order, parallel] = run(pipe, 6, image=IMAGE)
            assert counts.controlnet_calls == 3
        assert distance(results[order, False], results[order, True]) < CLOSE
    assert distance(results[0, True], results[1, True]) > 1e-4


def test_no_line_runs_through_another_text():
    pipe, first, second = denoiser_pipe(), conditions(), conditions()
    second["encoder_hidden_states"] = second["encoder_hidden_states"] + 1
    changing = lambda step: first if step < 4 else second

    class Forgetting(AlongALine):
        def __call__(self, step, *args):
            if step == 4:
                self.seen = []
            return super().__call__(step, *args)

    by_hand = loop(pipe, 10, changing, predict=Forgetting(oracle(pipe.unet, KEYS.keys)))
    with fl.encoder_propagation(pipe, KEYS, order=1):
        assert distance(loop(pipe, 10, changing), by_hand) < CLOSE


def test_no_line_runs_through_another_controlnet_scale():
    """`control_guidance_end` switches the ControlNet off at step 5, a key: it and the steps after it start anew."""
    pipe = controlnet_pipeline()
    schedule = KeySchedule(10, [0, 2, 5])
    options = {"image": IMAGE, "control_guidance_end": 0.5}
    features = []
    # What enters the first layer of the decoder: the bottleneck and a skip.
    handle = pipe.unet.up_blocks[0].resnets[0].register_forward_pre_hook(lambda m, args: features.append(args[0].clone()))
    with fl.encoder_propagation(pipe, schedule, order=1, parallel_decoding=False):
        run(pipe, **options)
    handle.remove()
    assert all(torch.equal(features[5], later) for later in features[6:])
    assert not torch.equal(features[2], features[3])


# ---- predictions


def test_predictions_are_extrapolated():
    pipe, given = denoiser_pipe(), conditions()
    seen = []

    def by_hand(step, sample, timestep, arguments):
        if step in KEYS.keys:
            seen.append((step, pipe.unet(sample, timestep, **arguments).sample))
            return seen[-1][1]
        (before, older), (last, newer) = seen[-2:] if len(seen) > 1 else seen * 2
        return newer + (step - last) / max(last - before, 1) * (newer - older)

    expected = loop(pipe, 10, given, predict=by_hand)
    with fl.encoder_propagation(pipe, KEYS, order=1, reuse="prediction") as counts:
        assert distance(loop(pipe, 10, given), expected) < CLOSE
    assert (counts.encoder_calls, counts.decoder_calls, counts.forward_calls) == (4, 4, 4)


# ---- afterwards, and bad input


@pytest.mark.parametrize("at", long_but([2], [0, 2, 3]))
def test_an_exception_leaves_the_pipeline_as_it_was(at):
    pipe, given = denoiser_pipe(), conditions()
    baseline, before = loop(pipe, 2, given), state(pipe)

    def stopping(step):
        if step == at:
            raise KeyboardInterrupt
        return given

    with pytest.raises(KeyboardInterrupt), fl.encoder_propagation(pipe, FEW, order=1):
        loop(pipe, 6, stopping)
    assert state(pipe) == before
    assert torch.equal(loop(pipe, 2, given), baseline)
    with fl.encoder_propagation(pipe, FEW, order=1):
        first = loop(pipe, 6, given)
        with pytest.raises(KeyboardInterrupt):
            loop(pipe, 6, stopping)
        assert torch.equal(loop(pipe, 6, given), first)


def test_features_are_freed_after_the_last_group():
    import gc
    import weakref

    pipe, seen = denoiser_pipe(), []
    handle = pipe.unet.down_blocks[0].register_forward_hook(lambda m, a, output: seen.append(weakref.ref(output[1][0])))
    with fl.encoder_propagation(pipe, KEYS, order=1):
        loop(pipe, 10, conditions())
        handle.remove()
        gc.collect()
        assert len(seen) == 4 and all(ref() is None for ref in seen)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"order": 3}, "`order` must be an int from 0 to 2, got 3"),
        ({"order": True}, "`order` must .* got True"),
        ({"order": 1.0}, "`order` must .* got 1.0"),
        ({"order": np.int64(3)}, "`order` must .* got 3"),
        ({"damping": 1.5}, "`damping` must be a number from 0 to 1, got 1.5"),
        ({"axis": "time"}, "`axis` must be one of step, log_snr, got 'time'"),
        ({"parts": "mid"}, "`parts` must be one of all, skips, bottleneck, got 'mid'"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        Extrapolation(**options)


def test_an_order_from_a_table():
    assert Extrapolation(np.int64(1)) == Extrapolation(1)


def test_up_blocks_are_not_extrapolated():
    with pytest.raises(ValueError, match="order=1 asked with reuse='decoder'; accepted: reuse='encoder' or 'prediction'"):
        with fl.encoder_propagation(denoiser_pipe(), KEYS, order=1, reuse="decoder"):
            pass


def test_an_axis_that_the_scheduler_does_not_have():
    from diffusers import EDMEulerScheduler

    pipe = denoiser_pipe()
    pipe.scheduler = EDMEulerScheduler()
    with pytest.raises(ValueError, match="EDMEulerScheduler has no alphas_cumprod; accepted: axis='step'"):
        with fl.encoder_propagation(pipe, KEYS, order=Extrapolation(1, axis="log_snr")):
            loop(pipe, 10, conditions())
