"""Putting our own code around a module's or an object's calls, and taking exactly that away again.

- `replaced_call(module, make)`: while the block lasts, calling `module` calls `make(inner)` instead
- `replaced_method(owner, name, make)`: the same for a method of any object
- `is_replaced(module)`: is it inside such a block?
- `is_compiled(module)`: has someone else put a compiled version in the place of the module's calls?
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from .private_api import CALL_SLOT, call_of


@contextmanager
def _attribute(owner: Any, name: str, value: Callable, what: str) -> Iterator[None]:
    before = vars(owner).get(name)
    object.__setattr__(owner, name, value)
    try:
        yield
    finally:
        if vars(owner).get(name) is not value:
            warnings.warn(
                f"{what} was changed inside the block (compiled, or hooked by something else); that change is kept, and "
                "fastdiff_lab's own layer below it is switched off",
                stacklevel=4,
            )
        elif before is None:
            object.__delattr__(owner, name)
        else:
            object.__setattr__(owner, name, before)


def _switchable(inner: Callable, outer: Callable) -> tuple[Callable, Callable[[], None]]:
    """`outer` until it is switched off, then `inner`: for a layer that something else was put upon."""
    current = [outer]

    @functools.wraps(inner)
    def call(*args, **kwargs):
        return current[0](*args, **kwargs)

    def switch_off() -> None:
        current[0] = inner

    call.is_fastdiff_lab = True  # type: ignore[attr-defined]
    return call, switch_off


def is_compiled(module: nn.Module) -> bool:
    """Has `module.compile()` put a compiled version in the place of the module's calls?"""
    slot = vars(module).get(CALL_SLOT)
    return slot is not None and not hasattr(slot, "is_fastdiff_lab")


def is_replaced(module: nn.Module) -> bool:
    """Is the module inside a `replaced_call` block?"""
    return hasattr(vars(module).get(CALL_SLOT), "is_fastdiff_lab")


@contextmanager
def replaced_call(module: nn.Module, make: Callable[[Callable], Callable]) -> Iterator[None]:
    """While the block lasts, `module(...)` calls `make(inner)(...)`, where `inner` is what it called before.

    >>> with replaced_call(unet.mid_block, lambda inner: lambda *args, **kwargs: inner(*args, **kwargs)):  # doctest: +SKIP
    ...     unet(sample, timestep, text)

    Afterwards the module has the attributes it had; if something else was put above in the meantime, that stays and a
    warning says so.
    """
    inner = call_of(module)
    call, switch_off = _switchable(inner, make(inner))
    try:
        with _attribute(module, CALL_SLOT, call, type(module).__name__):
            yield
    finally:
        switch_off()


@contextmanager
def replaced_method(owner: Any, name: str, make: Callable[[Callable], Callable]) -> Iterator[None]:
    """While the block lasts, `owner.name(...)` calls `make(inner)(...)`, where `inner` is the method it had before."""
    inner = getattr(owner, name)
    call, switch_off = _switchable(inner, make(inner))
    try:
        with _attribute(owner, name, _OwnMethod(owner, name, call), f"{type(owner).__name__}.{name}"):
            yield
    finally:
        switch_off()


class _OwnMethod:
    """A replaced method that a copy of its owner does not take along: the copy has its own plain one."""

    def __init__(self, owner: Any, name: str, call: Callable) -> None:
        vars(self).update(vars(call))  # marks of the layers below
        self.owner, self.name, self.call = owner, name, call
        self.__wrapped__ = call  # pipelines look at a step's signature to see whether it takes a generator

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.call(*args, **kwargs)

    def __deepcopy__(self, memo: dict) -> Callable:
        if id(self.owner) not in memo:
            return self  # a copy of the owner's state, which the owner itself gets back (panoramas, for each view)
        owner = memo[id(self.owner)]
        return getattr(type(owner), self.name).__get__(owner)

    def __reduce__(self) -> tuple:
        return getattr, (self.owner, self.name)
