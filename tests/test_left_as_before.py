"""Law 5: afterwards, also after an exception, the pipeline is as it was."""

from __future__ import annotations

import pytest
import torch
from laws import FEW, KEYS
from models import FAMILIES, FAMILY_KINDS, conditions, denoiser_pipe, loop, pipeline, run, state, unet
from short_suite import long_but

import fastdiff_lab as fl


class Stop(Exception):
    pass


@pytest.fixture(scope="module")
def stopped():
    """A pipeline, its latents, and its accelerated latents."""
    with torch.no_grad():
        pipe = pipeline(dtype=torch.float32)
        baseline = run(pipe, 6, images=1)
        with fl.encoder_propagation(pipe, FEW):
            return pipe, baseline, run(pipe, 6, images=1)


@pytest.mark.parametrize("at", long_but((0, 2, 3), range(6)))
def test_an_exception_at_any_step_leaves_the_pipeline_as_it_was(at, stopped):
    pipe, baseline, accelerated = stopped
    error = (Stop, KeyboardInterrupt)[at % 2]
    before = state(pipe)

    def stop(pipe, step, timestep, values):
        if step == at:
            raise error
        return values

    with pytest.raises(error), fl.encoder_propagation(pipe, FEW), fl.prior_noise_injection(pipe):
        run(pipe, 6, images=1, callback_on_step_end=stop)
    assert state(pipe) == before
    assert torch.equal(run(pipe, 6, images=1), baseline)
    with fl.encoder_propagation(pipe, FEW):
        with pytest.raises(error):
            run(pipe, 6, images=1, callback_on_step_end=stop)
        assert torch.equal(run(pipe, 6, images=1), accelerated)
        assert torch.equal(run(pipe, 6, images=1), accelerated)


# Before the first key, at a step that was decoded ahead, and at a key after such steps.
STOPS = [("plain", 0), ("plain", 2), ("plain", 3), *((name, (2, 3, 0)[place % 3]) for place, name in enumerate(FAMILIES) if place)]


@pytest.mark.parametrize(("name", "at"), long_but([stop for stop in STOPS if stop[0] in FAMILY_KINDS], STOPS))
def test_an_exception_leaves_every_denoiser_class_as_it_was(name, at):
    pipe, given = denoiser_pipe(name), conditions(name)
    baseline = loop(pipe, 2, given)
    before = state(pipe)

    def stopping(step):
        if step == at:
            raise Stop
        return given

    with pytest.raises(Stop), fl.encoder_propagation(pipe, FEW):
        loop(pipe, 6, stopping)
    assert state(pipe) == before
    assert torch.equal(loop(pipe, 2, given), baseline)


def test_features_are_freed_when_they_have_been_used():
    import gc
    import weakref

    pipe = denoiser_pipe()
    seen = []
    handle = pipe.unet.down_blocks[0].register_forward_hook(lambda m, a, output: seen.append(weakref.ref(output[1][0])))
    with fl.encoder_propagation(pipe, KEYS, parallel_decoding=False):
        loop(pipe, 10, conditions())
        handle.remove()
        gc.collect()
        assert len(seen) == 4 and all(ref() is None for ref in seen)


def test_something_installed_above_in_the_block_is_left_there_and_said():
    pipe = denoiser_pipe()
    mid = pipe.unet.mid_block
    with pytest.warns(UserWarning, match="mid.*was changed inside the block|UNetMidBlock2DCrossAttn was changed"):
        with fl.encoder_propagation(pipe, KEYS):
            loop(pipe, 10, conditions())
            ours = mid._compiled_call_impl
            mid._compiled_call_impl = lambda *args, **kwargs: ours(*args, **kwargs)
    baseline = loop(denoiser_pipe(), 5, conditions())
    assert torch.equal(loop(pipe, 5, conditions()), baseline)


def test_no_state_stays_on_the_model():
    model = unet()
    names = set(vars(model))
    pipe = denoiser_pipe()
    pipe.unet = model
    with fl.encoder_propagation(pipe, KEYS):
        loop(pipe, 10, conditions())
    assert set(vars(model)) == names
