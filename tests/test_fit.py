"""Law 13: a fit moves each group to the baseline's latents, and does nothing where there is nothing to move."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch
from laws import CLOSE, distance
from models import SCHEDULERS, denoiser_calls, state
from prompted import Embeddings

import fastdiff_lab as fl
from fastdiff_lab import KeySchedule
from fastdiff_lab.propagation.fit import columns_of

STEPS = 7
PROMPTS = ["1", "2", "3"]


def drawn(pipe, prompts=PROMPTS, steps=STEPS, guidance=5.0):
    generator = [torch.Generator().manual_seed(seed) for seed in range(len(prompts))]
    return pipe(prompts, generator=generator, num_inference_steps=steps, guidance_scale=guidance).images


def steps_of(name):
    return 4 if name in ("heun", "kdpm2", "pndm") else STEPS


def schedule_of(name):
    """Groups of one, of several, and of more than two steps: with no key before, with one, and with two."""
    calls = denoiser_calls(Embeddings(name), steps_of(name))
    return KeySchedule(calls, (0, 1, 3, calls - 2))


@cache
def fit_of(name="ddim", **options):
    pipe = Embeddings(name)
    return fl.fit_propagation(pipe, schedule_of(name), PROMPTS, num_inference_steps=steps_of(name), guidance_scale=5.0, **options)


def accelerated(name="ddim", fit=None, prompts=PROMPTS, **options):
    fit = fit_of(name) if fit is None else fit
    pipe = Embeddings(name)
    with fl.encoder_propagation(pipe, fit.schedule, fit=fit, reuse=fit.reuse, order=fit.order, **options) as counts:
        return drawn(pipe, prompts, steps_of(name)), counts


def without(fit, name="ddim"):
    pipe = Embeddings(name)
    with fl.encoder_propagation(pipe, fit.schedule, reuse=fit.reuse, order=fit.order):
        return drawn(pipe, steps=steps_of(name))


@pytest.mark.parametrize("name", SCHEDULERS)
def test_the_scalars_are_the_best_ones(name):
    """Real runs with any scalar of the last group moved are further from the baseline: for every scheduler, of one image."""
    pipe, schedule = Embeddings(name), schedule_of(name)
    baseline = drawn(pipe, ["1"], steps_of(name))
    before = state(pipe)
    fit = fl.fit_propagation(pipe, schedule, ["1"], num_inference_steps=steps_of(name), guidance_scale=5.0)
    assert state(pipe) == before and torch.equal(drawn(pipe, ["1"], steps_of(name)), baseline)

    def error(coefficients):
        moved = replace(fit, coefficients=coefficients, bounds=(1e9,) * 4)
        return float((accelerated(name, moved, ["1"])[0] - baseline).square().sum())

    best = error(fit.coefficients)
    *others, last = fit.coefficients
    assert best < error((*others, (0.0,) * len(last)))
    for place in range(len(last)):
        if last[place] == 0:  # nothing is ahead where all steps of a group have one time-step
            continue
        for way in (-0.01, 0.01):
            assert best < error((*others, tuple(value + way * (i == place) for i, value in enumerate(last))))


@pytest.mark.parametrize("options", [{}, {"reuse": "prediction"}, {"order": 1}])
def test_a_fit_of_zeros_is_no_fit(options):
    fit = fit_of(**options)
    zeros = replace(fit, coefficients=tuple((0.0,) * len(group) for group in fit.coefficients))
    assert torch.equal(accelerated(fit=zeros)[0], without(fit))
    assert distance(accelerated(fit=fit)[0], without(fit)) > 1e-3


def test_with_every_step_a_key_a_fit_changes_nothing():
    schedule = KeySchedule(STEPS, range(STEPS))
    fit = fl.fit_propagation(Embeddings(), schedule, PROMPTS, num_inference_steps=STEPS, guidance_scale=5.0)
    assert fit.coefficients == ((),) * STEPS
    assert torch.equal(accelerated(fit=fit)[0], drawn(Embeddings()))


@pytest.mark.parametrize("name", SCHEDULERS)
def test_serial_is_parallel_with_a_fit(name):
    parallel, counts = accelerated(name)
    assert counts.encoder_calls == counts.forward_calls == 4
    serial, counts = accelerated(name, parallel_decoding=False)
    assert counts.encoder_calls == 4 and counts.forward_calls == counts.decoder_calls == fit_of(name).schedule.num_steps
    assert distance(serial, parallel) < CLOSE
    assert distance(accelerated(name, max_rows=12)[0], parallel) < CLOSE


@pytest.mark.parametrize("options", [{}, {"reuse": "prediction"}, {"order": 1}])
def test_a_fit_comes_nearer_on_what_it_was_fitted_on(options):
    fit, baseline = fit_of(**options), drawn(Embeddings())
    assert distance(accelerated(fit=fit)[0], baseline) < 0.8 * distance(without(fit), baseline)


def test_batches_give_the_same_fit():
    at_once, in_parts = fit_of(), fit_of(batch_size=2)
    for one, other in zip(at_once.coefficients, in_parts.coefficients, strict=True):
        assert one == pytest.approx(other, abs=1e-6)


def test_known_tensors_have_names():
    assert columns_of(KeySchedule(9, (0, 1, 3, 5)), "encoder")[3] == ("latent", "key", "older 1", "older 2", "ahead")
    assert columns_of(KeySchedule(4, (0, 2)), "prediction", blocks=2)[1] == (
        "latent", "key, block 0", "key, block 1", "older 1, block 0", "older 1, block 1"
    )  # fmt: skip
