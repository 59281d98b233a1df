"""A pipeline that two threads use: one goes on or both are told, and nothing that was disturbed is kept."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import contextmanager
from functools import partial
from itertools import product

import pytest
import torch
from models import state
from short_suite import long_but
from systems.stable_diffusion import LATENT, stable_diffusion

import fastdiff_lab as fl
from fastdiff_lab import KeySchedule, Method
from fastdiff_lab.hooks.exclusive_use import kept_to_this_thread
from fastdiff_lab.lab.session.paired_run import PairRunner
from fastdiff_lab.lab.session.settings import Acceleration, Settings
from fastdiff_lab.sampling.methods import denoiser_arguments, sample

KEYS = KeySchedule(6, (0, 2))
SETTINGS = Settings("a red ring", num_inference_steps=6, guidance_scale=3.0)
IN_USE = "this pipeline is in use by"


@pytest.fixture
def pipe():
    return stable_diffusion()


@contextmanager
def in_thread(work: Callable[[], object]):
    """Work in another thread while the block lasts; gives the list that its error goes to."""
    errors: list[BaseException] = []

    def run() -> None:
        try:
            with torch.no_grad():
                work()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, name="the other")
    thread.start()
    yield errors
    thread.join(60)
    assert not thread.is_alive()


def called(pipe, wait_at: int = 99, begun: threading.Event | None = None, goes_on: threading.Event | None = None):
    """The pipeline's latents; at step `wait_at` it tells that it has begun, and waits."""

    def between(pipe, step, time_step, kept):
        if step == wait_at:
            begun.set()
            assert goes_on.wait(60)
        return kept

    return pipe(**LATENT, generator=torch.Generator().manual_seed(3), callback_on_step_end=between).images


def kept(pipe, begun, goes_on):
    with kept_to_this_thread(pipe, "a run of the test"):
        called(pipe, 2, begun, goes_on)


USES = {
    "sample": lambda pipe: sample(pipe, Method(), ["a red ring"], [0], num_inference_steps=6),
    "lab": lambda pipe: PairRunner(pipe).run(SETTINGS, Acceleration(KEYS)),
    "propagation": lambda pipe: fl.apply_encoder_propagation(pipe, KEYS),
    "record": lambda pipe: fl.record(pipe).__enter__(),
    "arguments": lambda pipe: denoiser_arguments(pipe, "a red ring"),
}


WORKS = {
    "kept": (kept, IN_USE + " a run of the test"),
    "called": (partial(called, wait_at=2), "is being called in thread 'the other'"),
}
# Each use meets one of them, in turn: one function refuses both.
MEETINGS = [(use, list(WORKS)[place % 2]) for place, use in enumerate(USES)]


@pytest.mark.parametrize(("use", "other"), long_but(MEETINGS, product(USES, WORKS)))
def test_what_the_library_does_is_refused_while_another_thread_keeps_or_calls_the_pipeline(use, other, pipe):
    work, words = WORKS[other]
    before, plain = state(pipe), called(pipe)
    begun, goes_on = threading.Event(), threading.Event()
    with in_thread(partial(work, pipe, begun=begun, goes_on=goes_on)) as errors:
        assert begun.wait(60)
        with pytest.raises(RuntimeError, match=words):
            USES[use](pipe)
        goes_on.set()
    assert errors == []
    assert torch.equal(called(pipe), plain) and state(pipe)[0] == before[0]


def test_a_plain_call_from_another_thread_is_refused_and_what_it_disturbed_is_not_kept(pipe):
    before, plain = state(pipe), called(pipe)
    errors = []
    with pytest.raises(RuntimeError, match="thread 'the other' called this pipeline during a run of mine"):
        with kept_to_this_thread(pipe, "a run of mine"):
            with in_thread(lambda: called(pipe)) as errors:
                pass
            called(pipe)
    assert IN_USE + " a run of mine" in str(errors[0])
    assert torch.equal(called(pipe), plain) and state(pipe)[0] == before[0]


def test_a_baseline_that_another_thread_disturbed_is_in_no_cache(pipe):
    runner, steps, errors = PairRunner(pipe, preview_every=0), [], []

    def disturb(progress):
        steps.append(progress.step)
        if len(steps) == 3:
            with in_thread(lambda: called(pipe)) as found:
                pass
            errors.extend(found)

    with pytest.raises(RuntimeError, match="called this pipeline during"):
        runner.run(SETTINGS, Acceleration(KEYS), disturb)
    assert IN_USE + " the lab's run of 'a red ring'" in str(errors[0]) and not runner.baselines
    assert torch.equal(
        runner.run(SETTINGS, Acceleration(KEYS)).baseline.latents,
        PairRunner(pipe).run(SETTINGS, Acceleration(KEYS)).baseline.latents,
    )


def test_two_calls_at_once_of_an_accelerated_pipeline_are_both_refused_and_one_after_the_other_is_not(pipe):
    with fl.encoder_propagation(pipe, KEYS):
        accelerated = called(pipe)
        begun, goes_on = threading.Event(), threading.Event()
        with in_thread(lambda: called(pipe, 2, begun, goes_on)) as errors:
            assert begun.wait(60)
            with pytest.raises(RuntimeError, match="StableDiffusionPipeline is called in two threads at once"):
                called(pipe)
            goes_on.set()
        assert "is called in two threads at once" in str(errors[0])
        assert torch.equal(called(pipe), accelerated)
        found: list[torch.Tensor] = []
        with in_thread(lambda: found.append(called(pipe))) as errors:
            pass
        assert errors == [] and torch.equal(found[0], accelerated)


def test_a_block_may_be_entered_again_in_its_own_thread(pipe):
    with kept_to_this_thread(pipe, "the outer"), kept_to_this_thread(pipe, "the inner"):
        assert USES["sample"](pipe).counts.steps == 6
    assert USES["sample"](pipe).counts.steps == 6
