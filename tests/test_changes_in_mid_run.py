"""Law 11: what was decoded ahead is used for what it was decoded for."""

from __future__ import annotations

import pytest
import torch
from laws import CLOSE, KEYS, distance
from models import TOKENS, WIDTH, conditions, denoiser_pipe, loop, pipeline, run
from oracle import oracle

import fastdiff_lab as fl
from fastdiff_lab import KeySchedule


def cutting_guidance(at):
    """A callback as in diffusers' documentation: no guidance from a step on."""

    def callback(pipe, step, timestep, values):
        if step == at:
            pipe._guidance_scale = 0.0
            values["prompt_embeds"] = values["prompt_embeds"].chunk(2)[-1]
        return values

    return {"callback_on_step_end": callback, "callback_on_step_end_tensor_inputs": ["prompt_embeds"]}


def test_a_guidance_batch_cut_in_mid_run():
    pipe = pipeline()
    baseline = run(pipe, **cutting_guidance(4))
    with fl.encoder_propagation(pipe, KeySchedule(10, range(10))):
        assert torch.equal(run(pipe, **cutting_guidance(4)), baseline)
    with fl.encoder_propagation(pipe, KEYS, parallel_decoding=False) as counts:
        run(pipe, **cutting_guidance(4))
    assert counts.encoder_calls == 5  # step 5 became a key
    with pytest.raises(ValueError, match=r"step 5 .*decoded ahead at key step 4: it has 2 rows, not 4"):
        with fl.encoder_propagation(pipe, KEYS):
            run(pipe, **cutting_guidance(4))
    with fl.encoder_propagation(pipe, KEYS):
        run(pipe, **cutting_guidance(3))  # the change falls on a key step


def test_a_text_changed_in_mid_run():
    pipe = denoiser_pipe()
    first, second = conditions(), conditions()
    second["encoder_hidden_states"] = second["encoder_hidden_states"] + 1
    changing = lambda step: first if step < 6 else second
    with fl.encoder_propagation(pipe, KEYS, parallel_decoding=False) as counts:
        changed = loop(pipe, 10, changing)
    assert counts.encoder_calls == 5
    assert distance(changed, loop(pipe, 10, changing, predict=oracle(pipe.unet, (0, 1, 4, 6, 8)))) < CLOSE
    with pytest.raises(ValueError, match="step 6 .*its encoder_hidden_states is another"):
        with fl.encoder_propagation(pipe, KEYS):
            loop(pipe, 10, changing)
    equal_copies = lambda step: conditions()
    with fl.encoder_propagation(pipe, KEYS) as counts:
        loop(pipe, 10, equal_copies)
    assert counts.forward_calls == 4


def test_a_text_overwritten_in_place():
    pipe = denoiser_pipe()
    given = conditions()

    def overwriting(step):
        if step == 6:
            given["encoder_hidden_states"].add_(1)
        return given

    with pytest.raises(ValueError, match="step 6 .*its encoder_hidden_states is another"):
        with fl.encoder_propagation(pipe, KEYS):
            loop(pipe, 10, overwriting)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_text_overwritten_in_place_by_a_callback(mode):
    """In inference mode nobody counts what is written into a tensor."""
    pipe = pipeline()

    def overwrite(pipe, step, timestep, values):
        if step == 5:
            values["prompt_embeds"].mul_(0.5)
        return values

    with mode(), fl.encoder_propagation(pipe, KEYS):
        run(pipe)
        with pytest.raises(ValueError, match="step 6 .*its encoder_hidden_states is another"):
            run(pipe, callback_on_step_end=overwrite, callback_on_step_end_tensor_inputs=["prompt_embeds"])


def test_text_made_in_inference_mode_and_used_outside():
    pipe = pipeline()
    with torch.inference_mode():
        text = torch.zeros(2, TOKENS, WIDTH, dtype=torch.float64)
    options = {"prompt_embeds": text, "guidance": 1.0}
    with fl.encoder_propagation(pipe, KEYS) as counts:
        run(pipe, **options)
    assert counts.forward_calls == 4


def test_an_adapter_scale_changed_in_mid_run():
    from peft import LoraConfig

    pipe = denoiser_pipe()
    pipe.unet.add_adapter(LoraConfig(r=2, target_modules=["to_k"], init_lora_weights=False))
    pipe.unet.to(torch.float64).requires_grad_(False)

    def scaling(step):
        if step == 6:
            pipe.unet.set_adapters("default", weights=0.3)
        return conditions()

    with pytest.raises(
        ValueError,
        match="step 6 .*a weight, an adapter, an attention processor, GLIGEN's switch or a scale of LoRA, IP-Adapter or FreeU is another",
    ):
        with fl.encoder_propagation(pipe, KEYS):
            loop(pipe, 10, scaling)


def test_freeu_switched_on_in_mid_run():
    pipe = pipeline()

    def switching(pipe, step, timestep, values):
        if step == 5:
            pipe.enable_freeu(s1=0.9, s2=0.2, b1=1.5, b2=1.6)
        return values

    with pytest.raises(
        ValueError,
        match="step 6 .*a weight, an adapter, an attention processor, GLIGEN's switch or a scale of LoRA, IP-Adapter or FreeU is another",
    ):
        with fl.encoder_propagation(pipe, KEYS):
            run(pipe, callback_on_step_end=switching)


def test_latents_that_are_not_numbers():
    pipe = pipeline()

    def spoil(pipe, step, timestep, values):
        if step == 5:
            values["latents"] = values["latents"] * torch.nan
        return values

    with pytest.raises(ValueError, match=r"the latents that step 6 \(time-step \d+\) gets hold NaN"):
        with fl.encoder_propagation(pipe, KEYS):
            run(pipe, callback_on_step_end=spoil)


def test_a_last_prediction_that_is_no_number():
    """No later step would get it."""
    pipe = pipeline()

    def spoil(pipe, step, timestep, values):
        if step == 8:
            pipe.unet.conv_out.bias.data[0] = torch.nan
        return values

    with pytest.raises(ValueError, match=r"the numbers that step 9 \(time-step \d+\) predicts hold NaN"):
        with fl.encoder_propagation(pipe, KeySchedule(10, [0, 9])):
            run(pipe, callback_on_step_end=spoil)
