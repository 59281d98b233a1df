"""NaN and infinite values are told, and never counted as identical or as costs: on every device, by one look per run."""

from __future__ import annotations

import pytest
import torch
from short_suite import long_but
from systems import ROWS
from torch.overrides import TorchFunctionMode

import fastdiff_lab as fl
from fastdiff_lab import KeySchedule
from fastdiff_lab.sampling.methods import Method

pytestmark = pytest.mark.filterwarnings("ignore:invalid value encountered in cast:RuntimeWarning")  # of an image of NaN
PROMPTS, RUN = ["a red circle", "a white ring"], {"num_inference_steps": 6, "pipe_kwargs": {"height": 32, "width": 24}}


@pytest.fixture
def as_on_a_device(monkeypatch):
    """There, no step looks at its latents, and some runs do not come to their end."""
    monkeypatch.setattr("fastdiff_lab.propagation.deferred.Later.check_finite", lambda *_: None)


class LargeBatchesFail(TorchFunctionMode):
    """A kernel that gives NaN for more rows than `most`, as where several steps are decoded at once."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most = most

    def __torch_function__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        return output * float("nan") if func is torch.nn.functional.group_norm and len(output) > self.most else output


def spoilt(weight: torch.nn.Parameter, value: float) -> None:
    weight.data[0] = value


@pytest.mark.parametrize("value", long_but(("nan",), ("nan", "inf")))
def test_compare_does_not_call_nan_identical(as_on_a_device, value):
    pipe = ROWS["sd"].build()
    spoilt(pipe.unet.conv_out.bias, float(value))
    with pytest.raises(ValueError, match=r"final latents of 2 of 2 images hold NaN or infinite values \(method baseline"):
        fl.compare(pipe, {}, PROMPTS, repeats=0, **RUN)


def test_the_method_that_went_astray_is_named(as_on_a_device):
    pipe, keys = ROWS["sd"].build(), Method(KeySchedule(6, [0, 2]))
    with (
        LargeBatchesFail(2),
        pytest.raises(ValueError, match=r"method schedule=0,2 of 6; the first: prompt 'a red circle', seed 0"),
    ):
        fl.compare(pipe, {"keys": keys}, PROMPTS[:1], repeats=0, rivals=False, **RUN)


def test_compare_does_not_call_black_images_identical():
    pipe = ROWS["sd"].build()
    spoilt(pipe.vae.post_quant_conv.bias, float("nan"))
    with pytest.raises(ValueError, match=r"the autoencoder AutoencoderKL gave NaN or infinite values \(method baseline\)"):
        fl.compare(pipe, {}, PROMPTS, repeats=0, **RUN)
    assert "decode" not in vars(pipe.vae)


@pytest.mark.parametrize("measure", long_but(("calibrate",), ("calibrate", "refine")))
def test_calibration_does_not_go_on_with_nan(as_on_a_device, measure):
    pipe = ROWS["sd"].build()
    words = "the latents at step . hold NaN or infinite values, so nothing can be measured on them"
    with LargeBatchesFail(4), pytest.raises(ValueError, match=words):
        if measure == "calibrate":
            fl.calibrate(pipe, PROMPTS, max_span=3, **RUN)
        else:
            fl.refine_schedule(pipe, KeySchedule(6, [0, 2]), PROMPTS, runs=2, **RUN)
