"""Would it pay to mix kinds of groups? `python -m studies.kinds_of_steps`: decoded features here, one prediction there, both fitted.

- `fronts(errors, seconds)`: the least error for each time, of each kind alone and of both
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import torch
import typer

from fastdiff_lab.calibration.derive import optimal_keys
from fastdiff_lab.calibration.reuse_costs import ReuseCosts
from fastdiff_lab.comparison.time_ceiling import decoder_seconds, encoder_seconds
from fastdiff_lab.hooks.denoiser import denoiser_of
from fastdiff_lab.inputs.files import write_whole
from fastdiff_lab.key_schedule import KeySchedule
from fastdiff_lab.pipelines import EMBEDDED_GUIDANCE, embedded_costs, load_pipeline
from fastdiff_lab.sampling.methods import denoiser_arguments
from fastdiff_lab.shapes.data import held_out_prompts

from .fitted_costs import fitted_costs
from .options import Threads

KINDS = {"encoder": "features", "prediction": "predictions"}
PRICES = tuple(np.logspace(-3, 6, 120).tolist())  # of a second, in squared error


def fronts(errors: Mapping[str, np.ndarray], seconds: Mapping[str, np.ndarray], prices: Sequence[float] = PRICES) -> pd.DataFrame:
    """The schedules that are best at some price of a second: of each kind alone, and of both.

    >>> one = np.array([[np.inf, 1.0, 9.0], [np.inf, 1.0, np.inf]])
    >>> fronts({"a": one}, {"a": np.array([0.0, 1.0, 1.5])}, prices=[0.1])[["kinds", "seconds", "error"]].values.tolist()
    [['a', 2.0, 2.0]]

    Args:
        errors: For each kind the squared error of each group, shape (steps, longest + 1); infinite where it cannot be.
        seconds: For each kind the seconds of a group of each length.

    Returns:
        Columns kinds, seconds, error (the sum over groups), groups: "0 features, 3 predictions, ..." where groups begin.
    """
    kinds = [*([name] for name in errors), list(errors)] if len(errors) > 1 else [list(errors)]
    rows = [{"kinds": " and ".join(chosen)} | _best(errors, seconds, chosen, price) for chosen in kinds for price in prices]
    return pd.DataFrame(rows).drop_duplicates(["kinds", "groups"]).reset_index(drop=True)


def _best(errors: Mapping[str, np.ndarray], seconds: Mapping[str, np.ndarray], kinds: Sequence[str], price: float) -> dict:
    """The cheapest way through the run, by the squared error and the price of its seconds."""
    paid = np.stack([errors[kind] + price * seconds[kind] for kind in kinds])
    steps = paid.shape[1]
    keys, _ = min(optimal_keys(paid.min(axis=0, keepdims=True), most=steps).values(), key=lambda found: found[1])
    groups = [(group.start, len(group)) for group in KeySchedule(steps, keys).groups()]
    chosen = [kinds[int(paid[:, key, length].argmin())] for key, length in groups]
    return {
        "seconds": float(sum(seconds[kind][length] for kind, (_, length) in zip(chosen, groups, strict=True))),
        "error": float(sum(errors[kind][key, length] for kind, (key, length) in zip(chosen, groups, strict=True))),
        "groups": ", ".join(f"{key} {kind}" for kind, (key, _) in zip(chosen, groups, strict=True)),
    }


def gains(table: pd.DataFrame, numbers: int) -> pd.DataFrame:
    """At the seconds of each schedule of both kinds: its predicted error, and that of the better kind alone, in dB below 1."""
    both = table[table["kinds"].str.contains(" and ")].sort_values("seconds")
    alone = [found.sort_values("seconds") for _, found in table[~table["kinds"].str.contains(" and ")].groupby("kinds")]
    level = {"both": -10 * np.log10(both["error"].clip(lower=1e-12) / numbers)}
    found = [
        np.interp(both["seconds"], one["seconds"], -10 * np.log10(one["error"].clip(lower=1e-12) / numbers), left=np.nan)
        for one in alone  # of which none may be as fast
    ]
    best = np.fmax.reduce(found)
    return both.assign(both_db=level["both"], alone_db=best, gain_db=level["both"] - best)


def _seconds(costs: ReuseCosts) -> dict[str, np.ndarray]:
    """Of a group of each length: one image, timed now."""
    pipe = load_pipeline()
    arguments, model = denoiser_arguments(pipe, held_out_prompts(1)[0], guidance_scale=EMBEDDED_GUIDANCE), denoiser_of(pipe)
    decoded = [0.0, *(decoder_seconds(model, arguments, length) for length in range(1, costs.max_span + 1))]
    encoded = encoder_seconds(model, arguments)
    return {"features": encoded + np.array(decoded), "predictions": np.full(costs.max_span + 1, encoded + decoded[1])}


def main(
    output: Annotated[Path, typer.Argument(help="CSV file to write.")] = Path("data/ablation/kinds.csv"), threads: Threads = 2
) -> None:
    """Predict what mixing fitted features and fitted predictions would gain on the embedded pipeline (DDIM, 50 steps, guidance 5)."""
    torch.set_num_threads(threads)
    pipe = load_pipeline()
    measured = {KINDS[reuse]: fitted_costs(pipe, embedded_costs(reuse)) for reuse in KINDS}
    errors = {kind: costs.spans()[0] for kind, costs in measured.items()}
    config = denoiser_of(pipe).config
    table = gains(fronts(errors, _seconds(measured["features"])), config.in_channels * config.sample_size**2)
    write_whole(output, lambda place: table.to_csv(place, index=False, float_format="%.6g"))
    typer.echo(table.drop(columns="groups").round(3).to_string(index=False))


if __name__ == "__main__":
    typer.run(main)
