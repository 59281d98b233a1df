"""Which layers are recorded, and in which order.

- `chosen_layers(layers, known)`: names from a list, a pattern or a function
- `default_layers(split, layers)`: what "inner" and None stand for
- `in_order_of_calls(split, names)`: names in the order of the host's calls
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable, Sequence

from ..hooks.denoiser import Split, inner_layers
from .recording import unknown_layer

Layers = Sequence[str] | str | Callable[[str], bool]


def chosen_layers(layers: Layers, known: Sequence[str]) -> tuple[str, ...]:
    """The names among `known` that are asked for, in the order of `known`.

    >>> chosen_layers("down_blocks.*.resnets.0", names)  # doctest: +SKIP

    `layers`: a list of names; a pattern as for file names (`*` stands for anything), or a name; or a function of a name. Raises
    KeyError for a name or a pattern that fits no layer.
    """
    if isinstance(layers, str):
        found = tuple(fnmatch.filter(known, layers))
    elif callable(layers):
        found = tuple(filter(layers, known))
    else:
        unknown = next((name for name in layers if name not in known), None)
        if unknown is not None:
            raise KeyError(unknown_layer(str(unknown), known))
        return tuple(name for name in known if name in set(layers))
    if not found:
        raise KeyError(
            unknown_layer(layers, known)
            if isinstance(layers, str)
            else f"the function chose none of {len(known)} layers; accepted: one that is true for some, as {known[0]!r}"
        )
    return found


def default_layers(split: Split, layers: Layers | None) -> Layers:
    """All layers inside the blocks for "inner", the blocks for None; anything else as it is.

    >>> default_layers(split_denoiser(pipe.unet), None)[0]  # doctest: +SKIP
    'conv_in'
    """
    if layers is None:
        return list(split.blocks)
    return list(inner_layers(split)) if isinstance(layers, str) and layers == "inner" else layers


def in_order_of_calls(split: Split, names: Iterable[str]) -> list[str]:
    """The host's own order of calls where it is known: what is plotted then runs from input to output.

    >>> in_order_of_calls(split_denoiser(pipe.unet), ["up_blocks.0", "conv_in"])  # doctest: +SKIP
    ['conv_in', 'up_blocks.0']
    """
    blocks, inner = list(split.blocks), inner_layers(split)
    return sorted(names, key=lambda name: (_place(name, blocks), _place(name, inner)))


def _place(name: str, among: Sequence[str]) -> int:
    """The place of the module that a layer is, or is inside of; the last where there is none."""
    return next((place for place, outer in enumerate(among) if name == outer or name.startswith(f"{outer}.")), len(among))
