"""The explorer as a static page, for front ends without widgets."""

from __future__ import annotations

import html
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from ... import plot
from ...recording.analysis import feature_change, feature_norm, pca_maps, step_similarity
from ...recording.recording import Recording
from .fallback import SENTENCE

PCA_STEPS = 8


def explorer_page(recording: Recording, layer: str, kind: str, keys: Sequence[int]) -> str:
    """Change, norm, similarity and principal components of a layer, as HTML that needs neither kernel nor widgets."""
    marked = f"key steps {list(keys)}"
    parts = [f"<p><i>{SENTENCE}</i></p>"]
    for name, table in (("Change", feature_change(recording, kind)), ("Norm", feature_norm(recording))):
        drawn = plot.figure(5, 3)
        ax = drawn.subplots()
        plot.change_over_steps(
            table[table["layer"] == layer], ax, keys=keys, label=f"{kind} change" if name == "Change" else "norm"
        )
        parts += _shown(f"{name} of {layer}", drawn, f"{name} of {layer} over the steps; {marked}")
    if layer in recording.features:
        drawn = plot.figure(5, 3.6)
        ax = drawn.subplots()
        plot.similarity_matrix(step_similarity(recording, layer), ax, keys=keys or [0])
        parts += _shown(f"Similarity of every two steps, {layer}", drawn, f"Cosine similarity between steps; {marked} outlined")
        steps = [round(place) for place in np.linspace(0, recording.num_steps - 1, PCA_STEPS)]
        maps = pca_maps(recording, layer, steps=range(recording.num_steps))[steps]
        figure = plot.pca_strip({layer: maps}, steps, plot.figure(8, 1.4))
        parts += _shown(
            f"Principal components of {layer}", figure, f"Three principal components of {layer} as colours at steps {steps}"
        )
    return "\n".join(parts)


def _shown(title: str, figure: Figure, alt: str) -> list[str]:
    return [f"<p><b>{html.escape(title)}</b></p>", plot.html_image(figure, alt)]
