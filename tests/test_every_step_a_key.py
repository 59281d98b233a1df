"""Law 1: with every step a key, pipelines and denoisers of every class and size give what they give baseline."""

from __future__ import annotations

import pytest
import torch
from laws import CLOSE, SHAPES, SIZES, distance
from models import FAMILIES, SCHEDULERS, conditions, denoiser_calls, denoiser_pipe, loop, pipeline, run
from oracle import oracle
from short_suite import long_but

import fastdiff_lab as fl
from fastdiff_lab import KeySchedule
from fastdiff_lab.hooks.denoiser import denoiser_of


def test_every_family_and_size_is_among_the_shapes():
    assert {name for name, _ in SHAPES} == set(FAMILIES) and {size for _, size in SHAPES} == set(SIZES)


@pytest.mark.parametrize("name", long_but(("ddim", "heun", "dpm-solver++"), SCHEDULERS))
def test_every_step_a_key_is_the_baseline(name):
    pipe = pipeline(name, torch.float32)
    options = {"steps": 5, "images": 1, "guidance": 1.0 if name in ("ddim", "heun", "lms") else 5.0}
    baseline = run(pipe, **options)
    calls = denoiser_calls(pipe, 5)
    with fl.encoder_propagation(pipe, KeySchedule(calls, range(calls))) as counts:
        assert torch.equal(run(pipe, **options), baseline)
    assert counts.encoder_calls == counts.decoder_calls == counts.forward_calls == counts.steps == calls


# Every class once, but for those of motion, which test_split_by_hand.py has.
CLASSES = [
    (name, size)
    for name, size in SHAPES
    if name not in ("unet2d-class", "class-conditional", "no-mid", "scale-shift", "deep", "motion")
]


@pytest.mark.parametrize(("name", "size"), long_but(CLASSES, SHAPES))
def test_every_step_a_key_is_the_baseline_denoiser(name, size):
    """And the split by hand is the host there."""
    pipe, given, size = denoiser_pipe(name), conditions(name), SIZES[size]
    baseline = loop(pipe, 2, given, size=size)
    with fl.encoder_propagation(pipe, KeySchedule(2, range(2))):
        assert torch.equal(loop(pipe, 2, given, size=size), baseline)
    assert distance(loop(pipe, 2, given, size=size, predict=oracle(denoiser_of(pipe), range(2))), baseline) < CLOSE
