"""The embedded pipeline, and loading others."""

from __future__ import annotations

import copy
import io
import json
import os
import pickle
import re
import subprocess
import sys
import warnings

import httpx
import pytest
import torch
from diffusers import StableDiffusionPipeline
from huggingface_hub.errors import HfHubHTTPError
from models import SCHEDULERS
from short_suite import long_but
from systems import ROWS
from transformers import CLIPTokenizer

import fastdiff_lab as fl
from fastdiff_lab import pipelines
from fastdiff_lab.hooks.fingerprint import differences, identity
from fastdiff_lab.pipelines import embedded_folder
from fastdiff_lab.shapes.scenes import words
from fastdiff_lab.shapes.text import MAX_TOKENS
from studies.training.tokens import new_tokenizer

PROMPT = "a small red circle at the left on a blue background"


def test_it_has_stable_diffusions_topology(embedded):
    config = embedded.unet.config
    assert type(embedded) is StableDiffusionPipeline
    assert tuple(config.down_block_types) == ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",)
    assert tuple(config.up_block_types) == ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3
    assert config.layers_per_block == 2 and config.in_channels == 4
    assert sum(p.numel() for p in embedded.unet.parameters()) <= 7_000_000
    scheduler = embedded.scheduler.config
    assert (scheduler.beta_schedule, scheduler.prediction_type) == ("scaled_linear", "epsilon")


def test_no_file_is_over_14_mib():
    sizes = {file.name: file.stat().st_size for file in embedded_folder().rglob("*") if file.is_file()}
    assert max(sizes.values()) <= 14 * 2**20
    assert all(not name.endswith((".bin", ".pt", ".ckpt", ".pkl")) for name in sizes)


def test_diffusers_loads_it_unmodified_and_draws_the_same(embedded):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plain = StableDiffusionPipeline.from_pretrained(embedded_folder(), dtype=torch.float32, local_files_only=True)
    plain.set_progress_bar_config(disable=True)
    options = {"num_inference_steps": 3, "guidance_scale": 5.0, "output_type": "latent"}
    ours, theirs = (p(PROMPT, generator=torch.Generator().manual_seed(0), **options).images for p in (embedded, plain))
    assert torch.allclose(ours, theirs, atol=1e-4)  # where weights lie in memory decides the last bit
    weights = plain.unet.state_dict()
    assert all(torch.equal(weights[name], value) for name, value in embedded.unet.state_dict().items())


def test_the_text_matters(embedded):
    options = {"num_inference_steps": 3, "guidance_scale": 5.0, "output_type": "latent"}
    red, green = (
        embedded(f"a {colour} circle on a blue background", generator=torch.Generator().manual_seed(0), **options).images
        for colour in ("red", "green")
    )
    assert float((red - green).abs().max()) > 1e-3


@pytest.mark.parametrize("name", long_but(("dpm-solver++", "heun"), SCHEDULERS))
def test_every_scheduler_draws_with_the_accelerated_sampler(name):
    pipe = fl.load_pipeline(scheduler=name)
    pipe.scheduler.set_timesteps(6)
    schedule = fl.KeySchedule.uniform(len(pipe.scheduler.timesteps), 3)
    with fl.encoder_propagation(pipe, schedule) as counts:
        latents = pipe(PROMPT, num_inference_steps=6, generator=torch.Generator().manual_seed(0), output_type="latent").images
    assert counts.encoder_calls == 3 and torch.isfinite(latents).all()


def test_every_word_of_a_caption_is_one_token(embedded):
    for tokenizer in (new_tokenizer(), embedded.tokenizer):
        assert all(len(tokenizer.tokenize(word)) == 1 for word in words())
        longest = "a large purple triangle to the right of a small orange square on a yellow background"
        assert len(tokenizer(longest).input_ids) == len(longest.split()) + 2 <= MAX_TOKENS


def test_an_unknown_word_says_which_are_known(embedded):
    with pytest.raises(ValueError, match=r"does not know 'dog' \(in 'a red dog'\); it knows: a, above, an"):
        embedded("a red dog", num_inference_steps=1)
    with pytest.raises(ValueError, match="does not know 'blurry'"):
        embedded([PROMPT], negative_prompt=["blurry"], num_inference_steps=1)
    embedded(PROMPT, negative_prompt="", num_inference_steps=1, output_type="latent")


def test_words_that_were_taught_are_known(embedded):
    again = copy.deepcopy(embedded.tokenizer)
    again.add_tokens(["<thing>"])
    assert again("a red <thing>").input_ids
    for tokenizer in (again, pickle.loads(pickle.dumps(embedded.tokenizer))):
        with pytest.raises(ValueError, match="does not know 'dog'"):
            tokenizer(["a red circle", "a Dog"])


def test_a_folder_of_a_users_own(tmp_path, embedded):
    """What is saved loads everywhere, and loading changes nothing of it."""
    embedded.save_pretrained(tmp_path / "mine")
    again = fl.load_pipeline(tmp_path / "mine", scheduler="euler")
    assert type(again.scheduler).__name__ == "EulerDiscreteScheduler"
    assert torch.equal(again.unet.conv_in.weight, embedded.unet.conv_in.weight)
    saved = [json.loads((tmp_path / "mine" / name).read_text()) for name in ("model_index.json", "tokenizer/tokenizer_config.json")]
    assert saved[0]["tokenizer"] == ["transformers", "CLIPTokenizer"] and saved[1]["tokenizer_class"] == "CLIPTokenizer"
    ours = fl.load_pipeline(tmp_path / "mine")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plain = StableDiffusionPipeline.from_pretrained(tmp_path / "mine", dtype=torch.float32, local_files_only=True)
    assert vars(ours).keys() == vars(plain).keys() and type(ours.tokenizer) is type(plain.tokenizer) is CLIPTokenizer
    assert all(type(ours.components[name]) is type(part) for name, part in plain.components.items())


@pytest.mark.long
def test_bars_of_a_users_pipeline_are_silent_in_our_loops_and_stay_as_they_were():
    pipe, said = ROWS["sd"].build(), io.StringIO()
    own = {"file": said, "desc": "mine"}
    call = {"num_inference_steps": 3, "pipe_kwargs": {"height": 16, "width": 16}}
    for config in (own, None):
        if config is None:
            del pipe._progress_bar_config
        else:
            pipe._progress_bar_config = config
        fl.compare(pipe, {}, ["a red circle"], repeats=1, rivals=False, **call)
        if config is own:
            fl.calibrate(pipe, ["a red circle"], max_span=2, **call)
        assert not said.getvalue() and vars(pipe).get("_progress_bar_config") is config
    pipe._progress_bar_config = own
    pipe("a red circle", num_inference_steps=2, height=16, width=16, output_type="latent")
    assert "mine" in said.getvalue()


ELSEWHERE = """
import os, logging, sys
before = dict(os.environ)
import fastdiff_lab
from transformers.utils import logging as theirs
fastdiff_lab.load_pipeline()
assert dict(os.environ) == before, set(os.environ) ^ set(before)
print(theirs.get_verbosity() == logging.WARNING, theirs.is_progress_bar_enabled())
print("loaded", file=sys.stderr)
from fastdiff_lab.hooks.fingerprint import identity
print(identity(fastdiff_lab.load_pipeline(scheduler="dpm-solver++")))
"""


@pytest.fixture(scope="module")
def elsewhere():
    """What a process of its own says, whose sets have an order of their own."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("TRANSFORMERS")}
    found = subprocess.run([sys.executable, "-c", ELSEWHERE], env=clean | {"PYTHONHASHSEED": "1"}, capture_output=True, text=True)
    assert found.returncode == 0 and found.stderr.startswith("loaded"), found.stderr
    return found.stdout.splitlines()


@pytest.mark.long
def test_importing_changes_nothing_of_the_process(elsewhere):
    assert elsewhere[0] == "True True"


@pytest.mark.long
def test_a_scheduler_is_known_again_in_another_process(elsewhere):
    """diffusers lists the settings that were left at their defaults in the order of a set, which is another in each process."""
    assert elsewhere[1] == str(identity(fl.load_pipeline(scheduler="dpm-solver++")))


def test_folders_that_are_no_pipelines(tmp_path):
    with pytest.raises(FileNotFoundError, match="has no model_index.json; accepted: a pipeline in diffusers' format"):
        fl.load_pipeline(tmp_path)
    with pytest.raises(FileNotFoundError, match="no folder '/nowhere/at/all'; accepted"):
        fl.load_pipeline("/nowhere/at/all")
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}))
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"\x80")
    with pytest.raises(
        FileNotFoundError, match=r"pickled weights only \(unet/diffusion_pytorch_model.bin\).*accepted: safetensors"
    ):
        fl.load_pipeline(tmp_path)


def test_a_folder_with_a_part_missing(tmp_path):
    parts = {"_class_name": "DDPMPipeline", "scheduler": ["diffusers", "DDPMScheduler"], "unet": ["diffusers", "UNet2DModel"]}
    (tmp_path / "model_index.json").write_text(json.dumps(parts))
    with pytest.raises(FileNotFoundError, match=f"cannot load {re.escape(str(tmp_path))}: .*no file named"):
        fl.load_pipeline(tmp_path)


def test_the_embedded_pipeline_is_looked_for_in_two_places(tmp_path, monkeypatch):
    monkeypatch.setattr(pipelines, "__file__", str(tmp_path / "fastdiff_lab" / "pipelines.py"))
    with pytest.raises(
        FileNotFoundError,
        match=r"the embedded pipeline is missing; looked in: .*fastdiff_lab/data/shapes/model_index.json, .*shapes/model",
    ):
        fl.load_pipeline()


@pytest.mark.parametrize(
    ("status", "error", "message"),
    [
        (
            404,
            FileNotFoundError,
            "the hub has no pipeline 'someone/some-model' .404: no such model, file or revision.; accepted: the id",
        ),
        (
            401,
            PermissionError,
            "the hub does not give 'someone/some-model' .401: it is not there, private, .*; accepted: a public model, or a",
        ),
        (403, PermissionError, "the hub does not give 'someone/some-model' .403"),
        (503, OSError, "cannot load 'someone/some-model' from the hub: .*; accepted: a pipeline in diffusers' format"),
        (None, ConnectionError, "cannot get 'someone/some-model' from the hub"),
    ],
)
def test_what_the_hub_answers(monkeypatch, status, error, message):
    def answer(*_, **__):
        request = httpx.Request("GET", "https://huggingface.co/api/models/someone/some-model")
        if status is None:
            raise httpx.ConnectError("no route", request=request)
        raise HfHubHTTPError(f"{status}", response=httpx.Response(status, request=request))

    monkeypatch.setattr("diffusers.pipelines.pipeline_utils.model_info", answer)
    with pytest.raises(error, match=message) as told:
        fl.load_pipeline("someone/some-model")
    assert status is None or not isinstance(told.value, ConnectionError)


def test_a_hub_id_without_network():
    with pytest.raises(ConnectionError, match="cannot get 'someone/some-model' from the hub .*local folder"):
        fl.load_pipeline("someone/some-model")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "int8"}, "dtype='int8' asked; accepted: float32, float16"),
        ({"dtype": torch.int8}, "dtype=torch.int8 asked; accepted: float32, float16, bfloat16, float64, or torch's own"),
        ({"scheduler": "fast"}, "scheduler='fast' asked; accepted: ddim, pndm"),
        ({"device": "abacus"}, "device='abacus' asked; on this machine: cpu"),
    ],
)
def test_unknown_options(options, message):
    with pytest.raises(ValueError, match=message):
        fl.load_pipeline(**options)


@pytest.mark.long
def test_half_precision_keeps_the_law():
    pipe = fl.load_pipeline(dtype=torch.bfloat16, device=torch.device("cpu"))
    assert pipe.unet.dtype == torch.bfloat16

    def draw():
        return pipe(PROMPT, num_inference_steps=2, generator=torch.Generator().manual_seed(0), output_type="latent").images

    baseline = draw()
    with fl.encoder_propagation(pipe, fl.KeySchedule(2, range(2))):
        assert torch.equal(draw(), baseline)


@pytest.mark.long
def test_costs_of_the_embedded_pipeline_fit_it():
    """Schedules derived from the shipped costs are used without a warning: they were measured on these weights and settings."""
    import fastdiff_lab as fl

    pipe = fl.load_pipeline()
    for order, images in ((0, 16), (1, 8)):
        costs = fl.embedded_costs(order=order)
        assert (costs.num_images, costs.num_steps, costs.order) == (images, 50, order) and not costs.sensitivity.isnan().any()
        schedule = fl.derive_schedule(costs, 9)
        with fl.encoder_propagation(pipe, schedule, order=order) as counts:
            pipe("a small red circle on a blue background", num_inference_steps=50, guidance_scale=5.0, output_type="latent")
        assert counts.encoder_calls == 9
    with pytest.raises(FileNotFoundError, match="costs of encoder, order 3, ddim-50 is missing; looked in"):
        fl.embedded_costs(order=3)


@pytest.mark.parametrize(("measured", "scheduler"), [("ddim-50", None), ("dpm-solver++-20", "dpm-solver++")])
def test_shipped_costs_are_of_the_embedded_pipeline(measured, scheduler):
    pipe = fl.load_pipeline(scheduler=scheduler)
    for order in (0, 1):
        costs = fl.embedded_costs(order=order, measured=measured)
        assert not differences(costs.measured_on, pipe, order=order, reuse="encoder", guidance_scale=5.0)
