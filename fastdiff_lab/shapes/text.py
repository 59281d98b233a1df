"""The tokenizer and the text encoder of the embedded pipeline.

- `new_tokenizer()`: a CLIPTokenizer in which every word of a caption is one token
- `train_text_encoder(folder, ...)`: a CLIPTextModel that reads captions
- `CaptionTokenizer`: refuses unknown words, and says which are known
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from .scenes import CHOICES, sample_scene, words
from .training.trainer import fit

MAX_TOKENS = 24
WIDTH = 128
START, END = "<|startoftext|>", "<|endoftext|>"


def new_tokenizer() -> CLIPTokenizer:
    """A CLIPTokenizer whose merges make one token of each word of a caption.

    >>> new_tokenizer().tokenize("a red circle")
    ['a</w>', 'red</w>', 'circle</w>']
    """
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.BpeTrainer(end_of_word_suffix="</w>", special_tokens=[START, END], show_progress=False)
    learner.train_from_iterator([" ".join(words())] * 2, trainer)
    learned = json.loads(learner.to_str())["model"]
    merges = [tuple(merge) for merge in learned["merges"]]
    return CLIPTokenizer(
        vocab=learned["vocab"], merges=merges, unk_token=END, bos_token=START, eos_token=END, pad_token=END,
        model_max_length=MAX_TOKENS,
    )  # fmt: skip


class CaptionTokenizer(CLIPTokenizer):
    """The embedded pipeline's tokenizer. It refuses unknown words, which a CLIPTokenizer would spell.

    Added words (textual inversion) are known. It is saved as a CLIPTokenizer.
    """

    def __call__(self, text: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Tokens of one or more captions. Raises ValueError for an unknown word."""
        known = {*words(), *self.get_added_vocab()}
        for prompt in [text] if isinstance(text, str) else text or []:
            unknown = [word for word in prompt.split() if word.lower() not in known and word not in known]
            if unknown:
                raise ValueError(
                    f"the embedded pipeline does not know {unknown[0].lower()!r} (in {prompt!r}); it knows: {', '.join(words())}"
                )
        return super().__call__(text, *args, **kwargs)

    def save_pretrained(self, *args: Any, **kwargs: Any) -> Any:
        """Save as a CLIPTokenizer, which any program can read."""
        return self.as_clip_tokenizer().save_pretrained(*args, **kwargs)

    def as_clip_tokenizer(self) -> CLIPTokenizer:
        """The same tokenizer without the refusal, so that new words can be taught."""
        plain = copy.copy(self)
        plain.__class__ = CLIPTokenizer
        return plain


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


def tokens_of(captions: list[str], tokenizer: CLIPTokenizer) -> Tensor:
    """Token ids, shape (captions, 24), padded as in StableDiffusionPipeline."""
    return tokenizer(captions, padding="max_length", max_length=MAX_TOKENS, truncation=True, return_tensors="pt").input_ids


def said(attributes: list[dict[str, str]]) -> dict[str, Tensor]:
    """The class of each attribute in each caption; the last class if the caption leaves it open."""
    return {
        name: torch.tensor([choices.index(asked[name]) if name in asked else len(choices) for asked in attributes])
        for name, choices in CHOICES.items()
    }


def train_text_encoder(
    folder: Path, tokenizer: CLIPTokenizer, *, device: str, max_steps: int, max_seconds: float, batch_size: int = 64
) -> CLIPTextModel:
    """Train the text encoder to read captions, so that the denoiser need not learn it.

    >>> encoder = train_text_encoder(Path("runs/train"), new_tokenizer(), device="cpu", max_steps=3000, max_seconds=180)  # doctest: +SKIP
    """

    def loss(model: nn.Module, step: int, progress: float) -> Tensor:
        scenes = [sample_scene(seed) for seed in range(step * batch_size, (step + 1) * batch_size)]
        scores = model(tokens_of([scene.caption() for scene in scenes], tokenizer).to(device))
        wanted = said([scene.attributes() for scene in scenes])
        return sum(functional.cross_entropy(scores[name], wanted[name].to(device)) for name in CHOICES)

    reader = CaptionReader(tokenizer).to(device)
    return fit(
        reader, loss, name="text_encoder", folder=folder, learning_rate=2e-3, max_steps=max_steps, max_seconds=max_seconds, ema_decay=0.99
    ).encoder  # fmt: skip
