"""Every system, on the real pipeline class of a tiny size, by the same laws."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import pytest
import torch
from laws import IGNORED, distance
from little_memory import entries, little_memory
from models import state
from oracle import oracle_instead
from short_suite import long_but
from sizes import SQUARE, equal_by_chance, sizes_of
from systems import KINDS, ROWS, SYSTEMS, System
from systems.base import Given, of, output
from systems_table import PAGE, built_cells, cells_on_page, page

import fastdiff_lab as fl
from fastdiff_lab import KeySchedule
from fastdiff_lab.hooks.denoiser import denoiser_of
from fastdiff_lab.key_schedule import PAPER_KEYS
from fastdiff_lab.sampling.methods import first_arguments

pytestmark = [pytest.mark.filterwarnings(f"ignore:{reuse}:UserWarning") for reuse in IGNORED]

# Its ControlNet's scale is another at every key step: no line runs through features of other conditions, so they are reused.
CHANGES_AT_KEYS = ("controlnet-part",)
NO_LIMIT = 10**9  # rows


def accelerated(system: System, pipe, keys, **options):
    with fl.encoder_propagation(pipe, KeySchedule(system.calls, keys), **system.options, **options) as counts:
        return of(system, pipe), counts


def check_counts(system: System, counts, parallel: bool) -> None:
    """`counts` of one call of the pipeline at the system's keys."""
    steps = sum(steps for steps, _ in system.keys_of_runs)
    keys = sum(len(keys) for _, keys in system.keys_of_runs)
    assert counts.runs == len(system.keys_of_runs)
    assert counts.decoder_calls == counts.steps == steps
    assert counts.encoder_calls == keys
    assert counts.forward_calls == (keys if parallel else steps)
    assert counts.controlnet_calls == (keys if system.controlnets else 0)


@dataclass(frozen=True)
class Built:
    """A row's pipeline, which all laws share, and its baseline output."""

    system: System
    pipe: Any
    baseline: torch.Tensor

    @cached_property
    def serial(self) -> tuple[torch.Tensor, Any]:
        """Sampled with the keys of the tests, one step after the other, and what was counted."""
        return accelerated(self.system, self.pipe, self.system.keys, parallel_decoding=False)

    @cached_property
    def parallel(self) -> tuple[torch.Tensor, Any, int]:
        """The same in parallel, and the rows of the largest pass."""
        seen: list[tuple[int, Any]] = []
        with little_memory(entries(self.pipe)[1], NO_LIMIT, seen=seen):
            result, counts = accelerated(self.system, self.pipe, self.system.keys)
        return result, counts, max(rows for rows, _ in seen)


@pytest.fixture(scope="module")
def row(request):
    system = ROWS[request.param]
    pipe = system.build()
    baseline = of(system, pipe)
    assert torch.isfinite(baseline).all()
    yield Built(system, pipe, baseline)
    assert torch.equal(of(system, pipe), baseline)


def rows(fits: Callable[[System], bool] = lambda system: True, short: Sequence[str] = KINDS) -> pytest.MarkDecorator:
    """All systems: those of `short` in the short suite, the others in the long one."""
    names = [name for name, system in ROWS.items() if fits(system)]
    return pytest.mark.parametrize("row", long_but([name for name in short if name in names], names), indirect=True)


@rows(short=("sd", "ddim", "dit"))
def test_what_the_row_is_about_matters(row):
    for feature, change in row.system.features.items():
        pipe = row.pipe if isinstance(change, Given) else row.system.build()
        after = output(pipe, change(pipe, dict(row.system.call)))
        assert after.shape != row.baseline.shape or distance(after, row.baseline) > 1e-3, feature


@rows()
def test_no_two_sizes_are_equal(row):
    """Code that takes one for the other must fail here, not at real sizes only."""
    model = denoiser_of(row.pipe)
    sizes = sizes_of(model, first_arguments(model, lambda: of(row.system, row.pipe)))
    assert not list(equal_by_chance(sizes, row.system.name in SQUARE)), sizes


@rows()
def test_the_page_of_systems_says_what_was_built(row):
    assert cells_on_page()[row.system.name] == built_cells(row.system, row.pipe), "run: python tests/systems_table.py"


@rows()
def test_every_step_a_key_is_the_baseline(row):
    system = row.system
    result, counts = accelerated(system, row.pipe, range(system.calls), parallel_decoding=system.parallel)
    assert torch.equal(result, row.baseline)
    assert counts.encoder_calls == counts.forward_calls == counts.steps == sum(steps for steps, _ in system.keys_of_runs)


@rows(short=[name for name in KINDS if name != "text-to-video"])  # test_extrapolation.py has a line of its features by hand
def test_serial_is_parallel_also_with_extrapolated_features(row):
    system, pipe, before = row.system, row.pipe, state(row.pipe)
    serial, counts = row.serial
    check_counts(system, counts, parallel=False)
    assert distance(serial, row.baseline) > 1e-4
    if system.parallel:
        parallel, counts, _ = row.parallel
        assert distance(parallel, serial) < system.close
        check_counts(system, counts, parallel=True)
        on_lines, _ = accelerated(system, pipe, system.keys, order=1, parallel_decoding=False)
        ahead, _ = accelerated(system, pipe, system.keys, order=1)
        assert distance(ahead, on_lines) < 10 * system.close
        assert system.name in CHANGES_AT_KEYS or distance(on_lines, serial) > 1e-7
    assert state(pipe) == before


@rows(short=("sd", "controlnet-part", "text2video-zero", "dit"))
def test_its_features_can_be_recorded(row):
    before = state(row.pipe)
    with fl.record(row.pipe) as recording:
        assert torch.equal(of(row.system, row.pipe), row.baseline)
    change = fl.feature_change(recording)
    assert set(change["part"]) == {"encoder", "decoder"} and change["value"].notna().any()
    assert state(row.pipe) == before


@rows(lambda system: system.parallel, short=("sd", "controlnet-part", "dit"))
def test_a_pass_that_broke_off_has_changed_nothing(row):
    """Nor where a forward writes into what it is given, takes its lists apart, or is scaled for as long as it lasts."""
    system, pipe = row.system, row.pipe
    expected, _, rows = row.parallel
    with little_memory(entries(pipe)[1], rows - 1), pytest.warns(UserWarning, match="max_rows="):
        found, counts = accelerated(system, pipe, system.keys)
    assert distance(found, expected) < system.close
    assert counts.encoder_calls == sum(len(keys) for _, keys in system.keys_of_runs)


@rows(lambda system: system.by_hand)
def test_non_key_steps_are_those_of_the_hand_written_split(row):
    """One after the other; parallel decoding gives the same by the law above."""
    system, pipe = row.system, row.pipe
    with oracle_instead(denoiser_of(pipe), system.keys_of_runs, **system.options):
        by_hand = of(system, pipe)
    assert distance(row.serial[0], by_hand) < system.close


def at_the_papers_steps(system: System) -> System:
    """The same row with as many steps as the paper takes, and its key list."""
    schedule = KeySchedule.paper(system.paper_steps, system.paper)
    loops = {"t0": 44, "t1": 47} if system.runs else {}
    runs = ((0, 2), (2, 5), (2, 50)) if system.runs else ()
    call = {**system.call, "num_inference_steps": system.paper_steps, **loops}
    return replace(system, call=call, calls=system.paper_steps, keys=schedule.keys, runs=runs)


@pytest.mark.long
@pytest.mark.parametrize("name", [name for name, system in ROWS.items() if system.paper])
def test_the_papers_key_list_at_the_papers_number_of_steps(name):
    system = at_the_papers_steps(ROWS[name])
    pipe = system.build()
    with oracle_instead(denoiser_of(pipe), system.keys_of_runs, **system.options):
        by_hand = of(system, pipe)
    result, counts = accelerated(system, pipe, system.keys, parallel_decoding=system.parallel)
    check_counts(system, counts, system.parallel)
    assert distance(result, by_hand) < max(system.close, 1e-8)


def test_none_of_the_papers_systems_is_missing():
    published = {name for name in PAPER_KEYS if not name.startswith(("ablation", "code", "community", "ldm-imagenet-"))}
    assert published == {system.paper for system in SYSTEMS if system.paper}


def test_every_row_is_told_apart():
    assert len({system.name for system in SYSTEMS}) == len({system.title for system in SYSTEMS}) == len(SYSTEMS)


def test_a_system_of_each_kind_is_in_the_short_suite():
    def kinds(names) -> set[tuple]:
        """Of each property that changes what propagation does, the values that it has."""
        found: set[tuple] = set()
        for system in map(ROWS.get, names):
            found |= {("parallel", system.parallel), ("ControlNet", system.controlnets > 0), ("SDXL", system.size == "sdxl")}
            found |= {("runs", len(system.runs) > 1), ("few steps", system.calls < 5)}
        return found

    assert kinds(KINDS) == kinds(ROWS)
    denoisers = {cells_on_page()[name][1] for name in KINDS}
    assert denoisers >= {"`UNet2DConditionModel`", "`UNet2DModel`", "`UNet3DConditionModel`", "`DiTTransformer2DModel`"}


@pytest.mark.long
def test_the_page_of_systems_says_what_the_list_says():
    """What each system was built of is compared above."""
    assert PAGE.read_text() == page(cells_on_page()), "run: python tests/systems_table.py"
