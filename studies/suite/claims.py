"""The suite's claims, as differences between two methods on the same images, with intervals."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pandas as pd

from fastdiff_lab.comparison.fidelity import paired_difference

Pair = tuple[str, dict[str, Any], dict[str, Any]]  # the claim and its two methods


def paired(images: pd.DataFrame, columns: pd.DataFrame, value: str = "mse") -> pd.DataFrame:
    """Measure the lead of one method over another, for each claim and each number of keys with both.

    >>> paired(images, suite_columns(50, costs)).query("claim == 'derived over uniform keys'")  # doctest: +SKIP

    Args:
        images: From `run_suite`.
        columns: From `suite_columns`, or the table of `run_suite`.
        value: As for `paired_difference`; "mse" for dB of PSNR.

    Returns:
        Columns claim, num_keys and order (of the first method), method, other, difference, low, high (95 %), images.
    """
    methods = columns[columns["method"].isin(images["method"].unique())]
    rows = []
    for claim, one, other in _pairs(methods):
        first, second = _named(methods, one), _named(methods, other)
        if first is not None and second is not None:
            about = {
                "claim": claim,
                "num_keys": first["num_keys"],
                "order": first["order"],
                "method": first["method"],
                "other": second["method"],
            }
            rows.append(about | paired_difference(images, first["method"], second["method"], value).to_dict())
    return pd.DataFrame(rows)


def _named(methods: pd.DataFrame, about: dict[str, Any]) -> pd.Series | None:
    """The method with these columns, by default without prior noise; None if it was not run."""
    found = methods
    for name, value in ({"noise": False} | about).items():
        found = found[found[name] == value]
    return None if found.empty else found.iloc[0]


def _pairs(methods: pd.DataFrame) -> Iterator[Pair]:
    for count in sorted(methods.loc[methods["keys"] == "uniform", "num_keys"].unique()):
        yield from _of_derived(count)
    nine = {"kind": "features", "keys": "derived", "order": 0, "num_keys": 9}
    yield "13 steps over features reused at 9 derived keys", {"kind": "fewer steps", "num_keys": 13}, nine
    fitted = nine | {"keys": "fitted"}
    yield "17 steps over fitted features at 9 keys", {"kind": "fewer steps", "num_keys": 17}, fitted
    yield "fitted predictions at 13 keys over fitted features at 9", fitted | {"kind": "predictions", "num_keys": 13}, fitted
    yield "DeepCache 3, fitted, over fitted features at 9 keys", {"kind": "deepcache", "num_keys": 3, "keys": "fitted"}, fitted
    for interval in (2, 3, 5):
        held = {"kind": "deepcache", "num_keys": interval, "keys": ""}
        yield "DeepCache fitted over DeepCache", held | {"keys": "fitted"}, held
    yield from _of_noise(methods)
    yield from _of_paper(methods)


def _of_derived(count: float) -> Iterator[Pair]:
    """Features at derived keys, and predictions reused at them, beside every rival with as many keys."""
    for order in (1, 0):
        at = {"order": order, "num_keys": count}
        ours = {"kind": "features", "keys": "derived", **at}
        yield "derived over uniform keys", ours, ours | {"keys": "uniform"}
        yield "features over predictions at the same derived keys", ours, ours | {"kind": "predictions"}
        yield (
            "features over predictions at keys derived for each", ours, {"kind": "predictions", "keys": "derived for predictions", **at}
        )  # fmt: skip
        yield "derived over fewer steps", ours, {"kind": "fewer steps", "num_keys": count}
        refined = ours | {"keys": "refined"}
        yield "refined over derived keys", refined, ours
        yield "refined features over refined predictions", refined, refined | {"kind": "predictions"}
        yield "refined over fewer steps", refined, {"kind": "fewer steps", "num_keys": count}
        yield "refined over uniform keys", refined, ours | {"keys": "uniform"}
        yield from _of_fitted(ours)
    ours = {"kind": "features", "keys": "derived", "order": 1, "num_keys": count}
    yield "extrapolated at derived keys over reused at the paper's", ours, {"kind": "features", "keys": "paper", "order": 0}
    yield "extrapolated over reused at derived keys", ours, ours | {"order": 0}
    uniform = ours | {"keys": "uniform"}
    yield "features over predictions at the same uniform keys", uniform, uniform | {"kind": "predictions"}
    yield "extrapolated over reused at uniform keys", uniform, uniform | {"order": 0}
    reused = {"kind": "predictions", "keys": "derived", "order": 0, "num_keys": count}
    yield "predictions at keys derived for features over keys of their own", reused, reused | {"keys": "derived for predictions"}
    yield "predictions at keys derived for features over fewer steps", reused, {"kind": "fewer steps", "num_keys": count}


def _of_fitted(ours: dict[str, Any]) -> Iterator[Pair]:
    """Fitted features and predictions, at derived keys and at those that were refined for the fit."""
    for keys in ("fitted", "refined, fitted"):
        fitted = ours | {"keys": keys}
        predictions = fitted | {"kind": "predictions"}
        yield f"{keys} over derived keys", fitted, ours
        yield f"{keys} features over {keys} predictions", fitted, predictions
        yield f"{keys} over fewer steps", fitted, {"kind": "fewer steps", "num_keys": ours["num_keys"]}
        yield f"{keys} predictions over fewer steps", predictions, {"kind": "fewer steps", "num_keys": ours["num_keys"]}
        yield f"{keys} predictions over derived keys", predictions, ours | {"kind": "predictions"}
    own = {"keys": "derived for predictions, fitted", "kind": "predictions"}
    yield "fitted features over fitted predictions at keys derived for each", ours | {"keys": "fitted"}, ours | own
    yield (
        "fitted predictions at keys derived for features over keys of their own",
        ours | {"keys": "fitted", "kind": "predictions"},
        ours | own,
    )
    yield (
        "fitted predictions at keys of their own over fewer steps",
        ours | own,
        {"kind": "fewer steps", "num_keys": ours["num_keys"]},
    )
    yield "fitted derived over fitted uniform keys", ours | {"keys": "fitted"}, ours | {"keys": "uniform, fitted"}
    uniform = ours | {"keys": "uniform"}
    yield "fitted over reused uniform keys", uniform | {"keys": "uniform, fitted"}, uniform


def _of_noise(methods: pd.DataFrame) -> Iterator[Pair]:
    for _, row in methods[methods["noise"]].iterrows():
        about = {name: row[name] for name in ("kind", "keys", "order", "num_keys")}
        yield "with over without prior noise", about | {"noise": True}, about


def _of_paper(methods: pd.DataFrame) -> Iterator[Pair]:
    """The paper's keys and prior noise, apart: which of the two makes the gain over uniform keys?"""
    for _, row in methods[(methods["keys"] == "paper") & (methods["kind"] == "features")].iterrows():
        paper = {name: row[name] for name in ("kind", "keys", "order", "num_keys", "noise")}
        yield (
            f"the paper's over uniform keys, both {'with' if row['noise'] else 'without'} prior noise",
            paper,
            paper | {"keys": "uniform"},
        )
