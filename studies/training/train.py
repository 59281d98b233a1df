"""Train the whole embedded pipeline."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderTiny
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from transformers import CLIPTextModel, CLIPTokenizer

from fastdiff_lab.inputs.files import writable_folder, write_whole
from fastdiff_lab.pipelines import assemble, check_device
from fastdiff_lab.shapes.data import held_out_scenes
from fastdiff_lab.shapes.judge import Judge

from .autoencoder import train_autoencoder
from .data_parallel import in_processes
from .decoder_training import train_decoder
from .denoiser_training import new_scheduler, train_denoiser
from .judge_training import train_judge
from .model_files import tidy_autoencoder
from .scene_batches import Ahead, scene_batch
from .text_training import train_text_encoder
from .tokens import new_tokenizer, tokens_of
from .trainer import NO_LIMIT


@dataclass(frozen=True)
class Plan:
    """How a kind of device trains.

    Args:
        shares: each part's share of the training time.
        batch_size: scenes per training step of the denoiser.
        workers: processes that draw scenes ahead; a GPU needs more than one process can draw.
        learning_rate: of the denoiser.
    """

    shares: Mapping[str, float]
    batch_size: int
    workers: int
    learning_rate: float


_CPU_SHARES = {"autoencoder": 0.05, "decoder": 0.05, "judge": 0.05, "text_encoder": 0.02, "denoiser": 0.83}
# Minutes in all: the small parts need a larger share of them.
_GPU_SHARES = {"autoencoder": 0.14, "decoder": 0.1, "judge": 0.1, "text_encoder": 0.04, "denoiser": 0.62}
ON_CPU = Plan(_CPU_SHARES, batch_size=16, workers=0, learning_rate=5e-4)
ON_GPU = Plan(_GPU_SHARES, batch_size=256, workers=max(1, (os.cpu_count() or 1) - 2), learning_rate=1e-3)


def _plan(device: str) -> Plan:
    return ON_CPU if device == "cpu" else ON_GPU


def train_pipeline(
    output: Path, *, minutes: float, device: str = "cpu", threads: int = 2, processes: int | None = None, seed: int = 0
) -> None:
    """Train the embedded pipeline from nothing and save it to `output`.

    >>> train_pipeline(Path("runs/shapes"), minutes=600)  # doctest: +SKIP

    Checkpoints, losses and sample images go to `output/training`. The same call resumes.

    Args:
        minutes: Training time of all parts together.
        threads: Threads of the CPU.
        processes: Processes of one thread that train the denoiser on the CPU; None for one per thread.

    Raises:
        ValueError: No time, several processes on a device, or a device that is not there.
        OSError: The folder cannot be written.
    """
    if not minutes > 0:
        raise ValueError(f"minutes={minutes!r} asked; accepted: more than 0")
    processes = (threads if device == "cpu" else 1) if processes is None else processes
    if processes < 1 or (processes > 1 and device != "cpu"):
        raise ValueError(f"processes={processes} asked on {device}; accepted: 1, or more on the CPU")
    check_device(device)
    writable_folder(output)
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    parts = _train_parts(output, minutes, device)
    if processes == 1:
        return _train_denoiser(output, minutes, device, parts)
    in_processes(processes, output / "training", _train_denoiser, output, minutes, device)


@dataclass(frozen=True)
class _Parts:
    """All but the denoiser, trained."""

    judge: Judge
    tokenizer: CLIPTokenizer
    text_encoder: CLIPTextModel
    vae: AutoencoderTiny


def _train_parts(output: Path, minutes: float, device: str) -> _Parts:
    folder, plan = output / "training", _plan(device)
    seconds = {part: share * minutes * 60 for part, share in plan.shares.items()}
    if not (folder / "tokenizer").exists():  # a new one may number the tokens differently
        new_tokenizer().save_pretrained(folder / "tokenizer")
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    options: Any = {"device": device, "max_steps": NO_LIMIT, "workers": plan.workers}
    judge = train_judge(folder, max_seconds=seconds["judge"], **options)
    text_encoder = train_text_encoder(folder, tokenizer, max_seconds=seconds["text_encoder"], **options)
    vae = train_autoencoder(folder, max_seconds=seconds["autoencoder"], **options)
    vae = train_decoder(folder, vae, max_seconds=seconds["decoder"], **options)
    return _Parts(judge, tokenizer, text_encoder, vae)


def _train_denoiser(output: Path, minutes: float, device: str, parts: _Parts | None = None) -> None:
    """Train the denoiser. A process of a team reads the finished checkpoints of the other parts."""
    folder, plan = output / "training", _plan(device)
    parts = parts or _train_parts(output, minutes, device)

    def save(ema: nn.Module, step: int) -> None:
        save_pipeline(output, parts.vae, parts.text_encoder, parts.tokenizer, ema, parts.judge)
        draw_samples(output, folder / f"samples_{step:07d}.png", device=device)

    train_denoiser(
        folder,
        Ahead(partial(scene_batch, parts.tokenizer, plan.batch_size), plan.workers),
        parts.vae,
        parts.text_encoder,
        tokens_of([""], parts.tokenizer)[0],
        device=device,
        max_steps=NO_LIMIT,
        max_seconds=plan.shares["denoiser"] * minutes * 60,
        learning_rate=plan.learning_rate,
        autocast=None if device == "cpu" else torch.bfloat16,
        on_save=save,
    )


def save_pipeline(
    output: Path, vae: AutoencoderTiny, text_encoder: CLIPTextModel, tokenizer: CLIPTokenizer, unet: nn.Module, judge: Judge
) -> None:
    """Write the pipeline in diffusers' format with fp16 weights, and the judge in `judge/`."""
    parts: dict[str, nn.Module] = {"vae": vae, "text_encoder": text_encoder, "unet": unet}
    halves = {name: copy.deepcopy(part).half().cpu() for name, part in parts.items()}
    pipe = assemble(**halves, tokenizer=tokenizer, scheduler=new_scheduler())
    pipe.save_pretrained(output, safe_serialization=True)
    tidy_autoencoder(output / "vae")
    weights = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in judge.cpu().state_dict().items()}
    write_whole(output / "judge" / "model.safetensors", lambda place: save_file(weights, place))


def draw_samples(folder: Path, file: Path, count: int = 16, device: str = "cpu") -> None:
    """Draw held-out captions with one and with two objects by the pipeline in `folder` (25 steps), eight in a row."""
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(folder, dtype=torch.float32, local_files_only=True).to(device)
    pipe.set_progress_bar_config(disable=True)
    prompts = [scene.caption() for objects in (1, 2) for scene in held_out_scenes(count // 2, objects)]
    generators = [torch.Generator().manual_seed(place) for place in range(count)]
    images = pipe(prompts, num_inference_steps=25, guidance_scale=5.0, generator=generators).images
    write_whole(file, lambda place: contact_sheet(images).save(place, format="png"))


def contact_sheet(images: list[Image.Image], columns: int = 8) -> Image.Image:
    """Images of equal size in rows, with a narrow gap."""
    width, height = (side + 2 for side in images[0].size)
    sheet = Image.new("RGB", (columns * width, -(-len(images) // columns) * height), "white")
    for place, image in enumerate(images):
        sheet.paste(image, (place % columns * width, place // columns * height))
    return sheet
