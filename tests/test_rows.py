"""What is not diffusers' own may look at all rows of a batch; whose rows are recorded."""

from __future__ import annotations

import pytest
import torch
from diffusers import SemanticStableDiffusionPipeline
from models import state
from short_suite import long_but
from systems import ROWS
from systems.base import of, output
from systems.stable_diffusion import LATENT, stable_diffusion

import fastdiff_lab as fl
from fastdiff_lab import KeySchedule

KEYS = KeySchedule(5, (0, 2))
THREE = LATENT | {"num_inference_steps": 5} | {"prompt": ["a red circle", "a blue star", "a white ring"], "negative_prompt": None}


class Plain:
    """Attention as it is, written anew: rows stay apart. It counts its calls."""

    def __init__(self) -> None:
        self.rows: list[int] = []

    def context(self, attn, hidden_states, text):
        return hidden_states if text is None else text

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, temb=None, **kwargs):
        self.rows.append(len(hidden_states))
        context = self.context(attn, hidden_states, encoder_hidden_states)
        query, key, value = map(attn.head_to_batch_dim, (attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context)))
        found = attn.batch_to_head_dim(torch.bmm(attn.get_attention_scores(query, key, None), value))
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
    pipe = stable_diffusion()
    layer = pipe.unet.get_submodule("up_blocks.1.resnets.0")
    inner = layer.forward

    def forward(*args, **kwargs):
        found = inner(*args, **kwargs)
        return found + found.mean(0, keepdim=True)

    layer.forward = forward
    return pipe


MIXING = {
    "SharesWithFirst": lambda: with_processor(SharesWithFirst()),
    "SharesAll": lambda: with_processor(SharesAll()),
    "mixing_hook": lambda: with_hook(mixing_hook),
    "forward": with_forward,
}


ORDERS = [("SharesWithFirst", 0), ("SharesAll", 1), ("mixing_hook", 0), ("forward", 1)]


@pytest.mark.parametrize(("name", "order"), long_but([ORDERS[0], ORDERS[3]], ORDERS))
def test_what_mixes_rows_is_refused_by_name(name, order):
    pipe = MIXING[name]()
    plain, before = output(pipe, THREE), state(pipe)
    with pytest.raises(ValueError, match=rf"step \d decoded alone differs .*test_rows.*{name}.* use parallel_decoding=False"):
        with fl.encoder_propagation(pipe, KEYS, order=order):
            output(pipe, THREE)
    assert state(pipe) == before and torch.equal(output(pipe, THREE), plain)
    with fl.encoder_propagation(pipe, KeySchedule(5, range(5))):
        assert torch.equal(output(pipe, THREE), plain)


@pytest.mark.parametrize(
    ("build", "order"), [(lambda: with_processor(Plain()), 0), (lambda: with_hook(looking_hook), 1)], ids=["processor", "hook"]
)
def test_what_keeps_rows_apart_is_checked_once_in_each_run(build, order):
    pipe = build()
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
