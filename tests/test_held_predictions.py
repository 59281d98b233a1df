"""What is reused instead of the encoder: the decoder (the paper's Table 14) and the prediction (law 12)."""

from __future__ import annotations

import pytest
import torch
from laws import CLOSE, FEW, KEYS, distance
from models import SIDES, conditions, denoiser_pipe, loop
from short_suite import long_but

import fastdiff_lab as fl
from fastdiff_lab import KeySchedule


@pytest.mark.parametrize("name", long_but(("plain", "unet2d"), ["plain", "unet2d", "unet3d", "spatio-temporal", "motion"]))
def test_reusing_the_decoder_is_reusing_the_prediction(name):
    pipe = denoiser_pipe(name)
    results = {}
    for reuse in ("decoder", "prediction"):
        with fl.encoder_propagation(pipe, FEW, reuse=reuse) as counts:
            results[reuse] = loop(pipe, 6, conditions(name)), counts
    assert distance(results["decoder"][0], results["prediction"][0]) < CLOSE
    assert (results["decoder"][1].encoder_calls, results["decoder"][1].decoder_calls) == (6, 3)
    counts = results["prediction"][1]
    assert (counts.encoder_calls, counts.decoder_calls, counts.forward_calls, counts.steps) == (3, 3, 3, 6)


def test_a_reused_prediction_is_the_scheduler_on_the_key_time_steps():
    """DDIM with a constant prediction is one straight jump, so only the key time-steps matter (law 12)."""
    pipe = denoiser_pipe()
    with fl.encoder_propagation(pipe, KEYS, reuse="prediction"):
        reused = loop(pipe, 10, conditions())
    times = pipe.scheduler.timesteps
    alphas = pipe.scheduler.alphas_cumprod.double()
    sample = torch.randn((2, 4, *SIDES), generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    for key, following in zip(KEYS.keys, [*KEYS.keys[1:], 10], strict=True):
        noise = pipe.unet(sample, times[key], **conditions()).sample
        now, then = alphas[times[key]], alphas[times[following]] if following < 10 else pipe.scheduler.final_alpha_cumprod.double()
        clean = (sample - (1 - now).sqrt() * noise) / now.sqrt()
        sample = then.sqrt() * clean + (1 - then).sqrt() * noise
    assert distance(reused, sample) < 1e-5  # the scheduler's alphas are float32


def test_a_reused_prediction_is_not_used_for_another_text():
    pipe = denoiser_pipe()
    first, second = conditions(), conditions()
    second["encoder_hidden_states"] = second["encoder_hidden_states"] + 1
    with fl.encoder_propagation(pipe, KEYS, reuse="prediction") as counts:
        loop(pipe, 10, lambda step: first if step < 6 else second)
    assert counts.forward_calls == 5  # step 6 became a key


def test_nobody_writes_into_the_prediction_of_another_step():
    pipe = denoiser_pipe()
    with fl.encoder_propagation(pipe, KeySchedule(3, [0]), reuse="prediction"):
        pipe.scheduler.set_timesteps(3)
        sample = torch.zeros(2, 4, *SIDES, dtype=torch.float64)
        first = pipe.unet(sample, pipe.scheduler.timesteps[0], **conditions()).sample
        expected = first.clone()
        first.zero_()
        assert torch.equal(pipe.unet(sample, pipe.scheduler.timesteps[1], **conditions()).sample, expected)
