"""The state of the lab's page as traits, so that a saved notebook has all of it."""

from __future__ import annotations

from typing import Any

import anywidget
import traitlets

from .assets import module, style
from .views import COLUMNS

IDLE = {"state": "idle", "text": "Ready. The baseline is made once for each prompt, seed and settings."}


class LabTraits(anywidget.AnyWidget):
    """Traits without logic. The page changes `key_steps`, `form`, `profile`, `sort` and `chosen`; Python changes the others."""

    _esm = module("lab")
    _css = style()

    key_steps = traitlets.List(traitlets.Int()).tag(sync=True)
    num_steps = traitlets.Int(1).tag(sync=True)
    time_steps: Any = traitlets.List().tag(sync=True)
    schedule_text = traitlets.Unicode().tag(sync=True)
    form = traitlets.Dict().tag(sync=True)
    fields: Any = traitlets.List().tag(sync=True)
    form_error = traitlets.Unicode().tag(sync=True)
    prediction = traitlets.Dict().tag(sync=True)
    front = traitlets.Dict().tag(sync=True)
    profiles = traitlets.Dict().tag(sync=True)
    profile = traitlets.Unicode("cost").tag(sync=True)
    presets: Any = traitlets.List().tag(sync=True)
    run_state = traitlets.Dict(IDLE).tag(sync=True)
    progress = traitlets.Dict().tag(sync=True)
    images = traitlets.Dict().tag(sync=True)
    result = traitlets.Dict().tag(sync=True)
    problem = traitlets.Dict().tag(sync=True)
    rows: Any = traitlets.List().tag(sync=True)
    columns = traitlets.List(COLUMNS).tag(sync=True)
    sort = traitlets.Dict({"by": "run", "ascending": False}).tag(sync=True)
    chosen = traitlets.List(traitlets.Int()).tag(sync=True)
    said = traitlets.Unicode().tag(sync=True)

    def tell(self, error: BaseException, details: str = "") -> None:
        """Show an error as a sentence, with details folded away."""
        message = error.args[0] if isinstance(error, KeyError) and error.args else error
        self.problem = {"message": f"{type(error).__name__}: {message}", "details": details}
