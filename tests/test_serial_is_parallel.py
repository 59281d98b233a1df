"""Laws 2 and 3: steps decoded at once are those decoded one after the other, and what is evaluated is counted."""

from __future__ import annotations

import contextlib

import pytest
import torch
from diffusers import DDIMScheduler
from laws import CLOSE, KEYS, distance
from models import NOISE, SCHEDULERS, conditions, denoiser_calls, denoiser_pipe, loop, pipeline, run
from short_suite import long_but

import fastdiff_lab as fl
from fastdiff_lab import KeySchedule

# Each scheduler with and without guidance, with and without prior noise, and all pairs of these two.
SAMPLED = [
    (name, guidance, (0.0, 0.05)[(place + guided) % 2])
    for place, name in enumerate(SCHEDULERS)
    for guided, guidance in enumerate((1.0, 5.0))
]
# Of the short suite: one state, several states, two calls in a step, noise of its own.
FEW_SAMPLED = [
    case for case in SAMPLED if case[:2] in (("ddim", 5.0), ("dpm-solver++", 5.0), ("heun", 1.0), ("euler-ancestral", 5.0))
]


@pytest.mark.parametrize(("name", "guidance", "noise"), long_but(FEW_SAMPLED, SAMPLED))
def test_parallel_decoding_is_serial_decoding(name, guidance, noise):
    pipe = pipeline(name)
    steps = 4 if name in ("heun", "kdpm2", "pndm") else 7  # these call the denoiser twice in a step
    options = {"steps": steps, "images": 1 if guidance > 1 and name != "ddim" else 2, "guidance": guidance}
    schedule = KeySchedule.uniform(denoiser_calls(pipe, steps), 2)
    rows = options["images"] * (2 if guidance > 1 else 1)

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


@pytest.mark.filterwarnings("ignore:.* keeps something from call to call")
def test_a_cap_limits_the_rows_that_are_decoded_at_once():
    pipe = pipeline()
    rows = []
    pipe.unet.conv_out.register_forward_pre_hook(lambda module, args: rows.append(len(args[0])))
    with fl.encoder_propagation(pipe, KEYS, max_rows=10) as counts:
        run(pipe)
    assert max(rows) == 8 and counts.encoder_calls == 4
    assert sum(rows) == 4 * (10 + 2)  # two steps are decoded alone once more, since the hook is none of diffusers'


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
