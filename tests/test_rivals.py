"""Methods that are compared: a rival of one's own is one function, and what was stored before stays readable."""

from __future__ import annotations

import json
import pickle
from contextlib import contextmanager, nullcontext

import numpy as np
import pytest
import torch
from systems.stable_diffusion import drawing_small

import fastdiff_lab as fl
from fastdiff_lab import Extrapolation, KeySchedule, Method
from fastdiff_lab.comparison import render
from fastdiff_lab.hooks.patching import replaced_call
from fastdiff_lab.propagation.counts import Counts
from fastdiff_lab.sampling.methods import as_method, sample
from fastdiff_lab.sampling.run_settings import RunSettings

PROMPTS, STEPS = ["a red ring", "a white star"], 6
CALLS = ["encoder_calls", "decoder_calls", "forward_calls"]


@contextmanager
def every_other_call(pipe):
    """Evaluates the denoiser at every other step, and reuses its prediction in between."""
    counts, last = Counts(runs=1), []

    def reusing(inner):
        def call(*args, **kwargs):
            if counts.steps % 2 == 0:
                last[:] = [inner(*args, **kwargs)]
                counts.encoder_calls, counts.decoder_calls = counts.encoder_calls + 1, counts.decoder_calls + 1
                counts.forward_calls += 1
            counts.steps += 1
            return last[0]

        return call

    with replaced_call(pipe.unet, reusing):
        yield counts


def nothing(pipe):
    return nullcontext()


@pytest.fixture(scope="module")
def pipe():
    return drawing_small()


def test_a_rival_of_ones_own_is_one_function(pipe):
    """Compared with the method of ours that does the same, and with the baseline."""
    methods = {"mine": every_other_call, "ours": Method(KeySchedule(STEPS, [0, 2, 4]), reuse="prediction"), "nothing": nothing}
    with torch.no_grad():
        table = fl.compare(pipe, methods, PROMPTS, num_inference_steps=STEPS, repeats=1, rivals=False).set_index("method")
    assert list(table.index) == ["baseline", *methods] and table["seconds"].gt(0).all()
    for name, like in (("mine", "ours"), ("nothing", "baseline")):
        assert table.loc[name, CALLS].tolist() == table.loc[like, CALLS].tolist()
        assert table.loc[name, "gflops"] == pytest.approx(table.loc[like, "gflops"], rel=1e-9)
        assert table.loc[name, ["psnr_worst", "latent_mse"]].tolist() == table.loc[like, ["psnr_worst", "latent_mse"]].tolist()
    assert np.isfinite(table.loc["mine", "psnr"]) and table.loc["nothing", "psnr"] == np.inf


def test_results_of_ones_own_rival_are_stored_under_its_name(pipe, tmp_path, monkeypatch):
    options = {"num_inference_steps": 2, "rivals": False, "store": tmp_path / "kept.sqlite"}
    with pytest.raises(ValueError, match=r"method 'mine' is a function without a name, under which .*kept.sqlite could keep"):
        fl.compare_images(pipe, {"mine": every_other_call}, PROMPTS, **options)
    first = fl.compare_images(pipe, {"mine": Method(around=every_other_call, name="every other")}, PROMPTS, **options)
    with monkeypatch.context() as patched:
        patched.setattr(render, "_run", None)  # nothing is drawn again
        again = fl.compare_images(pipe, {"other": Method(around=nothing, name="every other")}, PROMPTS, **options)
    assert again["psnr"].tolist() == first["psnr"].tolist()
    other = fl.compare_images(pipe, {"mine": Method(around=nothing, name="nothing")}, PROMPTS, **options)
    assert np.isinf(other["psnr"]).all() and np.isfinite(first["psnr"][2:]).all()


def test_functions_without_a_name_are_told_apart(pipe):
    methods = {"one": nothing, "other": every_other_call, "third": lambda pipe: every_other_call(pipe)}
    found = fl.compare_images(pipe, methods, PROMPTS[:1], num_inference_steps=2, rivals=False).set_index("method")["latent_mse"]
    assert found["one"] == 0 < found["other"] == found["third"]


def test_a_rival_of_ones_own_goes_with_the_rest(pipe):
    schedule, run = KeySchedule(STEPS, [0, 3]), {"num_inference_steps": STEPS}
    together = sample(pipe, Method(schedule, around=nothing), PROMPTS, [0, 1], **run)
    alone = sample(pipe, Method(schedule), PROMPTS, [0, 1], **run)
    assert torch.equal(together.latents, alone.latents) and together.counts == alone.counts
    assert sample(pipe, Method(steps=3, around=every_other_call), PROMPTS, [0, 1], **run).counts.encoder_calls == 2
    with pytest.raises(ValueError, match="a method of 2 parts that count asked; accepted: one part that yields Counts"):
        sample(pipe, Method(schedule, around=every_other_call), PROMPTS, [0, 1], **run)
    scheduler = pipe.scheduler
    with pytest.raises(KeyboardInterrupt), as_method(pipe, Method(steps=3, around=every_other_call), RunSettings(STEPS)):
        raise KeyboardInterrupt
    assert pipe.scheduler is scheduler and "_compiled_call_impl" not in vars(pipe.unet)


PAPER = KeySchedule.paper(50)
BASELINE = (
    '{"deepcache": null, "encoder_blocks": null, "max_rows": null, "order": 0, "parallel_decoding": true, "prior_noise": 0.0, '
    '"reuse": "encoder", "schedule": null, "steps": null}'
)
STORED = {
    Method(): {},
    Method(PAPER): {"schedule": "0-3,5,10,15,25,35 of 50"},
    Method(PAPER, reuse="prediction", order=1): {"schedule": str(PAPER), "reuse": "prediction", "order": 1},
    Method(PAPER, order=Extrapolation(1, damping=0.5), prior_noise=0.003): {
        "schedule": str(PAPER), "order": {"order": 1, "damping": 0.5, "axis": "step", "parts": "all"}, "prior_noise": 0.003,
    },
    Method(PAPER, parallel_decoding=False, encoder_blocks=3): {
        "schedule": str(PAPER), "parallel_decoding": False, "encoder_blocks": 3,
    },
    Method(steps=9): {"steps": 9},
    Method(deepcache=3): {"deepcache": 3},
    Method(PAPER, max_rows=8, token_merging=0.25): {"schedule": str(PAPER), "max_rows": 8, "token_merging": 0.25},
    Method(around=nothing, name="none"): {"around": "none"},
}  # fmt: skip


@pytest.mark.parametrize("method", STORED, ids=lambda method: str(STORED[method]))
def test_methods_are_stored_as_before(method):
    """Their text is a part of the keys in files that users have."""
    assert json.dumps(method.about(), sort_keys=True) == json.dumps(json.loads(BASELINE) | STORED[method], sort_keys=True)
    copied = pickle.loads(pickle.dumps(method))  # for worker processes
    assert copied == method and hash(copied) == hash(method) and copied.about() == method.about()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"order": 1},
            TypeError,
            "a method with order=1 and no schedule asked; accepted: a schedule, with encoder_blocks, fit, max_rows",
        ),
        ({"schedule": PAPER, "interval": 3}, TypeError, "a method with interval=3 asked; accepted: a schedule, with"),
        ({"schedule": PAPER, "reuse": "noise"}, ValueError, "`reuse` must be one of encoder"),
        ({"around": 3}, TypeError, "around=3 given; accepted: a function of a pipeline that gives a context manager"),
        ({"name": "mine"}, TypeError, "name='mine' given without `around`; accepted: both, or neither"),
        ({"deepcache": 3, "around": nothing}, ValueError, "a method has DeepCache or .* another rival, not two of them"),
    ],
)
def test_methods_that_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        Method(**options)
