"""Merge tokens with the authors' package tomesd (Bolya and Hoffman, CVPR workshops 2023).

- `TokenMerging`: the rival
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from diffusers import DiffusionPipeline
from torch import nn

from ...hooks.denoiser import denoiser_of
from ...hooks.flops import FlopCount, counted, on_meta
from ...inputs.extras import extra
from .rival import Rival

MOST = 0.75  # one token of each square of 2x2 always stays


@dataclass(frozen=True)
class TokenMerging(Rival):
    """Merge similar tokens in self-attention at the highest resolution.

    >>> with TokenMerging(0.5)(pipe):  # doctest: +SKIP
    ...     image = pipe("a small red circle on a blue background", num_inference_steps=50).images[0]

    Which tokens remain is not random here (`use_rand=False`), so that an image depends only on its prompt and seed.

    Args:
        ratio: Share of tokens that are merged away, above 0 and at most 0.75.

    Raises:
        ModuleNotFoundError: The package tomesd is not installed.
        ValueError: Another ratio, a denoiser that is no `pipe.unet`, or one in which nothing would be merged.
    """

    ratio: float

    def __post_init__(self) -> None:
        if isinstance(self.ratio, bool) or not isinstance(self.ratio, int | float) or not 0 < self.ratio <= MOST:
            raise ValueError(f"token_merging={self.ratio!r} asked; accepted: a ratio above 0, {MOST} or less")

    @contextmanager
    def __call__(self, pipe: DiffusionPipeline) -> Iterator[None]:
        if getattr(pipe, "unet", None) is not denoiser_of(pipe):
            raise ValueError(
                f"token merging asked for a {type(denoiser_of(pipe)).__name__}; accepted: a pipeline whose denoiser is a UNet"
            )
        if not hasattr(pipe.unet.down_blocks[0], "attentions"):
            raise ValueError(
                f"token merging asked for a {type(pipe.unet).__name__} without attention at the full resolution (as SDXL's is), where "
                "nothing would be merged; accepted: a UNet whose first down block has attention"
            )
        with self._merged(pipe.unet):
            yield

    def about(self) -> dict[str, Any]:
        return {"token_merging": self.ratio}

    def needs(self) -> Any:
        with extra("rivals", "a method with token merging"):
            import tomesd
        return tomesd

    def flops(self, model: nn.Module, arguments: dict[str, Any], encoder_blocks: int | None = None) -> FlopCount:
        """Operations of a call with merged tokens, the merging's own products among them; arguments as for `count_flops`."""
        stand_in, shapes = on_meta(model, arguments)
        sample, others = shapes["sample"], {name: value for name, value in shapes.items() if name != "sample"}
        with self._merged(stand_in):  # its hook reads the size of the first argument by place
            return counted(stand_in, lambda: stand_in(sample, **others), encoder_blocks)

    @contextmanager
    def _merged(self, model: nn.Module) -> Iterator[None]:
        """Switch merging on, and afterwards remove also the attributes that `remove_patch` leaves behind."""
        tomesd = self.needs()
        before = {module: set(vars(module)) for module in model.modules()}
        try:
            tomesd.apply_patch(model, ratio=self.ratio, use_rand=False)
            yield
        finally:
            tomesd.remove_patch(model)
            for module, names in before.items():
                for name in set(vars(module)) - names:
                    delattr(module, name)
