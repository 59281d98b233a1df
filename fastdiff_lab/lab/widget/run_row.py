"""A run on the page: a model of its own, so that a run sends itself alone and not those before it."""

from __future__ import annotations

from typing import Any

import traitlets
from ipywidgets import Widget, widget_serialization


class RunRow(Widget):
    """One run: `row` as the history shows it, and the run `before` it."""

    row = traitlets.Dict().tag(sync=True)
    before: Any = traitlets.Instance("fastdiff_lab.lab.widget.run_row.RunRow", allow_none=True).tag(
        sync=True, **widget_serialization
    )


def chain(last: RunRow | None) -> list[dict[str, Any]]:
    """The rows of a chain of runs, the oldest first.

    >>> chain(None)
    []
    """
    found: list[dict[str, Any]] = []
    while last is not None:
        found.append(last.row)
        last = last.before
    return found[::-1]
