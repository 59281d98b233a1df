"""Train the embedded pipeline's denoiser on latents that were encoded before.

- `new_unet()`, `new_scheduler()`: Stable Diffusion's topology and noise at a small size
- `encode_scenes(vae, ...)`: latents and captions of many scenes, kept in a file
- `train_denoiser(folder, ...)`: classifier-free guidance, epsilon prediction
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderTiny, DDIMScheduler, UNet2DConditionModel
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm
from transformers import CLIPTextModel, CLIPTokenizer

from ...inputs.files import write_whole
from ..data import pictures
from ..scenes import sample_scene
from ..text import WIDTH, tokens_of
from .trainer import fit

UNCONDITIONAL_SHARE = 0.1
# The mean of an image shows through the noise even at the last time-step. Noise with its own mean makes the denoiser
# read the background's colour from the text instead ("offset noise").
OFFSET_NOISE = 0.1
LAYOUT_SHARE = 0.5  # share of the training
LATER_CAP = 10.0


def new_unet() -> UNet2DConditionModel:
    """Three cross-attention down blocks, one plain, and their mirror image, as in Stable Diffusion; 6.4 M parameters."""
    return UNet2DConditionModel(
        sample_size=16, in_channels=4, out_channels=4, layers_per_block=2, block_out_channels=(32, 64, 96, 112),
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        cross_attention_dim=WIDTH, attention_head_dim=2, norm_num_groups=16,
    )  # fmt: skip


def new_scheduler() -> DDIMScheduler:
    """Stable Diffusion's noise: 1,000 scaled-linear steps, epsilon prediction, DDIM with its authors' settings."""
    return DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False,
        steps_offset=1,
    )  # fmt: skip


@dataclass(frozen=True)
class EncodedScenes:
    """Latents (scenes, 4, 16, 16) in fp16 with unit standard deviation, and token ids of the captions."""

    latents: Tensor
    tokens: Tensor

    def to(self, device: str) -> EncodedScenes:
        return EncodedScenes(self.latents.to(device), self.tokens.to(device))


@torch.no_grad()
def encode_scenes(
    vae: AutoencoderTiny, tokenizer: CLIPTokenizer, file: Path, *, objects: int, count: int, device: str
) -> EncodedScenes:
    """Draw and encode `count` scenes of one or two objects, or read them from `file` if it is there.

    >>> one = encode_scenes(vae, tokenizer, Path("runs/train/one.safetensors"), objects=1, count=20000, device="cpu")  # doctest: +SKIP
    """
    if not file.exists():
        parts = [range(start, min(start + 250, count)) for start in range(0, count, 250)]
        factor = vae.config.scaling_factor
        latents = [
            (vae.encoder(pictures(part, objects).to(device)) * factor).half().cpu()
            for part in tqdm(parts, desc=f"encode {objects}-object scenes")
        ]
        tokens = tokens_of([sample_scene(seed, objects).caption() for seed in range(count)], tokenizer)
        header = {"objects": json.dumps(objects)}
        tensors = {"latents": torch.cat(latents), "tokens": tokens}
        write_whole(file, lambda place: save_file(tensors, place, metadata=header))
    with safe_open(file, framework="pt") as stored:
        return EncodedScenes(stored.get_tensor("latents"), stored.get_tensor("tokens"))


def loss_weight(scheduler: DDIMScheduler, cap: float = float("inf")) -> Tensor:
    """Weight of each time-step's squared epsilon error, shape (1000,), mean 1: 1 + 1/SNR, the v-loss.

    The plain epsilon loss hardly counts the noisiest steps, which decide background and layout. A `cap` on the weight
    leaves a share for the steps that decide an object's colour and shape.
    """
    weight = (1 / scheduler.alphas_cumprod).clamp(max=cap)
    return weight / weight.mean()


@dataclass(frozen=True)
class _Stage:
    """Which time-steps are drawn, as 1000 (1 - u ** `power`), and how their errors are weighted."""

    power: float
    weight: Tensor

    def time_steps(self, count: int, generator: torch.Generator) -> Tensor:
        return (1000 * (1 - torch.rand(count, generator=generator) ** self.power)).long().clamp(max=999)


def train_denoiser(
    folder: Path,
    scenes: Callable[[float, int], EncodedScenes],
    text_encoder: CLIPTextModel,
    unconditional: Tensor,
    *,
    device: str,
    max_steps: int,
    max_seconds: float,
    batch: int,
    learning_rate: float = 8e-4,
    autocast: torch.dtype | None = None,
    save_every: float = 120.0,
    on_save: Callable[[nn.Module, int], None] = lambda ema, step: None,
) -> UNet2DConditionModel:
    """Train the UNet on encoded scenes and return it with its averaged weights.

    `scenes(progress, draw)` is the set of a step's batch; a curriculum is a function of the progress.
    `unconditional` has the token ids of the empty prompt, shape (24,), which replace a tenth of the captions.
    """
    scheduler = new_scheduler()
    # The noisiest steps decide background and layout and are learned first, then colours and shapes.
    layout, objects = _Stage(2.0, loss_weight(scheduler).to(device)), _Stage(1.0, loss_weight(scheduler, LATER_CAP).to(device))
    text_encoder = text_encoder.to(device).eval().requires_grad_(False)

    def loss(model: nn.Module, draw: int, progress: float) -> Tensor:
        generator = torch.Generator().manual_seed(draw)
        chosen = scenes(progress, draw)
        rows = torch.randint(len(chosen.latents), (batch,), generator=generator).to(chosen.latents.device)
        stage = layout if progress < LAYOUT_SHARE else objects
        time_steps = stage.time_steps(batch, generator).to(device)
        noise = torch.randn((batch, *chosen.latents.shape[1:]), generator=generator)
        noise = (noise + OFFSET_NOISE * torch.randn((batch, 4, 1, 1), generator=generator)).to(device)
        dropped = (torch.rand(batch, generator=generator) < UNCONDITIONAL_SHARE).to(device)
        tokens = torch.where(dropped[:, None], unconditional.to(device), chosen.tokens[rows].to(device))
        noisy = scheduler.add_noise(chosen.latents[rows].to(device, torch.float32), noise, time_steps)
        with torch.no_grad():
            text = text_encoder(tokens).last_hidden_state
        predicted = model(noisy, time_steps, text).sample
        return (stage.weight[time_steps] * (predicted.float() - noise).square().mean(dim=(1, 2, 3))).mean()

    return fit(
        new_unet().to(device), loss, name="unet", folder=folder, learning_rate=learning_rate, max_steps=max_steps,
        max_seconds=max_seconds, autocast=autocast, save_every=save_every, on_save=on_save,
    )  # fmt: skip
