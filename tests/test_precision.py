"""What changes with the precision of a pipeline: fingerprints, jitter, rounding, the order of memory."""

from __future__ import annotations

import warnings

import pytest
import torch
from models import pipeline, run
from systems import ROWS
from systems.base import of

import fastdiff_lab as fl
from fastdiff_lab import KeySchedule
from fastdiff_lab.hooks.batch_rows import repeat_rows
from fastdiff_lab.hooks.fingerprint import differences, identity
from fastdiff_lab.propagation.extrapolation import Extrapolation, History

HALF = {"float16": torch.float16, "bfloat16": torch.bfloat16}
PROMPTS = ["a red circle", "a white ring"]
SIZE = {"height": 16, "width": 16}


@pytest.mark.parametrize("dtype", HALF)
def test_what_was_measured_in_float32_is_not_said_to_be_of_other_weights_in_half_precision(dtype):
    whole, half = pipeline(dtype=torch.float32), pipeline(dtype=torch.float32)
    half.unet.to(HALF[dtype])
    measured_on = identity(whole)
    assert differences(measured_on, half) == [] and differences(identity(half), whole) == []
    before = {name: value for name, value in measured_on.items() if name not in ("dtype", "weights_seen")}
    assert differences(before, half) == []  # a file of before they were kept
    with torch.no_grad():
        half.unet.conv_in.weight.mul_(-1)
        whole.unet.conv_in.weight.mul_(1.001)
    for found in (differences(measured_on, half), differences(measured_on, whole), differences(before, whole)):
        assert len(found) == 1 and found[0].startswith("weights ")


def test_two_runs_that_differ_in_the_last_digits_are_alike():
    pipe = ROWS["sd"].build()
    measured = {"num_inference_steps": 4, "max_span": 2, "pipe_kwargs": SIZE}
    plain = fl.calibrate(pipe, PROMPTS[:1], **measured)
    drawn = torch.Generator().manual_seed(1)
    for jitter in (1e-7, 1e-5):

        def jittering(module, args, kwargs, output, jitter=jitter):
            noise = torch.randn(output[0].shape, generator=drawn, dtype=output[0].dtype)
            output.last_hidden_state = output[0] * (1 + jitter * noise)
            return output

        handle = pipe.text_encoder.register_forward_hook(jittering, with_kwargs=True)
        costs = fl.calibrate(pipe, PROMPTS[:1], **measured)
        handle.remove()
        assert torch.allclose(costs.displacement, plain.displacement, rtol=0.05, atol=100 * jitter, equal_nan=True)


@pytest.mark.long
def test_latents_that_are_drawn_without_the_generator_are_two_runs():
    pipe = ROWS["sd"].build()
    latents = type(pipe).prepare_latents

    def anew(*args, **kwargs):
        return torch.randn_like(latents(pipe, *args, **kwargs))

    pipe.prepare_latents = anew
    with pytest.raises(ValueError, match="runs differ with the same seed .*its sample is another"):
        fl.calibrate(pipe, PROMPTS, num_inference_steps=6, max_span=3)


def test_bfloat16_is_said_to_round_what_is_measured_and_injected_away():
    pipe = ROWS["sd"].build().to(torch.bfloat16)
    with pytest.warns(UserWarning, match="calibration asked in bfloat16: small displacements are lost in rounding"):
        fl.calibrate(pipe, PROMPTS[:1], num_inference_steps=4, max_span=2, pipe_kwargs=SIZE)
    call = {"num_inference_steps": 4, "output_type": "latent", **SIZE}
    with (
        fl.prior_noise_injection(pipe),
        pytest.warns(UserWarning, match="weight 0.003 added in bfloat16: about half of it is lost"),
    ):
        pipe(PROMPTS[0], **call)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for dtype, weight in ((torch.float16, 0.003), (torch.bfloat16, 0.1), (torch.bfloat16, 0.0)):
            with fl.prior_noise_injection(pipe.to(dtype), weight=weight):
                pipe(PROMPTS[0], **call)


def channels_last(tensor: torch.Tensor) -> bool:
    return tensor.is_contiguous(memory_format=torch.channels_last)


def test_rows_that_are_repeated_keep_their_order_of_memory():
    feature = torch.randn(2, 8, 4, 4).to(memory_format=torch.channels_last)
    repeated = repeat_rows(feature, 2, 3)
    assert channels_last(repeated) and torch.equal(repeated, feature.repeat(3, 1, 1, 1))
    for order in (0, 1):
        history = History(Extrapolation(order))
        for place in range(order + 1):
            history.add(float(place), None)
            assert channels_last(history.at([3.0, 4.0, 5.0], [feature] * (place + 1)))


@pytest.mark.filterwarnings("ignore:.* keeps something from call to call")
@pytest.mark.parametrize("order", [0, 1])
def test_the_decoder_of_a_channels_last_model_gets_channels_last(order):
    pipe, kept = pipeline(dtype=torch.float32), []
    pipe.unet.to(memory_format=torch.channels_last)

    def look(module, args, kwargs):
        kept.extend(channels_last(skip) for skip in kwargs["res_hidden_states_tuple"] if min(skip.shape[1:]) > 1)

    for block in pipe.unet.up_blocks:
        block.register_forward_pre_hook(look, with_kwargs=True)
    run(pipe)
    baseline = sum(kept) / len(kept)
    kept.clear()
    with fl.encoder_propagation(pipe, KeySchedule(10, [0, 1, 4]), order=order):
        run(pipe)
    assert kept and sum(kept) / len(kept) >= baseline > 0


# Their baselines fail in this precision: numpy has no bfloat16 for their images, or the pipeline draws its latents in float32.
# LEDITS++ keeps what it inverted in the precision of then.
FAILING = {"float16": ("ldm", "ledits"), "bfloat16": ("ldm", "ledits", "ddim", "ddpm", "stable-video")}


# Each system in one of the two, in turn; those that fail in one of them in both.
SYSTEMS = [
    (name, dtype)
    for place, name in enumerate(ROWS)
    for which, dtype in enumerate(HALF)
    if which == place % 2 or name in FAILING["bfloat16"]
]


@pytest.mark.long
@pytest.mark.parametrize(("name", "dtype"), SYSTEMS)
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning", "ignore::FutureWarning")
def test_every_step_a_key_is_the_baseline_in_half_precision(name, dtype):
    system = ROWS[name]
    pipe = system.build().to(HALF[dtype])
    half = in_half(system, HALF[dtype])
    if name in FAILING[dtype]:
        with pytest.raises((TypeError, RuntimeError), match="BFloat16|Half"):
            of(half, pipe)
        return
    baseline = of(half, pipe)
    with fl.encoder_propagation(
        pipe, KeySchedule(system.calls, range(system.calls)), parallel_decoding=system.parallel, **system.options
    ):
        assert torch.equal(of(half, pipe), baseline)


def in_half(system, dtype):
    """The system with the tensors of its call in this precision."""
    from dataclasses import replace

    def halved(value):
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            return value.to(dtype)
        return [halved(inner) for inner in value] if isinstance(value, list) else value

    return replace(system, call={name: halved(value) for name, value in system.call.items()})
