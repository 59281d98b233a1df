"""What is not diffusers' own may look at all rows of a batch; whose rows are recorded."""

from __future__ import annotations

import functools
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
from diffusers import SemanticStableDiffusionPipeline
from diffusers.models.resnet import ResnetBlock2D
from models import state
from short_suite import long_but
from systems import ROWS
from systems.base import of, output
from systems.parts import UNET
from systems.stable_diffusion import LATENT, stable_diffusion

import fastdiff_lab as fl
from fastdiff_lab import KeySchedule

KEYS = KeySchedule(5, (0, 2))
THREE = LATENT | {"num_inference_steps": 5} | {"prompt": ["a red circle", "a blue star", "a white ring"], "negative_prompt": None}


class Plain:
    """Attention as it is, written anew: rows stay apart."""

    def __init__(self) -> None:
        self.masks: dict[torch.Size, torch.Tensor] = {}

    def context(self, attn, hidden_states, text):
        return hidden_states if text is None else text

    def seen(self, attention) -> None:
        """Something made once for each size, as of positions, is no store of what comes."""
        self.masks.setdefault(attention.shape, torch.zeros(()))

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, temb=None, **kwargs):
        context = self.context(attn, hidden_states, encoder_hidden_states)
        query, key, value = map(attn.head_to_batch_dim, (attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context)))
        attention = attn.get_attention_scores(query, key, None)
        self.seen(attention)
        found = attn.batch_to_head_dim(torch.bmm(attention, value))
        return attn.to_out[1](attn.to_out[0](found))


class SharesWithFirst(Plain):
    """Each image also looks at the first one of its half."""

    def context(self, attn, hidden_states, text):
        if text is not None:
            return text
        half = len(hidden_states) // 2
        first = torch.cat([row.expand(half, -1, -1) for row in (hidden_states[:1], hidden_states[half : half + 1])])
        return torch.cat([hidden_states, first], dim=1)


class SharesAll(Plain):
    def context(self, attn, hidden_states, text):
        mean = hidden_states.mean(0, keepdim=True).expand_as(hidden_states)
        return torch.cat([hidden_states, mean], dim=1) if text is None else text


class Appends(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.maps: list[torch.Tensor] = []

    def seen(self, attention):
        self.maps.append(attention)


class KeepsTheLast(Plain):
    def seen(self, attention):
        self.last = attention


class Counts(Plain):
    """As the controllers of prompt-to-prompt, which act at some steps only."""

    def __init__(self) -> None:
        super().__init__()
        self.controller = SimpleNamespace(calls=0)

    def seen(self, attention):
        self.controller.calls += 1


class InAClass(Plain):
    maps: ClassVar[dict[str, list]] = {"up": []}

    def seen(self, attention):
        self.maps["up"].append(attention)


class Summed(Plain):
    """In place, into one tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.total = torch.zeros((), dtype=torch.float64)

    def seen(self, attention):
        self.total += attention.sum()


GLOBAL: list[torch.Tensor] = []


class Globally(Plain):
    def seen(self, attention):
        GLOBAL.append(attention)


def enclosing():
    maps = []
    plain = Plain()

    def collecting(attn, hidden_states, **kwargs):
        maps.append(hidden_states)
        return plain(attn, hidden_states, **kwargs)

    return collecting


def collecting_hook(module, args, output):
    GLOBAL.append(output)


def plain_function(attn, hidden_states, encoder_hidden_states=None, **kwargs):
    return Plain()(attn, hidden_states, encoder_hidden_states)


def sharing_function(attn, hidden_states, encoder_hidden_states=None, **kwargs):
    return SharesAll()(attn, hidden_states, encoder_hidden_states)


def mixed(found):
    return found + found.mean(0, keepdim=True)


def mixing_hook(module, args, output):
    return output + output.mean(0, keepdim=True)


def looking_hook(module, args, output):
    return None


def with_processor(processor):
    pipe = stable_diffusion()
    pipe.unet.set_attn_processor(processor)
    return pipe


def with_hook(hook, place="up_blocks.1.resnets.0"):
    pipe = stable_diffusion()
    pipe.unet.get_submodule(place).register_forward_hook(hook)
    return pipe


def with_forward():
    """Under the name of the host's own, as decorators are written."""
    pipe = stable_diffusion()
    layer = pipe.unet.get_submodule("up_blocks.1.resnets.0")
    inner = layer.forward

    @functools.wraps(inner)
    def forward(*args, **kwargs):
        return mixed(inner(*args, **kwargs))

    layer.forward = forward
    return pipe


class MixingResnet(ResnetBlock2D):
    def forward(self, *args, **kwargs):
        return mixed(super().forward(*args, **kwargs))


def with_class():
    pipe = stable_diffusion()
    pipe.unet.get_submodule("up_blocks.1.resnets.0").__class__ = MixingResnet
    return pipe


class MixingLayer(torch.nn.Module):
    def forward(self, found):
        return mixed(found)


def with_layer():
    pipe = stable_diffusion()
    pipe.unet.conv_norm_out = torch.nn.Sequential(pipe.unet.conv_norm_out, MixingLayer())
    return pipe


MIXING = {
    "SharesWithFirst": lambda: with_processor(SharesWithFirst()),
    "SharesAll": lambda: with_processor(SharesAll()),
    "sharing_function": lambda: with_processor(sharing_function),
    "mixing_hook": lambda: with_hook(mixing_hook),
    "forward": with_forward,
    "MixingResnet": with_class,
    "MixingLayer": with_layer,
}


ORDERS = [(name, place % 2) for place, name in enumerate(MIXING)]


@pytest.mark.parametrize(("name", "order"), long_but([ORDERS[0], ORDERS[5]], ORDERS))
def test_what_mixes_rows_is_refused_by_name(name, order):
    pipe = MIXING[name]()
    plain, before = output(pipe, THREE), state(pipe)
    with pytest.raises(ValueError, match=rf"step \d decoded alone differs .*test_rows.*{name}.* use parallel_decoding=False"):
        with fl.encoder_propagation(pipe, KEYS, order=order):
            output(pipe, THREE)
    assert state(pipe) == before and torch.equal(output(pipe, THREE), plain)
    with fl.encoder_propagation(pipe, KeySchedule(5, range(5))):
        assert torch.equal(output(pipe, THREE), plain)


def test_a_method_put_into_a_class_of_diffusers_is_seen(monkeypatch):
    inner = ResnetBlock2D.forward
    monkeypatch.setattr(ResnetBlock2D, "forward", lambda *args, **kwargs: mixed(inner(*args, **kwargs)))
    with pytest.raises(ValueError, match=r"decoded alone differs .*test_rows.*<lambda> mixes the rows"):
        with fl.encoder_propagation(pipe := stable_diffusion(), KEYS):
            output(pipe, THREE)


@pytest.mark.parametrize("place", ["of all modules", "of the model"])
def test_hooks_on_everything_are_seen(place):
    pipe = stable_diffusion()

    def mixing(module, args, output):
        return type(output)(sample=mixed(output.sample)) if module is pipe.unet and hasattr(output, "sample") else None

    register = (
        torch.nn.modules.module.register_module_forward_hook if place == "of all modules" else pipe.unet.register_forward_hook
    )
    handle = register(mixing)
    try:
        with pytest.raises(ValueError, match=r"decoded alone differs .*mixing mixes the rows"), fl.encoder_propagation(pipe, KEYS):
            pipe.unet(*first_call(pipe))
    finally:
        handle.remove()


def first_call(pipe):
    pipe.scheduler.set_timesteps(5)
    text = torch.randn((2, 6, UNET["cross_attention_dim"]), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return torch.ones(2, 4, 8, 10, dtype=torch.float64), pipe.scheduler.timesteps[0], text


COLLECTING = {
    "Appends": lambda: with_processor(Appends()),
    "KeepsTheLast": lambda: with_processor(KeepsTheLast()),
    "Counts": lambda: with_processor(Counts()),
    "InAClass": lambda: with_processor(InAClass()),
    "Summed": lambda: with_processor(Summed()),
    "Globally": lambda: with_processor(Globally()),
    "collecting": lambda: with_processor(enclosing()),
    "collecting_hook": lambda: with_hook(collecting_hook),
}


@pytest.fixture(scope="module")
def serial():
    """With diffusers' own attention, which those above write anew."""
    with torch.no_grad(), fl.encoder_propagation(pipe := stable_diffusion(), KEYS, parallel_decoding=False):
        return output(pipe, THREE)


@pytest.mark.parametrize("name", COLLECTING)
def test_what_collects_from_call_to_call_is_told(name, serial):
    """The images are right; several steps' rows come in one call, and a step's own are wanted."""
    pipe = COLLECTING[name]()
    with pytest.warns(UserWarning, match=rf"test_rows.*{name} keeps something from call to call.*use parallel_decoding=False"):
        with fl.encoder_propagation(pipe, KEYS):
            assert (output(pipe, THREE) - serial).abs().max() < 1e-10


PLAIN = {
    "processor": lambda: with_processor(Plain()),
    "function": lambda: with_processor(plain_function),
    "hook": lambda: with_hook(looking_hook),
}


@pytest.mark.parametrize(("name", "order"), long_but([("hook", 1)], [("processor", 0), ("function", 0), ("hook", 1)]))
def test_what_keeps_rows_apart_is_checked_once_in_each_run(name, order):
    pipe = PLAIN[name]()
    with fl.encoder_propagation(pipe, KEYS, order=order, parallel_decoding=False):
        serial = output(pipe, THREE)
    with fl.encoder_propagation(pipe, KEYS, order=order) as counts:
        for _ in range(2):
            assert (output(pipe, THREE) - serial).abs().max() < 1e-10
    assert counts.runs == 2
    assert counts.forward_calls == 2 * (len(KEYS.keys) + 2)  # two steps are decoded alone in each run
    assert counts.encoder_calls == 2 * len(KEYS.keys)


def test_diffusers_own_parts_are_not_checked():
    pipe = stable_diffusion()
    with fl.encoder_propagation(pipe, KEYS) as counts:
        output(pipe, THREE)
    assert counts.forward_calls == len(KEYS.keys)


# ---- whose rows are recorded


def semantic(edits: int):
    pipe = stable_diffusion(SemanticStableDiffusionPipeline)
    call = {name: value for name, value in LATENT.items() if name != "negative_prompt"}
    texts = ["a blue star", "a white ring"][:edits]
    options = {"editing_prompt": texts, "edit_guidance_scale": [5.0] * edits, "edit_warmup_steps": [1] * edits}
    return pipe, call | options | {"edit_threshold": [0.9] * edits, "reverse_editing_direction": [False] * edits}


@pytest.mark.parametrize(("edits", "half"), long_but([(1, "conditional")], [(1, "conditional"), (2, "unconditional")]))
def test_more_than_two_blocks_of_rows_are_refused(edits, half):
    pipe, call = semantic(edits)
    plain, before = output(pipe, call), state(pipe)
    with pytest.raises(ValueError, match=rf"half='{half}' asked of .*gets {2 + edits} blocks of rows .*accepted: half='all'"):
        with fl.record(pipe, half=half):
            output(pipe, call)
    assert state(pipe) == before
    with fl.record(pipe, half="all") as recording:
        assert torch.equal(output(pipe, call), plain)
    assert recording.num_samples == 2 + edits


@pytest.mark.parametrize("images", [1, 3])
@pytest.mark.parametrize("guidance", [1.0, 5.0])
def test_as_many_samples_as_images(images, guidance):
    pipe = stable_diffusion()
    with fl.record(pipe) as recording:
        output(pipe, LATENT | {"num_inference_steps": 2, "num_images_per_prompt": images, "guidance_scale": guidance})
    assert recording.num_samples == images


@pytest.mark.parametrize("reuse", ["prediction", "decoder"])
def test_who_reads_attention_maps_needs_them_at_every_step(reuse):
    """LEDITS++ builds its masks of them."""
    system = ROWS["ledits"]
    pipe = system.build()
    with pytest.raises(ValueError, match="stores attention maps.*accepted: reuse='encoder' with parallel_decoding=False"):
        with fl.encoder_propagation(pipe, KeySchedule(system.calls, system.keys), reuse=reuse, parallel_decoding=False):
            of(system, pipe)
    with (
        pytest.raises(ValueError, match="mixes the rows of a batch"),
        fl.encoder_propagation(pipe, KeySchedule(system.calls, system.keys)),
    ):
        of(system, pipe)


def test_rows_of_edits_of_an_image():
    """LEDITS++ has rows without text and rows of each edit: of one edit they are told apart, of several they are refused."""
    system = ROWS["ledits"]
    pipe, found = system.build(), {}
    plain = of(system, pipe)
    for half in ("all", "unconditional", "conditional"):
        with fl.record(pipe, half=half) as recording:
            assert torch.equal(of(system, pipe), plain)
        found[half] = recording.statistics["norm"]
    assert torch.equal(found["all"], torch.cat([found["unconditional"], found["conditional"]]))
    assert not torch.equal(found["unconditional"], found["conditional"])
    two = {"editing_prompt": ["a white ring", "a blue star"], "edit_guidance_scale": [5.0] * 2, "edit_threshold": [0.9] * 2}
    for half in ("unconditional", "conditional"):
        with pytest.raises(ValueError, match=rf"half='{half}' asked of LEditsPP.*gets 3 blocks of rows .*accepted: half='all'"):
            with fl.record(pipe, half=half):
                output(pipe, system.call | two)
