"""Convert what users pass (from numpy, pandas, torch, generators) to plain Python values, once.

- `listed(name, given, of)`: a list of anything that has an order
- `whole_number(name, given, ...)`, `number(name, given, ...)`, `choice(name, given, accepted)`: an argument, checked
- `is_whole(given)`: whether it is a whole number
- `plain(value)`: Python's own value where there is one
- `prompts_of(given)`, `seeds_of(given, ...)`: prompts and seeds
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Set
from typing import Any

LEAST_SEED, MOST_SEED = -(2**63), 2**64 - 1  # the range of torch's generators


def listed(name: str, given: Any, of: str) -> list[Any]:
    """Convert a list, tuple, range, array, column, tensor or generator to a list of plain values.

    >>> listed("seeds", range(2), "whole numbers")
    [0, 1]

    `of` says in messages what the list should hold. Raises TypeError for a single value, and for a set, a dict or a whole table.
    """
    if isinstance(given, str | bytes):
        raise TypeError(f"{name}={given!r} given; accepted: a list of {of}, such as [{given!r}]")
    held = given.tolist() if hasattr(given, "tolist") else given  # numpy, pandas and torch
    if hasattr(given, "columns") or isinstance(given, Mapping | Set) or isinstance(held, str) or not isinstance(held, Iterable):
        raise TypeError(
            f"{name} of type {type(given).__name__} given; accepted: a list of {of} (or a tuple, array, column of a table, generator)"
        )
    return [plain(value) for value in held]


def plain(value: Any) -> Any:
    """Convert a text or whole number from numpy or torch to Python's own; return anything else as it is.

    >>> plain(5)
    5
    """
    if isinstance(value, str):
        return str(value)
    return value.__index__() if is_whole(value) else value


def is_whole(given: Any) -> bool:
    """Whether this is a whole number of Python, numpy or torch. Truth values and 5.0 are none.

    >>> is_whole(5), is_whole(True), is_whole(5.0)
    (True, False, False)
    """
    if isinstance(given, bool) or type(given).__name__ in ("bool", "bool_") or not hasattr(given, "__index__"):
        return False
    try:
        return isinstance(given.__index__(), int) and not str(getattr(given, "dtype", "")).endswith("bool")
    except (TypeError, ValueError):  # several numbers, or fractions
        return False


def whole_number(name: str, given: Any, least: int, most: int | None = None, *, also: str = "") -> int:
    """The whole number as Python's own.

    >>> whole_number("max_rows", 8, least=1)
    8

    Args:
        name: Of the argument, for the message.
        given: What was given for it.
        least, most: The smallest and the largest that is accepted; None for no largest.
        also: What the message adds to what is accepted.

    Raises:
        ValueError: For anything else, truth values and 5.0 among it.
    """
    if is_whole(given) and least <= given and (most is None or given <= most):
        return given.__index__()
    accepted = (
        f"an int from {least} to {most}" if most is not None else "a positive int" if least == 1 else f"an int of {least} or more"
    )
    raise ValueError(f"`{name}` must be {accepted}{also}, got {str(plain(given))[:80] if is_whole(given) else repr(given)[:80]}")


def choice(name: str, given: Any, accepted: Iterable[Any]) -> Any:
    """What was given, if it is one of those that are accepted. Raises ValueError for anything else.

    >>> choice("reuse", "encoder", ("encoder", "prediction"))
    'encoder'
    """
    known, value = list(accepted), plain(given)
    if not any(type(value) is type(one) and value == one for one in known):
        raise ValueError(f"`{name}` must be one of {', '.join(map(str, known))}, got {repr(given)[:80]}")
    return value


def number(name: str, given: Any, least: float = -math.inf, most: float = math.inf) -> float:
    """The finite number as Python's own: of numpy's float32 the one that it is written as.

    >>> number("guidance_scale", 5)
    5.0

    Raises ValueError for anything else, and for less than `least` or more than `most`.
    """
    is_number = hasattr(given, "__float__") and not isinstance(given, bool | str) and getattr(given, "shape", ()) == ()
    value = given.item() if is_number and hasattr(given, "item") else given
    short = str(given) if is_number and type(given).__module__ == "numpy" else value  # float32's 7.1, not 7.0999999
    if is_number and not isinstance(value, bool | complex) and math.isfinite(float(short)) and least <= float(short) <= most:
        return float(short)
    if math.isfinite(most):
        raise ValueError(f"`{name}` must be a number from {least:g} to {most:g}, got {repr(given)[:80]}")
    raise ValueError(f"{name}={given!r} asked; accepted: a finite number")


def prompts_of(given: Any) -> list[Any]:
    """List the prompts. Raises TypeError for a single text, ValueError for none.

    >>> prompts_of(caption for caption in ("a red ring", "a white star"))
    ['a red ring', 'a white star']
    """
    prompts = listed("prompts", given, "texts")
    if not prompts:
        raise ValueError("0 prompts given; accepted: a list of one or more")
    return prompts


def seeds_of(given: Any, least: int = LEAST_SEED) -> list[int]:
    """List the seeds. Raises TypeError for a single one, ValueError for none or what is no seed.

    >>> seeds_of((3, 1))
    [3, 1]
    """
    seeds = listed("seeds", given, "whole numbers")
    wrong = next((seed for seed in seeds if not is_whole(seed) or not least <= seed <= MOST_SEED), None)
    if wrong is not None or None in seeds:
        raise ValueError(f"seed={wrong!r} asked; accepted: a whole number from {least} to {MOST_SEED}")
    if not seeds:
        raise ValueError("0 seeds given; accepted: a list of one or more")
    return seeds
