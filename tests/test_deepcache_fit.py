"""A fit for DeepCache: the control has what ours has."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from laws import distance
from models import state
from systems.stable_diffusion import drawing_small

from fastdiff_lab.pipelines import with_settings_of
from fastdiff_lab.sampling.methods import Method, sample
from studies.deepcache_fit import FittedDeepCache, fit_deepcache
from studies.suite.suite_methods import suite_methods

PROMPTS = ["a large red star on a blue background", "a small white ring on a green background"]
RUN = {"num_inference_steps": 8, "guidance_scale": 5.0}


@pytest.fixture(scope="module")
def pipe():
    return drawing_small()


@pytest.fixture(scope="module")
def fit(pipe):
    return fit_deepcache(pipe, 3, PROMPTS, **RUN)


def latents(pipe, method):
    return sample(pipe, method, PROMPTS, [0, 1], **RUN).latents


def test_scalars_of_zero_are_deepcache_alone(pipe, fit):
    zeros = replace(fit, scalars=tuple((0.0,) * len(of_step) for of_step in fit.scalars))
    assert torch.equal(latents(pipe, Method(around=zeros)), latents(pipe, Method(deepcache=3)))


def test_a_fit_comes_nearer_than_deepcache_alone(pipe, fit):
    before, baseline = state(pipe), latents(pipe, Method())
    fitted, alone = (distance(latents(pipe, method), baseline) for method in (Method(around=fit), Method(deepcache=3)))
    assert fitted < 0.8 * alone and state(pipe) == before
    assert [len(of_step) > 0 for of_step in fit.scalars] == [step % 3 > 0 for step in range(8)]


def test_calls_and_names_are_those_of_deepcache_and_of_the_fit(pipe, fit):
    counts = sample(pipe, Method(around=fit), PROMPTS, [0, 1], **RUN).counts
    assert (counts.encoder_calls, counts.decoder_calls) == (3, 8)
    about = Method(around=fit).about()
    assert (
        about["deepcache"] == 3
        and about["deepcache_fit"] != Method(around=replace(fit, bounds=(1.0,) * 8)).about()["deepcache_fit"]
    )


def test_a_file_holds_it_for_the_suite(fit, tmp_path):
    fit.save(tmp_path / "fit.json")
    again = FittedDeepCache.load(tmp_path / "fit.json")
    assert again == fit and suite_methods(50, {}, further=[again])["DeepCache 3, fitted"] == Method(around=fit)
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(ValueError, match="other.json"):
        FittedDeepCache.load(tmp_path / "other.json")
    (tmp_path / "half.json").write_text('{"schema": "fastdiff_lab.FittedDeepCache", "version": 1, "interval": 3}')
    with pytest.raises(ValueError, match="half.json is no fit of DeepCache .*scalars.*; accepted: a file of studies.deepcache_fit"):
        FittedDeepCache.load(tmp_path / "half.json")


def test_what_would_measure_something_else_is_refused(pipe):
    with pytest.raises(
        ValueError, match="a fit for DeepCache asked of DDIMScheduler with guidance scale 1.0; accepted: DDIMScheduler, and"
    ):
        fit_deepcache(pipe, 3, PROMPTS, **RUN | {"guidance_scale": 1.0})
    own = pipe.scheduler
    pipe.scheduler = with_settings_of(own, "pndm")
    with pytest.raises(ValueError, match="asked of PNDMScheduler with guidance scale 5.0"):
        fit_deepcache(pipe, 3, PROMPTS, **RUN)
    pipe.scheduler = own
