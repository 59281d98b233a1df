"""Lead the calls of a denoiser's children through a cache of features.

- `cached_calls(children, entries, features)`: while the block lasts
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager

from torch import nn

from ..hooks.patching import replaced_call
from .feature_cache import ReusedFeatures

Current = Callable[[], ReusedFeatures | None]


@contextmanager
def cached_calls(children: Mapping[str, nn.Module], entries: Mapping[str, nn.Module], features: Current) -> Iterator[None]:
    """While the block lasts, calls of `children` and `entries` go through the features of the run at hand.

    Args:
        children: Name -> module whose outputs are reused.
        entries: Name -> module that gets reused features; the first of them gets the bottleneck.
        features: Gives the features of the run at hand; None outside of a run, where each call is as it was.
    """
    with ExitStack() as stack:
        for name, child in children.items():
            stack.enter_context(replaced_call(child, _around(name, features)))
        # Not by a hook: of a compiled child, hooks are compiled with it, and again for what is another at another step.
        for place, (name, child) in enumerate(entries.items()):
            stack.enter_context(replaced_call(child, _entering(name, place == 0, features)))
        yield


def _around(name: str, features: Current) -> Callable[[Callable], Callable]:
    def around(inner: Callable) -> Callable:
        def call(*args, **kwargs):
            now = features()
            return inner(*args, **kwargs) if now is None else now.call(name, inner, args, kwargs)

        return call

    return around


def _entering(name: str, is_first: bool, features: Current) -> Callable[[Callable], Callable]:
    def around(inner: Callable) -> Callable:
        def call(*args, **kwargs):
            now = features()
            return inner(*args, **kwargs) if now is None else now.enter(name, is_first, inner, args, kwargs)

        return call

    return around
