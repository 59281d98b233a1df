"""Silence others' progress bars and warnings inside a block, and restore the user's settings after it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from transformers.utils import logging

from ..hooks.private_api import PROGRESS_BAR

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


@contextmanager
def no_bars(pipe: DiffusionPipeline) -> Iterator[None]:
    """Hide the pipeline's progress bar inside the block.

    >>> with no_bars(pipe):  # doctest: +SKIP
    ...     pipe("a red ring on a blue background")
    """
    if not hasattr(pipe, "set_progress_bar_config"):
        yield
        return
    before = vars(pipe).get(PROGRESS_BAR)
    pipe.set_progress_bar_config(**{**(before or {}), "disable": True})
    try:
        yield
    finally:
        if before is None:
            delattr(pipe, PROGRESS_BAR)
        else:
            setattr(pipe, PROGRESS_BAR, before)


@contextmanager
def no_import_warnings() -> Iterator[None]:
    """Let transformers log errors only, because importing diffusers' pipelines warns of torchvision."""
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


@contextmanager
def no_loading_bars() -> Iterator[None]:
    """Hide transformers' progress bars for files inside the block."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
