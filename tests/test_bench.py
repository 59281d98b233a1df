"""The benchmark: what it counts, that it goes on where it stopped, and what it makes of its numbers. No second is asserted."""

from __future__ import annotations

import json
import warnings
from dataclasses import asdict, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from models import conditions, denoiser_pipe, state, unet
from stand_ins import MACHINE
from torch import nn

from fastdiff_lab import KeySchedule
from fastdiff_lab.comparison.time_ceiling import at_best, decoder_seconds, encoder_seconds
from fastdiff_lab.hooks.flops import FlopCount
from fastdiff_lab.hooks.patching import replaced_call
from fastdiff_lab.sampling.methods import Method
from fastdiff_lab.sampling.rivals.deepcache import DeepCache
from studies.bench import parts
from studies.bench.cases import Case, compile_children, prepared
from studies.bench.command import bench_into, chosen_cases, machine_name
from studies.bench.derivation import derivation
from studies.bench.full_pipelines import FULL_PIPELINES, full_pipeline
from studies.bench.parts import decoded_at_once, run_part
from studies.bench.profile import busy_share, named_method, profiled
from studies.bench.report import bench_table, write_report
from studies.bench.timed_methods import BASELINE, bench_methods
from studies.bench.timing import Stopwatch, Timed, timed_run
from studies.bench.timings_file import Book
from studies.scaling import time_ceiling

CASE = Case("embedded", 64, steps=10)


@pytest.fixture(scope="module")
def embedded():
    return prepared(CASE, "cpu")


# ---------------------------------------------------------------------------------------------------- the halves


def test_the_decoder_is_timed_without_the_encoder():
    pipe = denoiser_pipe()
    model, arguments = pipe.unet, {"sample": torch.randn(2, 4, 8, 8).double(), "timestep": 1, **conditions()}
    before, seen = state(pipe), {"down": [], "up": []}
    hooks = [
        model.down_blocks[0].register_forward_hook(lambda module, args, output: seen["down"].append(len(output[0]))),
        model.up_blocks[0].register_forward_hook(lambda module, args, output: seen["up"].append(len(output))),
    ]
    assert decoder_seconds(model, arguments, 3, repeats=4) > 0
    assert seen["down"] == [2]  # of one step's rows, as in a run
    assert seen["up"] == [2] + 5 * [6]  # once for the encoder's outputs, then a warm-up and four that are timed
    assert encoder_seconds(model, arguments, repeats=1) >= 0
    for hook in hooks:
        hook.remove()
    assert state(pipe) == before
    with pytest.raises(TypeError, match="argument 'encoder_hidden_states'.*How to repeat"):
        decoder_seconds(model, arguments | {"encoder_hidden_states": torch.zeros(3, 5, 8).double()}, 2)


def test_the_ceiling_is_the_sum_of_the_halves(monkeypatch):
    schedule = KeySchedule(10, [0, 4])
    monkeypatch.setattr("studies.scaling.encoder_seconds", lambda *_: 1.0)
    monkeypatch.setattr("studies.scaling.decoder_seconds", lambda model, arguments, size: 10.0 + size)
    assert time_ceiling(unet(), {}, schedule) == 2 * 1 + 14 + 16
    assert at_best(3, [1, 1, 2], 0.5, {1: 1.0, 2: 1.5}) == 5.0


def test_seconds_inside_a_module_are_summed_over_its_calls(monkeypatch):
    times = iter([1.0, 3.0, 10.0, 10.5])
    monkeypatch.setattr("time.perf_counter", lambda: next(times))
    watch, layer = Stopwatch(torch.device("cpu")), nn.Identity()
    with replaced_call(layer, watch.around):
        assert layer(4) == 4 and layer(5) == 5
    assert watch.seconds() == 2.5


# ---------------------------------------------------------------------------------------------------- methods and cases


def test_every_rival_is_a_method(embedded):
    methods = bench_methods(embedded, 50, rows=2)
    assert next(iter(methods)) == BASELINE and methods[BASELINE] == Method()
    for name in ("paper", "uniform 9"):
        for how in ("parallel", "serial", "parallel, order 1", "serial, order 1"):
            assert f"{name}, {how}" in methods
    assert methods["paper, parallel, 8 steps at once"].propagation.max_rows == 16
    assert {
        "fewer steps (9)",
        "fewer steps (25)",
        "DeepCache 2",
        "DeepCache 3",
        "DeepCache 5",
        "paper, predictions reused",
        "token merging 0.5",
    } <= set(methods)


def test_packages_that_cannot_be_compiled():
    pipe = full_pipeline("embedded")
    assert not [method for method in bench_methods(pipe, 50, 2, is_compiled=True).values() if method.rivals]
    compile_children(pipe.unet, backend="eager")
    with pytest.raises(ValueError, match="DeepCache asked for a UNet with compiled blocks"), DeepCache(2)(pipe):
        pass


def test_forwards_of_a_method():
    schedule = KeySchedule(10, [0, 4])
    assert decoded_at_once(Method(schedule), 2) == [4, 6]
    assert decoded_at_once(Method(schedule, max_rows=8), 2) == [4, 4, 2]
    assert decoded_at_once(Method(schedule, parallel_decoding=False), 2) == decoded_at_once(Method(), 2) == []
    assert decoded_at_once(Method(deepcache=2), 2) is decoded_at_once(Method(schedule, token_merging=0.5), 2) is None


def test_what_is_timed_without_a_choice():
    assert [case.system for case in chosen_cases("cpu")] == ["embedded", "sd-1.5"]
    on_gpu = chosen_cases("cuda")
    assert {case.system for case in on_gpu} == set(FULL_PIPELINES) - {"embedded"} and len(on_gpu) == len(set(on_gpu))
    assert {(c.scheduler, c.steps) for c in on_gpu} == {("ddim", 50), ("dpm-solver++", 20)}
    assert {case.batch_size for case in on_gpu} == {1, 4, 16} and {case.dtype for case in on_gpu} == {"float16"}
    assert all(case.pixels == FULL_PIPELINES[case.system].pixels for case in on_gpu)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"systems": ["sd-9"]}, "pipeline 'sd-9' asked; there are: embedded, sd-1.5"),
        ({"runs": ["ddim"]}, "run 'ddim' asked; accepted: a scheduler and its steps"),
        ({"runs": ["best-50"]}, "scheduler='best' asked; accepted: ddim"),
        ({"runs": ["ddim-9"]}, "9 steps.*accepted: 10 steps or more"),
        ({"batches": [0]}, "0 images at once.*accepted: 10 steps or more"),
        ({"modes": ["fast"]}, "mode='fast' asked; accepted: eager, channels-last, compiled"),
        ({"systems": ["dit-xl-2"], "pixels": 512}, "dit-xl-2 with 512 pixels asked; accepted: 256"),
    ],
)
def test_wrong_choices(options, message):
    with pytest.raises(ValueError, match=message):
        chosen_cases("cpu", **options)
    with pytest.raises(ValueError, match="pipeline 'none' asked"):
        full_pipeline("none")
    with pytest.raises(ValueError, match="dtype='half' asked"):
        full_pipeline("embedded", dtype="half")


def test_machines_have_names():
    assert machine_name({"device": "NVIDIA H200", "processor": "x", "threads": 8}) == "nvidia-h200"
    assert machine_name({"device": "cpu", "processor": "Xeon(R) 8", "threads": 2}) == "xeon-r-8-2-threads"


# ---------------------------------------------------------------------------------------------------- parts


@pytest.fixture
def quick(monkeypatch, embedded):
    """A few methods, one pipeline for all, and runs, halves and operations that are made up: what is tested is the book."""
    monkeypatch.setattr(parts, "prepared", lambda case, device: embedded)
    monkeypatch.setattr(parts, "encoder_seconds", lambda model, arguments, *, repeats: 1.0)
    monkeypatch.setattr(parts, "decoder_seconds", lambda model, arguments, times, *, repeats: 1.0 * times)
    monkeypatch.setattr(parts, "flops_of_call", lambda model, arguments, method: FlopCount(1, 2, 3))
    methods = {BASELINE: Method(), "paper, parallel": Method(KeySchedule.of_paper(10)), "DeepCache 2": Method(deepcache=2)}
    monkeypatch.setattr(parts, "bench_methods", lambda pipe, steps, rows, is_compiled: methods)
    made = []

    def run(pipe, method, call, steps):
        made.append(method)
        return Timed(float(len(made)), 0.5, 10, 10, 10)

    monkeypatch.setattr(parts, "timed_run", run)
    return made


@pytest.mark.long
def test_a_benchmark_goes_on_where_it_stopped(quick, tmp_path, monkeypatch):
    times = iter(range(1000))
    monkeypatch.setattr(parts.time, "monotonic", lambda: 60.0 * next(times))
    assert not run_part(Book(tmp_path, MACHINE), [CASE], device="cpu", repeats=2, minutes=8)
    before = {name: list(runs) for name, runs in Book(tmp_path, MACHINE).entry(CASE).runs.items()}
    assert 0 < sum(map(len, before.values())) < 6
    assert run_part(Book(tmp_path, MACHINE), [CASE], device="cpu", repeats=2, minutes=100)
    after = Book(tmp_path, MACHINE).entry(CASE).runs
    assert {len(runs) for runs in after.values()} == {2} and len(after) == 3
    assert all(after[name][: len(runs)] == runs for name, runs in before.items())
    made = len(quick)
    assert run_part(Book(tmp_path, MACHINE), [CASE], device="cpu", repeats=2, minutes=1) and len(quick) == made


@pytest.mark.long
def test_each_method_is_warmed_up_in_each_process_and_takes_turns(quick, tmp_path):
    assert run_part(Book(tmp_path, MACHINE), [CASE], device="cpu", repeats=2)
    baseline, paper, cached = quick[0], quick[2], quick[4]  # each once for warming up and once timed, then in turns
    assert quick == [baseline, baseline, paper, paper, cached, cached, baseline, paper, cached]
    assert len({baseline, paper, cached}) == 3


@pytest.mark.long
def test_a_method_that_cannot_run_is_named_and_the_others_go_on(quick, tmp_path, monkeypatch):
    inner = parts.timed_run

    def run(pipe, method, call, steps):
        if method.rivals:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB\nmore")
        return inner(pipe, method, call, steps)

    monkeypatch.setattr(parts, "timed_run", run)
    assert run_part(Book(tmp_path, MACHINE), [CASE], device="cpu", repeats=1)
    entry = Book(tmp_path, MACHINE).entry(CASE)
    assert (
        entry.failed == {"DeepCache 2": "OutOfMemoryError: CUDA out of memory. Tried to allocate 20 GiB"} and len(entry.runs) == 2
    )


@pytest.mark.long
def test_another_machine_and_damaged_files_are_refused(quick, tmp_path):
    run_part(Book(tmp_path, MACHINE), [CASE], device="cpu", repeats=1)
    text = (tmp_path / "bench.json").read_text()
    with pytest.raises(ValueError, match="measured on something else: threads 1, here 2.*another --output"):
        Book(tmp_path, MACHINE | {"threads": 2})
    document = json.loads(text)
    for damage in (
        {"entries": [{"case": {}}]},
        {"entries": 3},
        {"about": 3},
        {"entries": [document["entries"][0] | {"runs": {"a": [1]}}]},
    ):
        (tmp_path / "bench.json").write_text(json.dumps(document | damage))
        with pytest.raises(ValueError, match=r"bench\.json is damaged"):
            Book(tmp_path, MACHINE)
    with pytest.raises(ValueError, match="repeats=0"):
        run_part(Book(tmp_path / "new", MACHINE), [CASE], device="cpu", repeats=0)


# ---------------------------------------------------------------------------------------------------- numbers


def test_the_table_is_what_the_runs_say(tmp_path):
    book = Book(tmp_path, MACHINE)
    entry = book.entry(Case("embedded", 64, batch_size=2))
    entry.methods = {BASELINE: [], "paper, parallel": [1, 49], "DeepCache 2": None, "paper, serial": []}
    entry.runs = {
        BASELINE: [
            Timed(10.0, 8.0, 50, 50, 50, 900, 100),
            Timed(12.0, 8.0, 50, 50, 50, 900, 90),
            Timed(11.0, 9.0, 50, 50, 50, 900, 90),
        ],
        "paper, parallel": [Timed(5.5, 4.0, 2, 50, 2, 900, 150)],
        "DeepCache 2": [Timed(6.0, 5.0, 25, 50, 50, 900, 100)],
    }
    entry.encoder, entry.decoder = [0.05, 0.06, 0.04], {1: [0.1], 49: [3.0]}
    entry.flops = {method: {"encoder": 4 * 10**9, "decoder": 5 * 10**9, "rest": 10**9} for method in entry.methods}
    entry.flops["DeepCache 2"] = {"encoder": 6 * 10**9, "decoder": 4 * 10**9, "rest": 0}
    table = bench_table(book).set_index("method")
    assert list(table.index) == [BASELINE, "paper, parallel", "DeepCache 2"]  # the serial method was not reached
    paper = table.loc["paper, parallel"]
    assert (paper["ratio"], paper["denoiser_ratio"], paper["denoiser_peak_ratio"]) == (2.0, 2.0, 1.5)
    assert table["gflops"].to_list() == [250.0, 154.0, 175.0]
    assert paper["flop_ceiling"] == pytest.approx(250 / 154)
    assert paper["at_best_seconds"] == pytest.approx(2 * 0.05 + 0.1 + 3.0) and paper["share_of_ceiling"] == pytest.approx(3.2 / 4)
    assert table.loc[BASELINE, "share_of_ceiling"] == pytest.approx(50 * 0.15 / 8) and table["at_best_seconds"].isna().sum() == 1
    assert write_report(book).equals(bench_table(book))
    assert (tmp_path / "bench.csv").read_text().startswith("case,system,pixels") and (
        tmp_path / "bench.png"
    ).stat().st_size > 10_000


MEASURED = (
    BASELINE, "paper, parallel", "paper, serial", "paper, serial, order 1", "paper, parallel, 1 steps at once", "paper, predictions reused",
    "fewer steps (5)", "token merging 0.5", "paper, parallel, token merging 0.5", "DeepCache 2",
)  # fmt: skip


@pytest.mark.long
def test_a_real_benchmark_of_the_embedded_pipeline(tmp_path, monkeypatch):
    """One method of each kind."""

    def one_of_each(*given, **options):
        return {name: method for name, method in bench_methods(*given, **options).items() if name in MEASURED}

    monkeypatch.setattr(parts, "bench_methods", one_of_each)
    about = FULL_PIPELINES["embedded"]
    unguided = replace(about, call=lambda *size: about.call(*size) | {"guidance_scale": 1.0})
    monkeypatch.setitem(FULL_PIPELINES, "embedded", unguided)  # half the rows
    table, book, is_whole = bench_into(tmp_path, [CASE], device="cpu", repeats=1)
    assert is_whole and book.path == tmp_path / "bench.json" and not book.entry(CASE).failed
    table = table.set_index("method")
    assert list(table.index) == list(MEASURED)
    calls = table["forward_calls"].to_dict()
    assert calls[BASELINE] == 10 and calls["paper, serial"] == 10 and calls["fewer steps (5)"] == 5
    sizes = book.entry(CASE).methods
    assert all(len(sizes[name]) == calls[name] for name in sizes if sizes[name])
    assert (
        (table["ratio"] > 0).all()
        and table.loc[BASELINE, "ratio"] == 1
        and table["share_of_ceiling"].notna().sum() == len(table) - 3
    )
    assert table.loc["paper, parallel, token merging 0.5", "gflops"] < table.loc["paper, parallel", "gflops"]
    assert table.loc["DeepCache 2", "gflops"] < table.loc["paper, serial", "gflops"] < table.loc[BASELINE, "gflops"]
    assert asdict(CASE)["mode"] == "eager" and (tmp_path / "bench.png").exists()


@pytest.mark.long
def test_what_could_not_run_is_tried_again_only_if_asked(quick, tmp_path, monkeypatch):
    inner, fails = parts.timed_run, [True]

    def run(pipe, method, call, steps):
        if method.rivals and fails:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return inner(pipe, method, call, steps)

    monkeypatch.setattr(parts, "timed_run", run)
    assert run_part(Book(tmp_path, MACHINE), [CASE], device="cpu", repeats=1)
    fails.clear()
    assert run_part(Book(tmp_path, MACHINE), [CASE], device="cpu", repeats=1)
    assert "DeepCache 2" in Book(tmp_path, MACHINE).entry(CASE).failed
    kept = Book(tmp_path, MACHINE).entry(CASE).runs[BASELINE]
    assert run_part(Book(tmp_path, MACHINE), [CASE], device="cpu", repeats=1, retries_failed=True)
    entry = Book(tmp_path, MACHINE).entry(CASE)
    assert not entry.failed and len(entry.runs["DeepCache 2"]) == 1 and entry.runs[BASELINE] == kept


def test_runs_that_end_in_nan_are_marked():
    pipe = full_pipeline("embedded")
    assert timed_run(pipe, Method(), CASE.call, 2).is_finite
    with torch.no_grad():
        pipe.unet.conv_out.bias[0] = float("inf")
    assert not timed_run(pipe, Method(), CASE.call | {"output_type": "latent"}, 2).is_finite


@pytest.mark.long
def test_a_profile_names_what_takes_the_time(embedded):
    few = SimpleNamespace(call=CASE.call, steps=3)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "this run has 3 steps")
        table, seconds = profiled(embedded, Method(KeySchedule(3, [0])), few)
    assert table["host_seconds"].sum() > 0 and table["host_seconds"].is_monotonic_decreasing and not table["is_kernel"].any()
    calls = table.set_index("name")["calls"]
    plain, _ = profiled(embedded, Method(), few)
    assert calls["aten::mkldnn_convolution"] < plain.set_index("name")["calls"]["aten::mkldnn_convolution"]
    assert busy_share(table, seconds) == 0


def test_methods_have_names(embedded):
    assert named_method(embedded, CASE, "paper, parallel") == Method(KeySchedule.of_paper(10))
    with pytest.raises(ValueError, match="method 'best' asked; there are: baseline; paper, parallel"):
        named_method(embedded, CASE, "best")


@pytest.mark.long
def test_a_half_that_does_not_fit_costs_no_other_number(quick, tmp_path, monkeypatch):
    def small(model, arguments, times, *, repeats):
        if times > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return 1.0

    monkeypatch.setattr(parts, "decoder_seconds", small)
    case = Case("embedded", 64, steps=20)
    methods = {
        BASELINE: Method(),
        "paper, parallel": Method(KeySchedule.of_paper(20)),
        "paper, serial": Method(KeySchedule.of_paper(20), parallel_decoding=False),
    }
    monkeypatch.setattr(parts, "bench_methods", lambda pipe, steps, rows, is_compiled: methods)
    assert run_part(Book(tmp_path, MACHINE), [case], device="cpu", repeats=1)
    book = Book(tmp_path, MACHINE)
    assert any(name.startswith("decoder, ") for name in book.entry(case).failed)
    share = bench_table(book).set_index("method")["share_of_ceiling"]
    assert np.isnan(share["paper, parallel"]) and share["paper, serial"] > 0


@pytest.mark.long
def test_a_missing_package_costs_its_method_only(quick, tmp_path, monkeypatch):
    def counted(model, arguments, method):
        if method.rivals:
            raise ModuleNotFoundError("DeepCache is not installed")
        return FlopCount(1, 2, 3)

    monkeypatch.setattr(parts, "flops_of_call", counted)
    assert run_part(Book(tmp_path, MACHINE), [CASE], device="cpu", repeats=1)
    entry = Book(tmp_path, MACHINE).entry(CASE)
    assert entry.failed == {"DeepCache 2": "ModuleNotFoundError: DeepCache is not installed"} and len(entry.runs) == 2


@pytest.mark.long
def test_a_run_that_compiled_is_not_counted(quick, tmp_path, monkeypatch):
    graphs = iter([0, 1, 3, *[3] * 100])
    monkeypatch.setattr(parts, "_graphs", lambda: next(graphs))
    assert run_part(Book(tmp_path, MACHINE), [CASE], device="cpu", repeats=1)
    assert quick[:3] == [quick[0]] * 3 and quick[3] != quick[0]  # warm-up, a run that compiled, one that is timed
    assert Book(tmp_path, MACHINE).entry(CASE).runs[BASELINE] == [Timed(3.0, 0.5, 10, 10, 10)]


@pytest.mark.long
def test_no_run_is_begun_that_would_not_end_in_time(quick, tmp_path, monkeypatch):
    monkeypatch.setattr(parts.time, "monotonic", lambda: 0.0)  # each made-up run says that it took 1 s, 2 s, 3 s ...
    assert not run_part(Book(tmp_path, MACHINE), [CASE], device="cpu", repeats=9, minutes=0.1)
    assert 3 < len(quick) < 9


def test_benchmarks_are_of_cpus_and_nvidia_devices(tmp_path):
    with pytest.raises(ValueError, match="device='mps' asked for a benchmark; accepted: cpu, cuda"):
        bench_into(tmp_path, [CASE], device="mps")


def test_a_part_that_is_stopped_leaves_its_report(tmp_path, monkeypatch):
    reported = []

    def stopped(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("studies.bench.command.run_part", stopped)
    monkeypatch.setattr("studies.bench.command.write_report", reported.append)
    with pytest.raises(KeyboardInterrupt):
        bench_into(tmp_path, [CASE], device="cpu")
    assert len(reported) == 1


@pytest.mark.long
def test_what_finding_a_schedule_takes(tmp_path):
    derivation(tmp_path / "stages.json", system="embedded", steps=10, keys=3)
    stages = json.loads((tmp_path / "stages.json").read_text())["stages"]
    assert [*stages] == ["untouched", "record", "calibrate", "derive", "fit", "accelerated", "accelerated, fitted"]
    assert all(stage["seconds"] > 0 for stage in stages.values())
