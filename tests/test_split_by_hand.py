"""Law 4: what non-key steps give is what a forward split by hand gives."""

from __future__ import annotations

import pytest
from laws import CLOSE, FEW, KEYS, SHAPE_KINDS, SHAPES, SIZES, distance
from models import FAMILIES, conditions, denoiser_pipe, loop
from oracle import TransformerOracle, oracle
from short_suite import long_but

import fastdiff_lab as fl
from fastdiff_lab.hooks.denoiser import denoiser_of


@pytest.mark.parametrize(("name", "size"), long_but(SHAPE_KINDS, SHAPES))
def test_non_key_steps_are_those_of_the_hand_written_split(name, size):
    """One after the other, in parallel, and in parallel with a cap; videos take long, and test_systems.py shows that they change."""
    pipe, given, size, is_video = denoiser_pipe(name), conditions(name), SIZES[size], FAMILIES[name].frames_axis is not None
    by_hand = loop(pipe, 6, given, size=size, predict=oracle(denoiser_of(pipe), FEW.keys))
    assert is_video or distance(by_hand, loop(pipe, 6, given, size=size)) > 1e-3
    for parallel in (False, True):
        with fl.encoder_propagation(pipe, FEW, parallel_decoding=parallel) as counts:
            assert distance(loop(pipe, 6, given, size=size), by_hand) < CLOSE
        assert (counts.encoder_calls, counts.decoder_calls, counts.forward_calls) == (3, 6, 3 if parallel else 6)
    for cap in (2, 4, 5) if name == "plain" else () if is_video else (5,):
        with fl.encoder_propagation(pipe, FEW, max_rows=cap):
            assert distance(loop(pipe, 6, given, size=size), by_hand) < CLOSE


def changed(value):
    if isinstance(value, dict):
        return {name: changed(inner) for name, inner in value.items()}
    return value + 1 if value.is_floating_point() else (value + 1) % 3


CONDITIONED = [name for name in FAMILIES if conditions(name)]


@pytest.mark.parametrize("name", long_but(("plain", "sdxl", "motion", "dit"), CONDITIONED))
def test_every_condition_matters(name):
    pipe, given = denoiser_pipe(name), conditions(name)
    as_given = loop(pipe, 1, given)
    for argument, value in given.items():
        assert distance(as_given, loop(pipe, 1, given | {argument: changed(value)})) > 1e-3, argument


@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_encoder_of_a_transformer_is_its_first_blocks(count):
    pipe = denoiser_pipe("dit")
    by_hand = loop(pipe, 6, conditions("dit"), predict=TransformerOracle(pipe.transformer, FEW.keys, count))
    with fl.encoder_propagation(pipe, FEW, encoder_blocks=count):
        assert distance(loop(pipe, 6, conditions("dit")), by_hand) < CLOSE


def test_a_split_of_a_transformer_out_of_range():
    with pytest.raises(ValueError, match="`encoder_blocks` must be an int from 1 to 3 for a transformer with 4 blocks, got 4"):
        with fl.encoder_propagation(denoiser_pipe("dit"), KEYS, encoder_blocks=4):
            pass
    with pytest.raises(ValueError, match="encoder_blocks=2 asked of a UNet2DConditionModel; accepted: None"):
        with fl.encoder_propagation(denoiser_pipe(), KEYS, encoder_blocks=2):
            pass
