"""The pipeline draws its own image; latents and time are seen on the way."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from models import state
from short_suite import long_but
from systems import ROWS, options_of
from transformers import BatchFeature

import fastdiff_lab as fl
from fastdiff_lab import KeySchedule, Method
from fastdiff_lab.lab.session.paired_run import PairRunner
from fastdiff_lab.lab.session.settings import Acceleration, Settings
from fastdiff_lab.sampling.methods import decode, generators, sample
from fastdiff_lab.sampling.output_image import WatchedRun

TEXTS = ["a red circle", "a white ring"]
SIZE = {"height": 16, "width": 16}


class Suspicious(torch.nn.Module):
    """A safety checker that finds something in every image."""

    device = torch.device("cpu")

    def forward(self, images, clip_input):
        return torch.zeros_like(images), [True] * len(images)


class Features:
    def __call__(self, images, return_tensors):
        return BatchFeature({"pixel_values": torch.zeros(len(images), 3, 4, 4)})


def checked():
    pipe = ROWS["sd"].build()
    pipe.safety_checker, pipe.feature_extractor = Suspicious(), Features()
    return pipe


def scaled():
    """Latents with a mean and a deviation of each channel."""
    pipe = ROWS["sdxl"].build()
    pipe.vae.register_to_config(latents_mean=[0.5, -0.5, 0.2, 0.1], latents_std=[2.0, 1.5, 1.0, 0.5])
    return pipe


class Watermark:
    """As invisible-watermark writes it into SDXL's images; that package is not needed to see that it is."""

    def apply_watermark(self, images):
        return images.clamp(-1, 1).flip(-1) * 0.5


def watermarked():
    pipe = ROWS["sdxl"].build()
    pipe.watermark = Watermark()
    return pipe


def further(name):
    return {key: value for key, value in options_of(name).items() if key != "output_type"}


PIPELINES = {
    "text to image": (ROWS["sd"].build, SIZE), "with a safety checker": (checked, SIZE), "latents with a mean": (scaled, SIZE),
    "with a watermark": (watermarked, SIZE),
    "image to image": (ROWS["sd-img2img"].build, further("sd-img2img")), "inpainting": (ROWS["sd-inpaint"].build, further("sd-inpaint")),
    "ends early": (ROWS["sdxl-ends-early"].build, further("sdxl-ends-early")),
}  # fmt: skip


@pytest.mark.parametrize("name", long_but(("text to image", "latents with a mean", "ends early"), PIPELINES))
def test_images_and_latents_are_the_pipelines_own(name):
    build, options = PIPELINES[name]
    pipe = build()
    call = {
        "num_inference_steps": 4,
        "guidance_scale": 5.0,
        **{key: value for key, value in options.items() if key != "num_inference_steps"},
    }
    images, latents = (pipe(TEXTS, generator=generators([0, 1]), output_type=kind, **call)[0] for kind in ("pil", "latent"))
    before = state(pipe)
    given = {key: value for key, value in options.items() if key != "num_inference_steps"}
    drawn = sample(pipe, Method(), TEXTS, [0, 1], num_inference_steps=4, guidance_scale=5.0, pipe_kwargs=given)
    assert torch.equal(drawn.latents, latents) and state(pipe) == before
    for ours, own in zip(drawn.images, images, strict=True):
        assert np.array_equal(np.asarray(ours), np.asarray(own))


def test_what_the_safety_checker_takes_away_stays_away(tmp_path):
    pipe, runs = checked(), {"num_inference_steps": 6, "pipe_kwargs": SIZE, "rivals": False}
    assert not any(
        np.asarray(image).any() for image in sample(pipe, Method(), TEXTS, [0, 1], num_inference_steps=4, pipe_kwargs=SIZE).images
    )
    table = fl.compare_images(pipe, {"two": KeySchedule(6, [0, 2])}, TEXTS[:1], **runs)
    assert (table["mse"] == 0).all() and (table["latent_mse"] > 0).any()  # both images are black
    pair = PairRunner(pipe, preview_every=0).run(Settings(TEXTS[0], num_inference_steps=6), Acceleration(KeySchedule(6, [0, 2])))
    assert not any(np.asarray(image).any() for image in pair.images.values())


def test_a_watermark_stays_in_accelerated_images():
    images = []
    for build in (watermarked, ROWS["sdxl"].build):
        drawn = sample(build(), Method(KeySchedule(5, [0, 2])), TEXTS[:1], [0], num_inference_steps=5, pipe_kwargs=SIZE)
        images.append(np.asarray(drawn.images[0], dtype=float))
    assert np.abs(images[0] - (images[1][:, ::-1] / 2 + 63.75)).max() <= 1 < np.abs(images[0] - images[1]).max()


def test_images_are_decoded_one_by_one_off_the_cpu(monkeypatch):
    pipe, rows = ROWS["sd"].build(), []
    together = sample(pipe, Method(), TEXTS, [0, 1], num_inference_steps=3, pipe_kwargs=SIZE)
    monkeypatch.setattr("fastdiff_lab.sampling.batches.device_of", lambda pipe: torch.device("cuda"))
    handle = pipe.vae.decoder.register_forward_pre_hook(lambda module, args: rows.append(len(args[0])))
    alone = sample(pipe, Method(), TEXTS, [0, 1], num_inference_steps=3, pipe_kwargs=SIZE)
    handle.remove()
    assert rows == [1, 1] and not pipe.vae.use_slicing
    for one, other in zip(together.images, alone.images, strict=True):
        assert np.abs(np.asarray(one, dtype=int) - np.asarray(other, dtype=int)).max() <= 1


def test_previews_are_decoded_as_the_pipeline_decodes():
    pipe = scaled()
    call = {"num_inference_steps": 2, "guidance_scale": 5.0, **SIZE}
    image, latents = (pipe(TEXTS[:1], generator=generators([0]), output_type=kind, **call)[0] for kind in ("pil", "latent"))
    assert np.array_equal(np.asarray(decode(pipe, latents)[0]), np.asarray(image[0]))


@pytest.mark.parametrize("name", ["sd", "dit"])
def test_the_device_is_waited_for_once_before_the_latents_are_decoded(name, monkeypatch):
    pipe, events = ROWS[name].build(), []

    def told(owner, method, event):
        inner = getattr(owner, method)
        monkeypatch.setattr(owner, method, lambda *args, **kwargs: (events.append(event), inner(*args, **kwargs))[1])

    told(pipe.scheduler, "step", "step")
    told(pipe.vae, "decode", "decode")
    monkeypatch.setattr("fastdiff_lab.sampling.methods.synchronize", lambda device: events.append("wait"))
    prompts = [3] if name == "dit" else TEXTS[:1]
    sample(pipe, Method(), prompts, [0], num_inference_steps=3, pipe_kwargs=SIZE if name == "sd" else further(name))
    assert events == ["step"] * 3 + ["wait", "decode"]


def test_a_preview_in_mid_run_is_not_the_end():
    waits = []
    run = WatchedRun(lambda: waits.append(1))
    run.seen(torch.zeros(1))
    early = run.stop()
    run.seen(torch.ones(1))
    assert run.stop() >= early and run.stop() == run.known_at and len(waits) == 2 and run.latents.item() == 1
