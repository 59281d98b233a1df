"""Learn the tokenizer of the embedded pipeline, and read captions with it.

- `new_tokenizer()`: a CLIPTokenizer in which every word of a caption is one token
- `tokens_of(captions, tokenizer)`: captions as token ids
"""

from __future__ import annotations

import json

from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import CLIPTokenizer

from fastdiff_lab.shapes.scenes import words
from fastdiff_lab.shapes.text import MAX_TOKENS

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


def tokens_of(captions: list[str], tokenizer: CLIPTokenizer) -> Tensor:
    """Token ids, shape (captions, 24), padded as in StableDiffusionPipeline."""
    return tokenizer(captions, padding="max_length", max_length=MAX_TOKENS, truncation=True, return_tensors="pt").input_ids
