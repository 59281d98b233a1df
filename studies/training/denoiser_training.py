"""Train the embedded pipeline's denoiser.

- `new_unet()`, `new_scheduler()`: Stable Diffusion's topology and noise at a small size
- `train_denoiser(folder, ...)`: classifier-free guidance, epsilon prediction
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import AutoencoderTiny, DDIMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel

from .text_training import WIDTH
from .trainer import fit

UNCONDITIONAL_SHARE = 0.1
# The mean of an image shows through the noise even at the last time-step. Noise with a mean of its own ("offset noise") makes the
# denoiser read the background's colour from the text instead.
OFFSET_NOISE = 0.1


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


def loss_weight(scheduler: DDIMScheduler, cap: float = 10.0) -> Tensor:
    """Weight of each time-step's squared epsilon error, shape (1000,), mean 1: 1 + 1/SNR up to a cap.

    Without a cap it is the v-loss (Salimans and Ho, 2022, section 4). The epsilon loss alone hardly sees the noisiest steps, where
    background and layout are decided. The cap keeps a share for the steps at which an object's colour and shape are decided.
    """
    weight = (1 / scheduler.alphas_cumprod).clamp(max=cap)
    return weight / weight.mean()


def offset_noise(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Standard normal noise of shape (batch, channels, height, width), and a small mean of its own in each channel."""
    return torch.randn(shape, generator=generator) + OFFSET_NOISE * torch.randn((*shape[:2], 1, 1), generator=generator)


class Prediction(nn.Module):
    """The UNet's prediction as a tensor."""

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, noisy: Tensor, time_steps: Tensor, text: Tensor) -> Tensor:
        return self.unet(noisy, time_steps, text).sample


def as_graph(module: nn.Module, *arguments: Tensor) -> nn.Module:
    """Give a module that runs as one CUDA graph, forward and backward; on the CPU the module itself.

    A small UNet has a thousand small kernels. Their launches take the host longer than the GPU needs to run them. `arguments` are a
    call's tensors; later calls have their shapes. Autocast stays as it is now, without its cache, which a graph cannot hold.
    """
    device = arguments[0].device.type
    if device != "cuda":
        return module
    dtype = torch.get_autocast_dtype(device)
    with torch.autocast(device, dtype=dtype, enabled=torch.is_autocast_enabled(device), cache_enabled=False):
        return torch.cuda.make_graphed_callables(module, arguments, allow_unused_input=True)


def train_denoiser(
    folder: Path,
    batches: Callable[[int], tuple[Tensor, Tensor]],
    vae: AutoencoderTiny,
    text_encoder: CLIPTextModel,
    unconditional: Tensor,
    *,
    device: str,
    max_steps: int,
    max_seconds: float,
    learning_rate: float = 5e-4,
    autocast: torch.dtype | None = None,
    save_every: float = 120.0,
    on_save: Callable[[nn.Module, int], None] = lambda ema, step: None,
) -> UNet2DConditionModel:
    """Train the UNet on scenes and return it with its averaged weights.

    Args:
        folder: where the checkpoint and the losses go.
        batches: gives a training step's images, shape (batch, 3, 64, 64), and token ids, shape (batch, 24); see `scene_batch`.
        vae: encodes the images.
        text_encoder: reads the captions.
        unconditional: the token ids of the empty prompt, shape (24,), which replace a tenth of the captions.
        device, max_steps, max_seconds, learning_rate, autocast, save_every, on_save: as in `fit`.
    """
    scheduler = new_scheduler()
    weight = loss_weight(scheduler).to(device)
    vae, text_encoder = (part.to(device).eval().requires_grad_(False) for part in (vae, text_encoder))

    def noised(draw: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Noisy latents, their noise and time-steps, and the embedded captions."""
        images, tokens = batches(draw)
        generator = torch.Generator().manual_seed(draw)
        time_steps = torch.randint(1000, (len(images),), generator=generator).to(device)
        dropped = torch.rand(len(images), generator=generator) < UNCONDITIONAL_SHARE
        with torch.no_grad():
            latents = vae.encoder(images.to(device)).float() * vae.config.scaling_factor
            text = text_encoder(torch.where(dropped[:, None], unconditional, tokens).to(device)).last_hidden_state
        noise = offset_noise(tuple(latents.shape), generator).to(device)
        return scheduler.add_noise(latents, noise, time_steps), noise, time_steps, text

    predict: list[nn.Module] = []

    def loss(model: nn.Module, draw: int, progress: float) -> Tensor:
        noisy, noise, time_steps, text = noised(draw)
        if not predict:
            predict.append(as_graph(Prediction(model), noisy, time_steps, text))
        predicted = predict[0](noisy, time_steps, text)
        return (weight[time_steps] * (predicted.float() - noise).square().mean(dim=(1, 2, 3))).mean()

    return fit(
        new_unet().to(device), loss, name="unet", folder=folder, learning_rate=learning_rate, max_steps=max_steps,
        max_seconds=max_seconds, autocast=autocast, save_every=save_every, on_save=on_save,
    )  # fmt: skip
