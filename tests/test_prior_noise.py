"""Prior noise injection: where, how often and how strongly."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from models import SCHEDULERS, denoiser_pipe, pipeline, run, scheduler
from short_suite import long_but

import fastdiff_lab as fl


def injected(name, steps=10, **options):
    """{time-step: times} and the added amounts, over a run with a prediction of zero."""
    pipe = denoiser_pipe(schedule_name=name)
    pipe.scheduler.set_timesteps(steps)
    initial = (
        torch.randn(1, 4, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * pipe.scheduler.init_noise_sigma
    )
    amounts = {}
    step = pipe.scheduler.step

    def spy(model_output, timestep, sample, **kwargs):
        expected = spy.last
        if not torch.equal(sample, expected):
            amounts.setdefault(float(timestep), []).append(float(((sample - expected) / initial).mean()))
        return step(model_output, timestep, sample, **kwargs)

    pipe.scheduler.step = spy
    sample = initial
    with fl.prior_noise_injection(pipe, **options):
        for timestep in pipe.scheduler.timesteps:
            spy.last = sample
            pipe.scheduler.scale_model_input(sample, timestep)
            sample = pipe.scheduler.step(torch.zeros_like(sample), timestep, sample).prev_sample
    del pipe.scheduler.step
    return amounts, pipe.scheduler


def test_ddim_50_gets_noise_from_step_25_on():
    amounts, ddim = injected("ddim", 50)
    assert list(amounts) == [float(t) for t in ddim.timesteps[25:]]
    assert all(len(times) == 1 and times[0] == pytest.approx(0.003) for times in amounts.values())


@pytest.mark.parametrize("name", SCHEDULERS)
def test_noise_is_added_once_per_late_time_step(name):
    amounts, used = injected(name, 10, weight=0.01)
    late = {float(t) for t in used.timesteps if t < 500}
    assert amounts and set(amounts) <= late and all(len(times) == 1 for times in amounts.values())
    if name not in ("heun", "kdpm2"):  # the last time-steps of these are second stages only
        assert set(amounts) == late


def test_sigma_space_schedulers_get_noise_at_the_scale_of_their_sample():
    amounts, euler = injected("euler", 10, weight=0.01)
    for place, timestep in enumerate(euler.timesteps):
        if float(timestep) in amounts:
            expected = 0.01 * float((euler.sigmas[place] ** 2 + 1) ** 0.5) / float(euler.init_noise_sigma)
            assert amounts[float(timestep)][0] == pytest.approx(expected, rel=1e-5)


def test_no_weight_changes_nothing_and_weight_does():
    pipe = pipeline()
    baseline = run(pipe)
    with fl.prior_noise_injection(pipe, weight=0.0):
        assert torch.equal(run(pipe), baseline)
    with fl.prior_noise_injection(pipe):
        assert float((run(pipe) - baseline).abs().max()) > 1e-3
    assert torch.equal(run(pipe), baseline) and "step" not in vars(pipe.scheduler)


NOTHING = {
    "no call": (lambda pipe: None, {}, "its scheduler made no step inside it"),
    "no late step": (
        lambda pipe: run(pipe),
        {"below": 0.0005},
        r"no step was below time-step 0.5 \(from 901 to 1\); give a larger",
    ),
    "no time for it": (lambda pipe: run(pipe), {"below": 0.0}, None),
    "no weight": (lambda pipe: run(pipe), {"weight": 0.0}, None),
    "added": (lambda pipe: run(pipe), {}, None),
}


@pytest.mark.parametrize(("inside", "options", "words"), NOTHING.values(), ids=NOTHING)
def test_a_block_that_added_nothing_says_so(inside, options, words, recwarn):
    pipe = pipeline()
    with fl.prior_noise_injection(pipe, **options):
        inside(pipe)
    said = [str(warning.message) for warning in recwarn if "prior_noise_injection" in str(warning.message)]
    assert len(said) == (words is not None)
    assert words is None or re.search(f"the prior_noise_injection block of StableDiffusionPipeline added nothing: {words}", said[0])


@pytest.mark.parametrize("number", long_but([np.float16], [np.float32, np.float16, np.float64, torch.tensor]))
def test_the_weight_may_be_a_number_of_numpy_or_torch(number):
    pipe = pipeline()
    drawn = []
    for kind in (float, number):
        with fl.prior_noise_injection(pipe, weight=kind(0.25), below=kind(0.5)):
            drawn.append(run(pipe))
    assert torch.equal(*drawn)


def test_two_injections_nested():
    pipe = pipeline()
    baseline = run(pipe)
    with fl.prior_noise_injection(pipe):
        with pytest.raises(RuntimeError, match="prior noise is injected into this pipeline already; leave the outer"):
            with fl.prior_noise_injection(pipe):
                pass
        assert not torch.equal(run(pipe), baseline)
    assert torch.equal(run(pipe), baseline)


def test_a_seeded_stochastic_scheduler_stays_seeded():
    pipe = pipeline("euler-ancestral")
    with fl.prior_noise_injection(pipe):
        assert torch.equal(run(pipe), run(pipe))


@pytest.mark.parametrize(("option", "value"), [("weight", -1), ("weight", 2), ("below", "half"), ("below", 1.5), ("weight", True)])
def test_values_out_of_range(option, value):
    with pytest.raises(ValueError, match=f"`{option}` must be a number from 0 to 1, got"):
        with fl.prior_noise_injection(denoiser_pipe(), **{option: value}):
            pass


def test_the_scheduler_is_as_before_after_an_exception():
    pipe = denoiser_pipe()
    before = set(vars(pipe.scheduler))
    with pytest.raises(KeyboardInterrupt), fl.prior_noise_injection(pipe):
        raise KeyboardInterrupt
    assert set(vars(pipe.scheduler)) == before
    assert scheduler().step.__func__ is type(pipe.scheduler).step
