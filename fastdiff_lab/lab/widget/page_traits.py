"""The state of the widgets' pages as traits, so that a saved notebook has all of it."""

from __future__ import annotations

from typing import Any

import anywidget
import traitlets
from ipywidgets import widget_serialization

from .assets import module, style
from .run_row import RunRow
from .views import COLUMNS

IDLE = {"state": "idle", "text": "Ready. The baseline is made once for each prompt, seed and settings."}


class Page(anywidget.AnyWidget):
    """What every page has: errors, and `heard`, the number of the last thing that the page asked for, `beat`."""

    _css = style()

    problem = traitlets.Dict().tag(sync=True)
    beat = traitlets.Int(0).tag(sync=True)
    heard = traitlets.Int(0).tag(sync=True)

    def __init__(self, **values: Any) -> None:
        super().__init__(**values)
        self.observe(lambda change: self.hear(change["new"]), "beat")

    def hear(self, beat: Any) -> None:
        """Tell the page that what it asked for so far was done."""
        if isinstance(beat, int) and beat > self.heard:
            self.heard = beat

    def tell(self, error: BaseException, details: str = "", where: str = "run") -> None:
        """Show an error as a sentence at a part of the page, with details folded away."""
        message = error.args[0] if isinstance(error, KeyError) and error.args else error
        self.problem = {"message": f"{type(error).__name__}: {message}", "details": details, "where": where}


class LabTraits(Page):
    """Traits without logic. The page changes `key_steps`, `gesture`, `form`, `profile`, `sort` and `chosen`; Python changes the others."""

    _esm = module("lab")

    name = traitlets.Unicode().tag(sync=True)
    key_steps = traitlets.List(traitlets.Int()).tag(sync=True)
    gesture = traitlets.Int(0).tag(sync=True)
    can_undo = traitlets.Bool(False).tag(sync=True)
    can_redo = traitlets.Bool(False).tag(sync=True)
    num_steps = traitlets.Int(1).tag(sync=True)
    time_steps: Any = traitlets.List().tag(sync=True)
    schedule_text = traitlets.Unicode().tag(sync=True)
    form = traitlets.Dict().tag(sync=True)
    fields: Any = traitlets.List().tag(sync=True)
    form_error = traitlets.Dict().tag(sync=True)
    form_note = traitlets.Unicode().tag(sync=True)
    prediction = traitlets.Dict().tag(sync=True)
    front = traitlets.Dict().tag(sync=True)
    profiles = traitlets.Dict().tag(sync=True)
    profile = traitlets.Unicode("cost").tag(sync=True)
    presets: Any = traitlets.List().tag(sync=True)
    run_state = traitlets.Dict(IDLE).tag(sync=True)
    progress_baseline = traitlets.Dict().tag(sync=True)
    progress_accelerated = traitlets.Dict().tag(sync=True)
    image_baseline = traitlets.Dict().tag(sync=True)
    image_accelerated = traitlets.Dict().tag(sync=True)
    image_difference = traitlets.Dict().tag(sync=True)
    film = traitlets.Dict().tag(sync=True)
    race = traitlets.Dict().tag(sync=True)
    out_of_date = traitlets.Bool(False).tag(sync=True)
    result = traitlets.Dict().tag(sync=True)
    last_run: Any = traitlets.Instance(RunRow, allow_none=True).tag(sync=True, **widget_serialization)
    cleared = traitlets.Int(0).tag(sync=True)
    columns = traitlets.List(COLUMNS).tag(sync=True)
    sort = traitlets.Dict({"by": "run", "ascending": False}).tag(sync=True)
    chosen = traitlets.List(traitlets.Int()).tag(sync=True)
    gallery: Any = traitlets.List().tag(sync=True)
    said = traitlets.Dict().tag(sync=True)
