"""The laws of encoder propagation, each on tiny real classes in float64."""

from __future__ import annotations

import contextlib

import pytest
import torch
from diffusers import DDIMScheduler
from models import (
    FAMILIES,
    NOISE,
    SCHEDULERS,
    SIDES,
    TOKENS,
    WIDTH,
    conditions,
    controlnet_pipeline,
    denoiser_calls,
    denoiser_pipe,
    loop,
    pipeline,
    run,
    state,
    unet,
)
from oracle import TransformerOracle, oracle

import fastdiff_lab as fl
from fastdiff_lab import KeySchedule
from fastdiff_lab.hooks.denoiser import denoiser_of

CLOSE = 1e-10
KEYS = KeySchedule(10, [0, 1, 4, 8])
FEW = KeySchedule(6, [0, 1, 3])  # groups of one, two and three steps
SIZES = {"own": None, "even": (16, 24), "odd": (9, 13)}
# Every family once, the plain one at each size. Odd are only those that pass the sizes of their skips on.
SHAPES = [
    *((name, "own") for name in ("plain", "unet2d", "unet2d-class", "unet2d-skip", "dit")),
    *((name, "even") for name in ("plain", "sdxl", "class-conditional")),
    *((name, "odd") for name in ("plain", "no-mid", "scale-shift", "unet3d", "spatio-temporal", "motion")),
]
# Each scheduler with and without guidance, with and without prior noise, and all pairs of these two.
SAMPLED = [
    (name, guidance, (0.0, 0.05)[(place + guided) % 2])
    for place, name in enumerate(SCHEDULERS)
    for guided, guidance in enumerate((1.0, 5.0))
]


def test_every_family_and_size_is_among_the_shapes():
    assert {name for name, _ in SHAPES} == set(FAMILIES) and {size for _, size in SHAPES} == set(SIZES)


def distance(a, b) -> float:
    return float((a - b).abs().max())


# ---- law 1: every step a key == untouched


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_step_a_key_is_the_untouched_pipeline(name):
    pipe = pipeline(name, torch.float32)
    options = {"steps": 5, "pictures": 1, "guidance": 1.0 if name in ("ddim", "heun", "lms") else 5.0}
    untouched = run(pipe, **options)
    calls = denoiser_calls(pipe, 5)
    with fl.encoder_propagation(pipe, KeySchedule(calls, range(calls))) as counts:
        assert torch.equal(run(pipe, **options), untouched)
    assert counts.encoder_calls == counts.decoder_calls == counts.forward_calls == counts.steps == calls


# ---- law 2 and 3: serial == parallel, and the counts


@pytest.mark.parametrize(("name", "guidance", "noise"), SAMPLED)
def test_parallel_decoding_is_serial_decoding(name, guidance, noise):
    pipe = pipeline(name)
    steps = 4 if name in ("heun", "kdpm2", "pndm") else 7  # these call the denoiser twice in a step
    options = {"steps": steps, "pictures": 1 if guidance > 1 and name != "ddim" else 2, "guidance": guidance}
    schedule = KeySchedule.uniform(denoiser_calls(pipe, steps), 2)
    rows = options["pictures"] * (2 if guidance > 1 else 1)

    def accelerated(**more):
        injection = fl.prior_noise_injection(pipe, weight=noise) if noise else contextlib.nullcontext()
        with injection, fl.encoder_propagation(pipe, schedule, **more) as counts:
            return run(pipe, **options), counts

    serial, counts = accelerated(parallel_decoding=False)
    assert counts.encoder_calls == 2 and counts.forward_calls == schedule.num_steps
    parallel, counts = accelerated()
    assert counts.encoder_calls == counts.forward_calls == 2
    assert counts.decoder_calls == counts.steps == schedule.num_steps
    assert distance(serial, parallel) < CLOSE
    for cap in (rows, 2 * rows, 2 * rows + 1) if name in ("ddim", "heun") else (2 * rows + 1,):
        assert distance(serial, accelerated(max_rows=cap)[0]) < CLOSE
    assert distance(serial, run(pipe, **options)) > 1e-3


def test_a_cap_limits_the_rows_that_are_decoded_at_once():
    pipe = pipeline()
    rows = []
    pipe.unet.conv_out.register_forward_pre_hook(lambda module, args: rows.append(len(args[0])))
    with fl.encoder_propagation(pipe, KEYS, max_rows=10) as counts:
        run(pipe)
    assert max(rows) == 8 and counts.encoder_calls == 4
    assert sum(rows) == 4 * (10 + 2)  # two steps are decoded alone once more, since the hook is none of diffusers'


# ---- law 1 to 4 for every denoiser class: the split forward by hand


@pytest.mark.parametrize(("name", "size"), SHAPES)
def test_every_step_a_key_is_the_untouched_denoiser(name, size):
    """And the split by hand is the host there."""
    pipe, given, size = denoiser_pipe(name), conditions(name), SIZES[size]
    untouched = loop(pipe, 3, given, size=size)
    with fl.encoder_propagation(pipe, KeySchedule(3, range(3))):
        assert torch.equal(loop(pipe, 3, given, size=size), untouched)
    assert distance(loop(pipe, 3, given, size=size, predict=oracle(denoiser_of(pipe), range(3))), untouched) < CLOSE


@pytest.mark.parametrize(("name", "size"), SHAPES)
def test_non_key_steps_are_those_of_the_hand_written_split(name, size):
    """One after the other, in parallel, and in parallel with a cap."""
    pipe, given, size = denoiser_pipe(name), conditions(name), SIZES[size]
    by_hand = loop(pipe, 6, given, size=size, predict=oracle(denoiser_of(pipe), FEW.keys))
    assert distance(by_hand, loop(pipe, 6, given, size=size)) > 1e-3
    for parallel in (False, True):
        with fl.encoder_propagation(pipe, FEW, parallel_decoding=parallel) as counts:
            assert distance(loop(pipe, 6, given, size=size), by_hand) < CLOSE
        assert (counts.encoder_calls, counts.decoder_calls, counts.forward_calls) == (3, 6, 3 if parallel else 6)
    for cap in (2, 4, 5) if (name, size) == ("plain", None) else (5,):
        with fl.encoder_propagation(pipe, FEW, max_rows=cap):
            assert distance(loop(pipe, 6, given, size=size), by_hand) < CLOSE


def changed(value):
    if isinstance(value, dict):
        return {name: changed(inner) for name, inner in value.items()}
    return value + 1 if value.is_floating_point() else (value + 1) % 3


@pytest.mark.parametrize("name", [name for name in FAMILIES if conditions(name)])
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


# ---- what is held: the paper's Table 14, and law 12


@pytest.mark.parametrize("name", ["plain", "unet2d", "unet3d", "spatio-temporal", "motion"])
def test_holding_the_decoder_is_holding_the_prediction(name):
    pipe = denoiser_pipe(name)
    results = {}
    for what in ("decoder", "prediction"):
        with fl.encoder_propagation(pipe, FEW, what=what) as counts:
            results[what] = loop(pipe, 6, conditions(name)), counts
    assert distance(results["decoder"][0], results["prediction"][0]) < CLOSE
    assert (results["decoder"][1].encoder_calls, results["decoder"][1].decoder_calls) == (6, 3)
    counts = results["prediction"][1]
    assert (counts.encoder_calls, counts.decoder_calls, counts.forward_calls, counts.steps) == (3, 3, 3, 6)


def test_a_held_prediction_is_the_scheduler_on_the_key_time_steps():
    """DDIM with a constant prediction is one straight jump, so only the key time-steps matter (law 12)."""
    pipe = denoiser_pipe()
    with fl.encoder_propagation(pipe, KEYS, what="prediction"):
        held = loop(pipe, 10, conditions())
    times = pipe.scheduler.timesteps
    alphas = pipe.scheduler.alphas_cumprod.double()
    sample = torch.randn((2, 4, *SIDES), generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    for key, following in zip(KEYS.keys, [*KEYS.keys[1:], 10], strict=True):
        noise = pipe.unet(sample, times[key], **conditions()).sample
        now, then = alphas[times[key]], alphas[times[following]] if following < 10 else pipe.scheduler.final_alpha_cumprod.double()
        clean = (sample - (1 - now).sqrt() * noise) / now.sqrt()
        sample = then.sqrt() * clean + (1 - then).sqrt() * noise
    assert distance(held, sample) < 1e-5  # the scheduler's alphas are float32


def test_a_held_prediction_is_not_used_for_another_text():
    pipe = denoiser_pipe()
    first, second = conditions(), conditions()
    second["encoder_hidden_states"] = second["encoder_hidden_states"] + 1
    with fl.encoder_propagation(pipe, KEYS, what="prediction") as counts:
        loop(pipe, 10, lambda step: first if step < 6 else second)
    assert counts.forward_calls == 5  # step 6 became a key


def test_nobody_writes_into_the_prediction_of_another_step():
    pipe = denoiser_pipe()
    with fl.encoder_propagation(pipe, KeySchedule(3, [0]), what="prediction"):
        pipe.scheduler.set_timesteps(3)
        sample = torch.zeros(2, 4, *SIDES, dtype=torch.float64)
        first = pipe.unet(sample, pipe.scheduler.timesteps[0], **conditions()).sample
        expected = first.clone()
        first.zero_()
        assert torch.equal(pipe.unet(sample, pipe.scheduler.timesteps[1], **conditions()).sample, expected)


# ---- law 5: afterwards everything is as before


class Stop(Exception):
    pass


@pytest.fixture(scope="module")
def stopped():
    """A pipeline, its latents, and its accelerated latents."""
    with torch.no_grad():
        pipe = pipeline(dtype=torch.float32)
        untouched = run(pipe, 6, pictures=1)
        with fl.encoder_propagation(pipe, FEW):
            return pipe, untouched, run(pipe, 6, pictures=1)


@pytest.mark.parametrize("at", range(6))
def test_an_exception_at_any_step_leaves_the_pipeline_as_it_was(at, stopped):
    pipe, untouched, accelerated = stopped
    error = (Stop, KeyboardInterrupt)[at % 2]
    before = state(pipe)

    def stop(pipe, step, timestep, values):
        if step == at:
            raise error
        return values

    with pytest.raises(error), fl.encoder_propagation(pipe, FEW), fl.prior_noise_injection(pipe):
        run(pipe, 6, pictures=1, callback_on_step_end=stop)
    assert state(pipe) == before
    assert torch.equal(run(pipe, 6, pictures=1), untouched)
    with fl.encoder_propagation(pipe, FEW):
        with pytest.raises(error):
            run(pipe, 6, pictures=1, callback_on_step_end=stop)
        assert torch.equal(run(pipe, 6, pictures=1), accelerated)
        assert torch.equal(run(pipe, 6, pictures=1), accelerated)


# Before the first key, at a step that was decoded ahead, and at a key after such steps.
STOPS = [("plain", 0), ("plain", 2), ("plain", 3), *((name, (2, 3, 0)[place % 3]) for place, name in enumerate(FAMILIES) if place)]


@pytest.mark.parametrize(("name", "at"), STOPS)
def test_an_exception_leaves_every_denoiser_class_as_it_was(name, at):
    pipe, given = denoiser_pipe(name), conditions(name)
    untouched = loop(pipe, 2, given)
    before = state(pipe)

    def stopping(step):
        if step == at:
            raise Stop
        return given

    with pytest.raises(Stop), fl.encoder_propagation(pipe, FEW):
        loop(pipe, 6, stopping)
    assert state(pipe) == before
    assert torch.equal(loop(pipe, 2, given), untouched)


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
    untouched = loop(denoiser_pipe(), 5, conditions())
    assert torch.equal(loop(pipe, 5, conditions()), untouched)


# ---- law 6: what users put on a UNet


def test_time_steps_that_a_call_rounds_are_decoded_ahead_as_rounded():
    """DreamLite gives them in the latents' kind of number: 777 is 776 in bfloat16."""
    pipe = denoiser_pipe()
    pipe.scheduler = DDIMScheduler(**NOISE, clip_sample=False)

    def rounded(step, sample, timestep, given):
        return pipe.unet(sample, timestep.expand(2).to(torch.bfloat16), **given).sample

    results = []
    for parallel in (False, True):
        with fl.encoder_propagation(pipe, KeySchedule(9, [0, 1, 5]), parallel_decoding=parallel) as counts:
            results.append(loop(pipe, 9, conditions(), predict=rounded))
    assert counts.forward_calls == 3 and distance(*results) < CLOSE
    with fl.encoder_propagation(pipe, KeySchedule(9, [0, 1, 5])):
        assert distance(loop(pipe, 9, conditions()), results[0]) > 1e-4  # exact time-steps give something else


def test_freeu():
    pipe = denoiser_pipe()
    plain = loop(pipe, 6, conditions())
    pipe.unet.enable_freeu(s1=0.9, s2=0.2, b1=1.5, b2=1.6)
    by_hand = loop(pipe, 6, conditions(), predict=oracle(pipe.unet, FEW.keys))
    assert distance(loop(pipe, 6, conditions()), plain) > 1e-3
    for parallel in (False, True):
        with fl.encoder_propagation(pipe, FEW, parallel_decoding=parallel):
            assert distance(loop(pipe, 6, conditions()), by_hand) < CLOSE


def adapter_arguments():
    generator = torch.Generator().manual_seed(9)
    shapes = [(18, 10, 14), (27, 5, 7), (33, 3, 4), (36, 2, 2)]
    residuals = [torch.randn((2, *shape), generator=generator, dtype=torch.float64) for shape in shapes]
    # The host takes the list apart, so every call gets its own, as from the pipelines.
    return lambda step: conditions() | {"down_intrablock_additional_residuals": [residual.clone() for residual in residuals]}


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
    pictures = torch.randn((2, 1, 6), generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    given = conditions() | {"added_cond_kwargs": {"image_embeds": [pictures]}}
    by_hand = loop(pipe, 6, given, predict=oracle(pipe.unet, FEW.keys))
    other = given | {"added_cond_kwargs": {"image_embeds": [-pictures]}}
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


IMAGE = torch.rand((2, 3, 20, 28), generator=torch.Generator().manual_seed(8), dtype=torch.float64)


@pytest.mark.parametrize("guess", [False, True])
def test_a_controlnet_is_evaluated_at_key_steps_only(guess):
    pipe = controlnet_pipeline()
    options = {"image": IMAGE, "guess_mode": guess}
    untouched = run(pipe, 6, **options)
    assert distance(untouched, run(pipe, 6, image=1 - IMAGE, guess_mode=guess)) > 1e-3
    with fl.encoder_propagation(pipe, KeySchedule(6, range(6))):
        assert torch.equal(run(pipe, 6, **options), untouched)
    with fl.encoder_propagation(pipe, FEW, parallel_decoding=False) as counts:
        serial = run(pipe, 6, **options)
    assert counts.controlnet_calls == counts.encoder_calls == 3
    with fl.encoder_propagation(pipe, FEW) as counts:
        assert distance(run(pipe, 6, **options), serial) < CLOSE
        # The held residuals of one run are not those of the next.
        other = run(pipe, 6, image=1 - IMAGE, guess_mode=guess)
        assert distance(other, serial) > 1e-3
    assert counts.controlnet_calls == 6


@pytest.mark.parametrize("parallel", [False, True])
def test_a_changing_controlnet_scale_needs_a_key_step(parallel):
    pipe = controlnet_pipeline()
    with pytest.raises(ValueError, match="step 5 .*is no key step.*conditioning_scale|step 5 .*is no key step"):
        with fl.encoder_propagation(pipe, KEYS, parallel_decoding=parallel):
            run(pipe, image=IMAGE, control_guidance_end=0.5)
    with fl.encoder_propagation(pipe, KeySchedule(10, [0, 1, 5, 8]), parallel_decoding=parallel):
        run(pipe, image=IMAGE, control_guidance_end=0.5)


# ---- law 11: what was decoded ahead is used for what it was decoded for


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
    untouched = run(pipe, **cutting_guidance(4))
    with fl.encoder_propagation(pipe, KeySchedule(10, range(10))):
        assert torch.equal(run(pipe, **cutting_guidance(4)), untouched)
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


def test_a_call_at_another_time_step():
    pipe = denoiser_pipe()
    pipe.scheduler.set_timesteps(10)
    sample = torch.zeros(2, 4, *SIDES, dtype=torch.float64)
    times = pipe.scheduler.timesteps
    with pytest.raises(ValueError, match=r"step 1 of .* comes at time-step 301, not at the scheduler's next one \(801\)"):
        with fl.encoder_propagation(pipe, KeySchedule(10, [0])):
            pipe.unet(sample, times[0], **conditions())
            pipe.unet(sample, torch.tensor(301), **conditions())


# ---- runs


def test_runs_of_the_scheduler_are_recognised():
    pipe = denoiser_pipe()
    with fl.encoder_propagation(pipe, KEYS) as counts:
        first = loop(pipe, 10, conditions())
        pipe.scheduler.set_timesteps(10)
        pipe.unet(torch.zeros(2, 4, *SIDES, dtype=torch.float64), pipe.scheduler.timesteps[0], **conditions())
        assert torch.equal(loop(pipe, 10, conditions()), first)
    assert counts.runs == 3 and counts.steps == 21


@pytest.mark.parametrize("name", ["ddim", "pndm", "euler", "heun"])
def test_image_to_image_makes_fewer_calls(name):
    from diffusers import StableDiffusionImg2ImgPipeline

    pipe = StableDiffusionImg2ImgPipeline(**pipeline(name).components, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    options = {"image": IMAGE, "strength": 0.7}
    text = torch.randn((2, 6, 8), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    options |= {"prompt_embeds": text, "negative_prompt_embeds": torch.zeros_like(text), "num_inference_steps": 8}

    def draw(**more):
        return pipe(**options | more, output_type="latent", generator=torch.Generator().manual_seed(3)).images

    draw()
    calls = pipe._num_timesteps
    assert calls < denoiser_calls(pipe, 8)
    results = []
    for parallel in (False, True):
        with fl.encoder_propagation(pipe, KeySchedule.uniform(calls, 2), parallel_decoding=parallel) as counts:
            results.append(draw())
            assert counts.encoder_calls == 2
            # Another strength is another number of calls, and never the features of the run before.
            with pytest.raises(ValueError, match=f"schedule is for {calls} steps"):
                draw(strength=0.9)
    assert distance(*results) < CLOSE


# ---- bad input


def test_a_schedule_for_another_number_of_steps():
    pipe = pipeline("pndm")
    with pytest.raises(
        ValueError, match=r"for 10 steps, this run has 19 time-steps with PNDMScheduler; use schedule.rescaled\(19\)"
    ):
        with fl.encoder_propagation(pipe, KEYS):
            run(pipe)


@pytest.mark.filterwarnings("ignore:the encoder_propagation block accelerated nothing")
def test_two_accelerations_nested():
    pipe = pipeline()
    with fl.encoder_propagation(pipe, KEYS), pytest.raises(RuntimeError, match="accelerated already"):
        with fl.encoder_propagation(pipe, KEYS):
            pass
    with fl.encoder_propagation(pipe, KEYS):
        run(pipe)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"order": 3}, "`order` must be an int from 0 to 2, got 3"),
        ({"max_rows": 0}, "`max_rows` must be a positive int or None, got 0"),
        ({"max_rows": 4, "parallel_decoding": False}, "leave one of them out"),
        ({"max_rows": 4, "what": "prediction"}, "leave one of them out"),
        ({"what": "unet"}, "`what` must be one of encoder, decoder, prediction, got 'unet'"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(ValueError, match=message), fl.encoder_propagation(pipeline(), KEYS, **options):
        pass


def test_a_cap_below_one_step():
    pipe = pipeline()
    with pytest.raises(ValueError, match="max_rows=3 asked, but one step of this run has 4 rows"):
        with fl.encoder_propagation(pipe, KEYS, max_rows=3):
            run(pipe)


def test_no_schedule():
    with pytest.raises(TypeError, match="accepted: a KeySchedule"), fl.encoder_propagation(pipeline(), [0, 1]):
        pass


def test_a_pipeline_without_a_denoiser():
    with (
        pytest.raises(TypeError, match="object has no 'unet' and no 'transformer' .its components: none"),
        fl.encoder_propagation(object(), KEYS),
    ):
        pass


def test_a_denoiser_of_another_class():
    pipe = pipeline()
    pipe.unet = torch.nn.Linear(1, 1)
    with (
        pytest.raises(TypeError, match="cannot split a Linear; accepted: UNet2DConditionModel, UNet2DModel"),
        fl.encoder_propagation(pipe, KEYS),
    ):
        pass


@pytest.mark.parametrize("how", ["wrapped", "in place"])
def test_a_model_compiled_as_a_whole(how):
    pipe = pipeline()
    if how == "wrapped":
        pipe.unet = torch.compile(pipe.unet)
    else:
        pipe.unet.compile()
    with pytest.raises(TypeError, match="compiled as a whole.*compile_repeated_blocks"), fl.encoder_propagation(pipe, KEYS):
        pass


def test_compiled_blocks_are_called_compiled():
    pipe = denoiser_pipe()
    expected = loop(denoiser_pipe(), 5, conditions())
    calls = []
    block = pipe.unet.down_blocks[0]
    # What nn.Module.compile does, with a "compiler" that counts.
    block._compiled_call_impl = lambda *args, **kwargs: (calls.append(1), block._call_impl(*args, **kwargs))[1]
    with fl.encoder_propagation(pipe, KeySchedule(5, range(5))):
        assert torch.equal(loop(pipe, 5, conditions()), expected)
    assert len(calls) == 5 and block._compiled_call_impl is not None


def test_attention_that_mixes_rows():
    class PAGIdentitySelfAttnProcessor2_0:
        def __call__(self, attn, hidden_states, *args, **kwargs):
            return hidden_states

    pipe = pipeline()
    pipe.unet.set_attn_processor(PAGIdentitySelfAttnProcessor2_0())
    with pytest.raises(ValueError, match="PAGIdentity.*mixes the rows"), fl.encoder_propagation(pipe, KEYS):
        pass
    with fl.encoder_propagation(pipe, KEYS, parallel_decoding=False):
        run(pipe)


def test_attention_that_mixes_rows_and_comes_with_the_call():
    class CrossFrameAttnProcessor2_0:
        def __call__(self, attn, hidden_states, *args, **kwargs):
            return hidden_states

    pipe = pipeline()
    with pytest.raises(ValueError, match="CrossFrameAttnProcessor2_0 mixes the rows"), fl.encoder_propagation(pipe, KEYS):
        pipe.unet.set_attn_processor(CrossFrameAttnProcessor2_0())
        run(pipe)


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


def test_latents_that_are_not_numbers():
    pipe = pipeline()

    def spoil(pipe, step, timestep, values):
        if step == 5:
            values["latents"] = values["latents"] * torch.nan
        return values

    with pytest.raises(ValueError, match=r"the latents that step 6 \(time-step \d+\) gets hold NaN"):
        with fl.encoder_propagation(pipe, KEYS):
            run(pipe, callback_on_step_end=spoil)


def test_an_argument_that_nobody_knows_how_to_repeat():
    pipe = denoiser_pipe()
    given = conditions() | {"cross_attention_kwargs": {"strange": torch.zeros(7, 3)}}
    with pytest.raises(TypeError, match=r"'strange' has a tensor of shape \(7, 3\) for 2 rows"):
        with fl.encoder_propagation(pipe, KEYS):
            loop(pipe, 10, given)


def test_an_argument_of_a_class_of_ones_own():
    class Styled(type(unet())):
        def forward(self, sample, timestep, encoder_hidden_states, style=None):
            return super().forward(sample, timestep, encoder_hidden_states)

    pipe = denoiser_pipe()
    pipe.unet.__class__ = Styled
    given = conditions() | {"style": torch.zeros(2, 3)}
    with pytest.raises(TypeError, match="argument 'style' is not known to parallel decoding; use parallel_decoding=False"):
        with fl.encoder_propagation(pipe, KEYS):
            loop(pipe, 10, given)
    with fl.encoder_propagation(pipe, KEYS, parallel_decoding=False) as counts:
        loop(pipe, 10, given)
    assert counts.encoder_calls == 4


def test_a_scheduler_without_time_steps():
    pipe = denoiser_pipe(schedule_name="pndm")
    sample = torch.zeros(2, 4, *SIDES, dtype=torch.float64)
    with pytest.raises(ValueError, match="PNDMScheduler has no time-steps yet. Call the pipeline, or set_timesteps, first"):
        with fl.encoder_propagation(pipe, KEYS):
            pipe.unet(sample, torch.tensor(3), **conditions())


def test_no_state_stays_on_the_model():
    model = unet()
    names = set(vars(model))
    pipe = denoiser_pipe()
    pipe.unet = model
    with fl.encoder_propagation(pipe, KEYS):
        loop(pipe, 10, conditions())
    assert set(vars(model)) == names
