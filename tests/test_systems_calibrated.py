"""Calibration on pipelines other than Stable Diffusion's: costs are what real runs lose, or it is refused before any work."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from models import state
from PIL import Image
from short_suite import long_but
from systems import ROWS, options_of
from systems.base import as_tensor
from systems.video import stable_video

import fastdiff_lab as fl
from fastdiff_lab import KeySchedule
from fastdiff_lab.calibration.reuse_costs import ReuseCosts
from fastdiff_lab.sampling.methods import generators

STEPS, KEY = 5, 2
TEXTS = ["a red circle", "a white ring at the left on a blue background"]


def image(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8))


def video_pipeline():
    return stable_video(224)


VIDEO = {key: value for key, value in options_of("stable-video").items() if key != "image"}
SMALL_VIDEO = {"height": 16, "width": 24, "num_frames": 2}
CASES = {
    "text to video": (ROWS["text-to-video"].build, TEXTS[:1], options_of("text-to-video") | SMALL_VIDEO, 5.0),
    "I2VGen-XL": (ROWS["i2vgen-xl"].build, TEXTS[:1], options_of("i2vgen-xl"), 5.0),
    "AnimateDiff": (ROWS["animatediff"].build, TEXTS, options_of("animatediff"), 5.0),
    "AnimateDiff, ControlNet": (ROWS["animatediff-controlnet"].build, TEXTS[:1], options_of("animatediff-controlnet"), 5.0),
    "Stable Video Diffusion": (video_pipeline, [image(0)], VIDEO, None),
    "ControlNet": (ROWS["controlnet"].build, TEXTS[:1], options_of("controlnet"), 5.0),
    "ControlNetUnion": (ROWS["controlnet-union"].build, TEXTS[:1], options_of("controlnet-union"), 5.0),
    "latent consistency, 5 steps": (ROWS["lcm"].build, TEXTS, options_of("lcm"), 5.0),
}


def further(options: dict) -> dict:
    """Without what the library gives itself."""
    return {name: value for name, value in options.items() if name != "output_type"}


def final(pipe, prompts, call) -> torch.Tensor:
    """The final latents, one row of numbers per prompt."""
    found = as_tensor(pipe(prompts, generator=generators(range(len(prompts))), num_inference_steps=STEPS, **call)[0])
    return found.reshape(len(prompts), -1).double()  # images are whole numbers


@pytest.mark.filterwarnings("ignore:this run has 5 steps with LCMScheduler")
@pytest.mark.parametrize("name", long_but(("ControlNet",), CASES))
def test_a_span_to_the_end_costs_what_a_real_run_loses(name):
    build, prompts, options, guidance = CASES[name]
    pipe = build()
    call = options | ({} if guidance is None else {"guidance_scale": guidance})
    baseline, before = final(pipe, prompts, call), state(pipe)
    measured = {"num_inference_steps": STEPS, "max_span": STEPS - KEY, "pipe_kwargs": further(options)}
    costs = fl.calibrate(pipe, prompts, guidance_scale=guidance, **measured)
    assert state(pipe) == before and torch.equal(final(pipe, prompts, call), baseline)
    assert costs.displacement.shape == (len(prompts), 1, STEPS, STEPS - KEY + 1)
    with fl.encoder_propagation(pipe, KeySchedule(STEPS, range(KEY + 1))):
        expected = (final(pipe, prompts, call) - baseline).norm(dim=1)
    assert expected.min() > 1e-4
    assert torch.allclose(costs.displacement[:, 0, KEY, STEPS - KEY].double(), expected.double(), rtol=1e-4)


def test_the_halves_that_dit_steps_under_guidance_count_once():
    """DiTPipeline gives images only, so the latents that it decodes are caught."""
    pipe, labels = ROWS["dit"].build(), [3, 700]
    costs = fl.calibrate(pipe, labels, num_inference_steps=STEPS, guidance_scale=4.0, max_span=STEPS - KEY)
    found = []
    decode = pipe.vae.decode
    pipe.vae.decode = lambda latents, *args, **kwargs: (found.append(latents), decode(latents, *args, **kwargs))[1]
    call = lambda: pipe(labels, generator=generators((0, 1)), num_inference_steps=STEPS, guidance_scale=4.0)
    call()
    with fl.encoder_propagation(pipe, KeySchedule(STEPS, range(KEY + 1))):
        call()
    expected = (found[1] - found[0]).flatten(1).norm(dim=1) * pipe.vae.config.scaling_factor
    assert expected.min() > 1e-4
    assert torch.allclose(costs.displacement[:, 0, KEY, STEPS - KEY].double(), expected.double(), rtol=1e-4)


FITTED = CASES | {
    "SDXL": (ROWS["sdxl"].build, TEXTS, options_of("sdxl"), 5.0),
    "image to image": (ROWS["sd-img2img"].build, TEXTS, options_of("sd-img2img"), 5.0),
    "inpainting": (ROWS["sdxl-inpaint"].build, TEXTS, options_of("sdxl-inpaint"), 5.0),
    "DiT": (ROWS["dit"].build, [3, 700], {}, 4.0),
}
IN_SHORT = ("ControlNet", "image to image", "DiT")


@pytest.mark.filterwarnings("ignore:this run has . steps with")
@pytest.mark.parametrize("name", [pytest.param(name, marks=() if name in IN_SHORT else pytest.mark.long) for name in FITTED])
@pytest.mark.parametrize("order", [0, pytest.param(1, marks=pytest.mark.long)])
def test_a_fit_comes_nearer(name, order):
    """On the prompts that it was fitted on; serial and parallel alike."""
    build, prompts, options, guidance = FITTED[name]
    pipe = build()
    call = options | ({} if guidance is None else {"guidance_scale": guidance})
    baseline, before = final(pipe, prompts, call), state(pipe)
    calls = getattr(pipe, "_num_timesteps", STEPS)
    schedule = KeySchedule(calls, (0, 2))
    fit = fl.fit_propagation(
        pipe, schedule, prompts, guidance_scale=guidance, num_inference_steps=STEPS, pipe_kwargs=further(options), order=order
    )  # fmt: skip
    assert state(pipe) == before and torch.equal(final(pipe, prompts, call), baseline)
    found = {}
    for way, more in {"held": {}, "fitted": {"fit": fit}, "serial": {"fit": fit, "parallel_decoding": False}}.items():
        with fl.encoder_propagation(pipe, schedule, order=order, **more):
            found[way] = final(pipe, prompts, call)
    assert (found["fitted"] - baseline).norm() < (found["held"] - baseline).norm()
    assert torch.allclose(found["serial"], found["fitted"], rtol=1e-6, atol=1e-8)


# ---- Stable Video Diffusion: the guidance scale grows from frame to frame


def video_run(pipe, **options):
    return pipe([image(0)], generator=generators((0,)), num_inference_steps=STEPS, **VIDEO, **options)


@pytest.mark.long
def test_a_guidance_that_grows_from_frame_to_frame_is_named_by_the_last_frame():
    options = {"min_guidance_scale": 1.2, "max_guidance_scale": 2.7}
    pipe = video_pipeline()
    measured = {"num_inference_steps": STEPS, "max_span": 2, "pipe_kwargs": further(VIDEO | options)}
    costs = fl.calibrate(pipe, [image(0)], guidance_scale=None, **measured)
    assert costs.measured_on["guidance_scale"] == pytest.approx(2.7)
    schedule = fl.derive_schedule(costs, 3)
    schedule = KeySchedule(STEPS, schedule.keys, measured_on={"guidance_scale": schedule.measured_on["guidance_scale"]})
    for dtype in (torch.float64, torch.bfloat16):  # 2.7 is 2.703 in bfloat16, and no other guidance
        with fl.encoder_propagation(pipe.to(dtype), schedule):
            video_run(pipe, **options)  # a warning would be an error here
    with pytest.warns(UserWarning, match="measured with guidance scale 2.7.*, this run has 2.0; its keys need not be good here"):
        with fl.encoder_propagation(pipe, schedule):
            video_run(pipe, max_guidance_scale=2.0)


@pytest.mark.long
def test_a_stopped_calibration_of_images_goes_on(tmp_path):
    """Images are told apart by what they show, not by where they lie in memory."""
    pipe, store = video_pipeline(), tmp_path / "costs.safetensors"
    options = {"num_inference_steps": 3, "guidance_scale": None, "pipe_kwargs": further(VIDEO), "store": store}
    first = fl.calibrate(pipe, [image(0)], **options)
    again = fl.calibrate(pipe, [image(0)], **options)
    assert torch.equal(again.displacement.nan_to_num(-1), first.displacement.nan_to_num(-1))
    assert ReuseCosts.load(store).about["prompts"][0].startswith("image ")
    with pytest.raises(ValueError, match="holds other costs"):
        fl.calibrate(pipe, [image(1)], **options)


# ---- refusals


@pytest.mark.long
def test_a_pipeline_that_draws_without_its_generator_is_refused():
    pipe = ROWS["i2vgen-xl"].build()
    del pipe.prepare_image_latents  # the test's own, which always draws alike
    before = state(pipe)
    with pytest.raises(ValueError, match="runs differ with the same seed .*its image_latents is another.: it draws without"):
        fl.calibrate(pipe, TEXTS[:1], num_inference_steps=3, pipe_kwargs=further(options_of("i2vgen-xl")))
    assert state(pipe)[:2] == before[:2]


SEVERAL = "which goes through its time-steps several times in one call"
REFUSED = {
    "Text2Video-Zero": (
        ROWS["text2video-zero"].build, {}, f"TextToVideoZeroPipeline, {SEVERAL} .backward_loop.*accepted: a pipeline with one run",
    ),
    "FreeInit": (ROWS["animatediff-free-init"].build, {}, f"AnimateDiffPipeline, {SEVERAL} .free_init"),
    "DDIM, unconditional": (ROWS["ddim"].build, {}, "DDIMPipeline, which is called with a number of images; accepted: .*list of prompts"),
    "consistency": (ROWS["consistency"].build, {}, "ConsistencyModelPipeline, which is called with a number of images"),
    "guidance": (
        video_pipeline, {"guidance_scale": 5.0},
        "guidance_scale=5.0 asked of StableVideoDiffusionPipeline, which takes none; accepted: guidance_scale=None, with "
        "min_guidance_scale and max_guidance_scale in pipe_kwargs",
    ),
    "two steps": (ROWS["sd"].build, {"num_inference_steps": 2}, "calibration of a run of 2 steps asked; accepted: 3 or more"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_calibrated_is_refused_before_any_work(name):
    build, options, words = REFUSED[name]
    pipe = build()
    before, calls = state(pipe), []
    handle = pipe.unet.register_forward_pre_hook(lambda *_: calls.append(1))
    options = {"num_inference_steps": 8} | options
    if name != "two steps":  # so few can be refined
        with pytest.raises(ValueError, match=words):
            fl.refine_schedule(pipe, KeySchedule.uniform(8, 3), TEXTS, **options)
    with pytest.raises(ValueError, match=words):
        fl.calibrate(pipe, TEXTS, **options)
    handle.remove()
    assert not calls and state(pipe) == before
