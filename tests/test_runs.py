"""Where a run begins and ends, and what its calls and time-steps must be."""

from __future__ import annotations

import pytest
import torch
from laws import CLOSE, IMAGE, KEYS, distance
from models import SIDES, conditions, denoiser_calls, denoiser_pipe, loop, pipeline, run
from short_suite import long_but

import fastdiff_lab as fl
from fastdiff_lab import KeySchedule


def test_a_call_at_another_time_step():
    pipe = denoiser_pipe()
    pipe.scheduler.set_timesteps(10)
    sample = torch.zeros(2, 4, *SIDES, dtype=torch.float64)
    times = pipe.scheduler.timesteps
    with pytest.raises(ValueError, match=r"step 1 of .* comes at time-step 301, not at the scheduler's next one \(801\)"):
        with fl.encoder_propagation(pipe, KeySchedule(10, [0])):
            pipe.unet(sample, times[0], **conditions())
            pipe.unet(sample, torch.tensor(301), **conditions())


def test_runs_of_the_scheduler_are_recognised():
    pipe = denoiser_pipe()
    with fl.encoder_propagation(pipe, KEYS) as counts:
        first = loop(pipe, 10, conditions())
        pipe.scheduler.set_timesteps(10)
        pipe.unet(torch.zeros(2, 4, *SIDES, dtype=torch.float64), pipe.scheduler.timesteps[0], **conditions())
        assert torch.equal(loop(pipe, 10, conditions()), first)
    assert counts.runs == 3 and counts.steps == 21


@pytest.mark.parametrize("name", long_but(("ddim", "heun"), ("ddim", "pndm", "euler", "heun")))
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


def test_a_schedule_for_another_number_of_steps():
    pipe = pipeline("pndm")
    with pytest.raises(
        ValueError, match=r"for 10 steps, this run has 19 time-steps with PNDMScheduler; use schedule.rescaled\(19\)"
    ):
        with fl.encoder_propagation(pipe, KEYS):
            run(pipe)


def test_a_scheduler_without_time_steps():
    pipe = denoiser_pipe(schedule_name="pndm")
    sample = torch.zeros(2, 4, *SIDES, dtype=torch.float64)
    with pytest.raises(ValueError, match="PNDMScheduler has no time-steps yet. Call the pipeline, or set_timesteps, first"):
        with fl.encoder_propagation(pipe, KEYS):
            pipe.unet(sample, torch.tensor(3), **conditions())
