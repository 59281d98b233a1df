"""Pipelines whose denoiser calls are not one for each time-step: accelerated rightly, or refused in a sentence."""

from __future__ import annotations

import copy
from itertools import product

import pytest
import torch
from diffusers import DDIMInverseScheduler, StableDiffusionPanoramaPipeline, StableDiffusionPipeline, UNet2DConditionModel
from models import state
from short_suite import long_but
from systems import ROWS
from systems.base import of, output
from systems.parts import SIZE, UNET, built, scheduler
from systems.refused import LATER
from systems.stable_diffusion import LATENT, TEXT, stable_diffusion
from systems.steered import EDGES, lora_weights, steered, with_lora

import fastdiff_lab as fl
from fastdiff_lab import KeySchedule

STEPS = 6
KEYS = KeySchedule(STEPS, (0, 3))
ALL = KeySchedule(STEPS, range(STEPS))


class ByHand(StableDiffusionPipeline):
    """A custom pipeline: `plan` tells at which time-steps, in which order and on which columns of the latents the denoiser is called."""

    tells_count = True

    def plan(self, times):
        return [(t, slice(None)) for t in times]

    def __call__(self, prompt, generator=None, num_inference_steps=STEPS, **_):
        positive, negative = self.encode_prompt(prompt, "cpu", 1, True)
        text = torch.cat([negative, positive])
        self.scheduler.set_timesteps(num_inference_steps)
        latents = torch.randn(1, 4, 8, 16, generator=generator, dtype=torch.float64)
        if self.tells_count:
            self._num_timesteps = len(self.scheduler.timesteps)
        for t, part in self.plan(self.scheduler.timesteps):
            tile = latents[..., part]
            noise = self.unet(torch.cat([tile] * 2), t, encoder_hidden_states=text, return_dict=False)[0]
            latents = latents.clone()
            latents[..., part] = self.scheduler.step(noise[1:], t, tile, return_dict=False)[0]
        return (latents,)


class TwoTiles(ByHand):
    def plan(self, times):
        return [(t, slice(x, x + 8)) for t in times for x in (0, 8)]


class EveryOther(ByHand):
    def plan(self, times):
        return [(t, slice(None)) for t in times[::2]]


class Backwards(ByHand):
    def plan(self, times):
        return [(t, slice(None)) for t in times.flip(0)]


class ViewAfterView(ByHand):
    """All time-steps for one view, then all for the other."""

    def plan(self, times):
        return [(t, slice(x, x + 8)) for x in (0, 8) for t in times]


class OneStepInTheMiddle(ByHand):
    """As the masks of DiffEdit are made."""

    tells_count = False

    def plan(self, times):
        return [(times[2], slice(None))]


class OtherTimes(ByHand):
    def plan(self, times):
        return [(t + 1, slice(None)) for t in times]


CALL = {"prompt": "a red circle"}
SQUARE = {"height": 32, "width": 32}  # self-attention guidance takes no other
REFUSED = {
    TwoTiles: "calls its denoiser again at time-step 831, before the next one .665.",
    EveryOther: "step 1 of EveryOther comes at time-step 499, not at the scheduler's next one .665.",
    OneStepInTheMiddle: "in the middle of its scheduler's 6. Nothing tells where it ends",
    OtherTimes: "is none of its DDIMScheduler's .from 831 to 1.",
}
WAYS = [{"parallel_decoding": True}, {"parallel_decoding": False}, {"reuse": "prediction"}]


def in_turn(names):
    """Each of the names in parallel and serially; in the short suite in one of the two, in turn."""
    both = list(product(names, [True, False]))
    return long_but([(name, place % 2 > 0) for place, name in enumerate(names)], both)


@pytest.mark.parametrize(
    ("kind", "way", "schedule"),
    [
        pytest.param(
            kind,
            way,
            (KEYS, ALL)[(i + j) % 2],
            id=f"{kind.__name__}-{way}-{('keys', 'all')[(i + j) % 2]}",
            marks=() if j == i % 3 else pytest.mark.long,  # in the short suite each in one way, in turn
        )
        for i, kind in enumerate(REFUSED)
        for j, way in enumerate(WAYS)
    ],
)
def test_calls_that_are_not_one_for_each_time_step_are_refused(kind, way, schedule):
    pipe = stable_diffusion(kind)
    plain, before = output(pipe, CALL), state(pipe)
    with fl.encoder_propagation(pipe, schedule, **way), pytest.raises(ValueError, match=REFUSED[kind]):
        output(pipe, CALL)
    assert state(pipe) == before and torch.equal(output(pipe, CALL), plain)


@pytest.mark.parametrize(
    ("name", "tells_count"),
    [
        ("DDIMScheduler", False),
        ("PNDMScheduler", True),
        ("HeunDiscreteScheduler", True),
        ("HeunDiscreteScheduler", False),
    ],
)
def test_two_tiles_are_refused_at_the_second(name, tells_count):
    calls = []
    pipe = stable_diffusion(TwoTiles, scheduler=scheduler(name))
    pipe.tells_count = tells_count
    number = len(scheduler_times(pipe))
    pipe.unet.register_forward_pre_hook(lambda *_: calls.append(1))
    with (
        fl.encoder_propagation(pipe, KeySchedule(number, range(number))),
        pytest.raises(ValueError, match="calls its denoiser again"),
    ):
        output(pipe, CALL)
    assert len(calls) == 1


def scheduler_times(pipe):
    pipe.scheduler.set_timesteps(STEPS)
    return pipe.scheduler.timesteps


def test_a_loop_by_hand_with_a_call_for_each_half_of_the_guidance():
    pipe = stable_diffusion()
    pipe.scheduler.set_timesteps(STEPS)
    row, text = torch.zeros(1, 4, 8, 8, dtype=torch.float64), torch.zeros(1, 6, UNET["cross_attention_dim"], dtype=torch.float64)
    for _ in range(2):  # also after a run that was broken off
        with fl.encoder_propagation(pipe, KEYS), pytest.raises(ValueError, match="calls its denoiser again at time-step 831"):
            pipe.unet(row, pipe.scheduler.timesteps[0], encoder_hidden_states=text)
            pipe.unet(row, pipe.scheduler.timesteps[0], encoder_hidden_states=text + 1)


@pytest.mark.parametrize("kind", [TwoTiles, EveryOther, OtherTimes])
def test_such_runs_are_not_recorded(kind):
    pipe = stable_diffusion(kind)
    with pytest.raises(ValueError, match="time-step") as caught, fl.record(pipe, half="all"):
        output(pipe, CALL)
    assert "encoder_propagation" not in str(caught.value)  # there is none to be left


@pytest.mark.parametrize("refused", LATER, ids=lambda refused: refused.title)
def test_pipelines_that_are_refused_in_mid_run(refused):
    pipe = refused.build()
    call = {name: value for name, value in LATENT.items() if name not in SIZE} | SQUARE
    plain, before, processors = output(pipe, call), state(pipe), dict(pipe.unet.attn_processors)
    for way in WAYS:
        for schedule in (KEYS, ALL):
            with fl.encoder_propagation(pipe, schedule, **way), pytest.raises(ValueError, match=refused.words):
                output(pipe, call)
            assert state(pipe) == before and pipe.unet.attn_processors == processors
    with pytest.raises(ValueError, match=refused.words), fl.record(pipe, half="all"):
        output(pipe, call)
    assert pipe.unet.attn_processors == processors and torch.equal(output(pipe, call), plain)


@pytest.mark.filterwarnings("ignore:this run has 3 steps")
@pytest.mark.parametrize("steps", [3, 6])
def test_runs_of_different_lengths_in_one_call_are_refused(steps):
    """FreeInit's first iteration has half of the steps: whatever schedule is given, no advice leads in a circle."""
    pipe = ROWS["animatediff-free-init"].build()
    pipe.enable_free_init(num_iters=2, use_fast_sampling=True)
    words = r"FreeInit with use_fast_sampling.*accepted: enable_free_init\(use_fast_sampling=False\)"
    for schedule in (KeySchedule(steps, range(steps)), KeySchedule(steps, (0, 2))):
        with fl.encoder_propagation(pipe, schedule, parallel_decoding=False), pytest.raises(ValueError, match=words):
            of(ROWS["animatediff-free-init"], pipe)


def test_time_steps_that_go_up_are_a_run_if_the_scheduler_says_so():
    pipe = stable_diffusion(scheduler=DDIMInverseScheduler.from_config(scheduler().config))
    plain = output(pipe, LATENT)
    with fl.encoder_propagation(pipe, ALL):
        assert torch.equal(output(pipe, LATENT), plain)
    with fl.encoder_propagation(pipe, KEYS) as counts:
        output(pipe, LATENT)
    assert (counts.encoder_calls, counts.steps) == (2, STEPS)


def test_a_run_against_the_schedulers_direction_is_refused():
    pipe = stable_diffusion(Backwards)
    pipe.tells_count = False
    with (
        fl.encoder_propagation(pipe, KEYS),
        pytest.raises(ValueError, match="begins at time-step 1, in the middle of its scheduler's 6"),
    ):
        output(pipe, CALL)


def test_a_run_of_another_scheduler_is_refused():
    class Inverting(StableDiffusionPipeline):
        def invert(self, generator):
            other = DDIMInverseScheduler.from_config(self.scheduler.config)
            other.set_timesteps(STEPS)
            text = torch.zeros(1, 6, UNET["cross_attention_dim"], dtype=torch.float64)
            for t in other.timesteps[1:]:
                self.unet(torch.zeros(1, 4, 8, 8, dtype=torch.float64), t + 2, encoder_hidden_states=text)

    pipe = stable_diffusion(Inverting)
    with fl.encoder_propagation(pipe, KEYS), pytest.raises(ValueError, match="middle of its scheduler's 1000.*inversions"):
        pipe.invert(None)
    output(pipe, LATENT)  # now its scheduler has time-steps
    with fl.encoder_propagation(pipe, KEYS), pytest.raises(ValueError, match="none of its DDIMScheduler's.*inversion"):
        pipe.invert(None)


def test_a_pass_for_each_view_is_a_run_for_each():
    pipe = stable_diffusion(ViewAfterView)
    plain = output(pipe, CALL)
    with fl.encoder_propagation(pipe, ALL) as counts:
        assert torch.equal(output(pipe, CALL), plain)
    assert counts.runs == 2
    with fl.encoder_propagation(pipe, KEYS) as counts:
        serial_or_parallel = output(pipe, CALL)
    with fl.encoder_propagation(pipe, KEYS, parallel_decoding=False) as counts:
        assert (output(pipe, CALL) - serial_or_parallel).abs().max() < 1e-10
    assert (counts.runs, counts.encoder_calls, counts.steps) == (2, 4, 2 * STEPS)


def panorama(views: int):
    pipe = stable_diffusion(StableDiffusionPanoramaPipeline)
    pipe.get_views = lambda h, w, circular_padding=False: [(0, 8, 4 * x, 4 * x + 8) for x in range(views)]
    return pipe, TEXT | {"output_type": "latent", "height": 32, "width": 32 + 16 * (views - 1), "view_batch_size": 8}


@pytest.mark.parametrize("views", long_but((3,), (1, 3)))
def test_a_panorama_that_puts_its_schedulers_state_back_is_accelerated(views):
    pipe, call = panorama(views)
    plain, before = output(pipe, call), state(pipe)
    with fl.encoder_propagation(pipe, ALL):
        assert torch.equal(output(pipe, call), plain)
    found = []
    for parallel in (False, True):
        with fl.encoder_propagation(pipe, KEYS, parallel_decoding=parallel) as counts:
            found.append(output(pipe, call))
        assert (counts.runs, counts.encoder_calls, counts.steps) == (1, 2, STEPS)
    assert (found[0] - found[1]).abs().max() < 1e-10 and (found[0] - plain).abs().max() > 1e-3
    assert state(pipe) == before
    with fl.record(pipe, half="all") as recording:
        assert torch.equal(output(pipe, call), plain)
    assert recording.num_steps == STEPS and recording.num_samples
    with fl.prior_noise_injection(pipe, weight=0.1, below=0.9):
        assert (output(pipe, call) - plain).abs().max() > 1e-3
    assert torch.equal(output(pipe, call), plain) and "step" not in vars(pipe.scheduler)


def test_a_panorama_with_a_call_for_each_view_is_refused():
    pipe, call = panorama(3)
    with fl.encoder_propagation(pipe, KEYS), pytest.raises(ValueError, match="calls its denoiser again"):
        output(pipe, call | {"view_batch_size": 1})


def test_a_run_that_was_broken_off_does_not_go_on_in_the_next_call():
    pipe = stable_diffusion()

    def stop(pipe, step, time_step, kept):
        raise KeyboardInterrupt

    with fl.encoder_propagation(pipe, KEYS):
        expected = output(pipe, LATENT)
        with pytest.raises(KeyboardInterrupt):
            output(pipe, LATENT | {"callback_on_step_end": stop})
        assert torch.equal(output(pipe, LATENT), expected)


# ---- nothing accelerated


def test_a_block_without_a_run_says_so():
    pipe = stable_diffusion()
    with pytest.warns(UserWarning, match="accelerated nothing.*made no denoiser call inside it; call this pipeline there"):
        with fl.encoder_propagation(pipe, KEYS):
            pass
    with pytest.warns(UserWarning, match="nothing was recorded"), fl.record(pipe) as recording:
        pass
    for table in (fl.feature_change, fl.feature_norm):
        with pytest.raises(ValueError, match="nothing was recorded: no run was finished inside the record block"):
            table(recording)


def test_runs_of_a_sibling_are_not_ours():
    pipe = stable_diffusion()
    sibling = StableDiffusionPipeline(**pipe.components, requires_safety_checker=False)
    plain = output(sibling, LATENT)
    with pytest.warns(UserWarning, match=r"6 calls of its denoiser came from other pipelines"):
        with fl.encoder_propagation(pipe, KEYS):
            assert torch.equal(output(sibling, LATENT), plain)
    with pytest.warns(UserWarning, match="nothing was recorded"), fl.record(pipe):
        output(sibling, LATENT)


def test_a_denoiser_replaced_in_the_block():
    other = built(lambda: UNet2DConditionModel(**UNET), seed=7)
    pipe = stable_diffusion()
    with pytest.warns(UserWarning, match="the denoiser of StableDiffusionPipeline was replaced inside it"):
        with fl.encoder_propagation(pipe, KEYS):
            pipe.unet = other
            output(pipe, LATENT)


def at_step(change):
    """The call with a callback that does `change[step](pipe)` after a step."""

    def callback(pipe, step, time_step, kept):
        change.get(step, lambda pipe: None)(pipe)
        return kept

    return LATENT | {"callback_on_step_end": callback}


@pytest.mark.parametrize(
    ("way", "parallel"), long_but([("block", True), ("handle", False)], product(["block", "handle"], [True, False]))
)
def test_a_denoiser_replaced_in_mid_run(way, parallel):
    """The steps before it, all of them keys, are the baseline's, and those after it are the other denoiser's own."""
    pipe, other = stable_diffusion(), built(lambda: UNet2DConditionModel(**UNET), seed=7)
    own, call, schedule = pipe.unet, at_step({2: lambda pipe: setattr(pipe, "unet", other)}), KeySchedule(STEPS, (0, 1, 2))
    plain = output(pipe, call)
    pipe.unet = own
    with pytest.warns(UserWarning, match="the denoiser of StableDiffusionPipeline was replaced inside it"):
        if way == "block":
            with fl.encoder_propagation(pipe, schedule, parallel_decoding=parallel):
                found = output(pipe, call)
        else:
            handle = fl.apply_encoder_propagation(pipe, schedule, parallel_decoding=parallel)
            found = output(pipe, call)
            handle.remove()
    assert (found - plain).abs().max() < 1e-10


def test_a_denoiser_that_comes_back_in_mid_run_is_refused():
    pipe, other = stable_diffusion(), built(lambda: UNet2DConditionModel(**UNET), seed=7)
    own = pipe.unet
    call = at_step({1: lambda pipe: setattr(pipe, "unet", other), 3: lambda pipe: setattr(pipe, "unet", own)})
    with (
        fl.encoder_propagation(pipe, KEYS),
        pytest.raises(ValueError, match="step 2 of StableDiffusionPipeline comes at time-step"),
    ):
        output(pipe, call)


def test_a_step_that_is_always_evaluated_anew_says_why():
    pipe = stable_diffusion()

    def other_text(pipe, step, time_step, kept):
        return kept | {"prompt_embeds": kept["prompt_embeds"] + 1}

    call = LATENT | {"callback_on_step_end": other_text, "callback_on_step_end_tensor_inputs": ["latents", "prompt_embeds"]}
    plain = output(pipe, call)
    with pytest.warns(UserWarning, match="every step was evaluated as a key step.*encoder_hidden_states is another"):
        with fl.encoder_propagation(pipe, KEYS, parallel_decoding=False):
            assert torch.equal(output(pipe, call), plain)


def test_every_step_a_key_is_no_reason_to_warn(recwarn):
    pipe = stable_diffusion()
    with fl.encoder_propagation(pipe, ALL):
        output(pipe, LATENT)
    assert not [w for w in recwarn if "accelerated" in str(w.message)]


# ---- weights changed in mid-run


def lora(seed: int):
    pipe = with_lora()
    generator = torch.Generator().manual_seed(seed)
    named = {name: weight for name, weight in pipe.unet.named_parameters() if ".lora_" in name}
    return pipe, {name: torch.randn(weight.shape, generator=generator, dtype=weight.dtype) for name, weight in named.items()}


def hot_swap(pipe, weights):
    """As peft does it: data written in place, of which no version is counted."""
    for name, weight in pipe.unet.named_parameters():
        if name in weights:
            weight.data.copy_(weights[name])


def swapping_after(step_of_swap, weights):
    def callback(pipe, step, time_step, kept):
        if step == step_of_swap:
            hot_swap(pipe, weights)
        return kept

    return LATENT | {"callback_on_step_end": callback}


@pytest.mark.parametrize(("after", "parallel"), long_but([(0, False), (3, True)], [(0, False), (3, True), (3, False), (4, True)]))
def test_lora_hot_swapped_between_keys_is_refused(parallel, after):
    pipe, weights = lora(5)
    with pytest.raises(
        ValueError, match=r"weights were written over \(LoRA hot-swapped or fused, averaged weights\) between key step"
    ):
        with fl.encoder_propagation(pipe, KEYS, parallel_decoding=parallel):
            output(pipe, swapping_after(after, weights))


def test_lora_hot_swapped_before_a_key_is_seen_there():
    found = []
    for parallel in (True, False):
        pipe, weights = lora(5)
        with fl.encoder_propagation(pipe, KEYS, parallel_decoding=parallel):
            found.append(output(pipe, swapping_after(2, weights)))
    pipe, weights = lora(5)
    with fl.encoder_propagation(pipe, KEYS):
        without = output(pipe, LATENT)
    assert (found[0] - found[1]).abs().max() < 1e-10 and (found[0] - without).abs().max() > 1e-3


def test_weights_written_in_place_in_mid_run():
    def callback(pipe, step, time_step, kept):
        if step == 3:
            pipe.unet.mid_block.resnets[0].conv1.weight.mul_(1.3)
        return kept

    call = LATENT | {"callback_on_step_end": callback}
    pipe = stable_diffusion()
    with pytest.raises(ValueError, match="step 4 .*a weight"), fl.encoder_propagation(pipe, KEYS):
        output(pipe, call)
    pipe = stable_diffusion()
    with fl.encoder_propagation(pipe, KEYS, parallel_decoding=False) as counts:
        output(pipe, call)
    assert counts.encoder_calls == 3  # the step after the change is a key by itself


WRITES = {
    "averaged weights": lambda unet: [weight.data.mul_(1.01) for weight in unet.parameters()],
    "other data": lambda unet: [setattr(weight, "data", weight.data * 1.01) for weight in unet.parameters()],
}


@pytest.mark.parametrize(("way", "parallel"), in_turn(WRITES))
def test_weights_written_without_a_trace_in_mid_run(way, parallel):
    """As EMAModel.copy_to, fuse_lora and offloading write: through `weight.data`, which counts no write."""
    write = WRITES[way]

    def after(at: int):
        def callback(pipe, step, time_step, kept):
            if step == at:
                write(pipe.unet)
            return kept

        return LATENT | {"callback_on_step_end": callback}

    key = KEYS.keys[1]
    with pytest.raises(ValueError, match="weights were written over"):
        with fl.encoder_propagation(pipe := stable_diffusion(), KEYS, parallel_decoding=parallel):
            output(pipe, after(key))
    with fl.encoder_propagation(pipe := stable_diffusion(), KEYS, parallel_decoding=parallel) as counts:
        output(pipe, after(key - 1))  # the new weights are seen at the key
    assert counts.encoder_calls == len(KEYS.keys)


def hot_swapped(pipe):
    weights = {name: 1.5 * value for name, value in lora_weights(stable_diffusion().unet).items()}
    pipe.load_lora_weights(weights, adapter_name="style", hotswap=True)


@pytest.mark.long
@pytest.mark.parametrize("parallel", [True, False])
def test_load_lora_weights_hot_swaps_in_mid_run(parallel):
    found = []
    for changes in ({KEYS.keys[1] - 1: hot_swapped}, {}):
        with fl.encoder_propagation(pipe := with_lora(), KEYS, parallel_decoding=parallel) as counts:
            found.append(output(pipe, at_step(changes)))
        assert counts.encoder_calls == len(KEYS.keys)
    assert (found[0] - found[1]).abs().max() > 1e-3  # the new weights are those from the key on
    with pytest.raises(ValueError, match="weights were written over|a weight, an adapter"):
        with fl.encoder_propagation(pipe := with_lora(), KEYS, parallel_decoding=parallel):
            output(pipe, at_step({KEYS.keys[1]: hot_swapped}))


def layer_of(model):
    return model.down_blocks[0].resnets[0]


def put(owner, name):
    setattr(owner, name, copy.deepcopy(getattr(owner, name)))


OF_A_MODEL = {
    "in place": lambda model: layer_of(model).conv1.weight.mul_(1.3),
    "through data": lambda model: [weight.data.mul_(1.01) for weight in model.parameters()],
    "another weight": lambda model: put(layer_of(model).conv1, "weight"),
    "another layer": lambda model: put(layer_of(model), "conv1"),
}


@pytest.mark.parametrize(("change", "parallel"), in_turn(OF_A_MODEL))
def test_weights_of_a_controlnet_changed_in_mid_run(change, parallel):
    def drawn(changed_at):
        pipe = steered()
        with fl.encoder_propagation(pipe, KEYS, parallel_decoding=parallel) as counts:
            found = output(pipe, at_step({changed_at: lambda pipe: OF_A_MODEL[change](pipe.controlnet)}) | {"image": EDGES})
        assert counts.controlnet_calls == len(KEYS.keys)
        return found

    key = KEYS.keys[1]
    with pytest.raises(ValueError, match="its ControlNet's call differs .*: a weight|weights were written over"):
        drawn(key)
    drawn(key - 1)  # seen at the key


@pytest.mark.parametrize("name", ["another weight", "another layer"])
def test_parts_of_a_denoiser_replaced_in_mid_run(name):
    call = at_step({KEYS.keys[1]: lambda pipe: OF_A_MODEL[name](pipe.unet)})
    with pytest.raises(ValueError, match="step 4 .*a weight"), fl.encoder_propagation(pipe := stable_diffusion(), KEYS):
        output(pipe, call)
    with fl.encoder_propagation(pipe := stable_diffusion(), KEYS, parallel_decoding=False) as counts:
        output(pipe, call)
    assert counts.encoder_calls == 3  # the step after the change is a key by itself


@pytest.mark.parametrize("block", ["mid_block", "conv_norm_out"])
def test_blocks_replaced_in_mid_run_are_refused(block):
    call = at_step({KEYS.keys[1]: lambda pipe: put(pipe.unet, block)})
    with pytest.raises(RuntimeError, match=rf"'{block}' was replaced inside the encoder_propagation block"):
        with fl.encoder_propagation(pipe := stable_diffusion(), KEYS, parallel_decoding=False):
            output(pipe, call)


def test_fused_lora_is_seen_in_mid_run():
    def callback(pipe, step, time_step, kept):
        if step == KEYS.keys[1]:
            pipe.fuse_lora(lora_scale=0.5)
        return kept

    with (
        pytest.raises(ValueError, match="weights were written over|adapter|scale"),
        fl.encoder_propagation(pipe := with_lora(), KEYS),
    ):
        output(pipe, LATENT | {"callback_on_step_end": callback})


@pytest.mark.filterwarnings("ignore:the prior_noise_injection block")
def test_a_copied_scheduler_is_plain():
    pipe = stable_diffusion()
    with fl.prior_noise_injection(pipe):
        copied = copy.deepcopy(pipe.scheduler)
    assert "step" not in vars(copied) or not hasattr(copied.step, "injects_prior_noise")
