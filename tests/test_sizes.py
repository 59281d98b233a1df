"""In no tiny model are two sizes equal by chance: code that takes one for the other must fail here, not at real sizes only."""

from __future__ import annotations

import pytest
import torch
from models import FAMILIES, conditions, denoiser_pipe, loop
from sizes import SQUARE, equal_by_chance, sizes_of
from systems import SYSTEMS

from fastdiff_lab.hooks.denoiser import denoiser_of
from fastdiff_lab.sampling.methods import first_arguments

ROWS = {system.name: system for system in SYSTEMS}
pytestmark = [pytest.mark.filterwarnings(f"ignore:{what}:UserWarning") for what in ("Default grid_sample", "torch.meshgrid")]


@pytest.mark.parametrize("name", FAMILIES)
def test_no_two_sizes_of_a_tiny_model_are_equal(name):
    pipe = denoiser_pipe(name)
    model = denoiser_of(pipe)
    sizes = sizes_of(model, first_arguments(model, lambda: loop(pipe, 2, conditions(name))))
    assert not list(equal_by_chance(sizes, name in SQUARE)), sizes


@pytest.mark.parametrize("name", ROWS)
def test_no_two_sizes_of_a_tiny_system_are_equal(name):
    pipe = ROWS[name].build()
    model = denoiser_of(pipe)
    call = dict(ROWS[name].call)
    sizes = sizes_of(model, first_arguments(model, lambda: pipe(**call, generator=torch.Generator().manual_seed(3))))
    assert not list(equal_by_chance(sizes, name in SQUARE)), sizes


def test_equal_sizes_are_found():
    sizes = {"rows": {2}, "height": {8, 4}, "width": {8, 4}, "channels": {4}}
    assert list(equal_by_chance(sizes)) == [
        "height and width are 4", "height and width are 8", "height and channels are 4", "width and channels are 4"
    ]  # fmt: skip
    assert list(equal_by_chance(sizes, is_square=True)) == ["height and channels are 4", "width and channels are 4"]
