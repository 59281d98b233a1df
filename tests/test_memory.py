"""The most that tensors hold at one time, counted by head, and what propagation needs."""

from __future__ import annotations

import pytest
import torch
from models import conditions, denoiser_pipe, loop

import fastdiff_lab as fl
from fastdiff_lab.hooks.peak_memory import peak_bytes


def test_a_peak_by_head():
    with peak_bytes() as peak:
        a = torch.zeros(1000)  # 4,000 bytes
        b = a + 1  # 8,000
        view = b[10:]
        del a, b
        c = view * 2  # the view keeps all of b; 4,000 + 3,960
        del view, c
    assert peak.bytes == 8000 and peak.now == 0


@pytest.mark.long
def test_memory_of_propagation():
    pipe = denoiser_pipe()
    schedule = fl.KeySchedule(10, [0, 1])
    peaks = {}
    for name, options in {"serial": {"parallel_decoding": False}, "capped": {"max_rows": 4}, "parallel": {}}.items():
        with fl.encoder_propagation(pipe, schedule, **options), peak_bytes() as peak:
            loop(pipe, 10, conditions())
        peaks[name] = peak.bytes
    with peak_bytes() as baseline:
        loop(pipe, 10, conditions())
    assert baseline.bytes < peaks["serial"] < peaks["capped"] < peaks["parallel"]
    # Serial decoding adds the reused features and no second copy of them.
    reused = sum(t.nbytes for t in _features(pipe))
    assert peaks["serial"] - baseline.bytes < 1.2 * reused


def _features(pipe):
    found = []
    hooks = [
        block.register_forward_hook(lambda m, a, output: found.extend(output[1])) for block in pipe.unet.down_blocks
    ]  # fmt: skip
    hooks += [layer.register_forward_hook(lambda m, a, o: found.append(o)) for layer in (pipe.unet.conv_in, pipe.unet.mid_block)]
    loop(pipe, 1, conditions())
    for hook in hooks:
        hook.remove()
    return found
