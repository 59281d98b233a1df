"""Full-size pipelines: how they are put together, called, accelerated, compiled and placed; their parts' published sizes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from diffusers import AutoencoderKL, DiTTransformer2DModel, UNet2DConditionModel, UNet3DConditionModel
from short_suite import long_but
from stand_ins import MACHINE
from torch import nn

from fastdiff_lab import KeySchedule
from fastdiff_lab.comparison import architectures
from fastdiff_lab.comparison.costs import flops_kind, flops_of_call
from fastdiff_lab.hooks.denoiser import denoiser_of
from fastdiff_lab.sampling.methods import Method
from fastdiff_lab.sampling.rivals.token_merging import TokenMerging
from studies.architectures import DIT
from studies.bench import full_pipelines, parts
from studies.bench.cases import COMPILED, Case, prepared
from studies.bench.full_pipelines import FULL_PIPELINES, full_pipeline
from studies.bench.parts import run_part
from studies.bench.timed_methods import BASELINE, bench_methods
from studies.bench.timings_file import Book

TEXT = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
WIDTHS = {"block_out_channels": (32, 32, 64, 64), "cross_attention_dim": 32, "attention_head_dim": 4}
HEAVY = ("sd-1.5-controlnet", "dit-xl-2")  # more of a call is reused: the ControlNet counts with the encoder
TINY = {
    "sd-1.5": lambda: UNet2DConditionModel(**architectures.SD_15 | WIDTHS),
    "sdxl": lambda: UNet2DConditionModel(
        **architectures.SDXL | WIDTHS | {
            "block_out_channels": (32, 64, 64), "cross_attention_dim": 64, "transformer_layers_per_block": 1,
            "projection_class_embeddings_input_dim": 6 * 256 + 32,
        }
    ),
    "text-to-video-1.7b": lambda: UNet3DConditionModel(**WIDTHS),
    "dit-xl-2-256": lambda: DiTTransformer2DModel(**DIT | {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 2}),
}  # fmt: skip


def tiny(monkeypatch) -> None:
    """The same pipelines with narrow parts: what is tested is how they are put together and called."""
    monkeypatch.setattr(full_pipelines, "_denoiser", lambda name: TINY[name]().eval())
    narrow = {"block_out_channels": (8, 8, 8, 8), "norm_num_groups": 4, "latent_channels": 4}
    kinds = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    monkeypatch.setattr(full_pipelines, "_autoencoder", lambda **more: AutoencoderKL(**narrow, **kinds, **more))
    for name in ("CLIP_L", "CLIP_H", "CLIP_G"):
        monkeypatch.setattr(full_pipelines, name, TEXT)


def pipelines(*left_out: str) -> pytest.MarkDecorator:
    names = [name for name in FULL_PIPELINES if name not in left_out]
    return pytest.mark.parametrize("name", long_but(("dit-xl-2",), names))


@pipelines("embedded")
def test_every_pipeline_runs_and_can_be_accelerated(name, monkeypatch, tmp_path):
    tiny(monkeypatch)
    about = FULL_PIPELINES[name]
    if name == "text-to-video":  # as many frames as it takes to be a video
        whole = about.call
        monkeypatch.setitem(FULL_PIPELINES, name, replace(about, call=lambda *size: whole(*size) | {"num_frames": 2}))
    methods = {BASELINE: Method(), "paper, parallel": Method(KeySchedule.of_paper(10))}
    monkeypatch.setattr(parts, "bench_methods", lambda pipe, steps, rows, is_compiled: methods)
    case = Case(name, about.pixels if about.is_fixed else 64, steps=10)
    book = Book(tmp_path, MACHINE)
    assert run_part(book, [case], device="cpu", repeats=1)
    runs = {method: found[0] for method, found in book.entry(case).runs.items()}
    assert runs[BASELINE].encoder_calls == 10 and runs["paper, parallel"].encoder_calls == 9
    assert all(run.seconds > run.denoiser_seconds > 0 for run in runs.values())
    counted = book.entry(case).flops
    assert set(counted) == set(methods) and (counted[BASELINE]["encoder"] > counted[BASELINE]["decoder"]) == (name in HEAVY)


@pytest.mark.long
def test_full_size_parts_have_the_published_sizes():
    """On the meta device. OpenAI's and LAION's text encoders, and the autoencoder of Stable Diffusion."""

    def count(part) -> int:
        return sum(parameter.numel() for parameter in part.parameters())

    with torch.device("meta"):
        sd, sdxl = FULL_PIPELINES["sd-1.5"].make(), FULL_PIPELINES["sdxl"].make()
    assert count(sd.text_encoder) == 123_060_480 and count(sd.vae) == 83_653_863 and count(sd.unet) == 859_520_964
    assert count(sdxl.text_encoder_2) == 694_659_840 and count(sdxl.unet) == 2_567_463_684


def test_compiled_children_can_be_replaced_and_the_controlnet_is_compiled_too(monkeypatch):
    compiled = []
    monkeypatch.setattr(nn.Module, "compile", lambda self, **options: compiled.append((type(self).__name__, options)))
    monkeypatch.setattr(full_pipelines, "_denoiser", lambda name: TINY[name]().eval())
    tiny(monkeypatch)
    pipe = prepared(Case("sd-1.5-controlnet", 64, steps=10, mode=COMPILED), "cpu")
    names = [name for name, _ in compiled]
    assert len(compiled) == 6 + 7 + 1 and type(pipe.unet).__name__ not in names and names[-1] == "ControlNetModel"
    assert all(options == {"dynamic": False} for _, options in compiled)


@pipelines()
def test_every_part_goes_to_the_device(name):
    pipe = full_pipeline(name, device="meta", dtype="bfloat16")
    tensors = [p for part in pipe.components.values() if isinstance(part, nn.Module) for p in part.parameters()]
    assert {(p.device.type, p.dtype) for p in tensors} == {("meta", torch.bfloat16)}


@pytest.mark.long
def test_each_rival_does_something():
    """On the meta device: a method that needs as many operations as the baseline is none."""
    sizes = {"sd-1.5": "sd-1.5", "sd-1.5-controlnet": "sd-1.5", "sdxl": "sdxl"}  # of the others, ours alone is timed
    for name, size in sizes.items():
        pipe, arguments = full_pipeline(name, device="meta"), architectures.full_size(size).call()
        whole = flops_of_call(denoiser_of(pipe), arguments, Method())
        # Methods of one kind need as many operations.
        rivals = {flops_kind(method): method for method in bench_methods(pipe, 50, 2).values() if method.rivals}.values()
        assert rivals and all(flops_of_call(denoiser_of(pipe), arguments, method) != whole for method in rivals)
    with pytest.raises(ValueError, match="without attention at the full resolution"), TokenMerging(0.5)(pipe):
        pass
