"""The sizes of everything in one call of a denoiser, to see that no two are equal by chance.

Where two sizes are equal, code that takes the one for the other passes every test, and fails at real sizes. So every tiny model has
sizes of its own for rows, channels, sides, tokens, text, frames, heads and widths.
"""

from __future__ import annotations

import inspect
import itertools
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

from diffusers import UNet1DModel
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from fastdiff_lab.hooks.denoiser import split_denoiser
from fastdiff_lab.hooks.denoiser_classes import frames_of, sample_argument

# Four levels halve a side to 1 or 2 at last; there are too few small numbers for that.
LEAST_SIDE = 5
# These hosts know squares only: the transformers of DiT, and pipelines that read one number from `sample_size`.
SQUARE = ("dit", "dit-unguided", "ldm", "consistency")


def sizes_of(model: nn.Module, arguments: Mapping[str, Any]) -> dict[str, set[int]]:
    """What a size is -> the sizes in this call: of the sample, of the text, of each block's output, and of each attention."""
    found: dict[str, set[int]] = defaultdict(set)
    blocks = list(split_denoiser(model).blocks.values())
    hooks = [
        block.register_forward_hook(lambda module, args, output: _of_feature(model, _first(output), found)) for block in blocks
    ]
    try:
        rest = _required(model) | {name: value for name, value in arguments.items() if name != sample_argument(model)}
        output = model(arguments[sample_argument(model)], **rest)[0]  # token merging looks at what comes by position
    finally:
        for hook in hooks:
            hook.remove()
    _of_sample(model, arguments[sample_argument(model)], output, found)
    for name in ("encoder_hidden_states", "encoder_hidden_states_1"):
        _of_text(arguments.get(name), found)
    for module in itertools.chain.from_iterable(block.modules() for block in blocks):
        if isinstance(module, Attention):
            found["heads"].add(module.heads)
            found["width of a head"].add(module.to_q.out_features // module.heads)
    return {name: sizes - {1} for name, sizes in found.items()}


def _required(model: nn.Module) -> dict[str, None]:
    """Arguments that must be given; a pipeline may give None for one, as Kandinsky 2.2 for the text."""
    parameters = list(inspect.signature(type(model).forward).parameters.values())[2:]
    return {
        parameter.name: None
        for parameter in parameters
        if parameter.default is parameter.empty and parameter.kind.name == "POSITIONAL_OR_KEYWORD"
    }


def _first(output: Any) -> Tensor:
    return output if isinstance(output, Tensor) else output[0]


def _of_feature(model: nn.Module, feature: Tensor, found: dict[str, set[int]]) -> None:
    if isinstance(model, UNet1DModel):  # its last up block gives the prediction's channels
        found["width of the features"] |= {feature.shape[1]} - {model.config.out_channels}
        found["width"].add(feature.shape[2])
    elif feature.dim() == 3:
        found["tokens of the image"].add(feature.shape[1])
        found["width of the features"].add(feature.shape[2])
    else:
        found["width of the features"].add(feature.shape[1])
        found["height"] |= {side for side in feature.shape[-2:-1] if side >= LEAST_SIDE}
        found["width"] |= {side for side in feature.shape[-1:] if side >= LEAST_SIDE}


def _of_sample(model: nn.Module, sample: Tensor, output: Tensor, found: dict[str, set[int]]) -> None:
    frames = frames_of(model, sample)
    found["rows"] |= {len(sample)}
    found["frames"] |= {frames}
    found["rows and frames"] |= {len(sample) * frames} if frames > 1 else set()
    axis = 2 if frames > 1 and sample.shape[1] == frames else 1
    found["channels"] |= {sample.shape[axis], output.shape[axis]}
    found["height"] |= {sample.shape[-2]} if sample.dim() > 3 else set()
    found["width"].add(sample.shape[-1])


def _of_text(text: Any, found: dict[str, set[int]]) -> None:
    if isinstance(text, Tensor):
        found["tokens"].add(text.shape[1])
        found["width of the text"].add(text.shape[2])


def equal_by_chance(sizes: Mapping[str, set[int]], is_square: bool = False) -> Iterator[str]:
    """In words, every pair of sizes that are equal."""
    for (one, its), (other, theirs) in itertools.combinations(sizes.items(), 2):
        if not (is_square and {one, other} == {"height", "width"}):
            yield from (f"{one} and {other} are {size}" for size in sorted(its & theirs))
