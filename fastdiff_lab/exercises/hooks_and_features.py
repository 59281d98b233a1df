"""Sheet 1: hooks and features.

- `relative_change`: how much features change from step to step, by their size
- `collect_skips`: the encoder's skips, collected with hooks
- `step_similarity`: which steps have features that point the same way
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..hooks.denoiser import split_denoiser
from ..hooks.private_api import hook_tables
from ..pipelines import load_pipeline
from ..recording.analysis import feature_change
from ..recording.analysis import step_similarity as similarity_of
from ..recording.record import statistics_of
from ..recording.recording import STATISTICS, Recording
from .exercise import Exercise


@cache
def pipeline() -> Any:
    """The embedded pipeline, loaded once."""
    return load_pipeline()


def recording_of(features: Tensor) -> Recording:
    """A recording of one layer from its features, a tensor (steps, ...), with the statistics of `record`."""
    rows = [statistics_of(now[None], before) for now, before in zip(features, (None, *features[:-1, None]), strict=True)]
    statistics = {name: torch.stack([row[name] for row in rows], dim=1)[..., None] for name in STATISTICS}
    time_steps = tuple(map(float, range(len(features))))
    return Recording(("layer",), ("encoder",), time_steps, statistics, {"layer": features[None]})


def _features(rng: np.random.Generator) -> Iterator[tuple[Tensor]]:
    """Features that wander: they change by less than their size, which is not 1."""
    for shape in ((5, 4, 3, 3), (2, 1, 1, 1), (7, 3, 5, 2), (4, 6, 1, 7), (12, 2, 4, 4), (3, 8, 2, 2)):
        steps = rng.normal(size=shape) * rng.uniform(0.1, 0.5)
        size = rng.choice([0.01, 1.0, 30.0])
        yield (torch.tensor((rng.normal(size=shape[1:]) + steps.cumsum(axis=0)) * size, dtype=torch.float32),)


def _relative(features: Tensor) -> np.ndarray:
    return feature_change(recording_of(features), "relative")["value"].to_numpy()


def _flat(features: Tensor) -> Tensor:
    return features.flatten(1).double()


def _differences(features: Tensor) -> Tensor:
    return (_flat(features)[1:] - _flat(features)[:-1]).norm(dim=1)


RELATIVE_CHANGE = Exercise(
    "relative_change",
    ("features",),
    _features,
    _relative,
    {
        "this is the squared change; the paper's measure depends on the size of the features": lambda f: feature_change(
            recording_of(f), "squared"
        )["value"].to_numpy(),
        "this is the length of the difference; divide it by the length of the feature": _differences,
        "you divide by the feature of the later step; the change starts from the one before": lambda f: (
            _differences(f) / _flat(f)[1:].norm(dim=1)
        ),
        "this is the square of what is asked for; take the root": lambda f: _relative(f) ** 2,
    },
)


def _calls(rng: np.random.Generator) -> Iterator[tuple[nn.Module, dict]]:
    for rows, height, width in ((2, 16, 16), (1, 24, 8), (3, 17, 11)):
        yield call_of(pipeline().unet, rng, rows, height, width)
    yield call_of(_smaller(), rng, 2, 8, 8)  # with other numbers of blocks and layers


@cache
def _smaller() -> nn.Module:
    """A UNet of two blocks with one layer each, with random weights."""
    config = {
        "block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4, "cross_attention_dim": 8, "attention_head_dim": 2,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"), "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    }  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return type(pipeline().unet).from_config(config).requires_grad_(False)


def call_of(unet: Any, rng: np.random.Generator, rows: int, height: int, width: int) -> tuple[nn.Module, dict]:
    """A UNet and the arguments of a call of it, with random latents and text."""
    shape, text = (rows, unet.config.in_channels, height, width), (rows, 5, unet.config.cross_attention_dim)
    sample, hidden = (torch.tensor(rng.normal(size=size), dtype=torch.float32) for size in (shape, text))
    return unet, {"sample": sample, "timestep": int(rng.integers(1000)), "encoder_hidden_states": hidden}


def _skips(unet: Any, arguments: dict) -> list[Tensor]:
    """The skips that the decoder gets, in the order in which the encoder made them."""
    found: list[Tensor] = []

    def before(module: nn.Module, args: tuple, kwargs: dict) -> None:
        found[:0] = [skip.clone() for skip in kwargs["res_hidden_states_tuple"]]

    with ExitStack() as stack:
        for name in split_denoiser(unet).entries:
            handle = unet.get_submodule(name).register_forward_pre_hook(before, with_kwargs=True)
            stack.callback(handle.remove)
        unet(**arguments)
    return found


def _hooks(model: nn.Module) -> int:
    return sum(len(table) for module in model.modules() for table in hook_tables(module))


@contextmanager
def _hooks_are_removed(unet: nn.Module, arguments: dict) -> Iterator[list[str]]:
    """Check that the answer calls the UNet once and leaves it as it was; remove what it left."""
    broken: list[str] = []
    calls: list[int] = []
    counter = unet.register_forward_pre_hook(lambda *_: calls.append(1))
    before = {module: tuple(map(dict, hook_tables(module))) for module in unet.modules()}
    count = _hooks(unet)
    try:
        yield broken
    finally:
        left = _hooks(unet) - count
        for module, tables in before.items():
            for now, then in zip(hook_tables(module), tables, strict=True):
                for key in set(now) - set(then):
                    del now[key]
        counter.remove()
    if left:
        broken.append(f"your function left {left} hooks on the UNet: keep each handle and call its remove()")
    if len(calls) != 1:
        broken.append(f"your function called the UNet {len(calls)} times; expected: once, as unet(**arguments)")


def _reversed_skips(unet: Any, arguments: dict) -> list[Tensor]:
    return _skips(unet, arguments)[::-1]


COLLECT_SKIPS = Exercise(
    "collect_skips",
    ("unet", "arguments"),
    _calls,
    _skips,
    {
        "these are the skips in the order in which the decoder takes them; asked for is the encoder's": _reversed_skips,
        "the first skip is missing: conv_in gives one, too": lambda unet, arguments: _skips(unet, arguments)[1:],
    },
    rules=_hooks_are_removed,
)


def _cosines(features: Tensor) -> np.ndarray:
    return similarity_of(recording_of(features), "layer")


def _centred(features: Tensor) -> np.ndarray:
    return np.corrcoef(_flat(features).numpy()) if features[0].numel() > 1 else np.full((len(features),) * 2, np.inf)


STEP_SIMILARITY = Exercise(
    "step_similarity",
    ("features",),
    _features,
    _cosines,
    {
        "these are products; divide each by the lengths of both features": lambda f: _flat(f) @ _flat(f).T,
        "this is the correlation: you subtract each feature's mean, the cosine does not": _centred,
        "this is 1 minus the cosine": lambda f: 1 - _cosines(f),
    },
)

EXERCISES = (RELATIVE_CHANGE, COLLECT_SKIPS, STEP_SIMILARITY)
