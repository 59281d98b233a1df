"""What a fit adds to the predictions of a group: its known tensors, times the fit's scalars.

- `KnownTensors(pipe, reuse)`: the known tensors of each group of a run
- `GroupOffsets(pipe, fit)`: corrects the predictions of each group of a run; `Offsets` is what an engine asks of it
- `shifted(ahead, offset)`: predictions with the same offset each
- `guided(pipe, blocks)`, `combined(known, scalars)`, `bounded(offset, bound)`: what an offset is made of, and its largest size
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from ..hooks.denoiser_call import DenoiserCall
from ..hooks.denoiser_output import as_given, sample_of
from ..hooks.guided_rows import count_blocks
from ..hooks.private_api import guidance_scale_of
from .fit import OLDER_KEYS, PropagationFit

ROUNDING = 1e-3  # relative: another batch changes an offset by less, and leaves nothing that was seen


class KnownTensors:
    """The known tensors of each group of a run, in the order of `columns_of`.

    All are known at the key step: the latent, the predictions of this key step and of earlier ones, what is decoded ahead. And what
    the last prediction of the group before has missed.

    Args:
        pipe: The pipeline that makes the run.
        reuse: "encoder" or "prediction".
    """

    def __init__(self, pipe: DiffusionPipeline, reuse: str) -> None:
        self.pipe, self.reuse = pipe, reuse
        self.older: deque[list[Tensor]] = deque(maxlen=OLDER_KEYS)  # predictions of earlier key steps, the last one first
        self.before: list[Tensor] = []  # the last prediction of the group before, if that was decoded ahead
        self.rows, self.rows_of_image, self.blocks = 0, 1, 1

    def of_group(self, call: DenoiserCall, ahead: Mapping[int, Any]) -> list[Tensor]:
        """The known tensors of the group that begins with this call, each of shape (images, ...); none for a group of one step.

        `ahead`: step -> prediction, of all steps of the group.
        """
        if call.rows != self.rows:  # looked at once in a run: where nothing tells it, a device is read
            self.rows, self.rows_of_image = call.rows, count_blocks(self.pipe, call.arguments)
        key, *later = (self._predicted(value, call) for value in ahead.values())
        self.blocks = len(key)
        known = [_latent(call, key[0])]
        known += key
        known += [before - now for older in self.older for before, now in zip(older, key, strict=True)]
        if self.reuse == "encoder":
            known += [last - now for last, now in zip(self.before, key, strict=bool(self.before))]
            known += [now - sum(others, now) / len(ahead) for now, *others in zip(key, *later, strict=True)]
        self.older.appendleft(key)
        self.before = later[-1] if later else []
        return known if later else []

    def _predicted(self, value: Any, call: DenoiserCall) -> list[Tensor]:
        """The guided prediction, or that of each block of rows where the pipeline does not tell its guidance scale."""
        return guided(self.pipe, _wide(_cropped(sample_of(value), call.sample)).chunk(self.rows_of_image))


class Offsets(Protocol):
    """Sees the predictions of each group at its key step."""

    def corrected(self, call: DenoiserCall, ahead: Mapping[int, Any]) -> dict[int, Any]:
        """Step -> prediction, to be used instead of `ahead`."""
        ...

    def images_beyond(self) -> int:
        """How many images had an offset that was shortened."""
        ...


class GroupOffsets:
    """Corrects the predictions of each group of a run by a fit."""

    def __init__(self, pipe: DiffusionPipeline, fit: PropagationFit) -> None:
        self.fit, self.tensors = fit, KnownTensors(pipe, fit.reuse)
        self.beyond: list[Tensor] = []  # for each group, whether an image's offset was larger than any that was seen when fitting
        self.groups = iter(zip(fit.coefficients, fit.bounds, strict=True))

    def corrected(self, call: DenoiserCall, ahead: Mapping[int, Any]) -> dict[int, Any]:
        """The predictions of the group that begins with this call, step -> prediction, each with the group's offset.

        Raises ValueError where the run has other predictions in a step than the fit.
        """
        known, (coefficients, bound) = self.tensors.of_group(call, ahead), next(self.groups)
        if self.tensors.blocks != self.fit.blocks:
            raise ValueError(
                f"the fit is for {self.fit.blocks} predictions in a step, this run has {self.tensors.blocks}: it was fitted with another "
                "kind of guidance; fit anew"
            )
        return shifted(ahead, self._bounded(combined(known, coefficients), bound)) if known else dict(ahead)

    def _bounded(self, offset: Tensor, bound: float) -> Tensor:
        self.beyond.append(root_mean_square(offset) > bound * (1 + ROUNDING))
        return bounded(offset, bound)

    def images_beyond(self) -> int:
        """How many images had an offset that was shortened; on a device the host waits once for it."""
        return int(torch.stack(self.beyond).any(0).sum()) if self.beyond else 0


def guided(pipe: DiffusionPipeline, blocks: Sequence[Tensor]) -> list[Tensor]:
    """The guided prediction of each image, or each block of rows where the pipeline does not tell its guidance scale."""
    scale = guidance_scale_of(pipe)  # a number; Stable Video Diffusion's is a tensor with one for each frame
    return [blocks[0] + scale * (blocks[1] - blocks[0])] if len(blocks) == 2 and scale is not None else list(blocks)


def bounded(offset: Tensor, bound: float) -> Tensor:
    """An offset of shape (images, ...), shortened where its root mean square is above the bound."""
    share = (bound / root_mean_square(offset).clamp_min(1e-30)).clamp_max(1)
    return offset * share.view(-1, *[1] * (offset.dim() - 1))


def combined(known: list[Tensor], coefficients: tuple[float, ...]) -> Tensor:
    """The known tensors, each times its scalar, added up."""
    first, *others = (scalar * tensor for scalar, tensor in zip(coefficients, known, strict=True))
    return sum(others, first)


def root_mean_square(offset: Tensor) -> Tensor:
    """Of each image, shape (images,)."""
    return offset.flatten(1).square().mean(1).sqrt()


def shifted(ahead: Mapping[int, Any], offset: Tensor) -> dict[int, Any]:
    """Step -> prediction, each with the offset of its image on every block of rows. `offset` has shape (images, ...)."""
    return {step: _plus(value, offset) for step, value in ahead.items()}


def _plus(value: Any, offset: Tensor) -> Any:
    sample = sample_of(value).clone()
    part = _cropped(sample, offset)
    part += torch.cat([offset] * (len(sample) // len(offset))).to(sample.dtype)
    return as_given(value, sample)


def _latent(call: DenoiserCall, like: Tensor) -> Tensor:
    """The latent of each image: every block of rows has the same."""
    return _wide(_cropped(call.sample[: len(like)], like))


def _cropped(tensor: Tensor, like: Tensor) -> Tensor:
    """The part of a tensor that another one has too, beside the rows: denoisers may get masks beside latents, or give variances."""
    for axis in range(1, tensor.dim()):
        tensor = tensor.narrow(axis, 0, min(tensor.shape[axis], like.shape[axis]))
    return tensor


def _wide(tensor: Tensor) -> Tensor:
    """In float32 or more."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
