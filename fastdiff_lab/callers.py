"""Who calls a denoiser: pipelines may share one, and only the one that is accelerated may be answered from what was held.

- `is_called_by(pipe)`: does the coming call belong to this pipeline?
"""

from __future__ import annotations

import sys
from types import FrameType
from typing import Any

from diffusers import DiffusionPipeline


def is_called_by(pipe: Any) -> bool:
    """Is this pipeline, or a part of it, the nearest pipeline that is being called in this thread?

    >>> is_called_by(pipe)  # in a loop written by hand no pipeline is called, so the call is taken for its  # doctest: +SKIP
    True

    Pipelines made of the same parts (`from_pipe`, `**pipe.components`) share denoiser, ControlNet and scheduler, and nothing in a call says
    whose it is. Replacing `pipe.__call__` would have to change its class; so this looks at who called.
    """
    if not isinstance(pipe, DiffusionPipeline):
        return True
    caller = _nearest_pipeline(sys._getframe(1))
    return caller is None or caller is pipe or any(part is caller for part in vars(pipe).values())


def _nearest_pipeline(frame: FrameType | None) -> DiffusionPipeline | None:
    while frame is not None:
        if frame.f_code.co_varnames[:1] == ("self",):
            owner = frame.f_locals.get("self")
            if isinstance(owner, DiffusionPipeline):
                return owner
        frame = frame.f_back
    return None
