"""Show a static page where widgets cannot run."""

from __future__ import annotations

import html
from typing import Any

import pandas as pd
from IPython.display import display

from ... import plot
from ...key_schedule import KeySchedule
from ..session.paired_run import Pair
from ..session.settings import keys_text
from .views import psnr_text

SENTENCE = "This is an image of an interactive widget. Run the cell in JupyterLab (make lab) to work with it."
SHOWN = ["run", "keys", "reuse", "order", "seconds", "ratio", "psnr", "ssim", "latent_error", "predicted_error", "prompt_right"]


def with_fallback(bundle: Any, page: str) -> Any:
    """Add a static page to the mimebundle of a widget, for front ends without widgets."""
    data, metadata = bundle
    return {**data, "text/html": page, "text/plain": SENTENCE}, metadata


def display_both(bundle: Any, page: str) -> None:
    """Show a widget, and its static page below, which the style of a widget that lives hides.

    Exported pages take the widget of an output that has both, and show nothing of it without a network.
    """
    data, metadata = bundle
    display({**data, "text/plain": SENTENCE}, metadata=metadata, raw=True)
    display({"text/html": f'<div class="fd-static">{page}</div>', "text/plain": "The same as an image."}, raw=True)


def lab_page(schedule: KeySchedule, cards: dict[str, Any], profile: dict[str, Any], pair: Pair | None, runs: pd.DataFrame) -> str:
    """The key steps with the error of each group, the predicted numbers, the last images and the runs."""
    image = plot.html_image(_strip(schedule, profile), f"Key steps {schedule}, and the predicted error of each group")
    numbers = " · ".join(f"{html.escape(card['label'])} <b>{html.escape(card['value'])}</b>" for card in cards["cards"])
    parts = [f"<p><i>{SENTENCE}</i></p>", image, f"<p>{numbers}</p>", f"<p>{html.escape(cards['note'])}</p>"]
    if pair is not None:
        grid = plot.image_grid({name: [image] for name, image in pair.images.items()}, plot.figure(4, 4))
        parts.append(plot.html_image(grid, f"Baseline and accelerated image and their difference: {pair.settings.prompt}"))
    if len(runs):
        digits: dict[str, Any] = {"psnr": psnr_text, "seconds": "{:.2f}".format, "ratio": "{:.2f}".format}
        table = runs[SHOWN].to_html(index=False, float_format="{:.3g}".format, formatters=digits, border=0, na_rep="-")
        parts.append(table)
    return "\n".join(parts)


def _strip(schedule: KeySchedule, profile: dict[str, Any]) -> Any:
    spans = [(first, after, value) for first, after, value in profile["spans"] if value]
    figure = plot.figure(8.5, 2.4 if spans else 1.1)
    rows = figure.subplots(2, 1, height_ratios=[3, 1.6], squeeze=False)[:, 0] if spans else [figure.subplots()]
    if spans:
        bars = plot.group_errors(spans, schedule.num_steps, rows[0], label=f"{profile['axis']}\n(RMS, no unit)")
        bars.set(xlabel="", xticks=[], ylim=(profile["low"], profile["high"]))  # as in the lab
    plot.key_strips({keys_text(len(schedule.keys)): schedule.keys}, schedule.num_steps, rows[-1])
    return figure
