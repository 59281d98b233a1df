"""`register_denoiser`: a class of one's own, split without an edit of the package, passes the laws."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from diffusers import DiTTransformer2DModel, UNet2DConditionModel
from models import scheduler
from torch import Tensor, nn

import fastdiff_lab as fl
from fastdiff_lab import KeySchedule
from fastdiff_lab.hooks.denoiser import split_denoiser
from fastdiff_lab.hooks.denoiser_classes import class_of, sample_argument
from fastdiff_lab.hooks.denoiser_output import sample_of

KEYS = KeySchedule(6, [0, 1, 3])
ROWS, CHANNELS, WIDTH, SIDES = 2, 3, 10, (8, 12)


class Down(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, hidden_states: Tensor, embedding: Tensor) -> tuple[Tensor, Tensor]:
        skip = torch.tanh(self.conv(hidden_states) + embedding[..., None, None])
        return nn.functional.avg_pool2d(skip, 2), skip


class Up(Down):
    def forward(self, hidden_states: Tensor, res_hidden_states_tuple: tuple[Tensor, ...], embedding: Tensor) -> Tensor:
        wide = nn.functional.interpolate(hidden_states, scale_factor=2) + res_hidden_states_tuple[0]
        return torch.tanh(self.conv(wide) + embedding[..., None, None])


class OwnUNet(nn.Module):
    """Names, arguments and output of its own: the prediction is a plain tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.read = nn.Conv2d(CHANNELS, WIDTH, 1)
        self.time, self.of_style = nn.Linear(1, WIDTH), nn.Linear(5, WIDTH)
        self.shrink, self.grow = nn.ModuleList([Down(WIDTH), Down(WIDTH)]), nn.ModuleList([Up(WIDTH), Up(WIDTH)])
        self.middle = nn.Conv2d(WIDTH, WIDTH, 3, padding=1)
        self.write = nn.Conv2d(WIDTH, CHANNELS, 1)

    def embedding(self, timestep: Tensor, style: Tensor) -> Tensor:
        return torch.tanh(self.time(timestep.expand(len(style))[:, None].to(style.dtype) / 300) + self.of_style(style))

    def forward(self, latents: Tensor, timestep: Tensor, style: Tensor) -> Tensor:
        embedding = self.embedding(timestep, style)
        hidden, skips = self.read(latents), []
        for block in self.shrink:
            hidden, skip = block(hidden, embedding)
            skips.append(skip)
        return self.decoded(self.middle(hidden), skips, embedding)

    def decoded(self, hidden: Tensor, skips: list[Tensor], embedding: Tensor) -> Tensor:
        for block in self.grow:
            hidden = block(hidden, (skips.pop(),), embedding)
        return self.write(hidden)


PARTS = {"encoder": ["read", "shrink", "middle"], "decoder": ["grow", "write"]}
fl.register_denoiser(OwnUNet, **PARTS, sample="latents", conditions=["style"])


@pytest.fixture(scope="module")
def pipe():
    torch.manual_seed(0)
    return SimpleNamespace(unet=OwnUNet().double().requires_grad_(False), scheduler=scheduler())


def style(step: int = 0) -> Tensor:
    return torch.randn((ROWS, 5), generator=torch.Generator().manual_seed(4), dtype=torch.float64)


def sampled(pipe, steps: int = 6, predict=None, style=style) -> Tensor:
    sample = torch.randn((ROWS, CHANNELS, *SIDES), generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    pipe.scheduler.set_timesteps(steps)
    for step, timestep in enumerate(pipe.scheduler.timesteps):
        sample = pipe.scheduler.step((predict or pipe.unet)(sample, timestep, style(step)), timestep, sample).prev_sample
    return sample


def distance(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())


def test_every_step_a_key_is_the_baseline_denoiser(pipe):
    baseline = sampled(pipe)
    with fl.encoder_propagation(pipe, KeySchedule(6, range(6))) as counts:
        assert torch.equal(sampled(pipe), baseline)
    assert counts.encoder_calls == counts.decoder_calls == 6


def split_by_hand(model: OwnUNet, keys: tuple[int, ...]):
    """Reused features at the steps between keys, each with its own time and style."""
    times, reused = [], {}

    def predict(sample: Tensor, timestep: Tensor, style: Tensor) -> Tensor:
        embedding = model.embedding(timestep, style)
        if len(times) in keys:
            hidden, reused["skips"] = model.read(sample), []
            for block in model.shrink:
                hidden, skip = block(hidden, embedding)
                reused["skips"].append(skip)
            reused["middle"] = model.middle(hidden)
        times.append(timestep)
        return model.decoded(reused["middle"], list(reused["skips"]), embedding)

    return predict


def test_serial_is_parallel_is_the_split_by_hand(pipe):
    baseline, by_hand = sampled(pipe), sampled(pipe, predict=split_by_hand(pipe.unet, KEYS.keys))
    assert distance(by_hand, baseline) > 1e-4
    # Its classes are none of diffusers': in each run two steps are decoded alone, too.
    for options, forwards, more in (({"parallel_decoding": False}, 6, 0), ({}, 3, 2), ({"max_rows": 4}, 4, 2)):
        with fl.encoder_propagation(pipe, KEYS, **options) as counts:
            assert distance(sampled(pipe), by_hand) < 1e-10
        assert (counts.encoder_calls, counts.decoder_calls, counts.forward_calls) == (3, 6 + more, forwards + more)


def test_serial_is_parallel_with_extrapolated_features(pipe):
    found = []
    for parallel in (True, False):
        with fl.encoder_propagation(pipe, KEYS, order=1, parallel_decoding=parallel):
            found.append(sampled(pipe))
    assert distance(*found) < 1e-10 and distance(found[0], sampled(pipe)) > 1e-4


@pytest.mark.parametrize("reuse", ["decoder", "prediction"])
def test_its_decoder_and_its_prediction_can_be_held(pipe, reuse):
    with fl.encoder_propagation(pipe, KEYS, reuse=reuse) as counts:
        reused = sampled(pipe)
    with fl.encoder_propagation(pipe, KEYS, reuse="prediction"):
        assert distance(reused, sampled(pipe)) < 1e-10
    assert counts.steps == 6 and counts.forward_calls == (6 if reuse == "decoder" else 3)


def test_what_was_registered_as_a_condition_is_compared(pipe):
    with pytest.raises(ValueError, match="step 4 .*its style is another"), fl.encoder_propagation(pipe, KEYS):
        sampled(pipe, style=lambda step: style() + (step >= 4))


def test_it_can_be_recorded(pipe):
    with fl.record(pipe, half="all") as recording:
        sampled(pipe)
    assert recording.layers == ("read", "shrink.0", "shrink.1", "middle", "grow.0", "grow.1")


def test_a_derived_class_is_split_as_its_base_is_unless_it_is_registered_itself():
    class Derived(OwnUNet):
        pass

    class Other(OwnUNet):
        pass

    fl.register_denoiser(Other, encoder=["read", "shrink"], decoder=["grow", "middle?", "write", "gone?"], sample="latents")
    assert list(split_denoiser(Derived()).encoder) == ["read", "shrink.0", "shrink.1", "middle"]
    split = split_denoiser(Other())
    assert list(split.decoder) == ["grow.0", "grow.1", "middle", "write"] and split.entries == ("grow.0", "grow.1")


def test_diffusers_own_classes_stand_in_the_same_table():
    assert class_of(object()) is None and sample_argument(nn.Linear(1, 1)) == "sample"
    for cls, sample in ((UNet2DConditionModel, "sample"), (DiTTransformer2DModel, "hidden_states")):
        with pytest.raises(ValueError, match=f"{cls.__name__} is registered already; accepted: a class that is not"):
            fl.register_denoiser(cls, **PARTS, sample=sample)


class Unsuitable(nn.Module):
    def forward(self, sample: Tensor, when: Tensor) -> Tensor:
        return sample


class Another(OwnUNet):
    pass


@pytest.mark.parametrize(
    ("cls", "options", "error", "message"),
    [
        (OwnUNet, {}, ValueError, "OwnUNet is registered already"),
        (Another(), {}, TypeError, "accepted: a class derived from torch.nn.Module"),
        (dict, {}, TypeError, "<class 'dict'>; accepted: a class derived from torch.nn.Module"),
        (Another, {"encoder": "read"}, TypeError, "encoder='read' given; accepted: a list of names"),
        (Another, {"encoder": []}, ValueError, "Another registered without encoder or decoder; accepted: one child or more in each"),
        (Another, {"decoder": ["grow", "read"]}, ValueError, "child 'read' of Another stands twice; accepted: each child once"),
        (Another, {"entries": ["middle"]}, ValueError, "'middle' of Another stands in entries; accepted: grow, write"),
        (Another, {"passing": ["grow"]}, ValueError, "'grow' of Another stands in passing; accepted: read, shrink, middle"),
        (Another, {"sample": "sample"}, ValueError, "no argument 'sample'; accepted: latents, timestep, style"),
        (Another, {"conditions": ["text"]}, ValueError, "the forward of Another has no argument 'text'; accepted: latents, timestep"),
        (Unsuitable, {"sample": "sample"}, ValueError, "the forward of Unsuitable has no argument 'timestep'; accepted: sample, when"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(cls, options, error, message):
    before = class_of(cls() if cls is Unsuitable else Another())
    with pytest.raises(error, match=message):
        fl.register_denoiser(cls, **PARTS | {"sample": "latents"} | options)
    assert class_of(cls() if cls is Unsuitable else Another()) is before


def test_a_child_that_is_not_there():
    class Lacking(OwnUNet):
        def __init__(self) -> None:
            super().__init__()
            del self.middle

    with pytest.raises(
        ValueError, match="this Lacking has no child 'middle', which its class is registered with; accepted: read, time"
    ):
        split_denoiser(Lacking())


def test_features_under_other_names():
    class Named(OwnUNet):
        def decoded(self, hidden: Tensor, skips: list[Tensor], embedding: Tensor) -> Tensor:
            return self.write(self.grow[0](x=hidden, skips=skips, embedding=embedding))

    class Own(Down):
        def forward(self, x: Tensor, skips: list[Tensor], embedding: Tensor) -> Tensor:
            return nn.functional.interpolate(x, scale_factor=4) + embedding[..., None, None]

    model = Named()
    model.grow[0] = Own(WIDTH)
    pipe = SimpleNamespace(unet=model.double().requires_grad_(False), scheduler=scheduler())
    with pytest.raises(TypeError, match="'grow.0' gets the encoder's features as x, skips, embedding; accepted: hidden_states and"):
        with fl.encoder_propagation(pipe, KEYS):
            sampled(pipe)


@pytest.mark.parametrize(
    "output", [SimpleNamespace(sample=torch.zeros(1)), {"sample": torch.zeros(1)}, (), ("image",)], ids=lambda o: type(o).__name__
)
def test_an_output_of_another_kind_is_refused_in_a_sentence(output):
    with pytest.raises(TypeError, match=f"the denoiser gave a {type(output).__name__}; accepted: a tensor, a tuple that begins"):
        sample_of(output)
