"""compare, the operation counts, and the plots that show them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, LCMScheduler
from models import SCHEDULERS, conditions, denoiser_pipe, loop, unet
from PIL import Image
from short_suite import long_but

import fastdiff_lab as fl
from fastdiff_lab import plot
from fastdiff_lab.comparison.fidelity import fidelity, mean_psnr
from fastdiff_lab.hooks.flops import count_flops
from fastdiff_lab.sampling.methods import Method, as_method, denoiser_arguments, denoiser_calls, sample
from fastdiff_lab.sampling.run_settings import RunSettings
from fastdiff_lab.shapes.data import held_out_scenes

PROMPTS = [scene.caption() for scene in held_out_scenes(3, objects=1)]


@pytest.fixture(scope="module")
def pipe(embedded):
    return embedded


def test_the_batch_changes_nothing(pipe):
    together = sample(pipe, Method(), PROMPTS[:2], [0, 1], num_inference_steps=3).latents
    alone = [sample(pipe, Method(), [prompt], [seed], num_inference_steps=3).latents for seed, prompt in enumerate(PROMPTS[:2])]
    assert torch.allclose(together, torch.cat(alone), atol=1e-4)


def test_as_many_steps_are_the_baseline(pipe):
    plain, baseline = (
        sample(pipe, method, PROMPTS[:1], [0], num_inference_steps=4).latents for method in (Method(steps=4), Method())
    )
    assert torch.equal(plain, baseline)


def test_fewer_steps_begin_where_the_baseline_begins(pipe):
    seen = []
    handle = pipe.unet.register_forward_pre_hook(lambda module, args: seen.append(int(args[1])))
    for method in (Method(), Method(steps=4)):
        sample(pipe, method, PROMPTS[:1], [0], num_inference_steps=10)
    handle.remove()
    assert seen[0] == seen[10] == 901 and len(seen) == 14 and min(seen[10:]) > 0


COUNTS = ((60, 20), (51, 50), (300, 25))
# KDPM2 takes seconds to be set to a number of steps.
SET = [(name, *counts) for name in SCHEDULERS for counts in COUNTS if name != "kdpm2" or counts == (60, 20)]


@pytest.mark.parametrize(("name", "of", "steps"), long_but([case for case in SET if case[0] != "kdpm2"], SET))
def test_fewer_steps_never_end_below_the_first_training_step(name, of, steps):
    """There, schedulers read their tables from the other end."""
    pipe = denoiser_pipe(schedule_name=name)
    with as_method(pipe, Method(steps=steps), RunSettings(of)):
        pipe.scheduler.set_timesteps(steps)
        assert min(pipe.scheduler.timesteps) >= 0 and max(pipe.scheduler.timesteps) < 1000


@pytest.mark.parametrize("steps", [9, 17, 45])
def test_fewer_steps_end_at_a_clean_image(steps):
    """Also where the baseline begins at the last training step: DDIM's last step reaches the first."""
    pipe = denoiser_pipe()
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, timestep_spacing="trailing")
    with as_method(pipe, Method(steps=steps), RunSettings(50)):
        pipe.scheduler.set_timesteps(steps)
        gap = 1000 // steps
        assert pipe.scheduler.timesteps[-1] <= gap and pipe.scheduler.timesteps[0] > 999 - gap


def test_schedulers_that_always_end_clean_begin_where_the_baseline_begins():
    pipe = denoiser_pipe(schedule_name="euler")
    pipe.scheduler.set_timesteps(50)
    first = float(pipe.scheduler.timesteps[0])
    with as_method(pipe, Method(steps=17), RunSettings(50)):
        pipe.scheduler.set_timesteps(17)
        assert pipe.scheduler.timesteps[0] == first == 999


def test_the_pipeline_is_as_before(pipe):
    scheduler = pipe.scheduler
    sample(pipe, Method(steps=3), PROMPTS[:1], [0], num_inference_steps=5)
    assert pipe.scheduler is scheduler and "_compiled_call_impl" not in vars(pipe.unet)


def test_operations_are_those_of_the_layers():
    model = unet("plain", torch.float32)
    given = conditions("plain", rows=2, dtype=torch.float32)
    count = count_flops(model, {"sample": torch.zeros(2, 4, 8, 8), "timestep": 1, **given})
    # conv_in: 8x8 places, 3x3 window, 4 to 8 channels, 2 rows, 2 operations per multiply-add.
    assert count.encoder > 2 * 2 * 64 * 9 * 4 * 8 and count.decoder > count.encoder > count.rest > 0
    assert count.total == count.encoder + count.decoder + count.rest
    doubled = count_flops(model, {"sample": torch.zeros(4, 4, 8, 8), "timestep": 1, **conditions("plain", 4, torch.float32)})
    assert doubled.encoder == 2 * count.encoder and doubled.decoder == 2 * count.decoder
    assert count.of_run(1, 1) == count.total


def test_attention_is_counted():
    with_text = denoiser_pipe().unet
    short, long = (
        count_flops(
            with_text.float(), {"sample": torch.zeros(1, 4, 8, 8), "timestep": 1, "encoder_hidden_states": torch.zeros(1, n, 8)}
        )
        for n in (4, 400)
    )
    per_token = (long.total - short.total) / 396
    projections = sum(
        2 * m.in_features * m.out_features for n, m in with_text.named_modules() if n.endswith(("attn2.to_k", "attn2.to_v"))
    )
    assert per_token > 1.2 * projections  # the rest is attention itself


def test_the_arguments_of_a_call(pipe):
    arguments = denoiser_arguments(pipe, PROMPTS[0])
    assert arguments["sample"].shape == (2, 4, 16, 16) and arguments["encoder_hidden_states"].shape == (2, 24, 128)


def test_fidelity_by_head():
    black, grey = Image.new("RGB", (16, 16)), Image.new("RGB", (16, 16), (51, 51, 51))
    rows = fidelity([black, grey], [black, black])
    assert (
        rows["psnr"][0] == np.inf and rows["mse"][1] == pytest.approx(0.04) and rows["psnr"][1] == pytest.approx(13.979, abs=1e-3)
    )
    assert mean_psnr(rows["mse"]) == pytest.approx(16.99, abs=1e-2)


def test_bad_input(pipe):
    with pytest.raises(ValueError, match="0 steps asked; accepted: a whole number of 1 or more"):
        fl.compare(pipe, {}, PROMPTS, num_inference_steps=0)
    with pytest.raises(ValueError, match="a schedule or another number of steps, not both"):
        Method(fl.KeySchedule.paper(50), steps=3)


@pytest.mark.parametrize(
    ("scheduler", "most"), long_but([("ddim", 999)], [("ddim", 999), ("pndm", 999), ("dpm-solver++", 999), ("euler", 1000)])
)
def test_steps_that_the_training_does_not_know(scheduler, most):
    """Beyond the table of noise levels (DDIM), or all at one time-step (DPM-Solver++): diffusers says nothing, or IndexError."""
    pipe = fl.load_pipeline(scheduler=scheduler)
    for steps in (most + 1, 2000):
        message = (
            f"{steps} steps asked of .*, which chooses among 1000 training time-steps; accepted: a whole number from 1 to {most}"
        )
        for run in (lambda pipe, steps: sample(pipe, Method(), PROMPTS[:1], [0], num_inference_steps=steps), denoiser_calls):
            with pytest.raises(ValueError, match=message):
                run(pipe, steps)
    assert denoiser_calls(pipe, most) >= most
    assert denoiser_calls(evenly_spaced(pipe), 1000) >= 1000


def evenly_spaced(pipe):
    pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, timestep_spacing="linspace")
    return pipe


@pytest.mark.parametrize("seed", [10**22, -(10**22)])
def test_seeds_that_no_generator_takes(pipe, seed):
    with pytest.raises(
        ValueError, match=f"seed={seed} asked; accepted: a whole number from -9223372036854775808 to 18446744073709"
    ):
        sample(pipe, Method(), PROMPTS[:1], [seed], num_inference_steps=2)


def test_plots_take_tables_and_axes():
    pipe = denoiser_pipe("deep")

    with fl.record(pipe, keep=["mid_block", "up_blocks.2"]) as recording:
        loop(pipe, 4, conditions("deep"))
    figure = plot.figure()
    left, middle, right = figure.subplots(1, 3)
    assert plot.change_over_steps(fl.feature_change(recording), left, keys=[0, 2]) is left
    assert left.get_xlabel() == "step" and len(left.lines) == 2 + 10
    assert len(left.collections) == 10  # a band for each layer: there are two samples
    assert [line.get_label() for line in left.get_legend().legend_handles] == list(recording.layers)
    assert len(plot.norm_by_layer(fl.feature_norm(recording), middle).patches) == 10
    bars = [bar for part in plot.norm_spread(fl.feature_norm(recording), right, relative=True).containers for bar in part]
    by_step = fl.feature_norm(recording).groupby(["layer", "step"], sort=False)["value"].mean().groupby("layer", sort=False)
    assert [bar.get_height() for bar in bars] == pytest.approx((by_step.std() / by_step.mean()).tolist())
    heat = plot.layer_map(fl.feature_change(recording, kind="relative"), plot.figure().subplots())
    assert heat.collections[0].get_array().shape == (10, 3) and heat.get_xlabel() == "step"
    assert heat.figure.axes[1].get_ylabel() == "relative change from the step before (no unit)"
    maps = {"up_blocks.2": fl.pca_maps(recording, "up_blocks.2")}
    strip = plot.pca_strip(maps, range(4), plot.figure())
    assert [ax.get_title() for ax in strip.axes] == ["step 0", "step 1", "step 2", "step 3"]
    matrix = plot.similarity_matrix(fl.step_similarity(recording, "mid_block"), plot.figure().subplots(), keys=[0, 2], vmin=0)
    assert len(matrix.patches) == 2 and matrix.images[0].get_clim() == (0, 1)
    black = Image.new("RGB", (8, 8))
    grid = plot.image_grid({"a": [black], "b": [black]}, plot.figure())
    assert len(grid.axes) == 4
    assert 'alt="a &lt;b&gt; &quot;c&quot;"' in plot.html_image(figure, 'a <b> "c"')


def test_steps_that_a_pipeline_asks_of_its_scheduler_with_further_options():
    """LCM refuses 60 steps of its own 50, unless more are asked of the teacher."""
    pipe = fl.load_pipeline()
    pipe.scheduler = LCMScheduler.from_config(pipe.scheduler.config)
    with pytest.raises(ValueError, match="60 steps asked of LCMScheduler, which refuses them: .*num_inference_steps"):
        denoiser_calls(pipe, 60)
    with as_method(pipe, Method(), RunSettings(60)) as (_, run):
        pipe.scheduler.set_timesteps(run.num_inference_steps, original_inference_steps=100)
    assert len(pipe.scheduler.timesteps) == 60
