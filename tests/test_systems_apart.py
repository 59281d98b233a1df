"""What single systems need beside the laws of all: refusals, loops, few steps, and the ways in which pipelines are run."""

from __future__ import annotations

import threading

import pytest
import torch
from accelerate import disk_offload
from diffusers import (
    PixArtSigmaPAGPipeline,
    StableDiffusionControlNetPAGPipeline,
    StableDiffusionInstructPix2PixPipeline,
    StableDiffusionPAGPipeline,
)
from laws import CLOSE, distance
from models import state
from short_suite import long_but
from systems import ROWS
from systems.base import of, output
from systems.parts import UNET, image, unet
from systems.refused import REFUSED

import fastdiff_lab as fl
from fastdiff_lab import KeySchedule
from fastdiff_lab.comparison.costs import controlnet_flops
from fastdiff_lab.pipelines import with_settings_of
from fastdiff_lab.recording.record import bytes_to_keep
from fastdiff_lab.sampling.methods import Method, first_arguments, sample

_NOT_OURS = ("Default grid_sample", "torch.meshgrid")
pytestmark = [pytest.mark.filterwarnings(f"ignore:{reuse}:UserWarning") for reuse in _NOT_OURS]


def accelerated(name: str, pipe, **options):
    system = ROWS[name]
    with fl.encoder_propagation(pipe, KeySchedule(system.calls, system.keys), **options):
        return of(system, pipe)


# ---- refusals


@pytest.mark.parametrize("title", [refused.title for refused in REFUSED])
def test_what_cannot_work_says_where_to_go_on(title):
    refused = next(refused for refused in REFUSED if refused.title == title)
    pipe = refused.build()
    with pytest.raises(TypeError, match=refused.words), fl.encoder_propagation(pipe, KeySchedule.paper(50)):
        pass


def test_every_denoiser_with_another_name_is_named():
    """A pipeline is told what its UNets are called, not that it has none; and is not sent to caches for transformers."""
    pipe = next(refused for refused in REFUSED if refused.title == "UnCLIP").build()
    with pytest.raises(TypeError) as refusal, fl.record(pipe):
        pass
    assert "'decoder'" in str(refusal.value) and "'super_res_last'" in str(refusal.value)
    assert "enable_cache" not in str(refusal.value)


def test_gligens_switch_is_named_where_it_goes_off_between_keys():
    system = ROWS["gligen"]
    pipe = system.build()
    baseline, before = of(system, pipe), state(pipe)
    schedule = KeySchedule(6, [0, 2])
    with pytest.raises(ValueError, match="step 3 .*decoded ahead at key step 2: .*GLIGEN's switch.*Make step 3 a key step"):
        with fl.encoder_propagation(pipe, schedule):
            of(system, pipe)
    with fl.encoder_propagation(pipe, schedule, parallel_decoding=False) as counts:
        serial = of(system, pipe)
    assert counts.encoder_calls == 3  # the switch makes step 3 a key
    with fl.encoder_propagation(pipe, KeySchedule(6, [0, 2, 3])):
        assert distance(of(system, pipe), serial) < CLOSE
    assert state(pipe) == before and torch.equal(of(system, pipe), baseline)


# ---- Text2Video-Zero


def test_text2video_zero_is_serial():
    system = ROWS["text2video-zero"]
    pipe = system.build()
    before = state(pipe)
    with pytest.raises(ValueError, match="TextToVideoZeroPipeline mixes the rows of a batch.*use parallel_decoding=False"):
        with fl.encoder_propagation(pipe, KeySchedule(system.calls, system.keys)):
            pass
    assert state(pipe) == before


def test_text2video_zero_counts_the_time_steps_of_all_its_loops():
    system = ROWS["text2video-zero"]
    pipe = system.build()
    with pytest.raises(ValueError, match=r"for 7 steps, this run has 8 time-steps with DDIMScheduler; use schedule.rescaled\(8\)"):
        with fl.encoder_propagation(pipe, KeySchedule(7, [0, 2]), parallel_decoding=False):
            of(system, pipe)


@pytest.fixture(scope="module")
def zero():
    """Text2Video-Zero, and what it gives baseline."""
    pipe = ROWS["text2video-zero"].build()
    with torch.no_grad():
        return pipe, of(ROWS["text2video-zero"], pipe)


@pytest.mark.parametrize(
    "at", long_but((2,), (0, 2, 3, 9))
)  # in the first loop, at the end of the second, at both ends of the last
def test_text2video_zero_interrupted_leaves_no_processors_behind(at, zero):
    system, (pipe, baseline) = ROWS["text2video-zero"], zero
    before, processors = state(pipe), pipe.unet.attn_processors
    made = []

    def stop(step, timestep, latents):
        made.append(step)
        if len(made) == at + 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        with fl.encoder_propagation(pipe, KeySchedule(system.calls, system.keys), parallel_decoding=False):
            output(pipe, {**system.call, "callback": stop})
    assert pipe.unet.attn_processors == processors and state(pipe) == before
    assert torch.equal(of(system, pipe), baseline)


def test_prior_noise_is_refused_where_the_scheduler_is_replaced():
    with pytest.raises(ValueError, match="TextToVideoZeroPipeline, which replaces its scheduler in mid-run"):
        with fl.prior_noise_injection(ROWS["text2video-zero"].build()):
            pass


def test_features_over_log_snr_are_refused_where_time_steps_are_continuous():
    with pytest.raises(ValueError, match="EulerDiscreteScheduler has continuous time-steps here; accepted: axis='step'"):
        accelerated("stable-video", ROWS["stable-video"].build(), order=fl.Extrapolation(1, axis="log_snr"))


@pytest.mark.long
def test_prior_noise_is_refused_where_no_time_step_is_late():
    system = ROWS["stable-video"]
    pipe = system.build()
    baseline, before = of(system, pipe), state(pipe)
    with pytest.raises(ValueError, match="EulerDiscreteScheduler with continuous time-steps .*accepted: a scheduler whose"):
        with fl.prior_noise_injection(pipe):
            of(system, pipe)
    assert state(pipe) == before and torch.equal(of(system, pipe), baseline)


@pytest.mark.parametrize("name", long_but(["euler"], ["euler", "euler-ancestral", "ddim"]))
def test_prior_noise_of_image_to_image_has_the_scale_of_the_noise_it_begins_with(name):
    """z_T is scaled to unit deviation, also where the run begins at a smaller sigma than text-to-image does."""
    system = ROWS["sd-img2img"]
    pipe = system.build()
    pipe.scheduler = with_settings_of(pipe.scheduler, name)
    given, gave, step = [], [], pipe.scheduler.step

    def watched(prediction, timestep, sample, **options):
        given.append(sample)
        gave.append(step(prediction, timestep, sample, **options)[0])
        return (gave[-1],)

    pipe.scheduler.step = watched
    with fl.prior_noise_injection(pipe, weight=0.1):
        output(pipe, system.call | {"strength": 0.6, "num_inference_steps": 20})
    sigmas = torch.zeros(len(given)) if name == "ddim" else pipe.scheduler.sigmas[-len(given) - 1 : -1]
    scales = (sigmas**2 + 1) ** 0.5
    late = [place for place in range(1, len(given)) if not torch.equal(given[place], gave[place - 1])]
    assert len(late) > 3
    for place in late:
        expected = 0.1 * scales[place] * given[0] / scales[0]
        assert distance(given[place] - gave[place - 1], expected) < 1e-5
    del pipe.scheduler.step


@pytest.mark.parametrize("name", long_but(("dit",), ("sd", "dit", "ddim", "sdxl-ends-early")))
def test_prior_noise_serial_is_parallel(name):
    system = ROWS[name]
    pipe = system.build()
    results = []
    for options in ({}, {"parallel_decoding": False}):
        with fl.prior_noise_injection(pipe, weight=0.05):
            results.append(accelerated(name, pipe, **options))
    assert distance(*results) < system.close
    assert distance(results[0], accelerated(name, pipe)) > 1e-4 or name == "sdxl-ends-early"  # it ends before any noise comes


def test_the_keys_of_a_part_of_the_steps():
    schedule = KeySchedule(10, [0, 3, 4, 8])
    assert [str(schedule.part(*part)) for part in ((0, 10), (2, 5), (4, 9), (5, 8))] == [
        "0,3,4,8 of 10",
        "0-2 of 3",
        "0,4 of 5",
        "0 of 3",
    ]
    with pytest.raises(ValueError, match="steps 4 to 11 asked of a schedule of 10; accepted: 0 <= start < stop <= 10"):
        schedule.part(4, 11)


# ---- few steps


@pytest.mark.parametrize("name", long_but(["lcm"], ["lcm", "turbo", "consistency"]))
def test_few_steps_work_and_a_warning_says_that_nothing_is_gained(name):
    system = ROWS[name]
    pipe = system.build()
    with fl.encoder_propagation(pipe, KeySchedule(system.calls, range(system.calls))):
        of(system, pipe)  # nothing is reused, so there is nothing to warn of
    with pytest.warns(UserWarning, match=f"has {system.calls} steps with .*nothing is gained") as said:
        with fl.encoder_propagation(pipe, KeySchedule(system.calls, system.keys)):
            of(system, pipe)
            of(system, pipe)
    assert sum("nothing is gained" in str(warning.message) for warning in said) == 1


# ---- the ways in which pipelines are run


def test_a_strength_that_changes_between_runs():
    system = ROWS["sd-img2img"]
    pipe = system.build()
    weaker = {**system.call, "strength": 0.5}
    baseline = output(pipe, weaker)
    with fl.encoder_propagation(pipe, KeySchedule(system.calls, system.keys)):
        first = of(system, pipe)
        with pytest.raises(ValueError, match=r"is for 5 steps, this run has 4 time-steps.*use schedule.rescaled\(4\)"):
            output(pipe, weaker)
        assert torch.equal(of(system, pipe), first)
    with fl.encoder_propagation(pipe, KeySchedule(4, range(4))):
        assert torch.equal(output(pipe, weaker), baseline)


def test_a_lora_scale_that_changes_between_runs():
    system = ROWS["lora"]
    pipe = system.build()
    alone = {}
    for scale in (0.9, 0.3):
        pipe.set_adapters("style", scale)
        alone[scale] = accelerated("lora", pipe)
    assert distance(alone[0.9], alone[0.3]) > 1e-3
    with fl.encoder_propagation(pipe, KeySchedule(system.calls, system.keys)):
        for scale in (0.9, 0.3, 0.9):
            pipe.set_adapters("style", scale)
            assert torch.equal(of(system, pipe), alone[scale])


def _sliced(pipe, folder):
    pipe.enable_attention_slicing(1)
    pipe.vae.enable_slicing()
    pipe.vae.enable_tiling()


def _by_model(pipe, folder):
    pipe.enable_model_cpu_offload(device="cpu")


def _sequentially(pipe, folder):
    # What enable_sequential_cpu_offload does to each module, from the disk: from CPU to CPU accelerate 1.15 cannot do it.
    disk_offload(pipe.unet, folder, execution_device=torch.device("cpu"))


def _blocks_in_groups(pipe, folder):
    pipe.unet.enable_group_offload(
        onload_device=torch.device("cpu"), offload_device=torch.device("cpu"), offload_type="block_level", num_blocks_per_group=1
    )


def _leaves_in_groups(pipe, folder):
    pipe.unet.enable_group_offload(onload_device=torch.device("cpu"), offload_device=torch.device("cpu"), offload_type="leaf_level")


def _channels_last(pipe, folder):
    pipe.unet.to(memory_format=torch.channels_last)


WAYS = {
    "attention, VAE slicing and tiling": _sliced, "model offload": _by_model, "sequential offload": _sequentially,
    "group offload by blocks": _blocks_in_groups, "group offload by leaves": _leaves_in_groups, "channels_last": _channels_last,
}  # fmt: skip


ONE = {**ROWS["sd"].call, "num_images_per_prompt": 1}


@pytest.fixture(scope="module")
def on_its_own():
    """One image: baseline, and accelerated."""
    system = ROWS["sd"]
    pipe = system.build()
    with torch.no_grad():
        baseline = output(pipe, ONE)
        with fl.encoder_propagation(pipe, KeySchedule(system.calls, system.keys)):
            return baseline, output(pipe, ONE)


BEFORE, INSIDE = "before the block", "inside the block"
IN_ORDERS = [(way, order) for way in WAYS for order in (BEFORE, INSIDE)]
# Weights that come and go, weights that lie on the disk, another order in memory.
IN_ONE = [("group offload by blocks", INSIDE), ("sequential offload", BEFORE), ("channels_last", INSIDE)]


@pytest.mark.parametrize(("way", "order"), long_but(IN_ONE, IN_ORDERS))
def test_ways_of_running_in_both_orders(way, order, tmp_path, on_its_own):
    system, (baseline, expected) = ROWS["sd"], on_its_own
    pipe = system.build()
    if order == BEFORE:
        WAYS[way](pipe, tmp_path)
    with fl.encoder_propagation(pipe, KeySchedule(system.calls, system.keys)) as counts:
        if order == INSIDE:
            WAYS[way](pipe, tmp_path)
        assert distance(output(pipe, ONE), expected) < CLOSE < distance(baseline, expected)
    assert (counts.encoder_calls, counts.forward_calls, counts.steps) == (2, 2, 6)
    # Two pipelines' weights, and those loaded from the disk at each call, lie at other places, which decides the last bit.
    again = output(pipe, ONE)
    assert distance(again, baseline) < CLOSE
    if order == BEFORE:
        with fl.encoder_propagation(pipe, KeySchedule(system.calls, range(system.calls))):
            every = output(pipe, ONE)
        assert distance(every, again) < CLOSE if way == "sequential offload" else torch.equal(every, again)


@pytest.mark.long
@pytest.mark.parametrize(("dtype", "close"), [(torch.float16, 0.05), (torch.bfloat16, 0.2)])
def test_half_precision(dtype, close):
    system = ROWS["sd"]
    pipe = system.build().to(dtype)
    baseline = of(system, pipe)
    assert baseline.dtype == dtype
    with fl.encoder_propagation(pipe, KeySchedule(system.calls, range(system.calls))):
        assert torch.equal(of(system, pipe), baseline)
    serial, parallel = accelerated("sd", pipe, parallel_decoding=False), accelerated("sd", pipe)
    assert parallel.dtype == dtype and distance(parallel.float(), serial.float()) < close
    assert distance(serial.float(), baseline.float()) > 4 * close
    assert torch.equal(of(system, pipe), baseline)


@pytest.mark.long
def test_two_pipelines_in_two_threads():
    names = ("sd", "sdxl")
    pipes = {name: ROWS[name].build() for name in names}
    alone = {name: accelerated(name, pipes[name]) for name in names}
    found: dict[str, list] = {name: [] for name in names}

    def work(name):
        with torch.no_grad():
            for _ in range(3):
                found[name].append(accelerated(name, pipes[name]))

    threads = [threading.Thread(target=work, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(len(found[name]) == 3 and all(torch.equal(result, alone[name]) for result in found[name]) for name in names)


# ---- law 11: a callback that cuts the guidance batch in mid-run


def _cutting(step: int, names: tuple[str, ...]):
    """As in diffusers' documentation ("Dynamic classifier-free guidance"): no guidance after `step`."""

    def callback(pipe, at, timestep, values):
        if at == step:
            pipe._guidance_scale = 0.0
            return {name: values[name].chunk(2)[-1] for name in names}
        return values

    return {"callback_on_step_end": callback, "callback_on_step_end_tensor_inputs": list(names)}


CUT = {"sd": ("prompt_embeds",), "sdxl": ("prompt_embeds", "add_text_embeds", "add_time_ids")}


@pytest.mark.parametrize("images", long_but([2], [1, 2]))
def test_a_run_whose_guidance_ends_is_recorded(images):
    pipe = ROWS["sd"].build()
    call = {**ROWS["sd"].call, "num_images_per_prompt": images} | _cutting(2, CUT["sd"])
    seen = []
    handle = pipe.unet.mid_block.register_forward_hook(lambda module, args, result: seen.append(result.clone()))
    with fl.record(pipe, keep=["mid_block"]) as recording:
        output(pipe, call)
    handle.remove()
    assert [len(features) for features in seen] == 3 * [2 * images] + 3 * [images]
    assert torch.equal(recording["mid_block"], torch.stack([features[-images:] for features in seen], dim=1))
    for half in ("unconditional", "all"):
        with pytest.raises(ValueError, match=rf"gets {images} rows at step 3 and got {2 * images} before, so half='{half}'"):
            with fl.record(pipe, half=half):
                output(pipe, call)


def _perturbed(guidance):
    plain = ROWS["sd"].build()
    pipe = StableDiffusionPAGPipeline(**plain.components, requires_safety_checker=False, pag_applied_layers=["mid"])
    call = {**ROWS["sd"].call, "guidance_scale": guidance, "negative_prompt": None}
    return pipe, call, ("unconditional",) * (guidance > 1) + ("conditional", "perturbed")


def _perturbed_without_telling():
    """PixArt-Sigma's pipeline does not say whether it guides."""
    row = ROWS["pixart"]
    pipe = PixArtSigmaPAGPipeline(**row.build().components, pag_applied_layers="blocks.1")
    return pipe, {**row.call, "num_images_per_prompt": 2}, ("unconditional", "conditional", "perturbed")


def _pix2pix():
    plain = ROWS["sd-inpaint-9"].build()
    plain.unet = unet(UNET | {"in_channels": 8})
    pipe = StableDiffusionInstructPix2PixPipeline(**plain.components, requires_safety_checker=False)
    call = {name: value for name, value in ROWS["sd"].call.items() if name not in ("height", "width")}
    return (
        pipe,
        call
        | {
            "image": image(count=2),
            "prompt": ["a red circle", "a blue star"],
            "num_images_per_prompt": 1,
            "negative_prompt": None,
        },
        ("conditional", "of the image", "unconditional"),
    )


@pytest.mark.long
def test_a_run_that_is_broken_off_leaves_no_processors_behind():
    """Perturbed-attention guidance installs its own for each call, and takes them away at the end only."""
    pipe, call, _ = _perturbed(5.0)
    pipe.set_progress_bar_config(disable=True)
    before, kept = output(pipe, call), dict(pipe.unet.attn_processors)
    with pytest.raises(ValueError, match="mixes the rows of a batch"), fl.encoder_propagation(pipe, KeySchedule(6, (0, 3))):
        output(pipe, call)
    assert pipe.unet.attn_processors == kept
    bytes_to_keep(pipe, "mid_block", **call)
    assert pipe.unet.attn_processors == kept
    first_arguments(pipe.unet, lambda: pipe(**call))
    assert pipe.unet.attn_processors == kept
    options = {
        name: value
        for name, value in call.items()
        if name not in ("prompt", "guidance_scale", "num_inference_steps", "output_type")
    }
    with pytest.raises(ValueError, match="mixes the rows of a batch"):
        fl.calibrate(pipe, ["a red circle"], num_inference_steps=6, pipe_kwargs=options | {"num_images_per_prompt": 1})
    assert pipe.unet.attn_processors == kept and torch.equal(output(pipe, call), before)


def _break_off(*_):
    raise KeyboardInterrupt


def test_a_run_that_is_broken_off_while_it_is_recorded_or_sampled_leaves_no_processors_behind():
    pipe, call, _ = _perturbed(5.0)
    kept = dict(pipe.unet.attn_processors)
    with pytest.raises(ValueError, match="max_bytes is 10"), fl.record(pipe, keep=["mid_block"], max_bytes=10):
        output(pipe, call)
    assert pipe.unet.attn_processors == kept
    with pytest.raises(KeyboardInterrupt):
        sample(pipe, Method(), ["a red circle"], [0], num_inference_steps=6, pipe_kwargs={"callback_on_step_end": _break_off})
    assert pipe.unet.attn_processors == kept


def test_operations_of_a_controlnet_are_counted_and_no_processors_left_behind():
    row = ROWS["controlnet"]
    pipe = StableDiffusionControlNetPAGPipeline(**row.build().components, requires_safety_checker=False, pag_applied_layers=["mid"])
    kept = dict(pipe.unet.attn_processors)
    assert controlnet_flops(pipe, lambda: pipe(**row.call)) > 0 and pipe.unet.attn_processors == kept


BLOCKS = {
    "perturbed": lambda: _perturbed(5.0), "perturbed, unguided": lambda: _perturbed(1.0),
    "perturbed without telling": _perturbed_without_telling, "pix2pix": _pix2pix,
}  # fmt: skip


@pytest.mark.long
@pytest.mark.parametrize("name", BLOCKS)
def test_pipelines_with_other_blocks_of_rows_are_recorded_by_the_prompts_rows(name):
    pipe, call, blocks = BLOCKS[name]()
    pipe.set_progress_bar_config(disable=True)
    found, layer = {}, "down_blocks.1" if hasattr(pipe, "unet") else "transformer_blocks.0"
    for half in ("conditional", "unconditional", "all"):
        with fl.record(pipe, keep=[layer], half=half) as recording:
            images = len(output(pipe, call))
        found[half] = recording[layer]
    by_block = dict(zip(blocks, found["all"].chunk(len(blocks)), strict=True))
    assert len(found["all"]) == images * len(blocks)
    for half in ("conditional", "unconditional"):
        assert torch.equal(found[half], by_block[half if half in blocks else "conditional"])


@pytest.mark.long
def test_a_video_of_one_frame():
    system = ROWS["text-to-video"]
    pipe, call = system.build(), {**system.call, "num_frames": 1}
    baseline = output(pipe, call)
    drawn = {}
    for keys, parallel in ((range(6), True), ([0, 2], True), ([0, 2], False)):
        with fl.encoder_propagation(pipe, KeySchedule(6, keys), parallel_decoding=parallel):
            drawn[len(keys), parallel] = output(pipe, call)
    assert torch.equal(drawn[6, True], baseline)
    assert distance(drawn[2, True], drawn[2, False]) < CLOSE < distance(drawn[2, True], baseline)
    with fl.record(pipe) as recording:
        assert torch.equal(output(pipe, call), baseline)
    assert recording.num_samples == 1


@pytest.mark.long
@pytest.mark.parametrize("name", CUT)
def test_a_guidance_batch_cut_in_mid_run(name):
    """With two images per prompt: 4 rows before, 2 after, decoded from the features of the right half."""
    system = ROWS[name]
    pipe = system.build()
    within, at_key = ({**system.call, "num_images_per_prompt": 2} | _cutting(step, CUT[name]) for step in (2, 3))
    keys = [0, 2, 4]
    baseline, before = output(pipe, within), state(pipe)
    assert distance(baseline, output(pipe, {**system.call, "num_images_per_prompt": 2})) > 1e-3
    with fl.encoder_propagation(pipe, KeySchedule(6, range(6))):
        assert torch.equal(output(pipe, within), baseline)
    # Step 3 follows the cut and is no key: serial makes it one, parallel says so.
    with fl.encoder_propagation(pipe, KeySchedule(6, keys), parallel_decoding=False) as counts:
        serial = output(pipe, within)
    assert counts.encoder_calls == 4
    with fl.encoder_propagation(pipe, KeySchedule(6, keys)):
        with pytest.raises(ValueError, match="step 3 .*decoded ahead at key step 2: it has 2 rows, not 4. Make step 3 a key step"):
            output(pipe, within)
    with fl.encoder_propagation(pipe, KeySchedule(6, [0, 2, 3, 4])) as counts:
        assert distance(output(pipe, within), serial) < CLOSE
    assert counts.encoder_calls == counts.forward_calls == 4
    # The cut falls before key step 4: nothing to say, and both ways give the same.
    results = []
    for parallel in (False, True):
        with fl.encoder_propagation(pipe, KeySchedule(6, keys), parallel_decoding=parallel) as counts:
            results.append(output(pipe, at_key))
        assert counts.encoder_calls == 3
    assert distance(*results) < CLOSE
    assert state(pipe) == before and torch.equal(output(pipe, within), baseline)
