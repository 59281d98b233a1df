"""The laws on a GPU. Without one, test_pretend_device.py stands in for it, and all of these are skipped."""

from __future__ import annotations

import copy
import functools
import itertools
from typing import Any

import numpy as np
import pytest
import torch
from laws import CLOSE, IGNORED, distance
from models import SCHEDULERS, denoiser_calls, pipeline, run
from systems import ROWS
from systems.base import of
from torch import nn

import fastdiff_lab as fl
from fastdiff_lab import KeySchedule
from fastdiff_lab.hooks.denoiser import denoiser_of
from fastdiff_lab.hooks.patching import replaced_call
from studies.bench.full_pipelines import PROMPT, full_pipeline
from studies.training.denoiser_training import as_graph

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
    pytest.mark.filterwarnings(*(f"ignore:{text}:UserWarning" for text in IGNORED)),
]
PROMPTS = ["a large red star at the left on a blue background", "a small green ring on a white background"]
WAYS: list[dict[str, Any]] = [{}, {"order": 1}, {"parallel_decoding": False}, {"reuse": "prediction"}, {"max_rows": 4}]


@pytest.fixture(autouse=True)
def _whole_float32(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@functools.cache
def embedded_there() -> Any:
    return fl.load_pipeline(device="cuda")


def drawn(pipe: Any, prompt: str = PROMPTS[0], steps: int = 50) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.from_numpy(pipe(prompt, num_inference_steps=steps, guidance_scale=5.0, generator=generator, output_type="np")[0])


def psnr(image: torch.Tensor, other: torch.Tensor) -> float:
    return float(-10 * (image - other).square().mean().log10())


@pytest.mark.parametrize("name", SCHEDULERS)
def test_laws_of_every_scheduler(name):
    pipe = pipeline(name).to("cuda")
    steps = 4 if name in ("heun", "kdpm2", "pndm") else 7
    calls = denoiser_calls(pipe, steps)
    baseline = run(pipe, steps=steps)
    with fl.encoder_propagation(pipe, KeySchedule(calls, range(calls))):
        assert torch.equal(run(pipe, steps=steps), baseline)
    found = []
    for way in ({"parallel_decoding": False}, {}, {"max_rows": 8}):
        with fl.encoder_propagation(pipe, KeySchedule.uniform(calls, 2), **way) as counts:
            found.append(run(pipe, steps=steps))
    assert counts.encoder_calls == 2
    assert distance(found[0], found[1]) < CLOSE and distance(found[0], found[2]) < CLOSE
    assert torch.equal(run(pipe, steps=steps), baseline)


@pytest.mark.parametrize("name", ROWS)
def test_laws_of_every_system(name):
    system = ROWS[name]
    pipe = system.build().to("cuda")
    try:
        baseline = of(system, pipe)
    except RuntimeError as error:
        pytest.skip(f"the untouched pipeline does not run there: {error}")

    def accelerated(keys, parallel=False):
        with fl.encoder_propagation(pipe, KeySchedule(system.calls, keys), parallel_decoding=parallel, **system.options):
            return of(system, pipe)

    again = of(system, pipe)
    if not torch.equal(again, baseline):
        pytest.skip(f"two untouched runs differ by {distance(again.double(), baseline.double())}")
    assert torch.equal(accelerated(range(system.calls)), baseline)
    serial = accelerated(system.keys)
    if system.parallel:
        assert distance(serial.double(), accelerated(system.keys, parallel=True).double()) < max(system.close, 1e-9)
    with fl.record(pipe):
        assert torch.equal(of(system, pipe), baseline)
    assert torch.equal(of(system, pipe), baseline)


def test_the_embedded_pipeline_draws_there_what_it_draws_on_the_cpu(embedded):
    assert psnr(drawn(embedded_there()), drawn(embedded)) > 40


@pytest.mark.parametrize("reuse", ["encoder", "prediction"])
def test_a_shipped_fit_helps_there(reuse):
    pipe, fit = embedded_there(), fl.embedded_fit(9, reuse)
    keys = KeySchedule(50, fit.schedule.keys)  # without what it was measured on, so that it warns of nothing
    baseline = drawn(pipe)

    def near(**how):
        with fl.encoder_propagation(pipe, keys, **how):
            return psnr(drawn(pipe), baseline)

    assert near(fit=fit, reuse=reuse) > near(reuse=reuse) + 3


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_no_step_makes_the_host_wait(way):
    pipe = pipeline(dtype=torch.float32).to("cuda")

    calls = itertools.count()

    def strictly(inner):
        def call(*args, **kwargs):
            torch.cuda.set_sync_debug_mode("error" if next(calls) else "default")  # the first reads the run's time-steps
            try:
                return inner(*args, **kwargs)
            finally:
                torch.cuda.set_sync_debug_mode("default")

        return call

    with fl.encoder_propagation(pipe, KeySchedule(6, [0, 1, 3]), **way):
        run(pipe, steps=6)
        with replaced_call(denoiser_of(pipe), strictly):
            run(pipe, steps=6)


def test_costs_and_a_fit_are_those_of_the_cpu(embedded):
    found = []
    for pipe in (embedded, embedded_there()):
        costs = fl.calibrate(pipe, PROMPTS, num_inference_steps=10, guidance_scale=5.0)
        fit = fl.fit_propagation(pipe, KeySchedule(10, [0, 2, 5]), PROMPTS, num_inference_steps=10, guidance_scale=5.0)
        found.append((costs, fit))
    (here, fit), (there, same) = found
    assert fl.derive_schedule(here, 3).keys == fl.derive_schedule(there, 3).keys
    spans, spans_there = here.spans()[0], there.spans()[0]
    known = np.isfinite(spans)
    assert np.allclose(spans[known], spans_there[known], rtol=0.05)
    for pipe, given in ((embedded, same), (embedded_there(), fit)):
        with fl.encoder_propagation(pipe, given.schedule, fit=given):
            assert torch.isfinite(drawn(pipe, steps=10)).all()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_comes_near(dtype):
    pipe = fl.load_pipeline(device="cuda", dtype=dtype)
    baseline, fit = drawn(pipe), fl.embedded_fit(9)
    with fl.encoder_propagation(pipe, fit.schedule, fit=fit):
        assert psnr(drawn(pipe), baseline) > 20


@pytest.mark.parametrize("offload", ["enable_model_cpu_offload", "enable_sequential_cpu_offload"])
def test_offloaded_weights(offload):
    pipe = pipeline(dtype=torch.float32)
    getattr(pipe, offload)()
    baseline = run(pipe, steps=6)
    with fl.encoder_propagation(pipe, KeySchedule(6, range(6))):
        assert torch.equal(run(pipe, steps=6), baseline)
    with fl.encoder_propagation(pipe, KeySchedule(6, [0, 1, 3])) as counts:
        run(pipe, steps=6)
    assert counts.encoder_calls == 3 and torch.equal(run(pipe, steps=6), baseline)


def test_training_by_a_graph_is_training():
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(4, 8), nn.SiLU(), nn.Linear(8, 1)).cuda()
    graphed = copy.deepcopy(plain)
    rows = torch.randn(16, 4, device="cuda")
    with torch.enable_grad():
        run_as_graph = as_graph(graphed, rows.clone())
        for batch in (rows, 2 * rows):
            for call, model in ((plain, plain), (run_as_graph, graphed)):
                model.zero_grad(set_to_none=True)
                call(batch).square().mean().backward()
            for one, other in zip(plain.parameters(), graphed.parameters(), strict=True):
                assert torch.allclose(one.grad, other.grad, atol=1e-6)


def test_memory_that_runs_out_halves_the_rows():
    """Stable Diffusion's own size, in as much memory as a step needs and a little more."""
    pipe = full_pipeline("sd-1.5", device="cuda", dtype="float16")
    call = {"prompt": PROMPT, "num_inference_steps": 10, "guidance_scale": 7.5, "output_type": "latent"}
    schedule = KeySchedule(10, [0, 1])

    def latents():
        with fl.encoder_propagation(pipe, schedule):
            return pipe(**call, generator=torch.Generator().manual_seed(0))[0]

    def peak(action):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        return action(), torch.cuda.max_memory_allocated()

    expected, needed = peak(latents)
    with fl.encoder_propagation(pipe, schedule, parallel_decoding=False):
        _, least = peak(lambda: pipe(**call, generator=torch.Generator().manual_seed(0)))
    assert needed > least
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction((least + (needed - least) / 2) / total)
    try:
        with pytest.warns(UserWarning, match="memory ran out"):
            found, peaked = peak(latents)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert peaked < needed
    assert distance(found.float(), expected.float()) < 0.02 * float(expected.abs().max())
