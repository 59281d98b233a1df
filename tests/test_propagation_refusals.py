"""What encoder propagation refuses: options, pipelines, compiled models, and what mixes or hides rows."""

from __future__ import annotations

import pytest
import torch
from laws import KEYS
from models import conditions, denoiser_pipe, loop, pipeline, run, unet

import fastdiff_lab as fl
from fastdiff_lab import KeySchedule


@pytest.mark.filterwarnings("ignore:the encoder_propagation block accelerated nothing")
def test_two_accelerations_nested():
    pipe = pipeline()
    with fl.encoder_propagation(pipe, KEYS), pytest.raises(RuntimeError, match="accelerated already"):
        with fl.encoder_propagation(pipe, KEYS):
            pass
    with fl.encoder_propagation(pipe, KEYS):
        run(pipe)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"order": 3}, "`order` must be an int from 0 to 2, got 3"),
        ({"max_rows": 0}, "`max_rows` must be a positive int or None, got 0"),
        ({"max_rows": 4, "parallel_decoding": False}, "leave one of them out"),
        ({"max_rows": 4, "reuse": "prediction"}, "leave one of them out"),
        ({"reuse": "unet"}, "`reuse` must be one of encoder, decoder, prediction, got 'unet'"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(ValueError, match=message), fl.encoder_propagation(pipeline(), KEYS, **options):
        pass


def test_a_cap_below_one_step():
    pipe = pipeline()
    with pytest.raises(ValueError, match="max_rows=3 asked, but one step of this run has 4 rows"):
        with fl.encoder_propagation(pipe, KEYS, max_rows=3):
            run(pipe)


def test_no_schedule():
    with pytest.raises(TypeError, match="accepted: a KeySchedule"), fl.encoder_propagation(pipeline(), [0, 1]):
        pass


def test_a_pipeline_without_a_denoiser():
    with (
        pytest.raises(TypeError, match="object has no 'unet' and no 'transformer' .its components: none"),
        fl.encoder_propagation(object(), KEYS),
    ):
        pass


def test_a_denoiser_of_another_class():
    pipe = pipeline()
    pipe.unet = torch.nn.Linear(1, 1)
    with (
        pytest.raises(TypeError, match="cannot split a Linear; accepted: UNet2DConditionModel, UNet2DModel"),
        fl.encoder_propagation(pipe, KEYS),
    ):
        pass


@pytest.mark.parametrize("how", ["wrapped", "in place"])
def test_a_model_compiled_as_a_whole(how):
    pipe = pipeline()
    if how == "wrapped":
        pipe.unet = torch.compile(pipe.unet)
    else:
        pipe.unet.compile()
    with pytest.raises(TypeError, match="compiled as a whole.*compile_repeated_blocks"), fl.encoder_propagation(pipe, KEYS):
        pass


def test_compiled_blocks_are_called_compiled():
    pipe = denoiser_pipe()
    expected = loop(denoiser_pipe(), 5, conditions())
    calls = []
    block = pipe.unet.down_blocks[0]
    # What nn.Module.compile does, with a "compiler" that counts.
    block._compiled_call_impl = lambda *args, **kwargs: (calls.append(1), block._call_impl(*args, **kwargs))[1]
    with fl.encoder_propagation(pipe, KeySchedule(5, range(5))):
        assert torch.equal(loop(pipe, 5, conditions()), expected)
    assert len(calls) == 5 and block._compiled_call_impl is not None


def test_attention_that_mixes_rows():
    class PAGIdentitySelfAttnProcessor2_0:
        def __call__(self, attn, hidden_states, *args, **kwargs):
            return hidden_states

    pipe = pipeline()
    pipe.unet.set_attn_processor(PAGIdentitySelfAttnProcessor2_0())
    with pytest.raises(ValueError, match="PAGIdentity.*mixes the rows"), fl.encoder_propagation(pipe, KEYS):
        pass
    with fl.encoder_propagation(pipe, KEYS, parallel_decoding=False):
        run(pipe)


def test_attention_that_mixes_rows_and_comes_with_the_call():
    class CrossFrameAttnProcessor2_0:
        def __call__(self, attn, hidden_states, *args, **kwargs):
            return hidden_states

    pipe = pipeline()
    with pytest.raises(ValueError, match="CrossFrameAttnProcessor2_0 mixes the rows"), fl.encoder_propagation(pipe, KEYS):
        pipe.unet.set_attn_processor(CrossFrameAttnProcessor2_0())
        run(pipe)


def test_an_argument_that_nobody_knows_how_to_repeat():
    pipe = denoiser_pipe()
    given = conditions() | {"cross_attention_kwargs": {"strange": torch.zeros(7, 3)}}
    with pytest.raises(TypeError, match=r"'strange' has a tensor of shape \(7, 3\) for 2 rows"):
        with fl.encoder_propagation(pipe, KEYS):
            loop(pipe, 10, given)


def test_an_argument_of_a_class_of_ones_own():
    class Styled(type(unet())):
        def forward(self, sample, timestep, encoder_hidden_states, style=None):
            return super().forward(sample, timestep, encoder_hidden_states)

    pipe = denoiser_pipe()
    pipe.unet.__class__ = Styled
    given = conditions() | {"style": torch.zeros(2, 3)}
    with pytest.raises(TypeError, match="argument 'style' is not known to parallel decoding; use parallel_decoding=False"):
        with fl.encoder_propagation(pipe, KEYS):
            loop(pipe, 10, given)
    with fl.encoder_propagation(pipe, KEYS, parallel_decoding=False) as counts:
        loop(pipe, 10, given)
    assert counts.encoder_calls == 4
