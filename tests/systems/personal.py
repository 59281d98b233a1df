"""Personalised models: DreamBooth and Custom Diffusion (paper, section 4.3)."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.attention_processor import AttnProcessor2_0, CustomDiffusionAttnProcessor2_0

from .base import PAPERS, System, done, given
from .parts import DTYPE, WIDTH, built, normal
from .stable_diffusion import LATENT, OTHER_TEXT, stable_diffusion


def dreambooth() -> Any:
    """A UNet whose every weight was changed a little, as by fine-tuning."""
    pipe = stable_diffusion()
    torch.manual_seed(17)
    for parameter in pipe.unet.parameters():
        parameter.add_(0.05 * torch.randn_like(parameter))
    return pipe


def _not_tuned(pipe: Any) -> None:
    pipe.unet.load_state_dict(stable_diffusion().unet.state_dict())


def custom_diffusion() -> Any:
    """New keys and values for the text in every cross-attention, and a new word with an embedding of its own."""
    pipe = stable_diffusion()
    pipe.load_textual_inversion({"<new1>": 3 * normal(WIDTH, seed=18)}, token="<new1>")
    pipe.text_encoder.to(DTYPE).requires_grad_(False)
    pipe.unet.set_attn_processor({name: _processor(pipe.unet, name) for name in pipe.unet.attn_processors})
    return pipe


def _processor(model: Any, name: str) -> CustomDiffusionAttnProcessor2_0:
    attention = model.get_submodule(name.removesuffix(".processor"))
    is_text = attention.is_cross_attention
    sizes = {"hidden_size": attention.to_q.weight.shape[0], "cross_attention_dim": WIDTH if is_text else None}
    return built(lambda: CustomDiffusionAttnProcessor2_0(train_kv=is_text, train_q_out=False, **sizes), 19)


def _old_keys(pipe: Any) -> None:
    pipe.unet.set_attn_processor(AttnProcessor2_0())


SYSTEMS = (
    System(
        "dreambooth", "DreamBooth", dreambooth, LATENT, OTHER_TEXT | {"fine-tuning": done(_not_tuned)}, paper="dreambooth", size="sd-1.5",
        group=PAPERS,
    ),
    System(
        "custom-diffusion", "Custom Diffusion", custom_diffusion, LATENT | {"prompt": "a <new1> circle"},
        {"new word": given(prompt="a red circle"), "trained keys and values": done(_old_keys)}, paper="custom-diffusion", size="sd-1.5",
        group=PAPERS,
    ),
)  # fmt: skip
