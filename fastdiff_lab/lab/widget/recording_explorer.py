"""Explore a recording: layers and steps, with the key steps marked in every plot."""

from __future__ import annotations

import html
import threading
from typing import Any

import anywidget
import numpy as np
import pandas as pd
import traitlets
from matplotlib.axes import Axes

from ... import plot
from ...key_schedule import KeySchedule
from ...recording.analysis import KINDS, feature_change, feature_norm, pca_maps, step_similarity
from ...recording.recording import Recording
from ..session.background_job import Later
from .assets import module, style
from .fallback import SENTENCE, with_fallback
from .schedule_lab import ScheduleLab

LABELS = {
    "squared": "mean squared change from the step before", "relative": "change relative to the feature's length (no unit)",
    "cosine": "1 - cosine to the step before",
}  # fmt: skip
PCA_STEPS = 8


class RecordingExplorer(anywidget.AnyWidget):
    """The explorer's widget; see `recording_explorer`."""

    _esm = module("explorer")
    _css = style()

    key_steps = traitlets.List(traitlets.Int()).tag(sync=True)
    form = traitlets.Dict().tag(sync=True)
    fields: Any = traitlets.List().tag(sync=True)
    figures: Any = traitlets.List().tag(sync=True)
    note = traitlets.Unicode().tag(sync=True)
    problem = traitlets.Dict().tag(sync=True)

    def __init__(self, recording: Recording, keys: tuple[int, ...]) -> None:
        self._recording = recording
        self._drawing = threading.Lock()
        self._norms = feature_norm(recording)
        self._changes = {kind: feature_change(recording, kind) for kind in KINDS}
        super().__init__(key_steps=list(keys))
        first = next((layer for layer in recording.layers if layer in recording.features), recording.layers[0])
        self.fields = _fields(recording)
        self.form = {"layer": first, "kind": "relative", "step": 0}
        self.draw()
        self.observe(lambda change: self.draw(), "form")
        later = Later(self.draw)  # dragging a key sends many updates a second
        self.observe(lambda change: later.ask(), "key_steps")

    def draw(self) -> None:
        """Draw the figures anew. Changes call this soon after."""
        with self._drawing:  # a slow drawing of an older state must not come last
            self._draw()

    def _draw(self) -> None:
        layer, kind, step = (self.form.get(name) for name in ("layer", "kind", "step"))
        steps = self._recording.num_steps
        if layer not in self._recording.layers or kind not in KINDS or not isinstance(step, int) or not 0 <= step < steps:
            self.problem = {"message": f"step {step!r} of layer {layer!r} asked; accepted: steps from 0 to {steps - 1}"}
            return
        keys = [key for key in self.key_steps if key < steps]
        self.problem, self.note = {}, _sentence(step, keys, self._recording.time_steps)
        self.figures = [
            self._change(layer, kind, step, keys),
            self._norm(layer, step, keys),
            self._similarity(layer, step, keys),
            self._pca(layer, step, keys),
        ]

    def _change(self, layer: str, kind: str, step: int, keys: list[int]) -> dict[str, str]:
        ax = plot.figure(5, 2.6).subplots()
        _over_steps(_of(self._changes[kind], layer), ax, step, keys, f"{kind} change")
        return _shown(
            "change", f"Change of {layer}", ax.figure, f"Change of {layer} over the steps, {LABELS[kind]}; key steps {keys}"
        )

    def _norm(self, layer: str, step: int, keys: list[int]) -> dict[str, str]:
        ax = plot.figure(5, 2.6).subplots()
        _over_steps(_of(self._norms, layer), ax, step, keys, "norm of the channel mean")
        return _shown("norm", f"Norm of {layer}", ax.figure, f"Norm of {layer} over the steps; key steps {keys}")

    def _similarity(self, layer: str, step: int, keys: list[int]) -> dict[str, str]:
        title = f"Similarity of every two steps, {layer}"
        if layer not in self._recording.features:
            return {"name": "similarity", "title": title, "words": self._not_kept(layer)}
        ax = plot.figure(5, 3.6).subplots()
        plot.similarity_matrix(step_similarity(self._recording, layer), ax, keys=keys or [0])
        ax.axvline(step, color=plot.PETROFF[2], linewidth=1)
        return _shown(
            "similarity", title, ax.figure, f"Cosine similarity of {layer} between steps; groups of the keys {keys} outlined"
        )

    def _pca(self, layer: str, step: int, keys: list[int]) -> dict[str, str]:
        title = f"Principal components of {layer}; ◆ key step"
        if layer not in self._recording.features:
            return {"name": "pca", "title": title, "words": self._not_kept(layer)}
        steps = _steps_to_show(self._recording.num_steps, step, keys)
        maps = pca_maps(self._recording, layer, steps=range(self._recording.num_steps))[steps]
        figure = plot.figure(5, 3.6)
        for ax, image, at in zip(figure.subplots(2, PCA_STEPS // 2).flat, maps, steps, strict=False):
            ax.imshow(image, interpolation="nearest")
            ax.set(xticks=[], yticks=[])
            ax.set_title(f"{'◆ ' if at in keys else ''}step {at}", fontsize="small", fontweight="bold" if at == step else "normal")
        return _shown(
            "pca", title, figure, f"Principal components of {layer} as colours at steps {steps}; key steps among them are marked"
        )

    def _not_kept(self, layer: str) -> str:
        kept = ", ".join(self._recording.features) or "none"
        return f"Only statistics of {layer} were recorded (features kept: {kept}); fl.record(pipe, keep=[{layer!r}]) keeps its features."

    def page(self) -> str:
        """The state as HTML that needs neither kernel nor widgets."""
        shown = [
            f'<img alt="{html.escape(figure["alt"])}" style="max-width:49%" src="{figure["address"]}">'
            if figure.get("address")
            else f"<p>{html.escape(figure['words'])}</p>"
            for figure in self.figures
        ]
        titles = [f"<p><b>{html.escape(figure['title'])}</b></p>" for figure in self.figures]
        parts = [part for both in zip(titles, shown, strict=True) for part in both]
        return "\n".join([f"<p><i>{SENTENCE}</i> {html.escape(self.note)}</p>", *parts])

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        return with_fallback(super()._repr_mimebundle_(**kwargs), self.page())


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


def _of(table: pd.DataFrame, layer: str) -> pd.Series:
    """A layer's value at each step, mean over samples."""
    return table[table["layer"] == layer].groupby("step")["value"].mean()


def _over_steps(values: pd.Series, ax: Axes, step: int, keys: list[int], label: str) -> None:
    for key in keys:
        ax.axvline(key, color="0.8", linewidth=1, zorder=0)
    ax.plot(values.index, values, color=plot.PETROFF[0])
    marked = [key for key in keys if key in values.index]
    ax.plot(marked, values[marked], "D", color="black", markersize=4, label="key step")
    ax.axvline(step, color=plot.PETROFF[2], linewidth=1.5, label=f"step {step}")
    ax.set(xlabel="step", ylabel=label)
    ax.legend(fontsize="x-small")


def _steps_to_show(num_steps: int, step: int, keys: list[int]) -> list[int]:
    """The chosen step, its key step, and others evenly spread."""
    wanted = {step, max([key for key in keys if key <= step], default=0)}
    spread = [round(place) for place in np.linspace(0, num_steps - 1, PCA_STEPS)]
    for other in spread:
        if len(wanted) < PCA_STEPS:
            wanted.add(other)
    return sorted(wanted)


def _sentence(step: int, keys: list[int], time_steps: tuple[float, ...]) -> str:
    used = max([key for key in keys if key <= step], default=None)
    if used is None:
        return f"Step {step}, time-step {time_steps[step]:g}."
    reuse = "is a key step: its encoder runs" if used == step else f"reuses the encoder's features of key step {used}"
    return f"Step {step} (time-step {time_steps[step]:g}) {reuse}."


def _shown(name: str, title: str, figure: Any, alt: str) -> dict[str, str]:
    return {"name": name, "title": title, "alt": alt, "address": plot.png_address(figure)}


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
        traitlets.dlink((schedule, "key_steps"), (explorer, "key_steps"))
    return explorer


def _keys_of(schedule: KeySchedule | ScheduleLab | None) -> tuple[int, ...]:
    if isinstance(schedule, ScheduleLab):
        return schedule.schedule.keys
    return () if schedule is None else schedule.keys
