"""Memory that runs out inside a group: the same images in smaller passes. And how many rows fit, told before."""

from __future__ import annotations

import functools
import re
import warnings
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from laws import CLOSE
from little_memory import entries, little_memory
from models import FAMILIES, conditions, denoiser_pipe, loop, pipeline, run, scheduler, state
from short_suite import long_but
from systems import ROWS

import fastdiff_lab as fl
from fastdiff_lab import KeySchedule
from fastdiff_lab.comparison.architectures import FULL_SIZE
from fastdiff_lab.comparison.estimate import OneCall, bytes_of, seconds_of
from fastdiff_lab.hooks.denoiser import denoiser_of, split_denoiser
from fastdiff_lab.hooks.denoiser_classes import sample_argument
from fastdiff_lab.hooks.device import is_out_of_memory
from fastdiff_lab.hooks.peak_memory import peak_bytes
from fastdiff_lab.propagation.extrapolation import Extrapolation
from fastdiff_lab.propagation.pass_bytes import PassBytes, bytes_of_pass
from fastdiff_lab.propagation.row_capacity import SHARE, RowLimit
from fastdiff_lab.sampling.methods import Method, as_method, denoiser_arguments
from fastdiff_lab.sampling.run_settings import RunSettings

KEYS = KeySchedule(10, [0, 1, 4])
ROWS_OF_STEP = 4  # two images with guidance


def small() -> Any:
    pipe = pipeline()
    run(pipe, steps=1)  # a pipeline remembers its last call
    return pipe


@pytest.fixture(scope="module")
def shared():
    """One pipeline for tests that leave it as it was."""
    with torch.no_grad():
        return small()


@pytest.fixture(scope="module")
def expected_of(shared):
    """What is drawn with enough memory."""

    @functools.cache
    def drawn(**options):
        with torch.no_grad(), fl.encoder_propagation(shared, KEYS, **options):
            return run(shared)

    return drawn


ORDER_1, ROWS_20, BOTH = {"order": 1}, {"max_rows": 20}, {"order": 1, "max_rows": 12}
PASSES = [(4, 0, {}), (4, -1, BOTH), (8, -1, {}), (8, 0, ORDER_1), (12, -1, ROWS_20), (12, 0, BOTH)]


@pytest.mark.parametrize(("most", "place", "options"), long_but([(12, 0, BOTH)], PASSES), ids=str)
def test_the_same_images_in_smaller_passes(most, place, options, shared, expected_of):
    """`place`: the first or the last of the decoder's children runs out."""
    pipe, seen, expected = shared, [], expected_of(**options)
    before, runs_out = state(pipe), most < options.get("max_rows", 24)
    with fl.encoder_propagation(pipe, KEYS, **options) as counts, little_memory(entries(pipe)[place], most, seen=seen):
        if runs_out:
            with pytest.warns(UserWarning, match=r"memory ran out while \d+ rows were decoded at once.*Give max_rows=\d+ to begin"):
                found = run(pipe)
        else:
            found = run(pipe)
        failed = sum(rows > most for rows, _ in seen)
        assert torch.allclose(found, expected, atol=CLOSE, rtol=0)
        assert (counts.encoder_calls, counts.decoder_calls, counts.steps) == (3, 10, 10)
        assert counts.forward_calls == len(seen) - failed and (0 < failed <= 3) == runs_out
        seen.clear()
        assert torch.allclose(run(pipe), expected, atol=CLOSE, rtol=0)  # without a further warning: those are errors here
        assert not any(rows > most for rows, _ in seen)
    assert state(pipe) == before


def test_what_a_pass_left_is_gone_before_the_next_one():
    pipe, seen, alive = small(), [], []
    last = entries(pipe)[1]

    def look(module, args):
        alive.append([ref() is not None for rows, ref in seen if rows > 8])

    handle = pipe.unet.conv_in.register_forward_pre_hook(look)
    with fl.encoder_propagation(pipe, KEYS), little_memory(last, 8, seen=seen), pytest.warns(UserWarning, match="memory ran out"):
        run(pipe)
    handle.remove()
    assert [False] in alive or [False, False] in alive
    assert not any(map(any, alive))


def test_one_step_that_does_not_fit_says_so_and_leaves_the_pipeline_as_it_was():
    pipe = small()
    baseline, before = run(pipe), state(pipe)
    with fl.encoder_propagation(pipe, KeySchedule(10, [0, 1])) as counts:
        with little_memory(entries(pipe)[1], 3), pytest.raises(torch.OutOfMemoryError, match="CUDA out of memory") as caught:
            run(pipe)
        assert caught.value.__notes__[-1] == "one step of 4 rows does not fit; draw fewer images in one call"
        expected = run(pipe)
        assert counts.steps == 10 and counts.forward_calls == 2
    with fl.encoder_propagation(pipe, KeySchedule(10, [0, 1])):
        assert torch.equal(run(pipe), expected)
    assert state(pipe) == before and torch.equal(run(pipe), baseline)


MESSAGES = {
    "CUDA": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    "MPS": RuntimeError("MPS backend out of memory (MPS allocated: 17.70 GiB, other allocations: 384.00 KiB, max allowed: 18.13 GiB)."),
    "XPU": RuntimeError("XPU out of memory. Tried to allocate 1.17 GiB (GPU 0; 13.92 GiB total capacity)"),
    "CPU": RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."),
    "driver": RuntimeError("CUDA error: out of memory"),
    "cuBLAS": RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
}  # fmt: skip


@pytest.mark.parametrize("backend", long_but(["MPS"], ["MPS", "CPU"]))  # CUDA's is the error of the tests above
def test_a_run_goes_on_after_another_backends_words(backend, shared, expected_of):
    expected = expected_of()
    with fl.encoder_propagation(shared, KEYS), little_memory(entries(shared)[1], 8, MESSAGES[backend]):
        with pytest.warns(UserWarning, match="max_rows="):
            assert torch.allclose(run(shared), expected, atol=CLOSE, rtol=0)


def test_every_backends_words():
    assert all(map(is_out_of_memory, MESSAGES.values()))


@pytest.mark.parametrize(
    "error", [RuntimeError("shapes cannot be multiplied"), ValueError("out of memory"), KeyboardInterrupt()], ids=repr
)
def test_other_errors_go_through(error):
    pipe = small()
    assert not is_out_of_memory(error)
    with fl.encoder_propagation(pipe, KEYS), little_memory(entries(pipe)[1], 8, error):
        with pytest.raises(type(error)):
            run(pipe)


@functools.cache
def text_to_image():
    """One pipeline for tests that leave it as it was: its operations and bytes are counted once."""
    return (
        ROWS["sd"].build(),
        ["a red circle", "a white ring"],
        {"num_inference_steps": 5, "pipe_kwargs": {"height": 32, "width": 24}},
    )


@pytest.mark.long
def test_calibration_goes_on_with_half_the_rows_and_runs_out_once():
    pipe, prompts, options = text_to_image()
    expected = fl.calibrate(pipe, prompts, max_span=4, **options)
    seen = []
    with little_memory(entries(pipe)[1], 8, seen=seen), pytest.warns(UserWarning, match="max_rows=8 to begin"):
        costs = fl.calibrate(pipe, prompts, max_span=4, **options)
    assert sum(rows > 8 for rows, _ in seen) == 1
    assert torch.allclose(costs.displacement, expected.displacement, atol=1e-6, equal_nan=True)
    assert torch.allclose(costs.sensitivity, expected.sensitivity, rtol=1e-4)


@pytest.mark.long
def test_calibration_goes_on_with_half_the_images():
    pipe, prompts, options = text_to_image()
    expected = fl.calibrate(pipe, prompts, max_span=2, batch_size=1, **options)
    with (
        little_memory(pipe.unet.conv_in, 2),
        pytest.warns(UserWarning, match="memory ran out with 2 images .* batch_size=1"),
    ):
        costs = fl.calibrate(pipe, prompts, max_span=2, batch_size=2, **options)
    assert torch.allclose(costs.displacement, expected.displacement, atol=1e-6, equal_nan=True)
    assert costs.displacement.isfinite().any(dim=-1)[:, 0, :-1].all()  # of both images, at each key


def test_refinement_goes_on_with_half_the_images():
    """Its own untouched run draws all prompts at once."""
    pipe, prompts, options = text_to_image()
    start = KeySchedule(5, [0, 3])
    expected = fl.refine_schedule(pipe, start, prompts, runs=6, **options)
    with little_memory(pipe.unet.conv_in, 2), pytest.warns(UserWarning, match="memory ran out with 2 images .* batch_size=1"):
        found = fl.refine_schedule(pipe, start, prompts, runs=6, **options)
    assert found == expected


def test_comparison_goes_on_with_half_of_rows_or_images():
    pipe, prompts, options = text_to_image()
    methods, columns = {"keys": KeySchedule(5, [0, 2])}, ["method", "mse", "latent_mse", "encoder_calls"]
    expected = fl.compare_images(pipe, methods, prompts, rivals=False, **options)[columns]
    for module, most, words in ((entries(pipe)[1], 8, "max_rows=8"), (pipe.unet.conv_in, 2, "batch_size=1")):
        with little_memory(module, most), warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            found = fl.compare_images(pipe, methods, prompts, rivals=False, **options)[columns]
        assert any(words in str(one.message) for one in said)
        assert found["method"].equals(expected["method"]) and found["encoder_calls"].equals(expected["encoder_calls"])
        assert (found["latent_mse"] - expected["latent_mse"]).abs().max() < 1e-9


def test_both_say_what_they_take_before_they_start(capsys, tmp_path):
    pipe, prompts, options = text_to_image()
    fl.calibrate(pipe, prompts[:1], max_span=2, **options)
    assert re.search(
        r"calibration: .* decoder calls, about \d+ s and 0\.0 GiB beside the weights",
        capsys.readouterr().err,
    )
    for is_first in (True, False):
        fl.compare_images(pipe, {"keys": KeySchedule(5, [0, 2])}, prompts[:1], store=tmp_path / "kept.sqlite", **options)
        said = "comparison: 5 images of 5 methods, about " in capsys.readouterr().err
        assert said == is_first  # nothing is left to be drawn


@pytest.mark.long
def test_the_bytes_and_seconds_that_a_comparison_tells():
    pipe, prompts, _ = text_to_image()
    arguments = denoiser_arguments(pipe, prompts[0])
    for method in (
        Method(),
        Method(KeySchedule(5, [0])),
        Method(KeySchedule(5, [0]), max_rows=8),
        Method(KeySchedule(5, [0]), parallel_decoding=False),
    ):
        with peak_bytes() as peak, as_method(pipe, method, RunSettings(5)):
            pipe(prompts, output_type="latent", num_inference_steps=5)
        assert 0.5 * peak.bytes < bytes_of(method, pipe.unet, arguments, 2) < 1.6 * peak.bytes
    call, keys = OneCall(0.1, decoder=0.5), KeySchedule(6, [0, 2])
    methods = {
        Method(): 0.6,
        Method(keys): 0.4,
        Method(keys, reuse="prediction"): 0.2,
        Method(steps=3): 0.3,
        Method(deepcache=2): 0.3,
    }
    assert all(abs(seconds_of(method, call, 6) - seconds) < 1e-9 for method, seconds in methods.items())


# How many rows fit


WITH_ORDER = [*((name, place % 2) for place, name in enumerate(FAMILIES)), ("plain", 1), ("dit", 1)]


@pytest.mark.parametrize(("name", "order"), long_but([("dit", 1)], WITH_ORDER))
def test_the_bytes_of_a_pass_are_those_that_a_run_needs(name, order):
    """Upper bounds: within a third of what the tensors of a real run hold at most."""
    pipe, schedule = denoiser_pipe(name), KeySchedule(6, [0, 1])
    given = conditions(name)
    sample = torch.zeros(FAMILIES[name].shape(2, FAMILIES[name].sides), dtype=torch.float64)
    arguments = {sample_argument(denoiser_of(pipe)): sample, "timestep": 1, **given}
    told = bytes_of_pass(denoiser_of(pipe), arguments, extrapolation=Extrapolation(order))
    for steps in (2, 5) if name in ("plain", "dit") else (5,):
        with fl.encoder_propagation(pipe, schedule, order=order, max_rows=2 * steps), peak_bytes() as peak:
            loop(pipe, 6, given)
        assert 0.9 * peak.bytes < told.of(steps) < 1.4 * peak.bytes


def test_steps_for_bytes_and_bytes_for_steps():
    needed = PassBytes(encoder=300, reused=100, step=50)
    assert [needed.of(steps) for steps in (1, 4, 5, 10)] == [300, 300, 350, 600]
    assert [needed.steps(free) for free in (0, 149, 150, 600, 649)] == [1, 1, 1, 10, 10]


def free_memory(monkeypatch, free: int | None) -> None:
    monkeypatch.setattr("fastdiff_lab.propagation.row_capacity.free_bytes", lambda device: free)


def test_by_default_as_many_rows_as_fit(monkeypatch):
    pipe, arguments = small(), {}
    handle = pipe.unet.register_forward_pre_hook(lambda m, a, k: arguments.update(k, sample=a[0], timestep=a[1]), with_kwargs=True)
    run(pipe, steps=1)
    handle.remove()
    needed = bytes_of_pass(pipe.unet, {name: value for name, value in arguments.items() if value is not None})
    calls = {}
    for steps, free in {1: 0, 3: needed.of(3) / SHARE, None: None}.items():
        free_memory(monkeypatch, free)
        with fl.encoder_propagation(pipe, KEYS) as counts:
            found = run(pipe)
        with fl.encoder_propagation(pipe, KEYS, max_rows=steps and ROWS_OF_STEP * steps) as asked:
            assert torch.equal(run(pipe), found)
        assert counts == asked
        calls[steps] = counts.forward_calls
    assert calls == {1: 10, 3: 4, None: 3}


def test_serial_decoding_does_not_ask_for_free_memory(monkeypatch):
    monkeypatch.setattr("fastdiff_lab.propagation.row_capacity.free_bytes", lambda device: 1 / 0)
    pipe = small()
    for options in ({"parallel_decoding": False}, {"reuse": "prediction"}, {"max_rows": 8}):
        with fl.encoder_propagation(pipe, KEYS, **options):
            run(pipe)


def test_weights_that_offloading_will_bring_are_reckoned_with(monkeypatch):
    """They rest on the CPU when a run begins, and take their place on the device before anything is decoded."""
    free_memory(monkeypatch, 10**9)
    pipe = denoiser_pipe()
    sample = torch.zeros(2, 4, 8, 8, device="meta", dtype=torch.float64)
    arguments, limit = {"sample": sample, "timestep": 1, **conditions()}, RowLimit()
    limit.begin_run(pipe.unet, arguments, Extrapolation(), split_denoiser(pipe.unet))
    weights = sum(p.nbytes for p in pipe.unet.parameters())
    needed = bytes_of_pass(pipe.unet, arguments)
    assert limit.rows == 2 * needed.steps(SHARE * (10**9 - weights)) < 2 * needed.steps(SHARE * 10**9)


CARD = 24 * 10**9
IMAGES = {"sd-1.5": 16, "sdxl": 4}  # compare's batch; for SDXL calibrate's


@pytest.mark.long
@pytest.mark.parametrize("name", IMAGES)
def test_by_default_a_full_size_model_fits_a_card_of_24_gb(name, monkeypatch):
    """The paper's longest group, 15 steps, and calibration's longest span, 25: real runs of the denoiser, without weights' values."""
    size, images, max_span = FULL_SIZE[name], IMAGES[name], 25
    with torch.device("meta"):
        model = size.make().eval().half()  # its own: `size.model` is shared
    weights = sum(p.nbytes for p in model.parameters())
    free_memory(monkeypatch, CARD - weights)
    given = {key: more(value, images) for key, value in size.call().items() if key not in ("sample", "timestep")}
    sample = more(size.call()["sample"], images)
    pipe = SimpleNamespace(unet=model, scheduler=scheduler())
    pipe.scheduler.set_timesteps(max_span)
    with fl.encoder_propagation(pipe, KeySchedule(max_span, [0])) as counts, peak_bytes() as peak, fused_attention():
        for timestep in pipe.scheduler.timesteps:
            model(sample, timestep, **given)
    assert 0.4 * (CARD - weights) < peak.bytes < CARD - weights
    assert 1 < counts.forward_calls < max_span and counts.decoder_calls == max_span


def fused_attention():
    from fastdiff_lab.propagation.pass_bytes import _FusedAttention

    return _FusedAttention()


def more(value, images):
    if isinstance(value, dict):
        return {name: more(inner, images) for name, inner in value.items()}
    half = value.half() if value.is_floating_point() else value
    return half.repeat(images, *[1] * (value.dim() - 1))
