"""Defects of DeepCache 0.1.1, of diffusers' own caches and of their kind, each as a test of the right behaviour."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from diffusers import StableDiffusionImg2ImgPipeline
from models import conditions, controlnet_pipeline, denoiser_calls, denoiser_pipe, loop, pipeline, run, state, unet
from short_suite import long_but
from systems.base import output
from systems.parts import drawn
from systems.stable_diffusion import TEXT, stable_diffusion

import fastdiff_lab as fl
from fastdiff_lab import KeySchedule

KEYS = KeySchedule(10, [0, 1, 4, 8])
IMAGE = drawn(2, 3, 16, 16)
SIZE = {"height": 16, "width": 16}


class Watched:
    """At which denoiser calls the encoder ran."""

    def __init__(self, pipe) -> None:
        self.calls, self.steps = 0, []
        pipe.unet.conv_in.register_forward_pre_hook(lambda *_: self.steps.append(self.calls))
        step = pipe.scheduler.step

        def counted(*args, **kwargs):
            self.calls += 1
            return step(*args, **kwargs)

        pipe.scheduler.step = counted


# ---- DeepCache: the step is looked up by the value of its time-step


@pytest.mark.parametrize("name", long_but(("pndm",), ("heun", "pndm", "kdpm2")))
def test_repeated_time_steps_are_steps_of_their_own(name):
    """With Heun its cache is refreshed once in a run, with PNDM too late."""
    pipe = pipeline(name)
    calls = denoiser_calls(pipe, 10)
    assert name == "kdpm2" or len(set(pipe.scheduler.timesteps.tolist())) < calls
    watched, every_other = Watched(pipe), KeySchedule(calls, range(0, calls, 2))
    with fl.encoder_propagation(pipe, every_other, parallel_decoding=False) as counts:
        run(pipe, steps=10)
    assert watched.steps == list(every_other.keys) and counts.encoder_calls == len(every_other.keys)


def test_any_list_of_keys_is_a_schedule():
    """Its non-uniform mode ("quad") raises KeyError."""
    pipe = pipeline()
    watched = Watched(pipe)
    with fl.encoder_propagation(pipe, KeySchedule(10, [0, 1, 2, 6, 9]), parallel_decoding=False):
        run(pipe)
    assert watched.steps == [0, 1, 2, 6, 9]


# ---- DeepCache: features of the run before


def test_another_strength_never_gets_the_features_of_the_run_before():
    pipe = stable_diffusion(StableDiffusionImg2ImgPipeline)
    schedule = KeySchedule(5, [0, 2])
    half = TEXT | {"image": IMAGE[:1], "strength": 0.5, "num_inference_steps": 10, "output_type": "latent"}
    whole = half | {"image": IMAGE[1:], "strength": 1.0, "num_inference_steps": 5}
    with fl.encoder_propagation(pipe, schedule):
        alone = output(pipe, whole)
    with fl.encoder_propagation(pipe, schedule) as counts:
        output(pipe, half)
        assert torch.equal(output(pipe, whole), alone)
    assert counts.encoder_calls == 4


@pytest.mark.parametrize(
    "changed", long_but(("image size", "guidance off"), ("image size", "images", "text", "guidance off", "seed"))
)
def test_nothing_of_the_run_before_is_left(changed):
    """Users of caches report stale features after another resolution, batch or prompt."""
    pipe = stable_diffusion()
    plain = TEXT | {"num_inference_steps": 10, "output_type": "latent", "height": 16, "width": 16}
    other = plain | {
        "image size": {"height": 32, "width": 16}, "images": {"num_images_per_prompt": 3}, "text": {"prompt": "a white ring"},
        "guidance off": {"guidance_scale": 1.0}, "seed": {"latents": torch.randn(1, 4, 8, 8, dtype=torch.float64)},
    }[changed]  # fmt: skip
    with fl.encoder_propagation(pipe, KEYS):
        alone = output(pipe, other)
    with fl.encoder_propagation(pipe, KEYS):
        first = output(pipe, plain)
        assert torch.equal(output(pipe, other), alone)
        assert torch.equal(output(pipe, plain), first)
    assert alone.shape != first.shape or float((alone - first).abs().max()) > 1e-3


def test_another_number_of_steps_is_refused_by_name():
    pipe = pipeline()
    with fl.encoder_propagation(pipe, KEYS):
        first = run(pipe)
        with pytest.raises(
            ValueError, match=r"for 10 steps, this run has 12 time-steps with DDIMScheduler; use schedule.rescaled\(12\)"
        ):
            run(pipe, steps=12)
        assert torch.equal(run(pipe), first)


# ---- DeepCache: enabled twice, then disabled


def test_entering_twice_is_refused_and_leaving_brings_the_pipeline_back():
    """There it ends in KeyError, and the pipeline is dead."""
    pipe = pipeline(dtype=torch.float32)
    baseline, before = run(pipe), state(pipe)
    with fl.encoder_propagation(pipe, KEYS):
        accelerated = run(pipe)
        with pytest.raises(RuntimeError, match="accelerated already"), fl.encoder_propagation(pipe, KEYS):
            pass
        assert torch.equal(run(pipe), accelerated)
    assert state(pipe) == before and torch.equal(run(pipe), baseline)


@pytest.mark.filterwarnings("ignore:the encoder_propagation block accelerated nothing")
def test_two_pipelines_of_one_unet():
    """The second is refused while the first is accelerated, whichever pipeline it belongs to."""
    first, second = pipeline(), pipeline()
    second.unet = first.unet
    with fl.encoder_propagation(first, KEYS), pytest.raises(RuntimeError, match="accelerated already"):
        with fl.encoder_propagation(second, KEYS):
            pass
    with fl.encoder_propagation(second, KEYS):
        run(second)


# ---- DeepCache: arguments by keyword


def test_the_denoiser_may_be_called_by_keyword():
    """There `unet(sample=..., timestep=...)` is an IndexError."""

    def sampled(call):
        pipe = denoiser_pipe()
        pipe.scheduler.set_timesteps(10)
        sample = torch.randn((2, 4, 8, 8), generator=torch.Generator().manual_seed(2), dtype=torch.float64)
        with fl.encoder_propagation(pipe, KEYS) as counts:
            for timestep in pipe.scheduler.timesteps:
                sample = pipe.scheduler.step(call(pipe.unet, sample, timestep), timestep, sample).prev_sample
        assert (counts.encoder_calls, counts.forward_calls) == (4, 4)
        return sample

    text = conditions()["encoder_hidden_states"]
    by_place = sampled(lambda model, sample, timestep: model(sample, timestep, text, return_dict=False)[0])
    by_name = sampled(lambda model, sample, timestep: model(timestep=timestep, encoder_hidden_states=text, sample=sample).sample)
    assert float((by_place - by_name).abs().max()) < 1e-10  # two models, whose weights lie at other places


# ---- DeepCache: memory, ControlNet


@pytest.mark.parametrize("parallel", [False, True])
def test_no_feature_outlives_the_run(parallel):
    """There activations stay until `disable()`."""
    pipe = pipeline()
    seen = []
    handle = pipe.unet.down_blocks[0].register_forward_hook(lambda m, a, made: seen.extend(map(weakref.ref, (made[0], *made[1]))))
    with fl.encoder_propagation(pipe, KEYS, parallel_decoding=parallel):
        run(pipe)
        handle.remove()
        gc.collect()
        assert len(seen) >= 4 and all(feature() is None for feature in seen)


def test_the_controlnet_is_not_evaluated_at_every_step():
    pipe = controlnet_pipeline()
    calls = []
    pipe.controlnet.register_forward_pre_hook(lambda *_: calls.append(1))
    with fl.encoder_propagation(pipe, KEYS):
        run(pipe, image=IMAGE)
    assert len(calls) == 4


# ---- diffusers' own caches


@pytest.mark.long
def test_calibration_returns_what_it_found_and_leaves_nothing_on():
    """MagCache's two steps raise ValueError unless `disable_cache()` stands between them, and print what they found."""
    pipe = stable_diffusion()
    output(pipe, TEXT | {"output_type": "latent"})  # a run sets attributes of the pipeline's own
    before = state(pipe)
    costs = [
        fl.calibrate(pipe, ["a red circle"], num_inference_steps=6, guidance_scale=5.0, max_span=2, pipe_kwargs=SIZE)
        for _ in range(2)
    ]
    assert state(pipe) == before
    schedules = [fl.derive_schedule(found, num_keys=3) for found in costs]
    assert schedules[0] == schedules[1]
    with fl.encoder_propagation(pipe, schedules[0]) as counts:
        output(pipe, TEXT | SIZE | {"output_type": "latent"})
    assert counts.encoder_calls == 3


@pytest.mark.parametrize("at", long_but((5,), (1, 5, 9)))
def test_an_aborted_run_leaves_nothing_to_the_next(at):
    """There the reset is the last line of the pipeline's `__call__`."""
    pipe = stable_diffusion()
    call = TEXT | {"num_inference_steps": 10, "output_type": "latent", "height": 16, "width": 16}

    def abort(pipe, step, timestep, values):
        if step == at:
            raise KeyboardInterrupt
        return values

    with fl.encoder_propagation(pipe, KEYS):
        alone = output(pipe, call)
    with fl.encoder_propagation(pipe, KEYS):
        with pytest.raises(KeyboardInterrupt):
            output(pipe, call | {"prompt": "a white ring", "callback_on_step_end": abort})
        assert torch.equal(output(pipe, call), alone)


def test_a_class_of_ones_own_plugs_in():
    """There `enable_cache` is a closed list of methods; here a subclass of a known denoiser is one."""

    class Own(type(unet())):
        def forward(self, sample, timestep, encoder_hidden_states, **options):
            return super().forward(1.1 * sample, timestep, encoder_hidden_states, **options)

    pipe = denoiser_pipe()
    pipe.unet.__class__ = Own
    baseline = loop(pipe, 10, conditions())
    with fl.encoder_propagation(pipe, KeySchedule(10, range(10))):
        assert torch.equal(loop(pipe, 10, conditions()), baseline)
    with fl.encoder_propagation(pipe, KEYS) as counts:
        loop(pipe, 10, conditions())
    assert counts.encoder_calls == 4
    assert counts.forward_calls == 4 + 2  # two steps are decoded alone once, since the class is none of diffusers'
