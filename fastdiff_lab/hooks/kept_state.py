"""What parts keep from call to call: an attention store, a counter, a list outside of a hook.

- `KeptState(parts)`: to be compared before and after a call
"""

from __future__ import annotations

import logging
import sys
from collections import deque
from collections.abc import Iterator
from functools import partial
from types import CellType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

from torch import Tensor, nn

from .foreign_parts import is_foreign, origin_of
from .private_api import write_count

_PLAIN = (int, float, complex, str, bytes, type(None))
_CONTAINERS = (list, tuple, set, frozenset, deque, dict)
_OF_MODULES = ("_modules", "_forward_hooks", "_forward_pre_hooks")
_MOST = 20_000  # objects that are looked at; the nearest come first


class KeptState:
    """All that parts can write to and read again, as far as Python's objects show it.

    >>> counter = {"calls": 1}
    >>> before = KeptState([counter])
    >>> counter["calls"] += 1
    >>> KeptState([counter]) == before
    False

    Looked at: attributes, containers, what a function closes over, and the globals that it names. Values of tensors are not,
    nor what belongs to torch, diffusers or Python itself.
    """

    def __init__(self, parts: list[Any]) -> None:
        self.marks: list[Any] = []
        self.alive: dict[int, Any] = {}  # so that no later object gets the identity of one of these
        left = deque(parts)
        own = {id(part) for part in parts}
        while left and len(self.marks) < _MOST:
            value = left.popleft()
            self.marks.append(_mark(value))
            if not isinstance(value, _PLAIN) and id(value) not in self.alive:
                self.alive[id(value)] = value
                left.extend(_held(value, is_followed=id(value) in own or _is_followed(value)))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, KeptState) and self.marks == other.marks


def _mark(value: Any) -> Any:
    if isinstance(value, _PLAIN):
        return repr(value)
    if isinstance(value, Tensor):
        return id(value), write_count(value)
    if isinstance(value, _CONTAINERS):
        return isinstance(value, tuple) or id(value), len(value)
    return (id(value), hash(value.tobytes())) if hasattr(value, "tobytes") else id(value)  # arrays and images


def _is_followed(value: Any) -> bool:
    if isinstance(value, type | FunctionType | MethodType):
        return is_foreign(value) and origin_of(value).partition(".")[0] not in sys.stdlib_module_names
    return is_foreign(type(value)) and not isinstance(value, logging.Logger)


def _held(value: Any, is_followed: bool) -> Iterator[Any]:
    """What can be reached from a value in one step."""
    if isinstance(value, dict):
        yield from (*value.keys(), *value.values())
    elif isinstance(value, _CONTAINERS):
        yield from value
    elif isinstance(value, partial):
        yield from (value.func, value.args, value.keywords)
    elif isinstance(value, MethodType):
        yield from (value.__self__, value.__func__)
    elif is_followed and isinstance(value, FunctionType):
        yield from _enclosed(value)
    elif is_followed and not isinstance(value, Tensor | ModuleType):
        held = getattr(value, "__dict__", {})
        yield from (inner for name, inner in held.items() if not (isinstance(value, nn.Module) and name in _OF_MODULES))
        yield from (getattr(value, name, None) for name in getattr(type(value), "__slots__", ()))
        yield type(value)


def _enclosed(function: FunctionType) -> Iterator[Any]:
    """What a function closes over, and the globals that it names."""
    yield from (cell.cell_contents for cell in function.__closure__ or () if cell != CellType())
    names = set(_names(function.__code__))
    yield from (value for name, value in function.__globals__.items() if name in names)


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from _names(inner)
