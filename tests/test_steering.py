"""Law 6: what users put on a UNet is in the steps that are decoded from reused features."""

from __future__ import annotations

import pytest
import torch
from laws import CLOSE, FEW, IMAGE, KEYS, adapter_arguments, distance
from models import SIDES, conditions, controlnet_pipeline, denoiser_pipe, loop, run
from oracle import oracle

import fastdiff_lab as fl
from fastdiff_lab import KeySchedule


def test_freeu():
    pipe = denoiser_pipe()
    plain = loop(pipe, 6, conditions())
    pipe.unet.enable_freeu(s1=0.9, s2=0.2, b1=1.5, b2=1.6)
    by_hand = loop(pipe, 6, conditions(), predict=oracle(pipe.unet, FEW.keys))
    assert distance(loop(pipe, 6, conditions()), plain) > 1e-3
    for parallel in (False, True):
        with fl.encoder_propagation(pipe, FEW, parallel_decoding=parallel):
            assert distance(loop(pipe, 6, conditions()), by_hand) < CLOSE


def test_t2i_adapter():
    pipe = denoiser_pipe()
    given = adapter_arguments()
    by_hand = loop(pipe, 6, given, predict=oracle(pipe.unet, FEW.keys))
    assert distance(loop(pipe, 6, given), loop(pipe, 6, conditions())) > 1e-3
    for parallel in (False, True):
        with fl.encoder_propagation(pipe, FEW, parallel_decoding=parallel):
            assert distance(loop(pipe, 6, given), by_hand) < CLOSE


def test_ip_adapter():
    pipe = denoiser_pipe()
    pipe.unet._load_ip_adapter_weights([_ip_adapter_weights(pipe.unet)])
    pipe.unet.to(torch.float64).requires_grad_(False)
    images = torch.randn((2, 1, 6), generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    given = conditions() | {"added_cond_kwargs": {"image_embeds": [images]}}
    by_hand = loop(pipe, 6, given, predict=oracle(pipe.unet, FEW.keys))
    other = given | {"added_cond_kwargs": {"image_embeds": [-images]}}
    assert distance(loop(pipe, 6, given), loop(pipe, 6, other)) > 1e-3
    for parallel in (False, True):
        with fl.encoder_propagation(pipe, FEW, parallel_decoding=parallel):
            assert distance(loop(pipe, 6, given), by_hand) < CLOSE


def _ip_adapter_weights(model) -> dict:
    generator = torch.Generator().manual_seed(7)
    tokens = 4

    def draw(*shape):
        return 0.3 * torch.randn(shape, generator=generator)

    projection = {
        "proj.weight": draw(tokens * 8, 6),
        "proj.bias": draw(tokens * 8),
        "norm.weight": 1 + draw(8),
        "norm.bias": draw(8),
    }
    layers = {}
    sizes = {n: p.to_k.weight.shape[0] for n, p in model.named_modules() if n.endswith("attn2")}
    names = [n.removesuffix(".processor") for n in model.attn_processors]
    for place, name in enumerate(names):
        if name in sizes:
            layers[f"{place}.to_k_ip.weight"] = draw(sizes[name], 8)
            layers[f"{place}.to_v_ip.weight"] = draw(sizes[name], 8)
    return {"image_proj": projection, "ip_adapter": layers}


def test_lora():
    from peft import LoraConfig

    pipe = denoiser_pipe()
    plain = loop(pipe, 6, conditions())
    torch.manual_seed(0)
    pipe.unet.add_adapter(LoraConfig(r=2, target_modules=["to_k", "to_v"], init_lora_weights=False))
    pipe.unet.to(torch.float64).requires_grad_(False)
    by_hand = loop(pipe, 6, conditions(), predict=oracle(pipe.unet, FEW.keys))
    assert distance(loop(pipe, 6, conditions()), plain) > 1e-3
    for parallel in (False, True):
        with fl.encoder_propagation(pipe, FEW, parallel_decoding=parallel):
            assert distance(loop(pipe, 6, conditions()), by_hand) < CLOSE


def test_residuals_of_a_controlnet_as_arguments():
    pipe = denoiser_pipe()
    generator = torch.Generator().manual_seed(11)
    skips = pipe.unet
    shapes = []
    handle = skips.up_blocks[0].register_forward_pre_hook(lambda m, a, k: shapes.append(k["hidden_states"].shape), with_kwargs=True)
    found = []
    hooks = [b.register_forward_hook(lambda m, a, o: found.extend(s.shape for s in o[1])) for b in pipe.unet.down_blocks]
    pipe.scheduler.set_timesteps(1)
    pipe.unet(torch.zeros(2, 4, *SIDES, dtype=torch.float64), 1, **conditions())
    handle.remove()
    for hook in hooks:
        hook.remove()

    def draw(shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    residuals = {
        "down_block_additional_residuals": [draw((2, 18, *SIDES)), *map(draw, found)],
        "mid_block_additional_residual": draw(shapes[0]),
    }
    given = conditions() | residuals
    by_hand = loop(pipe, 6, given, predict=oracle(pipe.unet, FEW.keys))
    assert distance(loop(pipe, 6, given), loop(pipe, 6, conditions())) > 1e-3
    for parallel in (False, True):
        with fl.encoder_propagation(pipe, FEW, parallel_decoding=parallel):
            assert distance(loop(pipe, 6, given), by_hand) < CLOSE


@pytest.mark.parametrize("guess", [False, pytest.param(True, marks=pytest.mark.long)])
def test_a_controlnet_is_evaluated_at_key_steps_only(guess):
    pipe = controlnet_pipeline()
    options = {"image": IMAGE, "guess_mode": guess}
    baseline = run(pipe, 6, **options)
    assert distance(baseline, run(pipe, 6, image=1 - IMAGE, guess_mode=guess)) > 1e-3
    with fl.encoder_propagation(pipe, KeySchedule(6, range(6))):
        assert torch.equal(run(pipe, 6, **options), baseline)
    with fl.encoder_propagation(pipe, FEW, parallel_decoding=False) as counts:
        serial = run(pipe, 6, **options)
    assert counts.controlnet_calls == counts.encoder_calls == 3
    with fl.encoder_propagation(pipe, FEW) as counts:
        assert distance(run(pipe, 6, **options), serial) < CLOSE
        # The reused residuals of one run are not those of the next.
        other = run(pipe, 6, image=1 - IMAGE, guess_mode=guess)
        assert distance(other, serial) > 1e-3
    assert counts.controlnet_calls == 6


@pytest.mark.parametrize("parallel", [pytest.param(False, marks=pytest.mark.long), True])
def test_a_changing_controlnet_scale_needs_a_key_step(parallel):
    pipe = controlnet_pipeline()
    with pytest.raises(ValueError, match="step 5 .*is no key step.*conditioning_scale|step 5 .*is no key step"):
        with fl.encoder_propagation(pipe, KEYS, parallel_decoding=parallel):
            run(pipe, image=IMAGE, control_guidance_end=0.5)
    with fl.encoder_propagation(pipe, KeySchedule(10, [0, 1, 5, 8]), parallel_decoding=parallel):
        run(pipe, image=IMAGE, control_guidance_end=0.5)


def test_a_lora_scale_of_the_call_is_no_change():
    from peft import LoraConfig

    pipe = denoiser_pipe()
    pipe.unet.add_adapter(LoraConfig(r=2, target_modules=["to_k"], init_lora_weights=False))
    pipe.unet.to(torch.float64).requires_grad_(False)
    pipe.unet.set_adapters("default", weights=0.7)
    given = conditions() | {"cross_attention_kwargs": {"scale": 0.8}}
    with fl.encoder_propagation(pipe, KEYS) as counts:
        loop(pipe, 10, given)
    assert counts.forward_calls == 4
