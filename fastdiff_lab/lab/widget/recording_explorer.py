"""Explore a recording: layers and steps, with the key steps marked in every plot."""

from __future__ import annotations

import gc
import math
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd
import traitlets
from PIL import Image

from ...key_schedule import KeySchedule
from ...recording.analysis import KINDS, feature_change, feature_norm, pca_maps, step_similarity
from ...recording.recording import Recording
from ..session.images import data_address, tiled
from .assets import module
from .explorer_page import explorer_page
from .fallback import display_both, with_fallback
from .page_traits import Page
from .schedule_lab import ScheduleLab

LABELS = {
    "squared": "mean squared change from the step before", "relative": "change relative to the feature's length (no unit)",
    "cosine": "1 - cosine to the step before",
}  # fmt: skip
MOST_PIXELS = 4096  # a side of the image that holds the maps of all steps


class RecordingExplorer(Page):
    """The explorer's widget; see `recording_explorer`.

    What is drawn depends on the layer, so a key or a step that moves sends nothing but its number.
    """

    _esm = module("explorer")

    follows = traitlets.Unicode().tag(sync=True)
    key_steps = traitlets.List(traitlets.Int()).tag(sync=True)
    form = traitlets.Dict().tag(sync=True)
    fields: Any = traitlets.List().tag(sync=True)
    time_steps: Any = traitlets.List().tag(sync=True)
    curves: Any = traitlets.List().tag(sync=True)
    similarity = traitlets.Dict().tag(sync=True)
    maps = traitlets.Dict().tag(sync=True)

    def __init__(self, recording: Recording, keys: tuple[int, ...]) -> None:
        self._recording = recording
        self._norms = feature_norm(recording)
        self._changes = {kind: feature_change(recording, kind) for kind in KINDS}
        self._drawn = lru_cache(maxsize=32)(self._images_of)
        super().__init__(key_steps=list(keys), time_steps=list(recording.time_steps))
        first = next((layer for layer in recording.layers if layer in recording.features), recording.layers[0])
        self.fields = _fields(recording)
        self.form = {"layer": first, "kind": "relative", "step": 0}
        self._draw()
        self.observe(lambda change: self._draw(), "form")

    def _draw(self) -> None:
        layer, kind, step = (self.form.get(name) for name in ("layer", "kind", "step"))
        steps = self._recording.num_steps
        if layer not in self._recording.layers or kind not in KINDS or not isinstance(step, int) or not 0 <= step < steps:
            message = f"step {step!r} of layer {layer!r} asked; accepted: steps from 0 to {steps - 1}"
            self.problem = {"message": message, "where": "explorer"}
            return
        self.problem = {}
        self.curves = [
            {
                "name": "change",
                "title": f"Change of {layer}",
                "unit": LABELS[kind],
                "values": _of(self._changes[kind], layer, steps),
            },
            {
                "name": "norm",
                "title": f"Norm of {layer}",
                "unit": "norm of the channel mean",
                "values": _of(self._norms, layer, steps),
            },
        ]
        self.similarity, self.maps = self._drawn(layer)

    def _images_of(self, layer: str) -> tuple[dict[str, Any], dict[str, Any]]:
        """The similarity of every two steps as shades of grey; the maps of all steps as tiles of one image."""
        titles = {"title": f"Similarity of every two steps, {layer}"}, {"title": f"Principal components of {layer}"}
        if layer not in self._recording.features:
            words = {"words": self._not_kept(layer)}
            return titles[0] | words, titles[1] | words
        alike = step_similarity(self._recording, layer)
        low = float(alike.min())
        grey = np.round((alike[::-1] - low) / max(1 - low, 1e-12) * 255).clip(0, 255).astype(np.uint8)
        maps = pca_maps(self._recording, layer, steps=range(self._recording.num_steps))
        tiles, columns = tiled([Image.fromarray(np.round(one * 255).astype(np.uint8)) for one in maps])
        return (
            titles[0] | {"address": data_address(Image.fromarray(grey), MOST_PIXELS), "low": low},
            titles[1] | {"address": data_address(tiles, MOST_PIXELS), "columns": columns},
        )

    def _not_kept(self, layer: str) -> str:
        kept = ", ".join(self._recording.features) or "none"
        return f"Only statistics of {layer} were recorded (features kept: {kept}); fl.record(pipe, keep=[{layer!r}]) keeps its features."

    def page(self) -> str:
        """The state as HTML that needs neither kernel nor widgets."""
        steps = self._recording.num_steps
        return explorer_page(self._recording, self.form["layer"], self.form["kind"], [key for key in self.key_steps if key < steps])

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        return with_fallback(super()._repr_mimebundle_(**kwargs), self.page())

    def _ipython_display_(self) -> None:
        display_both(super()._repr_mimebundle_(), self.page())


def _fields(recording: Recording) -> list[dict[str, Any]]:
    kept = set(recording.features)
    layers = [
        [layer, f"{layer} ({part}{', features kept' if layer in kept else ''})"]
        for layer, part in zip(recording.layers, recording.parts, strict=True)
    ]
    return [
        {"name": "layer", "label": "Layer", "kind": "choice", "options": layers, "width": "wide"},
        {"name": "kind", "label": "Change", "kind": "choice", "options": [[kind, kind] for kind in KINDS], "width": "medium"},
        {"name": "step", "label": "Step", "kind": "number", "min": 0, "max": recording.num_steps - 1},
    ]


def _of(table: pd.DataFrame, layer: str, steps: int) -> list[float | None]:
    """A layer's value at each step, mean over samples; None where there is none."""
    values = table[table["layer"] == layer].groupby("step")["value"].mean()
    return [float(f"{values[step]:.4g}") if step in values.index and math.isfinite(values[step]) else None for step in range(steps)]


def recording_explorer(recording: Recording, schedule: KeySchedule | ScheduleLab | None = None) -> RecordingExplorer:
    """Show layers and steps of a recording: change, norm, similarity and PCA maps, with the key steps marked.

    >>> recording_explorer(recording, fl.KeySchedule.paper(50))  # doctest: +SKIP

    Args:
        recording: From `record`. Similarity and PCA maps need layers whose features were kept.
        schedule: Whose keys are marked. A `schedule_lab` is followed as its keys move.

    Raises:
        ValueError: Nothing was recorded.
    """
    if not recording.num_samples:
        raise ValueError("nothing was recorded: no run was finished inside the record block")
    explorer = RecordingExplorer(recording, _keys_of(schedule))
    if isinstance(schedule, ScheduleLab):
        explorer.follows = schedule.name
        traitlets.dlink((schedule, "key_steps"), (explorer, "key_steps"))
    gc.collect()  # as in schedule_lab
    return explorer


def _keys_of(schedule: KeySchedule | ScheduleLab | None) -> tuple[int, ...]:
    if isinstance(schedule, ScheduleLab):
        return schedule.schedule.keys
    return () if schedule is None else schedule.keys
