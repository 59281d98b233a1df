"""In no tiny model are two sizes equal by chance (of the systems: test_systems.py)."""

from __future__ import annotations

import pytest
from models import FAMILIES, conditions, denoiser_pipe, loop
from sizes import SQUARE, equal_by_chance, sizes_of

from fastdiff_lab.hooks.denoiser import denoiser_of
from fastdiff_lab.sampling.methods import first_arguments


@pytest.mark.parametrize("name", FAMILIES)
def test_no_two_sizes_of_a_tiny_model_are_equal(name):
    pipe = denoiser_pipe(name)
    model = denoiser_of(pipe)
    sizes = sizes_of(model, first_arguments(model, lambda: loop(pipe, 2, conditions(name))))
    assert not list(equal_by_chance(sizes, name in SQUARE)), sizes


def test_equal_sizes_are_found():
    sizes = {"rows": {2}, "height": {8, 4}, "width": {8, 4}, "channels": {4}}
    assert list(equal_by_chance(sizes)) == [
        "height and width are 4", "height and width are 8", "height and channels are 4", "width and channels are 4"
    ]  # fmt: skip
    assert list(equal_by_chance(sizes, is_square=True)) == ["height and channels are 4", "width and channels are 4"]
