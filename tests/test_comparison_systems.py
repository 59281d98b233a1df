"""`compare` on pipelines other than Stable Diffusion's text to image: video, class labels, pixels, images given, or it is refused."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
import torch
from models import FRAMES, state
from PIL import Image
from short_suite import long_but
from systems import ROWS, options_of
from systems.base import as_tensor
from systems.parts import SIZE
from systems.video import stable_video

import fastdiff_lab as fl
from fastdiff_lab import KeySchedule, Method
from fastdiff_lab.hooks.fingerprint import in_words
from fastdiff_lab.sampling.methods import generators, sample

TEXTS = ["a red circle", "a white ring"]
# They are dear: as few steps as no warning is given for.
VIDEOS = ("text-to-video", "animatediff", "animatediff-controlnet", "stable-video", "i2vgen-xl")
NAMES = (
    "sd-img2img",
    "sdxl-ends-early",
    "controlnet",
    "if-3",
    *VIDEOS,
    "ldm-text",
    "dit",
    "dpm-single",
)


SMALL_VIDEO = {"height": 16, "width": 24, "num_frames": 2}
IMAGES = [Image.fromarray(pixels) for pixels in np.random.default_rng(0).integers(0, 255, (2, 16, 16, 3), np.uint8)]


def images_of(name: str) -> dict:
    """`options_of`, but for what `compare` gives: the output type, and the images that are prompts."""
    ours = {"output_type", "image"} if name == "stable-video" else {"output_type"}
    return {key: value for key, value in options_of(name).items() if key not in ours}


def built(name: str):
    """The row's pipeline; Stable Video Diffusion's with an image encoder for PIL images."""
    return stable_video(224) if name == "stable-video" else ROWS[name].build()


def asked(name: str, pipe) -> tuple[list, dict]:
    """Prompts and options for `compare`."""
    system = ROWS[name]
    takes = inspect.signature(pipe.__call__).parameters
    prompts = {"class_labels": [3, 5], "image": IMAGES}.get(next(iter(takes)), TEXTS)
    return prompts, {
        "num_inference_steps": 5 if name in VIDEOS else system.call.get("num_inference_steps", 50),
        "guidance_scale": 5.0 if "guidance_scale" in takes else None,
        "pipe_kwargs": images_of(name),
    }


# A label; a run that begins later, a ControlNet and a video stand further below.
@pytest.mark.parametrize("name", long_but(("dit",), NAMES))
def test_methods_are_compared_on_every_kind_of_pipeline(name):
    system = ROWS[name]
    pipe = built(name)
    prompts, options = asked(name, pipe)
    prompts = prompts[:1] if name in VIDEOS else prompts
    calls = 5 if name in VIDEOS else system.calls
    options["pipe_kwargs"] |= SMALL_VIDEO if name == "text-to-video" else {}
    sample(pipe, Method(), prompts[:1], [0], **options | {"num_inference_steps": 2})  # a pipeline remembers its last call's options
    before = state(pipe) if name != "dpm-single" else None  # its scheduler changes its own settings in each run
    methods = {
        "keys": Method(KeySchedule(calls, range(calls)), parallel_decoding=system.parallel),
        "two": Method(KeySchedule.uniform(calls, 2), parallel_decoding=system.parallel),
    }
    table = fl.compare(pipe, methods, prompts, batch_size=1, repeats=0, rivals=False, **options).set_index("method")
    assert before is None or state(pipe) == before
    assert table.loc["keys", "psnr_worst"] == np.inf and table.loc["keys", "latent_mse_worst"] == 0  # law 1
    assert 0 < table.loc["two", "psnr"] < np.inf and table.loc["two", "latent_mse"] > 0
    assert table["encoder_calls"].to_dict() == {"baseline": calls, "keys": calls, "two": 2}
    assert (table["images"] == len(prompts)).all() and table["prompt_accuracy"].isna().all()
    gflops = table["gflops"]
    assert 0 < gflops["two"] < gflops["baseline"] == gflops["keys"]


def test_a_run_that_begins_later_has_rivals_that_do():
    system = ROWS["sd-img2img"]
    pipe = system.build()
    prompts, options = asked("sd-img2img", pipe)
    table = fl.compare(pipe, {"mine": KeySchedule(system.calls, [0, 2])}, prompts[:1], repeats=0, **options).set_index("method")
    assert table["forward_calls"].to_dict() == {
        "baseline": system.calls, "uniform 2": 2, "fewer steps (2)": 2, "mine": 2, "mine, prediction reused": 2,
    }  # fmt: skip


@pytest.mark.parametrize("name", long_but(("text-to-video",), ("text-to-video", "animatediff")))
def test_a_video_is_one_image_of_its_frames(name):
    pipe = ROWS[name].build()
    options = images_of(name)
    drawn = sample(pipe, Method(), TEXTS, [0, 1], num_inference_steps=2, guidance_scale=5.0, pipe_kwargs=options)
    call = {"num_inference_steps": 2, "guidance_scale": 5.0, **options}
    latents = as_tensor(pipe(TEXTS, generator=generators([0, 1]), output_type="latent", **call)[0])
    by_video = latents.transpose(1, 2) if name == "text-to-video" else latents  # the scheduler has frames before channels
    assert torch.equal(drawn.latents, by_video.reshape(2, -1))
    videos = pipe(TEXTS, generator=generators([0, 1]), output_type="pil", **call)[0]
    for image, frames in zip(drawn.images, videos, strict=True):
        assert image.size == (frames[0].width, frames[0].height * len(frames)) and len(frames) == FRAMES
        assert np.array_equal(np.asarray(image), np.concatenate([np.asarray(frame) for frame in frames]))


@pytest.mark.long
def test_a_controlnet_is_counted_with_the_encoder():
    pipe = ROWS["controlnet"].build()
    prompts, options = asked("controlnet", pipe)
    plain = {
        "num_inference_steps": options["num_inference_steps"],
        "guidance_scale": 5.0,
        "pipe_kwargs": {"height": SIZE["height"], "width": SIZE["width"]},
    }
    methods = {"two": KeySchedule(6, [0, 2])}
    with_it = fl.compare(pipe, methods, prompts[:1], repeats=0, rivals=False, **options).set_index("method")["gflops"]
    without = fl.compare(ROWS["sd"].build(), methods, prompts[:1], repeats=0, rivals=False, **plain).set_index("method")["gflops"]
    assert with_it["baseline"] - without["baseline"] == pytest.approx(3 * (with_it["two"] - without["two"]))  # 6 calls, or 2


@pytest.mark.long
def test_a_store_tells_the_pipelines_arguments_apart(tmp_path):
    pipe = ROWS["controlnet"].build()
    prompts, options = asked("controlnet", pipe)
    edges = options["pipe_kwargs"]["image"]

    def mse(image) -> float:
        given = options | {"pipe_kwargs": options["pipe_kwargs"] | {"image": image}}
        return fl.compare_images(
            pipe, {"two": KeySchedule(6, [0, 2])}, prompts[:1], rivals=False, store=tmp_path / "kept.sqlite", **given
        )["latent_mse"].iloc[-1]  # fmt: skip

    first = mse(edges)
    assert mse(1 - edges) != first and mse(edges.clone()) == first


@pytest.mark.long
def test_images_are_prompts_of_stable_video_diffusion(tmp_path, monkeypatch):
    pipe, methods = built("stable-video"), {"two": KeySchedule(5, [0, 2])}
    prompts, options = asked("stable-video", pipe)
    prompts = prompts[:1]
    call = {"rivals": False, "store": tmp_path / "kept.sqlite", **options}
    timed = fl.compare(pipe, methods, prompts, repeats=1, **call)
    assert (timed["seconds"] > 0).all() and (timed["images"] == 1).all()
    monkeypatch.setattr("fastdiff_lab.comparison.render._run", None)  # an image with the same pixels is the same prompt
    again = fl.compare_images(pipe, methods, [image.copy() for image in prompts], **call)
    assert again["prompt"].tolist() == [in_words(image) for image in prompts] * 2


def test_arguments_in_words():
    image, other = Image.new("RGB", (4, 2)), Image.new("RGB", (2, 4))
    assert in_words(image) == in_words(image.copy()) != in_words(other)
    row = torch.arange(3)
    assert in_words(row) == in_words(row.clone()) != in_words(row.float()) != in_words(row.float().reshape(3, 1))
    assert in_words(row.bfloat16()).startswith("tensor ") and in_words(row.numpy()) == in_words(row.clone().numpy())
    assert in_words({"a": (1, [None, "b"]), "c": np.float32(0.5)}) == {"a": [1, [None, "b"]], "c": 0.5}
    with pytest.raises(TypeError, match="given among the pipeline's arguments; accepted: texts, numbers, images"):
        in_words({"callback_on_step_end": print})


@pytest.mark.parametrize(
    ("name", "changes", "error", "message"),
    [
        ("text2video-zero", {}, ValueError, "comparison asked of TextToVideoZeroPipeline.*several times in one call"),
        (
            "ddim",
            {"guidance_scale": None},
            ValueError,
            "comparison asked of DDIMPipeline, which is called with a number of images",
        ),
        (
            "stable-video",
            {"prompts": IMAGES, "guidance_scale": 5.0},
            ValueError,
            "guidance_scale=5.0 asked of StableVideoDiffusionPipeline",
        ),
        ("sd", {"prompts": IMAGES}, TypeError, "prompt <PIL.*given to StableDiffusionPipeline; accepted: texts, or class labels"),
        ("stable-video", {}, TypeError, "prompt 'a red circle' given to StableVideoDiffusionPipeline; accepted: PIL images"),
        ("dit", {"prompts": [3], "metrics": ["clip_score"]}, ValueError, "metrics clip_score asked of prompts that are no texts"),
        ("sd", {"prompts": [True]}, TypeError, "prompt True given"),
        (
            "sd",
            {"pipe_kwargs": {"generator": None, "eta": 0.0}},
            ValueError,
            "pipe_kwargs with generator given; accepted: arguments",
        ),
        ("sd", {"pipe_kwargs": {"callback_on_step_end": print}}, TypeError, "given among the pipeline's arguments"),
        ("animatediff", {"metrics": ["fid"]}, ValueError, "metrics fid asked of AnimateDiffPipeline, which draws videos"),
    ],
)
def test_what_cannot_be_compared_is_refused_before_anything_is_drawn(name, changes, error, message, monkeypatch):
    monkeypatch.setattr("fastdiff_lab.comparison.render.run_method", None)
    given = {"prompts": TEXTS, "num_inference_steps": 6} | changes
    with pytest.raises(error, match=message):
        fl.compare(ROWS[name].build(), {"two": KeySchedule(6, [0, 2])}, **given)
