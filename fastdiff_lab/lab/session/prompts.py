"""What a pipeline reads of a prompt, told before a run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...shapes.scenes import words
from ...shapes.text import CaptionTokenizer

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


def prompt_note(pipe: DiffusionPipeline, prompt: str) -> str:
    """A sentence on what is read of the prompt; "" if that is all of it, or cannot be told.

    >>> prompt_note(fl.load_pipeline(), "a red ring on a blue background")[:12]  # doctest: +SKIP
    'Known words:'

    Raises ValueError for a word that the pipeline does not know.
    """
    tokenizer = getattr(pipe, "tokenizer", None)
    if tokenizer is None:
        return ""
    count, most = len(tokenizer(prompt, verbose=False).input_ids), tokenizer.model_max_length
    if count > most:
        return f"The prompt has {count} tokens; the pipeline reads the first {most}, and nothing of what follows."
    return f"Known words: {', '.join(words())}." if isinstance(tokenizer, CaptionTokenizer) else ""
