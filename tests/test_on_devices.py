"""What makes a device slow: the host waiting for it at each step, graphs compiled again, features copied for nothing."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from models import controlnet_pipeline, denoiser_pipe, loop, pipeline, run
from short_suite import long_but
from torch.utils._python_dispatch import TorchDispatchMode

import fastdiff_lab as fl
from fastdiff_lab import KeySchedule
from fastdiff_lab.hooks.batch_rows import repeat_rows
from fastdiff_lab.hooks.denoiser import denoiser_of, split_denoiser
from fastdiff_lab.hooks.patching import replaced_call
from fastdiff_lab.hooks.run_tracking import Run
from studies.bench.cases import compile_children

WAITING = {
    torch.ops.aten._local_scalar_dense.default, torch.ops.aten.equal.default, torch.ops.aten.nonzero.default,
    torch.ops.aten.is_nonzero.default, torch.ops.aten.lift_fresh.default,
}  # fmt: skip
KEYS = KeySchedule(10, [0, 1, 4])


class Watched(TorchDispatchMode):
    """Operations that make the host wait for a device: values that it reads, and tensors that it makes of its own numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in WAITING:
            self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


def waiting_calls(pipe, make_run, **options) -> list[list[str]]:
    """Of each denoiser call of a second accelerated run, the operations that wait."""
    calls: list[list[str]] = []

    def watched(inner):
        def call(*args, **kwargs):
            with Watched() as found:
                output = inner(*args, **kwargs)
            calls.append(found.seen)
            return output

        return call

    with fl.encoder_propagation(pipe, KeySchedule(6, [0, 1, 3]), **options), replaced_call(denoiser_of(pipe), watched):
        make_run()
        calls.clear()
        make_run()
    return calls


WAYS = [{}, {"order": 1}, {"parallel_decoding": False}, {"reuse": "prediction"}, {"max_rows": 4}]


def _name(value: object) -> str:
    """The same in every process: workers compare the names of their tests."""
    return getattr(value, "__name__", str(value))


FEW_WAYS = [*((pipeline, way) for way in WAYS), (controlnet_pipeline, {"order": 1})]


@pytest.mark.parametrize(("make", "options"), long_but(FEW_WAYS, product([pipeline, controlnet_pipeline], WAYS)), ids=_name)
def test_no_step_makes_the_host_wait(make, options, monkeypatch):
    monkeypatch.setattr("fastdiff_lab.propagation.deferred.Later.check_finite", lambda *_: None)  # at once on the CPU only
    pipe = make(dtype=torch.float32)
    image = {"image": torch.zeros(2, 3, 16, 16)} if make is controlnet_pipeline else {}

    def call():
        run(pipe, steps=6, **image)

    calls = waiting_calls(pipe, call, **options)
    assert len(calls) == 6 and not any(calls[1:])
    if make is pipeline:  # with a ControlNet, the run begins at its call
        assert calls[0], "a run's beginning reads its time-steps: the watch sees what it should"


def test_time_steps_repeated_for_each_row_are_not_read():
    timesteps = torch.arange(10, 0, -1)
    here = Run(timesteps, timesteps)
    with Watched() as found:
        assert here.is_at(timesteps[3], 3) and here.is_at(timesteps[3][None].expand(4), 3)
    assert not found.seen
    assert not here.is_at(timesteps[3:5], 3) and not here.is_at(timesteps[4].expand(2), 3) and here.is_at(torch.tensor([7, 7]), 3)


def test_the_watch_sees_an_index_that_is_made_of_a_list():
    with Watched() as found:
        torch.arange(5)[[1, 2]]
    assert found.seen


@pytest.mark.long
@pytest.mark.parametrize(("order", "keys"), [(0, KEYS), (1, KeySchedule(6, [0, 1]))], ids=["reused", "order 1"])
def test_a_compiled_child_has_a_graph_per_size_and_a_second_run_compiles_nothing(order, keys):
    torch._dynamo.reset()
    plain, pipe, graphs, steps = pipeline(dtype=torch.float32), pipeline(dtype=torch.float32), [], keys.num_steps
    with fl.encoder_propagation(plain, keys, order=order):
        expected = run(plain, steps)

    def compiler(graph, inputs):  # changes nothing, and counts
        graphs.append(graph)
        return graph.forward

    compile_children(pipe.unet, backend=compiler)
    split, sizes = split_denoiser(pipe.unet), {len(group) for group in keys.groups()}
    with fl.encoder_propagation(pipe, keys, order=order):
        first = run(pipe, steps)
        # The encoder has one step's rows only.
        assert len(sizes) < len(graphs) <= len(split.encoder) + len(sizes) * len(split.decoder)
        compiled = len(graphs)
        second = run(pipe, steps)
    assert len(graphs) == compiled
    assert torch.equal(first, second) and torch.allclose(first, expected, atol=1e-5)


@pytest.mark.filterwarnings("ignore:.* keeps something from call to call")
def test_a_single_row_is_not_copied_for_the_decoder():
    pipe, strides = denoiser_pipe("unet2d"), []
    up = next(block for block in pipe.unet.up_blocks)

    def look(module, args, kwargs):
        hidden = args[0] if args else kwargs["hidden_states"]
        skips = args[1] if len(args) > 1 else kwargs["res_hidden_states_tuple"]
        if len(hidden) > 1:  # where parallel decoding is checked, because of this hook, a step is decoded alone
            strides.append([skip.stride(0) for skip in skips])

    with fl.encoder_propagation(pipe, KEYS):
        held = up.register_forward_pre_hook(look, with_kwargs=True)
        parallel = loop(pipe, 10, {}, rows=1)
        held.remove()
    assert [set(found) for found in strides] == [{0}, {0}]
    with fl.encoder_propagation(pipe, KEYS, parallel_decoding=False):
        assert torch.allclose(loop(pipe, 10, {}, rows=1), parallel, atol=1e-10)


def test_what_may_be_written_to_is_copied():
    row = torch.ones(1, 3)
    assert repeat_rows(row, 1, 4, is_read_only=True).data_ptr() == row.data_ptr()
    assert repeat_rows(row, 1, 4).data_ptr() != row.data_ptr()
    assert torch.equal(repeat_rows(row, 1, 4), repeat_rows(row, 1, 4, is_read_only=True))
    assert repeat_rows(torch.ones(2, 3), 2, 4, is_read_only=True).is_contiguous()
