"""Merge tokens with the authors' package tomesd (Bolya and Hoffman, CVPR workshops 2023)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import nn

from ...hooks.denoiser import denoiser_of
from ...hooks.flops import FlopCount, counted, on_meta
from ...inputs.extras import extra

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


MOST = 0.75  # one token of each square of 2x2 always stays


@contextmanager
def token_merging(pipe: DiffusionPipeline, ratio: float) -> Iterator[None]:
    """Merge similar tokens in self-attention at the highest resolution.

    >>> with token_merging(pipe, 0.5):  # doctest: +SKIP
    ...     image = pipe("a small red circle on a blue background", num_inference_steps=50).images[0]

    Which tokens remain is not random here (`use_rand=False`), so that an image depends only on its prompt and seed.

    Args:
        ratio: Share of tokens that are merged away, above 0 and at most 0.75.

    Raises:
        ModuleNotFoundError: The package tomesd is not installed.
        ValueError: Another ratio, a denoiser that is no `pipe.unet`, or one in which nothing would be merged.
    """
    check_ratio(ratio)
    if getattr(pipe, "unet", None) is not denoiser_of(pipe):
        raise ValueError(
            f"token merging asked for a {type(denoiser_of(pipe)).__name__}; accepted: a pipeline whose denoiser is a UNet"
        )
    if not hasattr(pipe.unet.down_blocks[0], "attentions"):
        raise ValueError(
            f"token merging asked for a {type(pipe.unet).__name__} without attention at the full resolution (as SDXL's is), where "
            "nothing would be merged; accepted: a UNet whose first down block has attention"
        )
    with _merged(pipe.unet, ratio):
        yield


def check_ratio(ratio: Any) -> None:
    """Raise ValueError unless that share of tokens can be merged away."""
    if isinstance(ratio, bool) or not isinstance(ratio, int | float) or not 0 < ratio <= MOST:
        raise ValueError(f"token_merging={ratio!r} asked; accepted: a ratio above 0, {MOST} or less")


def tomesd_package() -> Any:
    """The package tomesd. Raises ModuleNotFoundError, saying what to install."""
    with extra("rivals", "a method with token merging"):
        import tomesd
    return tomesd


@contextmanager
def _merged(model: nn.Module, ratio: float) -> Iterator[None]:
    """Switch merging on, and afterwards remove also the attributes that `remove_patch` leaves behind."""
    tomesd = tomesd_package()
    before = {module: set(vars(module)) for module in model.modules()}
    try:
        tomesd.apply_patch(model, ratio=ratio, use_rand=False)
        yield
    finally:
        tomesd.remove_patch(model)
        for module, names in before.items():
            for name in set(vars(module)) - names:
                delattr(module, name)


def token_merging_flops(model: nn.Module, arguments: dict[str, Any], ratio: float, encoder_blocks: int | None = None) -> FlopCount:
    """Operations of a denoiser call with merged tokens; arguments as for `count_flops` and `token_merging`.

    >>> token_merging_flops(pipe.unet, denoiser_arguments(pipe, prompt), 0.5).total  # doctest: +SKIP

    The merging's own products are counted too.
    """
    stand_in, shapes = on_meta(model, arguments)
    sample, others = shapes["sample"], {name: value for name, value in shapes.items() if name != "sample"}
    with _merged(stand_in, ratio):  # its hook reads the size of the first argument by place
        return counted(stand_in, lambda: stand_in(sample, **others), encoder_blocks)
