"""Raise for NaN or infinite values, once per run, because each look makes the host wait for a device."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from ..hooks.patching import replaced_method


def check_latents(latents: Tensor, tasks: Sequence[tuple[Any, ...]], method: str) -> None:
    """Raise ValueError for NaN or infinite latents, because two black images would count as identical."""
    astray = [task for task, of_image in zip(tasks, latents, strict=True) if not of_image.isfinite().all()]
    if astray:
        prompt, seed = astray[0][:2]
        raise ValueError(
            f"the final latents of {len(astray)} of {len(tasks)} images hold NaN or infinite values (method {method}; the first: prompt "
            f"{str(prompt)[:80]!r}, seed {seed}); accepted: a pipeline that stays finite, perhaps in float32 or bfloat16"
        )


def check_distances(distances: Tensor, step: int) -> None:
    """Raise ValueError for NaN or infinite distances."""
    if not distances.isfinite().all():
        raise ValueError(
            f"the latents at step {step} hold NaN or infinite values, so nothing can be measured on them; accepted: a pipeline that stays "
            "finite, perhaps in float32 or bfloat16"
        )


@contextmanager
def finite_decoder(pipe: DiffusionPipeline, method: str) -> Iterator[None]:
    """Raise ValueError at the end of the block if finite latents became NaN or infinite pixels, which are black."""
    told: list[Tensor] = []

    def around(inner: Callable) -> Callable:
        def decode(*args: Any, **kwargs: Any) -> Any:
            output = inner(*args, **kwargs)
            latents = next(iter((*args, *kwargs.values())))
            told.append(output[0].isfinite().all() | ~latents.isfinite().all())  # NaN that comes in is not the autoencoder's fault
            return output

        return decode

    with ExitStack() as stack:
        for vae in (getattr(pipe, "vae", None), getattr(pipe, "vqvae", None)):
            if callable(getattr(vae, "decode", None)):
                stack.enter_context(replaced_method(vae, "decode", around))
        yield
    if told and not bool(torch.stack(told).all()):
        raise ValueError(
            f"the autoencoder {type(getattr(pipe, 'vae', None) or pipe.vqvae).__name__} gave NaN or infinite values (method {method}), which "
            "become black images; accepted: one that stays finite, perhaps in float32 (pipe.vae.to(torch.float32))"
        )
