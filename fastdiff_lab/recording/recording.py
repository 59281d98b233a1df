"""Recorded features, as a value without reference to the model."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..inputs.files import write_whole

SCHEMA = "fastdiff_lab.Recording"
VERSION = 1
STATISTICS = ("mean_square", "change", "product", "norm")


@dataclass
class Recording:
    """Recorded statistics and features; see `record`.

    Args:
        statistics: Name -> tensor (samples, steps, layers), float32: `mean_square` of the entries; `change`, the mean squared
            difference to the step before (the paper's Fig. 3a); `product`, the mean product with the step before; `norm`,
            the Frobenius norm of the mean over channels (Fig. 3b). Step 0 has no change and product (NaN).
        features: Kept layer -> tensor (samples, steps, channels, height, width).
        time_steps: The time-step of each step.
        layers: The host's names; `parts` says encoder or decoder.
        about: Model, scheduler and versions.
    """

    layers: tuple[str, ...] = ()
    parts: tuple[str, ...] = ()
    time_steps: tuple[float, ...] = ()
    statistics: dict[str, Tensor] = field(default_factory=dict)
    features: dict[str, Tensor] = field(default_factory=dict)
    about: dict[str, str] = field(default_factory=dict)

    @property
    def num_samples(self) -> int:
        return len(self.statistics["change"]) if self.statistics else 0

    @property
    def num_steps(self) -> int:
        return len(self.time_steps)

    def statistic(self, name: str) -> Tensor:
        """A statistic by its name, shape (samples, steps, layers). Raises ValueError if no run was recorded."""
        if not self.statistics:
            raise ValueError(
                "nothing was recorded: no run was finished inside the record block; call the recorded pipeline inside it, then save"
            )
        return self.statistics[name]

    def __getitem__(self, layer: str) -> Tensor:
        """The kept features of a layer. Raises KeyError that says which layers were kept, or which names are close."""
        if layer in self.features:
            return self.features[layer]
        if layer in self.layers:
            raise KeyError(f"only statistics of {layer!r} were recorded; record(pipe, keep=[{layer!r}]) keeps its features")
        raise KeyError(unknown_layer(layer, self.layers))

    def index(self, layer: str) -> int:
        """The place of a layer in the last axis of the statistics. Raises KeyError that says which names are close."""
        if layer not in self.layers:
            raise KeyError(unknown_layer(layer, self.layers))
        return self.layers.index(layer)

    def save(self, path: str | Path) -> None:
        """Write one safetensors file with a JSON header, whole or not at all."""
        self.statistic("change")  # raises for an empty recording
        header = {"schema": SCHEMA, "version": VERSION, "layers": self.layers, "parts": self.parts}
        header |= {"time_steps": self.time_steps, "about": self.about}
        tensors = {f"statistics.{name}": tensor for name, tensor in self.statistics.items()}
        tensors |= {f"features.{name}": tensor for name, tensor in self.features.items()}
        tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
        write_whole(Path(path), lambda place: save_file(tensors, place, metadata={"fastdiff_lab": json.dumps(header)}))

    @classmethod
    def load(cls, path: str | Path) -> Recording:
        """Read a file that `save` wrote. Raises FileNotFoundError, or ValueError for a folder, a truncated or foreign file."""
        if Path(path).is_dir():
            raise ValueError(f"{path} is no whole recording (it is a folder); accepted: a file that Recording.save wrote")
        try:
            with safe_open(str(path), framework="pt") as file:
                header = json.loads((file.metadata() or {}).get("fastdiff_lab", "null"))
                tensors = {name: file.get_tensor(name) for name in file.keys()}
        except (SafetensorError, json.JSONDecodeError, RecursionError) as error:
            raise ValueError(f"{path} is no whole recording ({error}); accepted: a file that Recording.save wrote") from None
        return _checked(header, tensors, str(path))


def _checked(header: Any, tensors: dict[str, Tensor], path: str) -> Recording:
    if not isinstance(header, dict) or header.get("schema") != SCHEMA or header.get("version") != VERSION:
        raise ValueError(f"{path} is no recording of version {VERSION}; accepted: a file that Recording.save wrote")
    statistics = {n.removeprefix("statistics."): t for n, t in tensors.items() if n.startswith("statistics.")}
    features = {n.removeprefix("features."): t for n, t in tensors.items() if n.startswith("features.")}
    layers, parts, steps = (_list(header, name) for name in ("layers", "parts", "time_steps"))
    if (
        not steps
        or len(layers) != len(parts)
        or set(statistics) != set(STATISTICS)
        or len(statistics) + len(features) != len(tensors)
    ):
        raise ValueError(f"{path}: its header and its tensors do not belong together; accepted: a file that Recording.save wrote")
    shapes = {tuple(tensor.shape[1:]) for tensor in statistics.values()} | {(len(steps), len(layers))}
    if len(shapes) > 1 or any(tensor.dim() < 2 or tensor.shape[1] != len(steps) for tensor in features.values()):
        raise ValueError(
            f"{path}: its tensors have not {len(steps)} steps and {len(layers)} layers, as its header says; "
            "accepted: a file that Recording.save wrote"
        )
    about = header.get("about")
    about = {str(k): str(v) for k, v in about.items()} if isinstance(about, dict) else {}
    return Recording(tuple(map(str, layers)), tuple(map(str, parts)), tuple(steps), statistics, features, about)


def _list(header: dict, name: str) -> list:
    value = header.get(name)
    return value if isinstance(value, list) else []


def unknown_layer(layer: str, layers: Iterable[str]) -> str:
    """The message for a layer that is not there."""
    names = list(layers)
    close = difflib.get_close_matches(layer, names, n=3) or names[:3]
    return f"no layer {layer!r}; close to it: {', '.join(close)} ({len(names)} layers in all)"
