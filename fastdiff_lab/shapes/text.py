"""The tokenizer of the embedded pipeline.

- `CaptionTokenizer`: refuses unknown words, and says which are known
- `without_punctuation(text)`: as it reads a caption
"""

from __future__ import annotations

import copy
import re
from typing import Any

from transformers import CLIPTokenizer

from .scenes import words

MAX_TOKENS = 24


def without_punctuation(text: str) -> str:
    """A caption without the marks that end a word.

    >>> without_punctuation("A red star, on a blue background.")
    'A red star on a blue background'
    """
    return re.sub(r"(?<=\w)[.,;:!?]+(?=\s|$)", "", text)


class CaptionTokenizer(CLIPTokenizer):
    """The embedded pipeline's tokenizer. It refuses unknown words, which a CLIPTokenizer would spell, and skips punctuation.

    Added words (textual inversion) are known. It is saved as a CLIPTokenizer.
    """

    def __call__(self, text: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Tokens of one or more captions. Raises ValueError for an unknown word."""
        known = {*words(), *self.get_added_vocab()}
        text = without_punctuation(text) if isinstance(text, str) else [without_punctuation(one) for one in text or []]
        for prompt in [text] if isinstance(text, str) else text:
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
