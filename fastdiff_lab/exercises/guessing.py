"""Compare a guess with what was found."""

from __future__ import annotations

from numbers import Real
from typing import Any


def guessed(guess: Any, found: Any) -> str:
    """Say how near a guess came.

    >>> guessed(10, 8)
    'you guessed 10, found 8: off by 2'
    >>> guessed("encoder", "decoder")
    "you guessed 'encoder', found 'decoder'"

    Args:
        guess: A number or a word; `...` for none yet.
        found: The result.

    Returns:
        A sentence.
    """
    told = f"found {_shown(found)}"
    if guess is ... or guess is None:
        return f"no guess yet; {told}"
    told = f"you guessed {_shown(guess)}, {told}"
    if guess == found:
        return f"{told}: right"
    if isinstance(guess, Real) and isinstance(found, Real):
        return f"{told}: off by {_shown(abs(float(guess) - float(found)))}"
    return told


def _shown(value: Any) -> str:
    return f"{float(value):.3g}" if isinstance(value, Real) else repr(value)
