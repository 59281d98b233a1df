"""What works on a decoder and is of no known package: it may mix the rows of a batch, or keep what it gets.

- `foreign_parts(model, split)`: attention processors, hooks, replaced forwards and classes, by name
- `origin_of(code)`, `is_foreign(code)`: the module that a function or class is written in
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from types import FunctionType, MethodType
from typing import Any

from torch import nn

from .adapters import processor_of
from .denoiser import Split
from .private_api import forward_hooks, global_forward_hooks

# Whose code keeps the rows of a batch apart, but for what `row_mixing` knows.
_KNOWN = ("", "torch", "diffusers", "transformers", "accelerate", "peft", "xformers", "tomesd", "fastdiff_lab")
_FUNCTIONS = (FunctionType, MethodType, partial)


def foreign_parts(model: nn.Module, split: Split) -> dict[str, list[Any]]:
    """What works on rows of several steps and is not of a known package: name -> the parts of that name.

    >>> foreign_parts(pipe.unet, split_denoiser(pipe.unet))  # doctest: +SKIP
    {}

    Nothing tells whether such a part keeps the rows of a batch apart. The encoder's never gets rows of several steps.
    """
    encoder = {module for child in split.encoder.values() for module in child.modules()}
    found: dict[str, list[Any]] = {}
    modules = [module for module in model.modules() if module not in encoder]
    of_classes = {kind: _of_class(kind, "forward") for kind in set(map(type, modules))}
    classes = {kind: code for kind, code in of_classes.items() if is_foreign(code)}  # hundreds of modules have a few classes
    parts: list[tuple[Any, Any]] = [(hook, hook) for hook in global_forward_hooks()]
    for module in modules:
        if type(module) in classes:
            parts.append((classes[type(module)], module))
        parts += _put_on(module)
    for code, part in parts:
        if is_foreign(code):
            found.setdefault(_name_of(code), []).extend((part, code))
    return found


def _put_on(module: nn.Module) -> Iterator[tuple[Any, Any]]:
    """What was put on a module and runs when it is called: the code of each part, and the part."""
    yield from ((hook, hook) for hook in forward_hooks(module))
    replaced, processor = vars(module).get("forward"), processor_of(module)
    if replaced is not None:
        yield replaced, replaced
    if isinstance(processor, _FUNCTIONS):
        yield processor, processor
    elif processor is not None:
        yield _of_class(type(processor), "__call__"), processor


def _of_class(kind: type, method: str) -> Any:
    """A class; or its method, where another one was put into a known class."""
    return kind if is_foreign(kind) else getattr(kind, method, kind)


def is_foreign(code: Any) -> bool:
    """Is this function or class of none of the packages that keep rows apart?"""
    return origin_of(code).partition(".")[0] not in _KNOWN


def _plain(code: Any) -> Any:
    """The function inside of a method or of a partial; anything else as it is."""
    while isinstance(code, partial):
        code = code.func
    return getattr(code, "__func__", code)


def origin_of(code: Any) -> str:
    """The module that a function or class is written in, also of one that `functools.wraps` gave another's name; "" if none."""
    code = _plain(code)
    return getattr(code, "__globals__", {}).get("__name__") or getattr(code, "__module__", None) or ""


def _name_of(code: Any) -> str:
    found = _plain(code)
    written = getattr(found, "__code__", None)
    name = getattr(found, "__qualname__", type(found).__qualname__) if written is None else written.co_qualname
    return f"{origin_of(code)}.{name}"
