"""Everything on a device that is none (pretend_device.py): no tensors of two devices together, no wait of the host at a step."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from pretend_device import ways
from systems import KINDS, ROWS

HERE = Path(__file__).parent
# More waits than the baseline has, in each run: its time-steps are read when it begins, what was left open when it ends. A recording
# is read when its run ends, each of its statistics. A wait at every step would be 5 more, since runs have 6 steps or more.
MORE = {"record": 8, "calibrate": 1, "compare": 5}
MORE_OF_OTHERS = 4
SHORT = "sd:parallel, order 1+few rows+fitted+record+entering"
SOME = ("sd:parallel+prior noise", "t2i-adapter:parallel+serial", "ldm-text:parallel, order 1")


def reports(*asked: str, timeout: int = 3000) -> dict[str, dict]:
    """What `pretend_device.py` prints, by what was asked."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(HERE.parent), str(HERE), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, str(HERE / "pretend_device.py"), *asked]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout, check=False)
    found: dict[str, dict] = {}
    for line in done.stdout.splitlines():
        found |= json.loads(line)
    assert found.keys() == set(asked), done.stderr[-2000:]
    return found


def check(name: str, report: dict) -> None:
    assert "error" not in report, (name, report["error"])
    assert report["waits"].keys() > {"baseline"}
    for way, difference in report["differences"].items():
        assert difference == 0, (name, way)
    for way, waits in report["waits"].items():
        more = MORE.get(way, MORE_OF_OTHERS) * report["runs"]
        assert waits <= report["waits"]["baseline"] + more, (name, way, report["waits"])


@pytest.fixture(scope="module")
def short():
    """All that the short suite asks, of one process."""
    return reports(SHORT, "changed:0", "changed:1", "astray:parallel", "astray:serial")


def test_on_another_device(short):
    check(SHORT, short[SHORT])


@pytest.mark.long
def test_some_systems_on_another_device():
    for name, report in reports(*SOME).items():
        check(name, report)


def test_what_changes_in_mid_run_is_told_when_the_run_ends(short):
    """On the CPU it is told at its step; here nothing is read at a step, and no run ends with a wrong image."""
    for order in (0, 1):
        report = short[f"changed:{order}"]
        assert "error" not in report, report["error"]
        assert report["said"]["never"] == ""
        assert "step 6: its encoder_hidden_states is another than at the key step before" in report["said"]["6"]
        assert "step 2 " in report["said"]["2"] or "step 2:" in report["said"]["2"]
        # A key step holds nothing of the text before; a line through the features of two texts is refused.
        assert (
            report["said"]["4"].startswith("step 4: its encoder_hidden_states is another") if order else report["said"]["4"] == ""
        )
        assert sum(report["waits"]) <= MORE_OF_OTHERS and report["waits"].count(0) >= 7


@pytest.mark.parametrize("way", ["parallel", "serial"])
def test_nan_is_told_when_the_run_ends(way, short):
    """Also where a run would go on from it to a black image; no step waits for it."""
    report = short[f"astray:{way}"]
    assert "error" not in report, report["error"]
    assert report["said"] == {step: f"the latents that step {step} gets hold NaN or infinite values" for step in ("4", "6", "9")}
    assert set(report["begun"].values()) == {10}
    assert report["waits"].count(0) >= 7


def check_measured(report: dict) -> None:
    assert "error" not in report, report["error"]
    assert report["costs"] < 1e-6 and report["table"] < 1e-6
    # A replayed run is read as the baseline is, and for each tensor of its first denoiser call; of a drawn image also its latents. A wait at
    # every step would be six more. A look at the first call reads some of its tensors.
    told = report["calibrate"]
    tensors = told["compared"]
    assert told["runs"] > 6 and told["waits"] <= told["runs"] * (told["baseline"] + tensors + MORE["calibrate"]), told
    told = report["compare"]
    most = told["ended"] * (told["baseline"] + MORE["compare"]) + (told["runs"] - told["ended"]) * (told["look"] + tensors)
    assert told["ended"] >= 4 and told["waits"] <= most, told


MEASURED = ("sd", "sdxl", "controlnet")


@pytest.mark.long
def test_calibration_and_comparison_on_another_device():
    found = reports(*(f"measured:{name}" for name in MEASURED))
    for report in found.values():
        check_measured(report)


def some_ways(name: str, place: int) -> str:
    """Two ways for a system of each kind, one for the others."""
    known = list(ways(ROWS[name]))
    chosen = {known[2 * place % len(known)], known[(2 * place + (name in KINDS)) % len(known)]}
    return f"{name}:{'+'.join(sorted(chosen))}"


@pytest.mark.long
def test_every_system_on_another_device():
    """Each in some of the ways, in turn, so that every way is tried on many of them; `pretend_device.py SYSTEM` tries all."""
    asked = {name: some_ways(name, place) for place, name in enumerate(ROWS)}
    of_asked = reports(*asked.values())
    found = {name: of_asked[way] for name, way in asked.items()}
    run = {name: report for name, report in found.items() if "cannot" not in report}
    assert len(run) > 50, {name: report for name, report in found.items() if name not in run}
    for name, report in run.items():
        check(name, report)
