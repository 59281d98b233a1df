"""The way of a denoiser's calls through what is held of them.

- `holding(stack, features, split, ...)`: while a stack is open, the children's calls go through `HeldFeatures`
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

from ..hooks.denoiser import Split
from ..hooks.patching import replaced_call
from .feature_cache import HeldFeatures


def holding(stack: ExitStack, features: HeldFeatures, split: Split, what: str = "encoder") -> None:
    """While the stack is open, the calls of the held children, and of those that get the encoder's features, go through `features`."""

    def around(name: str) -> Callable:
        return lambda inner: lambda *args, **kwargs: features.call(name, inner, args, kwargs)

    def entering(name: str) -> Callable:
        return lambda inner: lambda *args, **kwargs: features.enter(name, name == split.entries[0], inner, args, kwargs)

    for name, child in split.held(what).items():
        stack.enter_context(replaced_call(child, around(name)))
    # Not by a hook: of a compiled child, hooks are compiled with it, and again for what is another at another step.
    for name in split.entries if what == "encoder" else ():
        stack.enter_context(replaced_call(split.decoder[name], entering(name)))
