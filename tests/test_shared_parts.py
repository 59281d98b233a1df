"""Parts that several pipelines share, that are replaced in mid-block, or that something else works on: as the baseline, or refused."""

from __future__ import annotations

import copy
import inspect
import pickle
import threading
from functools import partial

import pytest
import torch
from diffusers import ControlNetModel, DiffusionPipeline, StableDiffusionPipeline, UNet2DConditionModel
from models import state
from systems import ROWS
from systems.base import output
from systems.parts import UNET, built, controlnet, scheduler
from systems.stable_diffusion import LATENT, stable_diffusion
from systems.steered import EDGES, steered

import fastdiff_lab as fl
from fastdiff_lab import KeySchedule, Method
from fastdiff_lab.hooks.callers import is_called_by
from fastdiff_lab.hooks.fingerprint import identity, pipeline_digest, scheduler_config
from fastdiff_lab.hooks.patching import replaced_method
from fastdiff_lab.sampling.methods import sample

KEYS = KeySchedule(6, (0, 2))
SEEDS = range(2)


def drawn(pipe, seed: int = 3, **options) -> torch.Tensor:
    return pipe(**LATENT | options, generator=torch.Generator().manual_seed(seed)).images


def sibling(pipe, **parts):
    """Another pipeline of the same parts."""
    other = StableDiffusionPipeline(**{**pipe.components, **parts}, requires_safety_checker=False)
    other.set_progress_bar_config(disable=True)
    return other


def in_threads(*works) -> None:
    """Each work again and again, all at once; the first error of any is raised."""
    errors: list[BaseException] = []

    def run(work) -> None:
        try:
            with torch.no_grad():
                for seed in SEEDS:
                    work(seed)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def equal(pipe, expected, seed: int) -> None:
    assert torch.equal(drawn(pipe, seed), expected[seed])


@pytest.mark.parametrize("own_scheduler", [False, pytest.param(True, marks=pytest.mark.long)])
def test_another_pipeline_of_the_same_parts_is_not_accelerated(own_scheduler):
    pipe = stable_diffusion()
    other = sibling(pipe, **({"scheduler": scheduler()} if own_scheduler else {}))
    plain, shorter = drawn(other), drawn(other, num_inference_steps=4)
    with fl.encoder_propagation(pipe, KEYS) as counts:
        accelerated = drawn(pipe)
        assert torch.equal(drawn(other), plain) and torch.equal(drawn(other, num_inference_steps=4), shorter)
        assert torch.equal(drawn(pipe), accelerated) and not torch.equal(accelerated, plain)
    assert (counts.runs, counts.encoder_calls) == (2, 4)


def test_a_run_of_another_pipeline_in_the_middle_of_ours():
    pipe = stable_diffusion()
    other = sibling(pipe, scheduler=scheduler())
    plain = drawn(other, 5)
    with fl.encoder_propagation(pipe, KEYS):
        accelerated, seen = drawn(pipe), []

        def between(pipe, step, time_step, kept):
            seen.append(torch.equal(drawn(other, 5), plain))
            return kept

        assert torch.equal(drawn(pipe, callback_on_step_end=between), accelerated)
    assert seen == [True] * 6


def test_threads_that_share_a_denoiser():
    pipe = stable_diffusion()
    other = sibling(pipe, scheduler=scheduler())
    plain = [drawn(other, seed) for seed in SEEDS]
    with fl.encoder_propagation(pipe, KEYS):
        accelerated = [drawn(pipe, seed) for seed in SEEDS]
        in_threads(partial(equal, pipe, accelerated), partial(equal, other, plain))


@pytest.mark.long
def test_threads_that_share_a_controlnet():
    net = controlnet()
    pipe = steered(controlnet=net)
    other = steered(controlnet=net, unet=built(lambda: UNet2DConditionModel(**UNET), 77))
    with_edges = {"image": EDGES}
    plain = [drawn(other, seed, **with_edges) for seed in SEEDS]
    before = state(pipe)
    with fl.encoder_propagation(pipe, KEYS):
        accelerated = [drawn(pipe, seed, **with_edges) for seed in SEEDS]
        in_threads(
            lambda seed: torch.testing.assert_close(drawn(pipe, seed, **with_edges), accelerated[seed], rtol=0, atol=0),
            lambda seed: torch.testing.assert_close(drawn(other, seed, **with_edges), plain[seed], rtol=0, atol=0),
        )
        with (
            pytest.raises(RuntimeError, match=r"accelerated already \(its ControlNetModel\)"),
            fl.encoder_propagation(other, KEYS),
        ):
            pass
    assert state(pipe)[0] == before[0] and "_compiled_call_impl" not in vars(net)


def test_a_loop_by_hand_is_taken_for_the_pipelines():
    assert is_called_by(stable_diffusion()) and is_called_by(object())


@pytest.mark.filterwarnings("ignore:the encoder_propagation block accelerated nothing")
def test_a_baseline_inside_a_block_is_refused():
    pipe = stable_diffusion()
    with fl.encoder_propagation(pipe, KEYS), pytest.raises(RuntimeError, match="accelerated already"):
        sample(pipe, Method(), ["a red circle"], [0], num_inference_steps=6)


@pytest.mark.long
def test_a_forward_that_was_compiled_as_a_whole():
    pipe = stable_diffusion()
    plain = drawn(pipe)
    pipe.unet.forward = torch.compile(pipe.unet.forward, backend="eager")
    before = state(pipe)
    message = r"the forward of UNet2DConditionModel did not call its 'conv_in', so nothing can be reused there"
    with fl.encoder_propagation(pipe, KEYS), pytest.raises(RuntimeError, match=message):
        drawn(pipe)
    assert state(pipe) == before
    del pipe.unet.forward  # compiling it again takes long
    assert torch.equal(drawn(pipe), plain)
    torch._dynamo.reset()


@pytest.mark.long
def test_a_compiled_controlnet_is_reused():
    pipe = steered()
    expected = []
    for _ in range(2):
        with fl.encoder_propagation(pipe, KEYS) as counts:
            expected.append(drawn(pipe, image=EDGES))
        assert (counts.encoder_calls, counts.controlnet_calls, counts.forward_calls) == (2, 2, 2)
        if isinstance(pipe.controlnet, ControlNetModel):
            pipe.controlnet = torch.compile(pipe.controlnet, backend="eager")
    torch.testing.assert_close(*expected)
    torch._dynamo.reset()


def test_a_controlnet_that_was_replaced():
    pipe = steered()
    with fl.encoder_propagation(pipe, KEYS):
        pipe.controlnet = controlnet(seed=4)
        with pytest.raises(RuntimeError, match="'controlnet' was replaced inside the encoder_propagation block"):
            drawn(pipe, image=EDGES)


def test_processors_of_the_user_stay_after_an_error():
    pipe = stable_diffusion()
    mine = copy.copy(next(iter(pipe.unet.attn_processors.values())))
    with pytest.raises(ValueError, match="the schedule is for 6 steps"), fl.encoder_propagation(pipe, KEYS):
        drawn(pipe)
        pipe.unet.set_attn_processor(mine)
        drawn(pipe, num_inference_steps=4)
    assert set(pipe.unet.attn_processors.values()) == {mine}


def test_a_processor_that_changes_in_mid_run():
    pipe = stable_diffusion()
    other = copy.copy(next(iter(pipe.unet.attn_processors.values())))

    def change(pipe, step, time_step, kept):
        if step == 3:
            pipe.unet.set_attn_processor(other)
        return kept

    with (
        fl.encoder_propagation(pipe, KEYS),
        pytest.raises(ValueError, match=r"step 4 .*a weight, an adapter, an attention processor, GLIGEN's switch or a scale"),
    ):
        drawn(pipe, callback_on_step_end=change)


def test_an_adapter_that_goes_in_mid_run():
    system = ROWS["lora"]
    pipe = system.build()

    def change(pipe, step, time_step, kept):
        if step == 3:
            pipe.unload_lora_weights()
        return kept

    with fl.encoder_propagation(pipe, KEYS), pytest.raises(ValueError, match=r"step 4 .*cannot use what was decoded ahead"):
        output(pipe, system.call | {"callback_on_step_end": change})


@pytest.mark.long
def test_a_copy_made_while_noise_is_injected_is_plain():
    pipe = stable_diffusion()
    plain, longer = drawn(pipe), drawn(pipe, num_inference_steps=10)
    with fl.prior_noise_injection(pipe, weight=0.5):
        noisy = drawn(pipe)
        copied, kept = copy.deepcopy(pipe), pickle.loads(pickle.dumps(pipe.scheduler))
        # Copied weights lie elsewhere in memory, which decides the last bit.
        assert torch.allclose(drawn(copied), plain, atol=1e-10) and not torch.allclose(noisy, plain, atol=1e-3)
    assert torch.allclose(drawn(copied, num_inference_steps=10), longer, atol=1e-10)
    copied.scheduler = kept
    assert torch.allclose(drawn(copied, num_inference_steps=10), longer, atol=1e-10)


def test_saving_a_pipeline_changes_nothing_of_what_it_is(tmp_path):
    pipe = stable_diffusion()
    before, settings = identity(pipe), scheduler_config(pipe)
    pipe.save_pretrained(tmp_path)
    assert identity(pipe) == before and scheduler_config(pipe) == settings


def test_weights_that_lie_elsewhere_are_the_same_weights(tmp_path):
    from accelerate import disk_offload

    pipe = stable_diffusion()
    before = identity(pipe)
    disk_offload(pipe.unet, tmp_path, execution_device=torch.device("cpu"))
    assert next(pipe.unet.parameters()).is_meta and identity(pipe) == before


def test_a_store_tells_pipelines_apart_by_all_that_makes_an_image():
    pipe = steered()
    digest = pipeline_digest(pipe)
    assert pipeline_digest(pipe) == digest
    pipe.tokenizer.add_tokens(["<blue>"])
    words = pipeline_digest(pipe)
    next(iter(pipe.text_encoder.parameters())).data[-1] += 1  # the last row: a word that was learned
    rows = pipeline_digest(pipe)
    pipe.controlnet = controlnet(seed=4)
    digests = {digest, words, rows, pipeline_digest(pipe)}
    for processor in (drawn, equal):  # two plain functions
        pipe.unet.set_attn_processor(processor)
        digests.add(pipeline_digest(pipe))
    assert len(digests) == 6


class Combined(DiffusionPipeline):
    """A pipeline that calls another one, which it holds, as Kandinsky's combined ones do."""

    def __init__(self, inner) -> None:
        super().__init__()
        self.register_modules(unet=inner.unet, scheduler=inner.scheduler)
        self.inner = inner

    def __call__(self, **options):
        return self.inner(**options)


def test_a_pipeline_that_calls_a_part_of_its_own_is_accelerated():
    pipe = stable_diffusion()
    with fl.encoder_propagation(pipe, KEYS):
        expected = drawn(pipe)
    combined = Combined(pipe)
    with fl.encoder_propagation(combined, KEYS) as counts:
        assert torch.equal(drawn(combined), expected)
    assert counts.encoder_calls == 2


@pytest.mark.parametrize("before", [True, False])
def test_deepcache_and_propagation_at_once(before):
    from DeepCache import DeepCacheSDHelper

    pipe = stable_diffusion()
    plain, helper = drawn(pipe), DeepCacheSDHelper(pipe=pipe)
    helper.set_params(cache_interval=2, cache_branch_id=0)
    if before:
        helper.enable()
    with fl.encoder_propagation(pipe, KEYS, parallel_decoding=False):
        if not before:
            helper.enable()
        with pytest.raises(RuntimeError, match="DeepCache is switched on for this UNet2DConditionModel"):
            drawn(pipe)
        helper.disable()
    assert torch.equal(drawn(pipe), plain)


def test_a_scheduler_that_was_replaced_while_noise_is_injected():
    pipe = stable_diffusion()
    with pytest.warns(UserWarning, match=r"pipe\.scheduler was replaced inside"), fl.prior_noise_injection(pipe):
        pipe.scheduler = scheduler()
        drawn(pipe)


@pytest.mark.filterwarnings("ignore:the prior_noise_injection block")
def test_noise_is_not_injected_twice_under_another_layer():
    pipe = stable_diffusion()
    with fl.prior_noise_injection(pipe), replaced_method(pipe.scheduler, "step", lambda inner: inner):
        with (
            pytest.raises(RuntimeError, match="prior noise is injected into this pipeline already"),
            fl.prior_noise_injection(pipe),
        ):
            pass
        assert "eta" in inspect.signature(pipe.scheduler.step).parameters
