"""The classes of denoisers that can be split, in one table.

- `register_denoiser(cls, encoder=, decoder=, ...)`: adds a class
- `DenoiserClass`: what the table says of one
- `class_of(model)`: the entry of a model's class, or of the nearest class that it derives from
- `sample_argument`, `frames_of`, `conditions_of`, `has_null_class`: what the arguments of its forward mean
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass

from diffusers import (
    AudioLDM2UNet2DConditionModel,
    DiTTransformer2DModel,
    I2VGenXLUNet,
    PixArtTransformer2DModel,
    UNet1DModel,
    UNet2DConditionModel,
    UNet2DModel,
    UNet3DConditionModel,
    UNetMotionModel,
    UNetSpatioTemporalConditionModel,
)
from torch import Tensor, nn

# Arguments of which each row belongs to a row of the sample: repeated for every step that is decoded in one batch.
CONDITIONS = (
    "encoder_hidden_states",
    "encoder_hidden_states_1",
    "class_labels",
    "timestep_cond",
    "attention_mask",
    "cross_attention_kwargs",
    "added_cond_kwargs",
    "added_time_ids",
    "encoder_attention_mask",
    "encoder_attention_mask_1",
    "fps",
    "image_latents",
    "image_embeddings",
)
# What ControlNet and T2I-Adapter add to the encoder's features: part of what is reused, so never repeated.
REUSED_RESIDUALS = (
    "down_block_additional_residuals",
    "mid_block_additional_residual",
    "down_intrablock_additional_residuals",
)


@dataclass(frozen=True)
class DenoiserClass:
    """What is known of a class of denoisers; the arguments of `register_denoiser`."""

    cls: type[nn.Module]
    encoder: tuple[str, ...]
    decoder: tuple[str, ...]
    entries: tuple[str, ...]
    passing: tuple[str, ...]
    blocks: str | None
    sample: str
    frames_axis: int | None
    conditions: tuple[str, ...]
    null_class: bool


_CLASSES: dict[type, DenoiserClass] = {}


def register_denoiser(
    cls: type[nn.Module],
    *,
    encoder: Sequence[str],
    decoder: Sequence[str],
    entries: Sequence[str] = (),
    passing: Sequence[str] = (),
    blocks: str | None = None,
    sample: str = "sample",
    frames_axis: int | None = None,
    conditions: Sequence[str] = (),
    null_class: bool = False,
) -> None:
    """Says how a class of denoisers is split into encoder and decoder (Faster Diffusion, section 3.1); classes derived from it, too.

    >>> fl.register_denoiser(MyUNet, encoder=["conv_in", "down_blocks", "mid_block"], decoder=["up_blocks", "conv_out"])  # doctest: +SKIP

    A name is that of a child, as in `named_modules()`, in the order in which the forward calls them. The name of a `ModuleList` stands
    for its entries. One that ends in "?" may be missing from a model of this class, or None.

    Args:
        cls: A class of modules whose forward takes a time-step called `timestep`.
        encoder: The children whose outputs are reused between key steps.
        decoder: The children that run at every step.
        entries: Those of `decoder` that get the encoder's features, as `hidden_states` and `res_hidden_states_tuple` or as their
            first positional arguments; by default the first name of `decoder`.
        passing: Those of `encoder` whose output has the shape of their input and goes to the next one only: it need not be reused.
        blocks: For a transformer, the list of blocks whose first part is the encoder's, and the rest the decoder's.
        sample: The argument of the forward that carries the sample.
        frames_axis: The axis of the sample that counts frames, where each frame is a row inside the model.
        conditions: Arguments of the forward with an entry for each row of the sample, beside those of diffusers' own classes.
        null_class: Under guidance the first half of the rows has the class labels, the second the null class. So it is in DiT.

    Raises:
        TypeError: For what is no class of modules, or a text in the place of a list of names.
        ValueError: A class that is registered already. Names that do not fit together, or that the forward does not have.
    """
    names = {"encoder": encoder, "decoder": decoder, "entries": entries, "passing": passing, "conditions": conditions}
    lists = {name: _names(name, given) for name, given in names.items()}
    lists["entries"] = lists["entries"] or (() if blocks else lists["decoder"][:1])
    found = DenoiserClass(cls, **lists, blocks=blocks, sample=sample, frames_axis=frames_axis, null_class=null_class)
    _check_class(cls)
    _check_children(found)
    _check_arguments(found)
    _CLASSES[cls] = found


def _names(name: str, given: Sequence[str]) -> tuple[str, ...]:
    if isinstance(given, str) or not all(isinstance(one, str) for one in given):
        raise TypeError(f"{name}={given!r} given; accepted: a list of names")
    return tuple(given)


def _check_class(cls: object) -> None:
    if not isinstance(cls, type) or not issubclass(cls, nn.Module):
        raise TypeError(f"register_denoiser got {cls!r}; accepted: a class derived from torch.nn.Module")
    if cls in _CLASSES:
        raise ValueError(f"{cls.__name__} is registered already; accepted: a class that is not, such as one derived from it")


def _check_children(found: DenoiserClass) -> None:
    name = found.cls.__name__
    if not (found.encoder and (found.decoder or found.blocks)):
        raise ValueError(f"{name} registered without encoder or decoder; accepted: one child or more in each")
    children = [child.removesuffix("?") for child in (*found.encoder, *found.decoder, found.blocks or "")]
    twice = next((child for child in children if children.count(child) > 1), None)
    if twice is not None:
        raise ValueError(f"child {twice!r} of {name} stands twice; accepted: each child once, in encoder or decoder")
    for part, inside, of in (("entries", found.entries, found.decoder), ("passing", found.passing, found.encoder)):
        other = next((child for child in inside if child not in of), None)
        if other is not None:
            raise ValueError(f"{other!r} of {name} stands in {part}; accepted: {', '.join(of)}")


def _check_arguments(found: DenoiserClass) -> None:
    parameters = inspect.signature(found.cls.forward).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return
    missing = next((name for name in (found.sample, "timestep", *found.conditions) if name not in parameters), None)
    if missing is not None:
        raise ValueError(
            f"the forward of {found.cls.__name__} has no argument {missing!r}; accepted: {', '.join(list(parameters)[1:]) or 'none'}"
        )


def class_of(model: object) -> DenoiserClass | None:
    """What is known of a model's class, or of the nearest class that it derives from; None for others."""
    return next((_CLASSES[base] for base in type(model).__mro__ if base in _CLASSES), None)


def accepted() -> str:
    """The classes that can be split, for messages."""
    return ", ".join(cls.__name__ for cls in _CLASSES)


def sample_argument(model: nn.Module) -> str:
    """The name of the argument of the denoiser's forward that carries the sample."""
    found = class_of(model)
    return "sample" if found is None else found.sample


def frames_of(model: nn.Module, sample: Tensor) -> int:
    """How many rows of the features belong to one row of the sample: its frames in video models, else 1."""
    found = class_of(model)
    return 1 if found is None or found.frames_axis is None else sample.shape[found.frames_axis]


def conditions_of(model: nn.Module) -> tuple[str, ...]:
    """The arguments of the denoiser's forward of which each row belongs to a row of the sample."""
    found = class_of(model)
    return CONDITIONS if found is None else CONDITIONS + found.conditions


def has_null_class(model: nn.Module) -> bool:
    """Under guidance, do the rows of the class labels come first, and then those of the null class?"""
    found = class_of(model)
    return found is not None and found.null_class


_FRAMES = {UNet3DConditionModel: 2, UNetMotionModel: 2, UNetSpatioTemporalConditionModel: 1, I2VGenXLUNet: 2}
for _unet in (
    UNet2DConditionModel,
    UNet2DModel,
    UNet3DConditionModel,
    UNetMotionModel,
    UNetSpatioTemporalConditionModel,
    I2VGenXLUNet,
    AudioLDM2UNet2DConditionModel,
    UNet1DModel,
):
    register_denoiser(
        _unet,
        encoder=("conv_in?", "transformer_in?", "down_blocks", "mid_block?"),
        decoder=("up_blocks", "conv_norm_out?", "conv_act?", "conv_out?", "out_block?"),
        frames_axis=_FRAMES.get(_unet),
    )
# Transformers that are a row of blocks between `pos_embed` and their output layers: those that have a forward of their own, by name.
for _transformer, _outputs in {DiTTransformer2DModel: ("norm_out",), PixArtTransformer2DModel: ("norm_out", "proj_out")}.items():
    register_denoiser(
        _transformer,
        encoder=("pos_embed",),
        decoder=_outputs,
        blocks="transformer_blocks",
        sample="hidden_states",
        null_class=_transformer is DiTTransformer2DModel,
    )
