"""One image on several processes: gloo on the CPU."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import warnings
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from models import controlnet_pipeline, pipeline, run

import fastdiff_lab as fl
from fastdiff_lab import KeySchedule
from fastdiff_lab.propagation.distributed import Ranks

KEYS = KeySchedule(10, [0, 1, 4])  # the last group has six steps
IMAGE = torch.ones(1, 3, 16, 16, dtype=torch.float64)
WAYS = {
    "reused": {}, "extrapolated": {"order": 1}, "few rows": {"max_rows": 12}, "one step each": {"max_rows": 4},
    "extrapolated, few rows": {"order": 1, "max_rows": 8},
}  # fmt: skip


def _joined(rank: int, size: int, folder: str, seconds: int = 60) -> None:
    torch.set_num_threads(1)
    place = f"file://{folder}/meeting"
    dist.init_process_group("gloo", init_method=place, rank=rank, world_size=size, timeout=timedelta(seconds=seconds))


@torch.no_grad()
def _every_way(rank: int, size: int, folder: str) -> None:
    _joined(rank, size, folder)
    pipe, found = pipeline(), {}
    for name, way in WAYS.items():
        with fl.encoder_propagation(pipe, KEYS, process_group=dist.group.WORLD, **way) as counts:
            found[name] = run(pipe), counts
    reused = controlnet_pipeline()
    with fl.encoder_propagation(reused, KEYS, process_group=dist.group.WORLD) as counts:
        found["controlnet"] = run(reused, image=IMAGE), counts
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize("size", [2, pytest.param(3, marks=pytest.mark.long)])
def test_several_processes_draw_what_one_does(size, two, tmp_path_factory):
    folder = two if size == 2 else _started(tmp_path_factory.mktemp("three"), size, _every_way)
    ranks = [torch.load(folder / "_every_way" / f"{rank}.pt", weights_only=False) for rank in range(size)]
    pipe, reused = pipeline(), controlnet_pipeline()
    for name in ranks[0]:
        way, own, options = (WAYS[name], pipe, {}) if name in WAYS else ({}, reused, {"image": IMAGE})
        with fl.encoder_propagation(own, KEYS, **way):
            alone = run(own, **options)
        for latents, counts in (found[name] for found in ranks):
            assert float((latents - alone).abs().max()) < 1e-10, name
            assert counts.encoder_calls == 3 and counts.steps == 10
        # Keys are decoded by everybody, the seven others by one each; a rank that has none left in a capped pass repeats one.
        decoded = sum(found[name][1].decoder_calls for found in ranks)
        assert decoded == 3 * size + 7 if name in ("reused", "extrapolated", "controlnet") else decoded >= 3 * size + 7


@torch.no_grad()
def _one_dies(rank: int, size: int, folder: str) -> None:
    _joined(rank, size, folder, seconds=5)
    pipe = pipeline()

    def at_each_step(pipe, step, timestep, kwargs):
        if rank == 1 and step == 2:
            os._exit(0)
        return kwargs

    try:
        with fl.encoder_propagation(pipe, KEYS, process_group=dist.group.WORLD):
            run(pipe, callback_on_step_end=at_each_step)
    except RuntimeError as error:
        Path(folder, "error").write_text(str(error))
        os._exit(0)  # the process group cannot be left in order any more


def test_a_dead_rank_is_an_error_and_no_hang(two):
    said = (two / "_one_dies" / "error").read_text()
    assert "rank 0 of 2 waited for the predictions of the others, and one is gone or too late" in said


@torch.no_grad()
def _one_has_little_memory(rank: int, size: int, folder: str) -> None:
    _joined(rank, size, folder)
    pipe = pipeline()

    def look(module, args):
        if rank == 1 and len(args[0]) > 8:
            raise torch.OutOfMemoryError("CUDA out of memory")

    pipe.unet.conv_out.register_forward_pre_hook(look)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        with fl.encoder_propagation(pipe, KEYS, process_group=dist.group.WORLD) as counts:
            found = run(pipe)
    texts = [str(one.message) for one in said if "memory ran out" in str(one.message)]
    torch.save((found, counts.steps, texts), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_a_rank_that_runs_out_of_memory_decodes_its_share_in_parts(two):
    found = (torch.load(two / "_one_has_little_memory" / f"{rank}.pt", weights_only=False) for rank in range(2))
    (here, steps, quiet), (there, _, said) = found
    with fl.encoder_propagation(pipe := pipeline(), KEYS):
        alone = run(pipe)
    assert float((here - alone).abs().max()) < 1e-10 and float((there - alone).abs().max()) < 1e-10
    assert steps == 10 and not quiet and len(said) == 1


def test_ranks_agree_on_the_least_of_their_limits():
    assert Ranks().least(None) is None and Ranks().least(8) == 8


@torch.no_grad()
def _other_seed(rank: int, size: int, folder: str) -> None:
    _joined(rank, size, folder)
    pipe = pipeline()
    for name, schedule, seed in (("latents", KEYS, rank), ("schedule", KeySchedule(10, [0, 1 + rank]), 0)):
        latents = torch.randn((2, 4, 8, 8), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        with pytest.raises(ValueError) as told, fl.encoder_propagation(pipe, schedule, process_group=dist.group.WORLD):
            run(pipe, latents=latents)
        Path(folder, f"{name} {rank}").write_text(str(told.value))
    assert not pipe.unet._forward_hooks and "forward" not in vars(pipe.unet)
    dist.destroy_process_group()


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("name", ["latents", "schedule"])
def test_ranks_that_make_other_calls(name, rank, two):
    said = (two / "_other_seed" / f"{name} {rank}").read_text()
    assert re.search(f"rank 0 has {name} .*, rank 1 has .*; accepted: the same call of the same pipeline", said)


def _in_turn(rank: int, size: int, folder: str, works: tuple[Callable, ...]) -> None:
    for work in works:
        work(rank, size, f"{folder}/{work.__name__}")


def _started(folder: Path, size: int, *works: Callable) -> Path:
    """What several processes leave: started once for all of the works, since a start takes longer than they do."""
    for work in works:
        (folder / work.__name__).mkdir()
    mp.spawn(_in_turn, (size, str(folder), works), nprocs=size)
    return folder


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Two processes; the last work ends one of them."""
    return _started(tmp_path_factory.mktemp("two"), 2, _every_way, _one_has_little_memory, _other_seed, _one_dies)


@pytest.mark.parametrize("way", [{"parallel_decoding": False}, {"reuse": "prediction"}])
def test_nothing_to_share_out(way):
    with pytest.raises(ValueError, match="process_group asked with parallel_decoding=.* where each step is decoded alone"):
        with fl.encoder_propagation(pipeline(), KEYS, process_group=object(), **way):
            pass


@pytest.mark.long
def test_the_measurement_that_the_page_names(tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "studies.scaling"]
    subprocess.run([*command, "--repeats", "1", "--output", str(tmp_path / "scaling.json")], check=True, capture_output=True)
    found = json.loads((tmp_path / "scaling.json").read_text())
    assert found["processes"] == 2 and found["latents_differ"] < 1e-4
    assert found["seconds"].keys() == {"baseline", "one process", "all processes"}
