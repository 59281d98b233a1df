"""Draw images in batches, in smaller ones if memory runs out."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from diffusers import DiffusionPipeline

from ..hooks.device import device_of, is_out_of_memory, release_cache

Result = TypeVar("Result")


def in_halves(pipe: DiffusionPipeline, parts: Sequence[slice], do: Callable[[slice], Result]) -> Iterator[tuple[slice, Result]]:
    """Yield each part with what `do` returns. If memory runs out, warn and go on with halves.

    >>> dict(in_halves(pipe, [slice(0, 16)], draw))  # doctest: +SKIP
    """
    left, most = list(parts), max((part.stop - part.start for part in parts), default=1)
    while left:
        part = left.pop(0)
        if part.stop - part.start > most:
            left[:0] = _halves(part)
            continue
        found = _done(do, part)
        if found is not None:
            yield part, found[0]
            continue
        release_cache(device_of(pipe))
        most = (part.stop - part.start + 1) // 2
        warnings.warn(f"memory ran out with {part.stop - part.start} images at once; going on with batch_size={most}", stacklevel=2)
        left[:0] = _halves(part)


def _halves(part: slice) -> list[slice]:
    middle = (part.start + part.stop + 1) // 2
    return [slice(part.start, middle), slice(middle, part.stop)]


def _done(do: Callable[[slice], Result], part: slice) -> tuple[Result] | None:
    """What `do` returns, or None if memory ran out. The error is dropped with the tensors in its frames."""
    try:
        return (do(part),)
    except RuntimeError as error:
        if not is_out_of_memory(error) or part.stop - part.start == 1:
            raise
        return None


@contextmanager
def one_decoded_at_a_time(pipe: DiffusionPipeline) -> Iterator[None]:
    """Decode images one by one on a device inside the block. Sixteen of SDXL's at once would take 48 GiB."""
    vae = getattr(pipe, "vae", None)
    asked = getattr(vae, "use_slicing", None)
    if vae is None or asked is None or device_of(pipe).type == "cpu":
        yield
        return
    vae.use_slicing = True
    try:
        yield
    finally:
        vae.use_slicing = asked
