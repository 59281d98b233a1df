"""The tables that are shipped, and the prompts of all notebooks."""

from __future__ import annotations

import json
from itertools import product
from types import SimpleNamespace

import pytest

import fastdiff_lab as fl
from fastdiff_lab.comparison import measured
from fastdiff_lab.hooks.fingerprint import identity
from fastdiff_lab.pipelines import data_file

OTHERS = "earlier weights, not yet with these"


def test_the_demo_was_drawn_by_the_suite_too():
    images = fl.measured("suite/ddim-50/images")
    known = set(zip(images["prompt"], images["seed"], strict=True))
    prompts, seeds = fl.demo(8)
    assert len(prompts) == len(seeds) == 8 and set(zip(prompts, seeds, strict=True)) <= known
    assert fl.demo(2)[0] == prompts[:2]
    assert not {*prompts} & {*fl.embedded_costs().about["prompts"]}  # none was calibrated on


def test_tables_are_read_by_name():
    table = fl.measured("suite/ddim-50/table")
    assert table.loc[table["method"] == "baseline", "keys"].item() == "" and len(table) > 50
    ours = fl.measured("bench/intel-r-xeon-r-processor-2-threads/bench")
    assert {"baseline", "paper, serial", "paper, parallel"} <= set(ours["method"])
    with pytest.raises(FileNotFoundError, match="the table suite/none is missing; looked in"):
        fl.measured("suite/none")


def test_tables_say_whether_they_are_of_the_shipped_weights(embedded, monkeypatch):
    """The sentence in the notebooks goes away by itself when the suite is measured anew."""
    assert fl.embedded_costs().measured_on["weights"] == identity(embedded)["weights"]
    assert fl.measured_with("suite/ddim-50") in {f"measured with {which}" for which in ("these weights", OTHERS)}
    here = json.loads(data_file("suite/ddim-50/about.json", "").read_text())["pipeline"]["weights"]
    for weights, which in ((here, "these weights"), ("others", OTHERS)):
        monkeypatch.setattr(measured, "embedded_costs", lambda weights=weights: SimpleNamespace(measured_on={"weights": weights}))
        assert fl.measured_with("suite/ddim-50") == f"measured with {which}"
    with pytest.raises(FileNotFoundError, match="what was measured for suite/none is missing"):
        fl.measured_with("suite/none")


@pytest.mark.parametrize(("measured", "counts"), [("ddim-50", (5, 7, 9, 13, 17)), ("dpm-solver++-20", (5, 7, 9, 13))])
def test_shipped_fits_are_of_the_shipped_weights_and_the_derived_keys(measured, counts):
    costs = fl.embedded_costs(measured=measured)
    seen = {*fl.demo(16)[0]}
    for count, reuse in product(counts, ("encoder", "prediction")):
        fit = fl.embedded_fit(count, reuse, measured)
        assert fit.schedule.keys == fl.derive_schedule(costs, count).keys and fit.reuse == reuse and fit.order == 0
        assert all(
            fit.measured_on[name] == costs.measured_on[name]
            for name in ("weights", "scheduler", "num_inference_steps", "guidance_scale")
        )
        assert len(fit.about["prompts"]) == 16 and not seen & {*fit.about["prompts"]}
    with pytest.raises(FileNotFoundError, match=f"a fit of encoder at 8 keys, {measured}, is missing".replace("+", r"\+")):
        fl.embedded_fit(8, measured=measured)


def test_names_that_need_an_extra_are_found():
    assert callable(fl.check) and callable(fl.guessed) and callable(fl.plot.show) and callable(fl.schedule_lab)
    assert "plot" in dir(fl) and "plot" not in fl.__all__
    assert fl.guessed(..., 3) == "no guess yet; found 3" and fl.guessed(3, 3) == "you guessed 3, found 3: right"
    assert fl.guessed(1, 2.5) == "you guessed 1, found 2.5: off by 1.5"


@pytest.mark.parametrize("count", [0, -1, 1.5, "two"])
def test_a_demo_has_at_least_one_image(count):
    with pytest.raises((TypeError, ValueError), match="`count` must be"):
        fl.demo(count)
