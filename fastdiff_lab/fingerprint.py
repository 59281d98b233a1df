"""What a pipeline is, in a few words: so that what was measured on one is not taken for another.

- `weights_digest(pipe)`: a fingerprint of its weights
- `pipeline_digest(pipe)`: a fingerprint of all that its pictures depend on
- `steering(pipe)`: what acts beside the weights, such as the scale of a LoRA
- `scheduler_config(pipe)`: its scheduler's settings
- `identity(pipe)`: class, weights and scheduler, as text
- `in_words(value)`: an argument of a pipeline's call, pictures and tensors by a digest of what they hold
- `differences(measured_on, pipe, ...)`: where a schedule's measurement and its use differ, in words
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor, nn

from .split import denoiser_of
from .steering import adapter_scales, processors

_PARTS = ("unet", "transformer", "text_encoder", "vae")
_SEEN_PER_TENSOR = 64
_NO_SETTINGS = ("_diffusers_version", "_use_default_values")


def weights_digest(pipe: Any, parts: tuple[str, ...] = _PARTS) -> str:
    """A fingerprint of names, shapes and the first 64 entries of each weight: it need not read a large model whole.

    >>> weights_digest(pipe)[:8]  # doctest: +SKIP
    'e3b0c442'
    """
    digest = hashlib.sha256()
    for part in parts:
        model = getattr(pipe, part, None)
        for name, tensor in model.state_dict().items() if isinstance(model, nn.Module) else ():
            digest.update(f"{part}.{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
            digest.update(_seen(model, name, tensor, slice(_SEEN_PER_TENSOR)))
    return digest.hexdigest()


def _seen(model: nn.Module, name: str, tensor: Tensor, part: slice) -> bytes:
    """Some entries of a weight; sequential offloading keeps them elsewhere. Nothing where they cannot be read."""
    if tensor.is_meta:
        owner, _, leaf = name.rpartition(".")
        kept = getattr(getattr(model.get_submodule(owner), "_hf_hook", None), "weights_map", None) or {}
        if leaf not in kept:
            return b""
        tensor = kept[leaf]
    return tensor.flatten()[part].float().cpu().numpy().tobytes()


def pipeline_digest(pipe: Any) -> str:
    """A fingerprint of all that a pipeline's pictures depend on beside scales: every model, words added to tokenizers, attention processors.

    >>> pipeline_digest(pipe)[:8]  # doctest: +SKIP
    'e3b0c442'
    """
    parts = dict(sorted(getattr(pipe, "components", {}).items()))
    models = {name: part for name, part in parts.items() if isinstance(part, nn.Module)}
    digest = hashlib.sha256(weights_digest(pipe, (*_PARTS, *(name for name in models if name not in _PARTS))).encode())
    for model in models.values():  # what is added to a model comes last: rows of new words, adapters
        for name, tensor in model.state_dict().items():
            digest.update(_seen(model, name, tensor, slice(-_SEEN_PER_TENSOR, None)))
    words = {name: part.get_added_vocab() for name, part in parts.items() if hasattr(part, "get_added_vocab")}
    kinds = [type(processor).__name__ for _, processor in processors(denoiser_of(pipe))]
    kinds += [type(module).__name__ for module in denoiser_of(pipe).modules()]  # token merging changes them
    digest.update(json.dumps([words, kinds], sort_keys=True, default=str).encode())
    return digest.hexdigest()


def steering(pipe: Any, parts: tuple[str, ...] = _PARTS) -> str:
    """A fingerprint of what acts on a pipeline beside its weights (scales of LoRA, IP-Adapter and FreeU); "" where nothing does.

    >>> steering(pipe)  # doctest: +SKIP
    ''
    """
    models = {part: getattr(pipe, part, None) for part in parts}
    found = [
        (part, place, name, str(value))
        for part, model in models.items()
        for place, (owner, name) in enumerate(adapter_scales(model) if isinstance(model, nn.Module) else ())
        if (value := getattr(owner, name, None)) is not None
    ]
    return hashlib.sha256(json.dumps(found).encode()).hexdigest()[:16] if found else ""


def scheduler_config(pipe: Any) -> dict[str, Any]:
    """The settings of the pipeline's scheduler, without the version that wrote them.

    Nor with the list of those left at their defaults: diffusers makes it from a set, so its order differs from process to process.
    """
    settings = {name: value for name, value in dict(pipe.scheduler.config).items() if name not in _NO_SETTINGS}
    return settings | {"_class_name": type(pipe.scheduler).__name__}  # diffusers adds it when it saves or loads one


def identity(pipe: Any) -> dict[str, str]:
    """What a measurement of key steps depends on: the denoiser's class and weights, the scheduler's class and settings.

    >>> identity(pipe)["scheduler"]  # doctest: +SKIP
    'DDIMScheduler'
    """
    settings = json.dumps(scheduler_config(pipe), sort_keys=True, default=str)
    steered = steering(pipe, ("unet", "transformer"))
    return ({"steering": steered} if steered else {}) | {
        "model": type(denoiser_of(pipe)).__name__,
        "weights": weights_digest(pipe, ("unet", "transformer"))[:16],
        "scheduler": type(pipe.scheduler).__name__,
        "scheduler_config": hashlib.sha256(settings.encode()).hexdigest()[:16],
    }


def in_words(value: Any) -> Any:
    """An argument of a pipeline's call as JSON holds it; what pictures, tensors and arrays hold stands as a digest.

    >>> in_words({"strength": 0.5, "image": Image.new("RGB", (2, 2))})["image"][:7]
    'picture'

    Raises TypeError for a function or anything else that cannot be told from another one of its kind.
    """
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        return {str(name): in_words(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [in_words(inner) for inner in value]
    if isinstance(value, Image.Image):
        return f"picture {_digest(value.mode, value.size, value.tobytes())}"
    if isinstance(value, Tensor):
        return f"tensor {_digest(value.dtype, value.shape, value.detach().cpu().double().numpy().tobytes())}"
    if isinstance(value, np.ndarray) and not value.dtype.hasobject:  # of objects, the bytes are addresses in memory
        return f"array {_digest(value.dtype, value.shape, value.tobytes())}"
    raise TypeError(
        f"{value!r} given among the pipeline's arguments; accepted: texts, numbers, pictures, tensors, arrays, and lists and dicts of them"
    )


def _digest(kind: Any, shape: Any, content: bytes) -> str:
    return hashlib.sha256(f"{kind} {tuple(shape)} ".encode() + content).hexdigest()[:16]


_NAMES = {
    "model": "model", "weights": "weights", "scheduler": "scheduler", "scheduler_config": "scheduler settings", "order": "order",
    "what": "what", "steering": "scales of LoRA, IP-Adapter or FreeU", "guidance_scale": "guidance scale",
}  # fmt: skip


def differences(measured_on: Mapping[str, Any], pipe: Any, **use: Any) -> list[str]:
    """In words, each thing in which a measurement differs from the pipeline and the options at hand, with both names.

    >>> differences(schedule.measured_on, pipe, order=0)  # doctest: +SKIP
    ['order 1, here 0']
    """
    here = identity(pipe) | use
    return [
        f"{words} {measured_on[name]}, here {here[name]}"
        for name, words in _NAMES.items()
        if name in measured_on and name in here and here[name] != measured_on[name]
    ]
