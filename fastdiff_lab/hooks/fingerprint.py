"""What a pipeline is, in a few words: so that what was measured on one is not taken for another.

- `weights_digest(pipe)`: a fingerprint of its weights; `weights_seen(pipe)`: one that half precision keeps
- `pipeline_digest(pipe)`: a fingerprint of all that its images depend on
- `steering(pipe)`: what acts beside the weights, such as the scale of a LoRA
- `scheduler_config(pipe)`: its scheduler's settings
- `identity(pipe)`: class, weights and scheduler, as text
- `in_words(value)`: an argument of a pipeline's call, images and tensors by a digest of what they hold
- `differences(measured_on, pipe, ...)`: where a schedule's measurement and its use differ, in words
"""

from __future__ import annotations

import hashlib
import json
import operator
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from PIL import Image
from torch import Tensor, nn

from .adapters import adapter_scales, processors
from .denoiser import denoiser_of
from .private_api import SETTINGS_OF_FILES, weights_elsewhere

_PARTS = ("unet", "transformer", "text_encoder", "vae")
_SEEN_PER_TENSOR = 64
_SUMS = 8
_ROUNDING = 0.01  # of numbers of about 1: 686 tensors in bfloat16 move them by 0.002


def weights_digest(pipe: DiffusionPipeline, parts: tuple[str, ...] = _PARTS) -> str:
    """A fingerprint of names, shapes and the first 64 entries of each weight: it need not read a large model whole.

    >>> weights_digest(pipe)[:8]  # doctest: +SKIP
    'e3b0c442'
    """
    digest = hashlib.sha256()
    seen = _entries(pipe, parts, slice(_SEEN_PER_TENSOR))
    for (name, tensor), values in zip(_weights(pipe, parts), seen, strict=True):
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(values.tobytes())
    return digest.hexdigest()


def weights_seen(pipe: DiffusionPipeline, parts: tuple[str, ...] = _PARTS) -> str:
    """A few numbers that the weights keep in half precision, each from entries of all of them; "" if they cannot be read.

    >>> weights_seen(pipe)  # doctest: +SKIP
    '0.0412 -0.0107 0.0056 -0.0231'
    """
    values = np.concatenate([np.zeros(0, np.float32), *_entries(pipe, parts, slice(_SEEN_PER_TENSOR))]).astype(np.float64)
    size = np.linalg.norm(values)
    signs = np.random.default_rng(0).choice([-1.0, 1.0], (_SUMS, len(values)))
    return " ".join(f"{number:.6g}" for number in signs @ values / size) if 0 < size < np.inf else ""


def _same_weights(one: str, other: str) -> bool:
    """Are these `weights_seen` of the same weights in two precisions? bfloat16 keeps 8 bits of each."""
    before, here = (np.array(text.split(), dtype=float) for text in (one, other))
    return len(before) == len(here) > 0 and bool(np.abs(before - here).max() < _ROUNDING)


def _weights(pipe: DiffusionPipeline, parts: tuple[str, ...]) -> list[tuple[str, Tensor]]:
    models = {part: model for part in parts if isinstance(model := getattr(pipe, part, None), nn.Module)}
    return [(f"{part}.{name}", tensor) for part, model in models.items() for name, tensor in model.state_dict().items()]


def _entries(pipe: DiffusionPipeline, parts: tuple[str, ...], part: slice) -> list[np.ndarray]:
    """Some entries of each weight in float32, read all at once: on a device, each look would make the host wait."""
    found = [_kept(pipe, name, tensor).flatten()[part].float() for name, tensor in _weights(pipe, parts)]
    places: dict[Any, list[int]] = {}
    for place, values in enumerate(found):
        places.setdefault(values.device, []).append(place)
    read: dict[int, np.ndarray] = {}
    for of_device in places.values():
        values = torch.cat([found[place] for place in of_device]).cpu().numpy()
        read |= zip(of_device, np.split(values, np.cumsum([len(found[place]) for place in of_device])[:-1]), strict=True)
    return [read[place] for place in range(len(found))]


def _kept(pipe: DiffusionPipeline, name: str, tensor: Tensor) -> Tensor:
    """A weight; sequential offloading keeps it elsewhere. Nothing where it cannot be read."""
    if not tensor.is_meta:
        return tensor
    owner, _, leaf = name.rpartition(".")
    kept = weights_elsewhere(operator.attrgetter(owner)(pipe))
    return kept[leaf] if leaf in kept else torch.empty(0)


def pipeline_digest(pipe: DiffusionPipeline) -> str:
    """A fingerprint of all that a pipeline's images depend on beside scales: every model, words added to tokenizers, attention processors.

    >>> pipeline_digest(pipe)[:8]  # doctest: +SKIP
    'e3b0c442'
    """
    parts = dict(sorted(getattr(pipe, "components", {}).items()))
    models = {name: part for name, part in parts.items() if isinstance(part, nn.Module)}
    digest = hashlib.sha256(weights_digest(pipe, (*_PARTS, *(name for name in models if name not in _PARTS))).encode())
    for values in _entries(
        pipe, tuple(models), slice(-_SEEN_PER_TENSOR, None)
    ):  # what is added to a model comes last: new words, adapters
        digest.update(values.tobytes())
    words = {name: part.get_added_vocab() for name, part in parts.items() if hasattr(part, "get_added_vocab")}
    attention = [processor for _, processor in processors(denoiser_of(pipe))]
    kinds = [getattr(processor, "__qualname__", type(processor).__name__) for processor in attention]  # a plain function's own
    kinds += [type(module).__name__ for module in denoiser_of(pipe).modules()]  # token merging changes them
    digest.update(json.dumps([words, kinds], sort_keys=True, default=str).encode())
    return digest.hexdigest()


def steering(pipe: DiffusionPipeline, parts: tuple[str, ...] = _PARTS) -> str:
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


def scheduler_config(pipe: DiffusionPipeline) -> dict[str, Any]:
    """The settings of the pipeline's scheduler, without the version that wrote them.

    Nor with the list of those left at their defaults: diffusers makes it from a set, so its order differs from process to process.
    """
    settings = {name: value for name, value in dict(pipe.scheduler.config).items() if name not in SETTINGS_OF_FILES}
    return settings | {"_class_name": type(pipe.scheduler).__name__}  # diffusers adds it when it saves or loads one


def identity(pipe: DiffusionPipeline) -> dict[str, str]:
    """What a measurement of key steps depends on: the denoiser's class and weights, the scheduler's class and settings.

    >>> identity(pipe)["scheduler"]  # doctest: +SKIP
    'DDIMScheduler'
    """
    settings = json.dumps(scheduler_config(pipe), sort_keys=True, default=str)
    steered = steering(pipe, ("unet", "transformer"))
    return ({"steering": steered} if steered else {}) | {
        "model": type(denoiser_of(pipe)).__name__,
        "weights": weights_digest(pipe, ("unet", "transformer"))[:16],
        "weights_seen": weights_seen(pipe, ("unet", "transformer")),
        "dtype": str(next(denoiser_of(pipe).parameters()).dtype).removeprefix("torch."),
        "scheduler": type(pipe.scheduler).__name__,
        "scheduler_config": hashlib.sha256(settings.encode()).hexdigest()[:16],
    }


def in_words(value: Any) -> Any:
    """An argument of a pipeline's call as JSON holds it; what images, tensors and arrays hold stands as a digest.

    >>> in_words({"strength": 0.5, "image": Image.new("RGB", (2, 2))})["image"][:5]
    'image'

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
        return f"image {_digest(value.mode, value.size, value.tobytes())}"
    if isinstance(value, Tensor):
        return f"tensor {_digest(value.dtype, value.shape, value.detach().cpu().double().numpy().tobytes())}"
    if isinstance(value, np.ndarray) and not value.dtype.hasobject:  # of objects, the bytes are addresses in memory
        return f"array {_digest(value.dtype, value.shape, value.tobytes())}"
    raise TypeError(
        f"{value!r} given among the pipeline's arguments; accepted: texts, numbers, images, tensors, arrays, and lists and dicts of them"
    )


def _digest(kind: Any, shape: Any, content: bytes) -> str:
    return hashlib.sha256(f"{kind} {tuple(shape)} ".encode() + content).hexdigest()[:16]


_NAMES = {
    "model": "model", "weights": "weights", "scheduler": "scheduler", "scheduler_config": "scheduler settings", "order": "order",
    "reuse": "reuse", "steering": "scales of LoRA, IP-Adapter or FreeU", "guidance_scale": "guidance scale",
}  # fmt: skip


def differences(measured_on: Mapping[str, Any], pipe: DiffusionPipeline, **use: Any) -> list[str]:
    """In words, each thing in which a measurement differs from the pipeline and the options at hand, with both names.

    >>> differences(schedule.measured_on, pipe, order=0)  # doctest: +SKIP
    ['order 1, here 0']
    """
    here = identity(pipe) | use
    if _rounded(measured_on, here):
        here["weights"] = measured_on.get("weights")
    return [
        f"{words} {measured_on[name]}, here {here[name]}"
        for name, words in _NAMES.items()
        if name in measured_on and name in here and here[name] != measured_on[name]
    ]


def _rounded(measured_on: Mapping[str, Any], here: Mapping[str, Any]) -> bool:
    """Are the weights those of the measurement in another precision? Old files cannot tell, and count as such."""
    before = measured_on.get("weights_seen")
    other = measured_on.get("dtype", "float32") != here["dtype"]
    return other and (before is None or _same_weights(str(before), here["weights_seen"]))
