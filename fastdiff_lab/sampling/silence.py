"""Silence for a while, of what is ours: what a user has set is as before afterwards.

- `no_bars(pipe)`: the pipeline's own progress bar, inside our own loops of many runs
- `no_import_warnings()`: what transformers says of image processors that nobody asked for
- `no_loading_bars()`: a bar for each of a few small files
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers.utils import logging

from ..hooks.private_api import PROGRESS_BAR


@contextmanager
def no_bars(pipe: Any) -> Iterator[None]:
    """While the block lasts, the pipeline shows no progress bar.

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
    """While the block lasts, transformers logs errors only: importing diffusers' pipelines warns of torchvision for each processor."""
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


@contextmanager
def no_loading_bars() -> Iterator[None]:
    """While the block lasts, transformers shows no bar for each file that it loads."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
