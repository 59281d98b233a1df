"""Which rows of a batch belong to the prompt, and to which image.

- `guided_rows(pipe, arguments, half)`: those of the prompt, or of the negative one
- `count_blocks(pipe, arguments)`: how many rows each image has
- `by_image(pipe, latents, images)`: latents as one row for each image
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from .denoiser import denoiser_of
from .denoiser_classes import has_null_class, sample_argument


def guided_rows(pipe: DiffusionPipeline, arguments: Mapping[str, Any], half: str = "conditional") -> slice:
    """The rows of the sample that belong to the prompt, or to the negative one, in a denoiser call.

    `half`: "conditional", "unconditional" or "all"; without guidance all rows belong to the prompt.

    Under guidance Stable Diffusion puts them into the second half, DiTPipeline into the first. (The labels of the other are the
    null class). Pipelines that do not tell whether they guide (DeepFloyd-IF, LDM, text-to-video) give the same sample in both halves.
    InstructPix2Pix and perturbed-attention guidance have a third block of rows.
    """
    model, rows = denoiser_of(pipe), len(arguments[sample_argument(denoiser_of(pipe))])
    count = count_blocks(pipe, arguments)
    if half == "all" or count == 1:
        return slice(0, rows)
    blocks, size = _blocks_of_rows(pipe, model, arguments[sample_argument(model)]), rows // count
    place = blocks.index(half if half in blocks else "conditional")
    return slice(place * size, (place + 1) * size)


def count_blocks(pipe: DiffusionPipeline, arguments: Mapping[str, Any]) -> int:
    """How many rows each image has in a denoiser call: 1, or with guidance 2 or 3."""
    model = denoiser_of(pipe)
    sample = arguments[sample_argument(model)]
    blocks, rows = _blocks_of_rows(pipe, model, sample), len(sample)
    size = rows // len(blocks)
    if rows % len(blocks) != 0:
        return 1
    is_several = "perturbed" in blocks or _is_guided(pipe, model, arguments, slice(0, size), slice(size, 2 * size))
    return len(blocks) if is_several else 1


def _blocks_of_rows(pipe: DiffusionPipeline, model: nn.Module, sample: Tensor) -> tuple[str, ...]:
    """What the blocks of rows are when a pipeline guides."""
    if has_null_class(model):
        return ("conditional", "unconditional")
    if "InstructPix2Pix" in type(pipe).__name__:
        return ("conditional", "of the image", "unconditional")
    if getattr(pipe, "do_perturbed_attention_guidance", False):
        guides = getattr(pipe, "do_classifier_free_guidance", None)
        if guides is None:  # PixArt-Sigma does not tell; the same sample comes once for each block
            third = len(sample) // 3
            guides = len(sample) == 3 * third and torch.equal(sample[:third], sample[third : 2 * third])
        return ("unconditional",) * bool(guides) + ("conditional", "perturbed")
    return ("unconditional", "conditional")


def _is_guided(pipe: DiffusionPipeline, model: nn.Module, arguments: Mapping[str, Any], first: slice, second: slice) -> bool:
    if has_null_class(model):
        null = arguments["class_labels"] == model.config.num_embeds_ada_norm
        return bool(null[second].all()) and not bool(null[first].any())
    told = getattr(pipe, "do_classifier_free_guidance", None)
    if told is not None:
        return bool(told)
    sample = arguments[sample_argument(model)]
    labels = arguments.get("class_labels")  # AudioLDM's embedded text
    has_text = arguments.get("encoder_hidden_states") is not None or (labels is not None and labels.is_floating_point())
    return has_text and torch.equal(sample[first], sample[second])


def by_image(pipe: DiffusionPipeline, latents: Tensor, images: int) -> Tensor:
    """Latents as the scheduler steps them, as one row of numbers for each image (or video).

    Under guidance DiTPipeline steps both halves, which are equal; text-to-video steps each frame of a video as a row.
    """
    rows = latents[:images] if has_null_class(denoiser_of(pipe)) else latents
    return rows.reshape(images, -1)
