"""The suite's claims, as differences between two methods on the same images, with intervals."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pandas as pd

from ..fidelity import paired_difference

Pair = tuple[str, dict[str, Any], dict[str, Any]]  # the claim and its two methods


def paired(pictures: pd.DataFrame, columns: pd.DataFrame, value: str = "mse") -> pd.DataFrame:
    """Measure the lead of one method over another, for each claim and each number of keys with both.

    >>> paired(pictures, suite_columns(50, costs)).query("claim == 'derived over uniform keys'")  # doctest: +SKIP

    Args:
        pictures: From `run_suite`.
        columns: From `suite_columns`, or the table of `run_suite`.
        value: As for `paired_difference`; "mse" for dB of PSNR.

    Returns:
        Columns claim, num_keys and order (of the first method), arm, other, difference, low, high (95 %), pictures.
    """
    arms = columns[columns["arm"].isin(pictures["arm"].unique())]
    rows = []
    for claim, one, other in _pairs(arms):
        first, second = _named(arms, one), _named(arms, other)
        if first is not None and second is not None:
            about = {
                "claim": claim,
                "num_keys": first["num_keys"],
                "order": first["order"],
                "arm": first["arm"],
                "other": second["arm"],
            }
            rows.append(about | paired_difference(pictures, first["arm"], second["arm"], value).to_dict())
    return pd.DataFrame(rows)


def _named(arms: pd.DataFrame, about: dict[str, Any]) -> pd.Series | None:
    """The method with these columns, by default without prior noise; None if it was not run."""
    found = arms
    for name, value in ({"noise": False} | about).items():
        found = found[found[name] == value]
    return None if found.empty else found.iloc[0]


def _pairs(arms: pd.DataFrame) -> Iterator[Pair]:
    for count in sorted(arms.loc[arms["keys"] == "uniform", "num_keys"].unique()):
        yield from _of_derived(count)
    nine = {"what": "features", "keys": "derived", "order": 0, "num_keys": 9}
    yield "13 plain steps over features held at 9 derived keys", {"what": "plain", "num_keys": 13}, nine
    yield from _of_noise(arms)
    yield from _of_paper(arms)


def _of_derived(count: float) -> Iterator[Pair]:
    """Features at derived keys, and predictions reused at them, beside every rival with as many keys."""
    for order in (1, 0):
        at = {"order": order, "num_keys": count}
        ours = {"what": "features", "keys": "derived", **at}
        yield "derived over uniform keys", ours, ours | {"keys": "uniform"}
        yield "features over predictions at the same derived keys", ours, ours | {"what": "predictions"}
        yield (
            "features over predictions at keys derived for each", ours, {"what": "predictions", "keys": "derived for predictions", **at}
        )  # fmt: skip
        yield "derived over as many plain steps", ours, {"what": "plain", "num_keys": count}
        refined = ours | {"keys": "refined"}
        yield "refined over derived keys", refined, ours
        yield "refined features over refined predictions", refined, refined | {"what": "predictions"}
        yield "refined over as many plain steps", refined, {"what": "plain", "num_keys": count}
        yield "refined over uniform keys", refined, ours | {"keys": "uniform"}
    ours = {"what": "features", "keys": "derived", "order": 1, "num_keys": count}
    yield "extrapolated at derived keys over held at the paper's", ours, {"what": "features", "keys": "paper", "order": 0}
    yield "extrapolated over held at derived keys", ours, ours | {"order": 0}
    uniform = ours | {"keys": "uniform"}
    yield "features over predictions at the same uniform keys", uniform, uniform | {"what": "predictions"}
    yield "extrapolated over held at uniform keys", uniform, uniform | {"order": 0}
    held = {"what": "predictions", "keys": "derived", "order": 0, "num_keys": count}
    yield "predictions at keys derived for features over keys of their own", held, held | {"keys": "derived for predictions"}
    yield "predictions at keys derived for features over as many plain steps", held, {"what": "plain", "num_keys": count}


def _of_noise(arms: pd.DataFrame) -> Iterator[Pair]:
    for _, row in arms[arms["noise"]].iterrows():
        about = {name: row[name] for name in ("what", "keys", "order", "num_keys")}
        yield "with over without prior noise", about | {"noise": True}, about


def _of_paper(arms: pd.DataFrame) -> Iterator[Pair]:
    """The paper's keys and prior noise, apart: which of the two makes the gain over uniform keys?"""
    for _, row in arms[(arms["keys"] == "paper") & (arms["what"] == "features")].iterrows():
        paper = {name: row[name] for name in ("what", "keys", "order", "num_keys", "noise")}
        yield (
            f"the paper's over uniform keys, both {'with' if row['noise'] else 'without'} prior noise",
            paper,
            paper | {"keys": "uniform"},
        )
