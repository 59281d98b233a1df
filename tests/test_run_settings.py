"""How a pipeline is run: steps, guidance scale and further arguments, checked once."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from systems import ROWS

from fastdiff_lab.sampling.run_settings import RunSettings


def test_settings_of_a_few_prompts():
    latents = torch.arange(3.0).view(3, 1, 1, 1)
    given = {"negative_prompt": np.array(["grey", "blue", "red"]), "latents": latents, "eta": 0.5, "clip_skip": None}
    run = RunSettings(np.int64(6), np.float32(5), given).on(ROWS["sd"].build(), 3, "comparison")
    assert run.own[1] == {"negative_prompt": "blue", "latents": latents[1:2]} and run.shared.arguments() == {
        "num_inference_steps": 6, "guidance_scale": 5.0, "eta": 0.5,
    }  # fmt: skip
    batch = run.of([2, 0]).arguments()
    assert batch["negative_prompt"] == ["red", "grey"] and batch["latents"].flatten().tolist() == [2, 0]
    assert run.of([0, 1, 2]).arguments()["latents"].equal(latents)
    assert type(run.num_inference_steps) is int and run.words["negative_prompt"] == ["grey", "blue", "red"]


def test_the_guidance_scale_is_the_pipelines_own_where_none_is_given():
    assert RunSettings().on(ROWS["sd"].build()).guidance_scale == 7.5 and "guidance_scale" not in RunSettings().arguments()


def test_time_steps_go_with_their_number_of_steps():
    run = RunSettings(3, pipe_kwargs={"timesteps": [900, 500, 100], "eta": 0.5})
    assert run.times == {"timesteps": [900, 500, 100]}
    assert run.with_steps(2).arguments() == {"num_inference_steps": 2, "eta": 0.5} and not run.with_steps(2).times


@pytest.mark.parametrize("steps", [0, -1, 2.0, True, "5"])
def test_steps_that_are_refused(steps):
    with pytest.raises(ValueError, match=f"{steps!r} steps asked; accepted: a whole number of 1 or more"):
        RunSettings(steps)
    with pytest.raises(ValueError, match="guidance_scale=nan asked; accepted: a finite number"):
        RunSettings(guidance_scale=float("nan"))
