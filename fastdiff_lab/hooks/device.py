"""The device that a pipeline runs on: waiting for it, its memory, and how it says that none is left.

CUDA, MPS, XPU and other backends of torch alike; on the CPU there is nothing to wait for, and no limit is known.

- `device_of(pipe)`: where its denoiser runs
- `synchronize(device)`: waits for it
- `free_bytes(device)`, `release_cache(device)`: memory that is left; memory given back
- `begin_peak(device)`, `peak_of(device)`: the most memory that was in use
- `is_out_of_memory(error)`: does an error say that memory ran out?
- `read_checks(checks)`: reads what is wrong, with one wait
"""

from __future__ import annotations

import gc
from collections.abc import Sequence

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from .denoiser import denoiser_of
from .private_api import execution_device_of

# In lower case. CUDA, ROCm, XPU and MPS raise torch.OutOfMemoryError or say "... out of memory"; their libraries and the CPU say:
_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "alloc_failed", "not enough memory", "failed to allocate memory")


def device_of(pipe: DiffusionPipeline) -> torch.device:
    """Where the pipeline's denoiser runs: with offloading, its weights rest elsewhere between the calls.

    >>> device_of(pipe)  # doctest: +SKIP
    device(type='cuda', index=0)
    """
    at_rest = next(denoiser_of(pipe).parameters()).device
    told = execution_device_of(pipe) if at_rest.type in ("cpu", "meta") else None
    return told if isinstance(told, torch.device) else at_rest


def _is_accelerator(device: torch.device) -> bool:
    """Is this a device that `torch.accelerator` speaks for?"""
    current = torch.accelerator.current_accelerator(check_available=True)
    return current is not None and current.type == device.type


def synchronize(device: torch.device) -> None:
    """Waits until the device has done all that it was given.

    >>> synchronize(device_of(pipe))  # doctest: +SKIP
    """
    if _is_accelerator(device):
        torch.accelerator.synchronize(device)


def free_bytes(device: torch.device) -> int | None:
    """Bytes that tensors can still get on the device, those that torch keeps for reuse among them; None where nobody tells.

    >>> free_bytes(torch.device("cpu")) is None
    True
    """
    if not _is_accelerator(device):
        return None
    if device.type == "mps":
        return max(torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory(), 0)
    try:
        free, _ = torch.accelerator.get_memory_info(device)
        kept = torch.accelerator.memory_reserved(device) - torch.accelerator.memory_allocated(device)
    except (RuntimeError, NotImplementedError):  # a backend that counts nothing
        return None
    return int(free + kept)


def release_cache(device: torch.device) -> None:
    """Gives memory back that no tensor uses any more.

    >>> release_cache(device_of(pipe))  # doctest: +SKIP
    """
    gc.collect()
    if _is_accelerator(device):
        torch.accelerator.empty_cache()


def begin_peak(device: torch.device) -> None:
    """Counts the most memory in use from here on, where the device counts it.

    >>> begin_peak(device_of(pipe))  # doctest: +SKIP
    """
    if _counts_peaks(device):
        torch.accelerator.reset_peak_memory_stats(device)


def peak_of(device: torch.device) -> float:
    """The most bytes in use since `begin_peak`; NaN where the device does not count.

    >>> peak_of(torch.device("cpu"))
    nan
    """
    return float(torch.accelerator.max_memory_allocated(device)) if _counts_peaks(device) else float("nan")


def _counts_peaks(device: torch.device) -> bool:
    return device.type in ("cuda", "xpu") and _is_accelerator(device)


def is_out_of_memory(error: BaseException) -> bool:
    """Does the error say that memory ran out, on whatever device?

    >>> is_out_of_memory(RuntimeError("MPS backend out of memory (MPS allocated: 8.00 GB)"))
    True
    >>> is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    False
    """
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _OUT_OF_MEMORY)


def read_checks(checks: Sequence[tuple[Tensor, ValueError]]) -> None:
    """Read what is wrong, with one wait of the host for all.

    >>> read_checks([(torch.tensor(False), ValueError("one")), (torch.tensor(True), ValueError("other"))])
    Traceback (most recent call last):
    ...
    ValueError: other

    Args:
        checks: Pairs of a truth value on a device, and the error to raise where it is true.

    Raises:
        ValueError: For the first that is true.
    """
    flags = [is_wrong.to(checks[0][0].device) for is_wrong, _ in checks]
    told = torch.stack(flags).tolist() if flags else []
    error = next((error for (_, error), is_wrong in zip(checks, told, strict=True) if is_wrong), None)
    if error is not None:
        raise error
