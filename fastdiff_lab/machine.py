"""What numbers depend on beside the code.

- `about_run(pipe)`: machine, threads, versions, commit, pipeline
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

PACKAGES = ("fastdiff-lab", "torch", "diffusers", "transformers", "torchmetrics", "DeepCache", "numpy", "pandas")


def about_run(pipe: Any) -> dict[str, Any]:
    """What numbers depend on: machine, threads, versions, the commit of the checkout (None without one), the pipeline.

    >>> about_run(pipe)["threads"]  # doctest: +SKIP
    2
    """
    device = next(denoiser_of(pipe).parameters()).device
    return {
        "machine": platform.platform(), "processor": _processor(), "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "python": platform.python_version(), "versions": {name: _version(name) for name in PACKAGES}, "commit": _commit(),
        "pipeline": identity(pipe), "scheduler_config": scheduler_config(pipe),
    }  # fmt: skip


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
    asked = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        found = subprocess.run(asked, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None
