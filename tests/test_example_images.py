"""The README's images: each column is its method, and the fitted one stands beside what it corrects."""

import numpy as np
import torch

import fastdiff_lab as fl
from studies.example_images import columns

PROMPTS, SEEDS, RUN = ["a red star on a blue background"], [3], {"num_inference_steps": 20, "guidance_scale": 5.0}


def test_each_column_is_its_method():
    pipe, derived = fl.load_pipeline(), fl.KeySchedule(20, (0, 1, 4, 10))
    fit = fl.fit_propagation(pipe, derived, PROMPTS, **RUN)
    images = columns(pipe, fit, PROMPTS, SEEDS, **RUN)
    assert list(images) == ["baseline", "the paper's keys", "uniform 4", "derived 4", "derived 4, fitted", "4 steps"]
    with fl.encoder_propagation(pipe, derived, fit=fit):
        fitted = pipe(PROMPTS, generator=torch.Generator().manual_seed(SEEDS[0]), **RUN).images
    assert np.array_equal(images["derived 4, fitted"][0], fitted[0])
    shown = {np.asarray(of_method[0]).tobytes() for of_method in images.values()}
    assert len(shown) == len(images)
