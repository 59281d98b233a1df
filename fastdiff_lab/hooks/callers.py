"""Who calls a denoiser: pipelines may share one, and only the one that is accelerated may be answered from what was kept.

- `is_called_by(pipe)`: does the coming call belong to this pipeline?
- `call_of(pipe)`: the call of the pipeline that it belongs to
- `thread_that_calls(pipe)`: is another thread calling it?
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from types import FrameType

from diffusers import DiffusionPipeline

from .private_api import frames_of_threads


def is_called_by(pipe: DiffusionPipeline) -> bool:
    """Is this pipeline, or a part of it, the nearest pipeline that is being called in this thread?

    >>> is_called_by(pipe)  # in a loop written by hand no pipeline is called, so the call is taken for its  # doctest: +SKIP
    True

    Pipelines made of the same parts (`from_pipe`, `**pipe.components`) share denoiser, ControlNet and scheduler. Nothing in a call says
    whose it is. Replacing `pipe.__call__` would have to change its class; so this looks at who called.
    """
    if not isinstance(pipe, DiffusionPipeline):
        return True
    caller = next((owner for owner, _ in _pipelines_called(sys._getframe(1))), None)
    return caller is None or caller is pipe or any(part is caller for part in vars(pipe).values())


def call_of(pipe: DiffusionPipeline) -> FrameType | None:
    """The frame of the pipeline's call that is going on in this thread; None in a loop written by hand.

    >>> call_of(pipe) is None  # no pipeline is being called here  # doctest: +SKIP
    True
    """
    if not isinstance(pipe, DiffusionPipeline):
        return None
    found = None
    for _, found in _pipelines_called(sys._getframe(1)):
        # The loop may be in a helper that is called once for each step; the pipeline's call is the same for all.
        if found.f_code.co_name == "__call__":
            break
    return found


def thread_that_calls(pipe: DiffusionPipeline, call: FrameType | None = None) -> str:
    """The name of another thread in which this pipeline is being called, by this call if one is given; "" if there is none."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    others = {ident: frame for ident, frame in frames_of_threads().items() if ident != threading.get_ident()}
    for ident, frame in others.items():
        if any(owner is pipe if call is None else found is call for owner, found in _pipelines_called(frame)):
            return names.get(ident, str(ident))
    return ""


def _pipelines_called(frame: FrameType | None) -> Iterator[tuple[DiffusionPipeline, FrameType]]:
    """The pipelines whose methods are running in this thread, the nearest first, with their frames."""
    while frame is not None:
        if frame.f_code.co_varnames[:1] == ("self",):
            owner = frame.f_locals.get("self")
            if isinstance(owner, DiffusionPipeline):
                yield owner, frame
        frame = frame.f_back
