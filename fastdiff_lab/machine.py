"""What numbers depend on beside the code.

- `about_machine(device)`: machine, threads, versions, commit
- `about_run(pipe)`: the same and the pipeline
"""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from .fingerprint import identity, scheduler_config
from .split import denoiser_of

PACKAGES = ("fastdiff-lab", "torch", "diffusers", "transformers", "torchmetrics", "DeepCache", "tomesd", "numpy", "pandas")


def about_run(pipe: Any) -> dict[str, Any]:
    """What numbers depend on: machine, threads, versions, the commit of the checkout (None without one), the pipeline.

    >>> about_run(pipe)["threads"]  # doctest: +SKIP
    2
    """
    device = next(denoiser_of(pipe).parameters()).device
    return about_machine(str(device)) | {"pipeline": identity(pipe), "scheduler_config": scheduler_config(pipe)}


def about_machine(device: str) -> dict[str, Any]:
    """Machine, device (with driver and clocks in MHz of an NVIDIA one), threads, versions, the commit of the checkout (None without one).

    >>> about_machine("cpu")["device"]
    'cpu'
    """
    on_cuda = device.startswith("cuda")
    return {
        "machine": platform.platform(), "processor": _processor(), "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if on_cuda else device, "driver": _driver() if on_cuda else None,
        "python": platform.python_version(), "versions": {name: _version(name) for name in PACKAGES}, "commit": _commit(),
    }  # fmt: skip


def _driver() -> dict[str, str]:
    """Driver, clocks and power limit as nvidia-smi reports them; empty without it."""
    names = ("driver_version", "clocks.sm", "clocks.max.sm", "clocks.mem", "power.limit")
    found = _output(["nvidia-smi", f"--query-gpu={','.join(names)}", "--format=csv,noheader"])
    return dict(zip(names, map(str.strip, found.splitlines()[0].split(",")), strict=False)) if found else {}


def _processor() -> str:
    cpus = Path("/proc/cpuinfo")
    lines = cpus.read_text().splitlines() if cpus.exists() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The checkout's commit, with "-dirty" where files differ from it."""
    return _output(["git", "describe", "--always", "--dirty", "--abbrev=12"]) or None


def _output(command: list[str]) -> str:
    """What a command prints; nothing if it cannot be run."""
    try:
        return subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""
