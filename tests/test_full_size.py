"""Full-size architectures: their configs have as many weights as is published."""

from __future__ import annotations

import pytest
import torch
from diffusers import ControlNetModel, ControlNetUnionModel
from short_suite import long_but

from fastdiff_lab.comparison.architectures import SD_15, SDXL, controlnet_config
from studies.architectures import ALL, PUBLISHED, UNION

UNITS = {"M": 1e6, "B": 1e9}
# Over what diffusers has beside the original: an embedding of time-step and class in each of 28 blocks, where one would do; the original
# counts its fixed embedding of the places among the parameters.
DIT_COPIES = 27 * ((256 + 1) * 1152 + (1152 + 1) * 1152 + 1001 * 1152) - 256 * 1152
SURPLUS = {"dit-xl-2-256": DIT_COPIES}


def stated(text: str) -> tuple[float, float]:
    """A published number, and how far from it a count may be: a unit of its last digit, since some are cut off and not rounded."""
    number, _, unit = text.partition(" ")
    digits = len(number.partition(".")[2])
    scale = UNITS.get(unit, 1)
    return float(number.replace(",", "")) * scale, scale * 10**-digits if unit else 0


SHORT = ("sd-1.5", "dit-xl-2-256")  # a UNet and a transformer


@pytest.mark.parametrize("name", long_but(SHORT, PUBLISHED))
def test_as_many_weights_as_is_published(name):
    number, tolerance = stated(PUBLISHED[name][0])
    assert abs(ALL[name].parameters - SURPLUS.get(name, 0) - number) <= tolerance


def test_the_weights_of_dit_are_accounted_for_one_by_one():
    """What is left of the surplus without the copies is the embedding of the places, which is a buffer."""
    model = ALL["dit-xl-2-256"].model
    embedding = sum(parameter.numel() for parameter in model.transformer_blocks[0].norm1.emb.parameters())
    assert embedding == 2_777_472 and model.pos_embed.pos_embed.numel() == 294_912
    assert all(name != "pos_embed.pos_embed" for name, _ in model.named_parameters())
    assert len(model.transformer_blocks) == 28 and 675_129_632 + 27 * embedding - 294_912 == ALL["dit-xl-2-256"].parameters


def test_inpainting_has_five_channels_more():
    more = ALL["sd-1.5-inpainting"].parameters - ALL["sd-1.5"].parameters
    assert more == 5 * 320 * 3 * 3


@pytest.mark.parametrize(("config", "number"), [(SD_15, 361_279_120), pytest.param(SDXL, 1_251_014_160, marks=pytest.mark.long)])
def test_controlnets_have_as_many_weights_as_others_count(config, number):
    with torch.device("meta"):
        model = ControlNetModel(**controlnet_config(config))
    assert sum(parameter.numel() for parameter in model.parameters()) == number


@pytest.mark.long
def test_controlnet_union_is_a_controlnet_with_what_joins_its_images():
    """Its config is in part diffusers' default: what is known is that all blocks are the ControlNet's."""
    with torch.device("meta"):
        union, plain = ControlNetUnionModel(**UNION), ControlNetModel(**controlnet_config(SDXL))
    sizes = [{name: p.shape for name, p in model.named_parameters()} for model in (union, plain)]
    assert sizes[1].items() <= sizes[0].items()
    beside = {name.split(".")[0] for name in sizes[0].keys() - sizes[1].keys()}
    assert beside == {"task_embedding", "transformer_layes", "spatial_ch_projs", "control_add_embedding"}
    assert ALL["sdxl with ControlNetUnion"].beside() > ALL["sdxl with ControlNet"].beside()


@pytest.mark.parametrize("name", long_but(("ddpm-cifar10",), ("sd-1.5", "if-1", "ddpm-cifar10", "dit-xl-2-256")))
def test_no_operation_is_lost_between_the_halves(name):
    count = ALL[name].count
    assert 0 <= count.rest < 0.005 * count.total
