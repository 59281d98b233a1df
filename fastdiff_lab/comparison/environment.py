"""The environment of a measurement: hardware, threads, versions, commit.

- `about_machine(device)`: machine, threads, versions, commit
- `clocks(device)`: a GPU's clocks now
- `about_run(pipe)`: the machine and the pipeline
"""

from __future__ import annotations

import hashlib
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline

from ..hooks.device import device_of
from ..hooks.fingerprint import identity, scheduler_config

PACKAGES = ("fastdiff-lab", "torch", "diffusers", "transformers", "torchmetrics", "DeepCache", "tomesd", "numpy", "pandas")


def about_run(pipe: DiffusionPipeline) -> dict[str, Any]:
    """Describe machine, threads, versions, commit (None without a checkout) and pipeline.

    >>> about_run(pipe)["threads"]  # doctest: +SKIP
    2
    """
    return about_machine(str(device_of(pipe))) | {"pipeline": identity(pipe), "scheduler_config": scheduler_config(pipe)}


def about_machine(device: str) -> dict[str, Any]:
    """Describe machine, device, threads, versions, commit (None without a checkout) and a digest of the source.

    >>> about_machine("cpu")["device"]
    'cpu'
    """
    on_cuda = device.startswith("cuda")
    return {
        "machine": platform.platform(), "processor": _processor(), "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if on_cuda else device.partition(":")[0],
        "driver": _of_gpu(device, "driver_version", "clocks.max.sm", "power.limit"), "tf32": _tf32(),
        "python": platform.python_version(), "versions": {name: _version(name) for name in PACKAGES}, "commit": _commit(), "code": _code(),
    }  # fmt: skip


def clocks(device: str) -> dict[str, str]:
    """Clocks, power and temperature of an NVIDIA device now, by nvidia-smi; empty for others.

    >>> clocks("cpu")
    {}
    """
    return _of_gpu(device, "clocks.sm", "clocks.mem", "power.draw", "temperature.gpu")


def _tf32() -> bool:
    """Whether matrices are multiplied in TF32. torch does not tell `allow_tf32` once `fp32_precision` was set."""
    matmul = torch.backends.cuda.matmul
    told = getattr(matmul, "fp32_precision", "none")
    return told == "tf32" if told != "none" else bool(matmul.allow_tf32)


def _of_gpu(device: str, *names: str) -> dict[str, str]:
    if not device.startswith("cuda"):
        return {}
    uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}"  # torch and nvidia-smi number devices differently
    found = _output(["nvidia-smi", "-i", uuid, f"--query-gpu={','.join(names)}", "--format=csv,noheader"])
    return dict(zip(names, map(str.strip, found.splitlines()[0].split(",")), strict=False)) if found else {}


def _code() -> str:
    """A digest of the package's source, without results and documents."""
    found = hashlib.sha256()
    for path in sorted(Path(__file__).parents[1].rglob("*.py")):
        found.update(path.read_bytes())
    return found.hexdigest()[:16]


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
    """The checkout's commit, with "-dirty" if files differ from it."""
    return _output(["git", "describe", "--always", "--dirty", "--abbrev=12"]) or None


def _output(command: list[str]) -> str:
    """What a command prints, or nothing if it fails."""
    try:
        done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()
