"""One thread at a time on a pipeline: two at once mix their steps, and no error tells.

- `kept_to_this_thread(pipe, by)`: while the block lasts, calls of the pipeline from other threads are refused
- `check_free(pipe)`: refuses a pipeline that another thread keeps or calls
- `claiming(pipe)`: the same for a block, in which no other thread takes it
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from diffusers import DiffusionPipeline
from torch import nn

from .callers import is_called_by, thread_that_calls
from .denoiser import denoiser_of
from .patching import replaced_call

ONE_AT_A_TIME = "two runs at once would mix their steps; wait for its end, or cancel it"


@dataclass
class _Use:
    thread: threading.Thread
    by: str
    intruder: str = ""


_lock = threading.RLock()  # what claims a pipeline also checks it
_uses: weakref.WeakKeyDictionary[nn.Module, _Use] = weakref.WeakKeyDictionary()  # by denoiser, which pipelines may share


def check_free(pipe: DiffusionPipeline) -> None:
    """Raises RuntimeError if another thread keeps this pipeline, or calls it."""
    with claiming(pipe):
        pass


@contextmanager
def claiming(pipe: DiffusionPipeline) -> Iterator[None]:
    """No thread keeps or claims a pipeline while the block lasts. Raises RuntimeError as `check_free` does."""
    with _lock:
        _refuse_others(pipe)
        yield


def _refuse_others(pipe: DiffusionPipeline) -> None:
    use = _uses.get(denoiser_of(pipe))
    if use is not None and use.thread is not threading.current_thread() and use.thread.is_alive():
        raise RuntimeError(f"this pipeline is in use by {use.by}; {ONE_AT_A_TIME}")
    caller = thread_that_calls(pipe)
    if caller:
        raise RuntimeError(f"this pipeline is being called in thread {caller!r}; {ONE_AT_A_TIME}")


@contextmanager
def kept_to_this_thread(pipe: DiffusionPipeline, by: str) -> Iterator[None]:
    """Keep a pipeline to this thread while the block lasts; blocks in it may keep it again.

    >>> with kept_to_this_thread(pipe, "a run of mine"):  # doctest: +SKIP
    ...     image = pipe("a small red circle on a blue background").images[0]

    A call from another thread is refused. It may have set the scheduler anew before, so the block raises at its end, too.
    Other pipelines of the same parts may be called.

    Args:
        pipe: A pipeline with a denoiser.
        by: Who keeps it, in words, for messages.

    Raises:
        RuntimeError: Another thread keeps it or calls it, at the beginning or inside.
    """
    model, here = denoiser_of(pipe), threading.current_thread()
    with claiming(pipe):
        held = _uses.get(model)
        is_inner = held is not None and held.thread is here
        use = held if held is not None and is_inner else _Use(here, by)
        _uses[model] = use
    if is_inner:
        yield
        _check_alone(pipe, use)
        return
    try:
        with replaced_call(model, lambda inner: _guarded(inner, pipe, use)):
            yield
        _check_alone(pipe, use)
    finally:
        del _uses[model]


def _guarded(inner: Callable, pipe: DiffusionPipeline, use: _Use) -> Callable:
    def call(*args, **kwargs):
        here = threading.current_thread()
        if here is not use.thread and is_called_by(pipe):
            use.intruder = here.name
            raise RuntimeError(f"this pipeline is in use by {use.by}; {ONE_AT_A_TIME}")
        return inner(*args, **kwargs)

    return call


def _check_alone(pipe: DiffusionPipeline, use: _Use) -> None:
    intruder = use.intruder or thread_that_calls(pipe)
    if intruder:
        raise RuntimeError(
            f"thread {intruder!r} called this pipeline during {use.by}, and may have changed its scheduler; nothing of this is kept, so "
            "run it again"
        )
