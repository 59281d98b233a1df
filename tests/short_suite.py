"""Which members of a parametrisation the short suite runs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import pytest


def long_but(short: Sequence[Any], values: Iterable[Any]) -> list[Any]:
    """Parameters for pytest: those in `short` run in both suites, the others in the long one only."""
    values = list(values)
    assert short and all(value in values for value in short), (short, values)
    return [pytest.param(*_arguments(value), marks=() if value in short else pytest.mark.long) for value in values]


def _arguments(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)
