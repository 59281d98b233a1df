"""Train the text encoder on captions, before any image is drawn."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from fastdiff_lab.shapes.scenes import CHOICES, sample_scene
from fastdiff_lab.shapes.text import MAX_TOKENS

from .scene_batches import Ahead, seeds_of_draw
from .tokens import tokens_of
from .trainer import fit

WIDTH = 128


class CaptionReader(nn.Module):
    """The text encoder with one head per attribute on its last token, for training before any image."""

    def __init__(self, tokenizer: CLIPTokenizer) -> None:
        super().__init__()
        self.encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(tokenizer), hidden_size=WIDTH, intermediate_size=4 * WIDTH, projection_dim=WIDTH,
                num_hidden_layers=3, num_attention_heads=4, max_position_embeddings=MAX_TOKENS,
                bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
            )
        )  # fmt: skip
        self.heads = nn.ModuleDict({name: nn.Linear(WIDTH, len(choices) + 1) for name, choices in CHOICES.items()})

    def forward(self, tokens: Tensor) -> dict[str, Tensor]:
        """Scores per attribute, shape (batch, choices + 1); the last choice is "not said"."""
        pooled = self.encoder(tokens).last_hidden_state.mean(dim=1)
        return {name: head(pooled) for name, head in self.heads.items()}


def said(attributes: list[dict[str, str]]) -> dict[str, Tensor]:
    """The class of each attribute in each caption; the last class if the caption leaves it open."""
    return {
        name: torch.tensor([choices.index(asked[name]) if name in asked else len(choices) for asked in attributes])
        for name, choices in CHOICES.items()
    }


def captions_read(tokenizer: CLIPTokenizer, size: int, draw: int) -> tuple[Tensor, dict[str, Tensor]]:
    """The captions of a draw as token ids, and what they say."""
    scenes = [sample_scene(seed) for seed in seeds_of_draw(draw, size)]
    return tokens_of([scene.caption() for scene in scenes], tokenizer), said([scene.attributes() for scene in scenes])


def train_text_encoder(
    folder: Path,
    tokenizer: CLIPTokenizer,
    *,
    device: str,
    max_steps: int,
    max_seconds: float,
    batch_size: int = 64,
    workers: int = 0,
) -> CLIPTextModel:
    """Train the text encoder to read captions, so that the denoiser need not learn it.

    >>> encoder = train_text_encoder(Path("runs/train"), new_tokenizer(), device="cpu", max_steps=3000, max_seconds=180)  # doctest: +SKIP
    """

    batches = Ahead(partial(captions_read, tokenizer, batch_size), workers)

    def loss(model: nn.Module, step: int, progress: float) -> Tensor:
        tokens, wanted = batches(step)
        scores = model(tokens.to(device))
        return sum(functional.cross_entropy(scores[name], wanted[name].to(device)) for name in CHOICES)

    reader = CaptionReader(tokenizer).to(device)
    return fit(
        reader, loss, name="text_encoder", folder=folder, learning_rate=2e-3, max_steps=max_steps, max_seconds=max_seconds, ema_decay=0.99
    ).encoder  # fmt: skip
