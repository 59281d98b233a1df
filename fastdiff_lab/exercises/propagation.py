"""Sheet 2: propagation.

- `key_of_each_step`: the step whose features each step uses
- `propagate`: a sampler with encoder propagation whose decoder must know its own step
- `decode_group`: parallel decoding under guidance, and the order of its rows
- `flop_ceiling`: the most that can be gained
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..hooks.flops import FlopCount
from ..key_schedule import KeySchedule
from ..propagation.encoder_propagation import encoder_propagation
from ..shapes.scenes import sample_scene
from .exercise import Exercise, nearness
from .hooks_and_features import pipeline

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


CAPTIONS = 4_000_000_000  # beyond the seeds of training, calibration and reports


def random_schedule(rng: np.random.Generator, num_steps: int) -> KeySchedule:
    """Two keys or more, and at least one step that is no key."""
    count = int(rng.integers(1, max(2, num_steps - 2)))
    return KeySchedule(num_steps, (0, *sorted(map(int, rng.choice(np.arange(1, num_steps), count, replace=False)))))


def _schedules(rng: np.random.Generator) -> Iterator[tuple[int, list[int]]]:
    for num_steps in (5, 1, 12, 50, 7):
        yield num_steps, list(random_schedule(rng, num_steps).keys) if num_steps > 1 else [0]


def _key_of_each_step(num_steps: int, keys: list[int]) -> list[int]:
    return [group.start for group in KeySchedule(num_steps, tuple(keys)).groups() for _ in group]


def _nearest(num_steps: int, keys: list[int]) -> list[int]:
    return [min(keys, key=lambda key: abs(key - step)) for step in range(num_steps)]


KEY_OF_EACH_STEP = Exercise(
    "key_of_each_step",
    ("num_steps", "keys"),
    _schedules,
    _key_of_each_step,
    {
        "these are the nearest keys; a step can only use what was computed before it": _nearest,
        "these are the numbers of the groups; asked for is the key step itself": lambda num_steps, keys: [
            keys.index(key) for key in _key_of_each_step(num_steps, keys)
        ],
    },
)


def library_run(
    pipe: DiffusionPipeline,
    text: Tensor,
    z: Tensor,
    keys: list[int] | None,
    num_steps: int,
    guidance: float,
    reuse: str = "encoder",
) -> Tensor:
    """The final latents of the pipeline's own run, with encoder propagation; without keys, the baseline's."""
    half = len(text) // 2
    run = partial(
        pipe, prompt_embeds=text[half:], negative_prompt_embeds=text[:half], latents=z.clone(), num_inference_steps=num_steps,
        guidance_scale=guidance, output_type="latent",
    )  # fmt: skip
    if keys is None:
        return run().images
    with encoder_propagation(pipe, KeySchedule(num_steps, tuple(keys)), reuse=reuse, parallel_decoding=False):
        return run().images


def _runs(rng: np.random.Generator) -> Iterator[tuple]:
    for images, num_steps in ((1, 5), (2, 6)):
        keys = [0, 2] if num_steps == 5 else list(random_schedule(rng, num_steps).keys)
        yield run_of(rng, images, keys, num_steps, float(rng.uniform(2, 6)))


def run_of(rng: np.random.Generator, images: int, keys: list[int], num_steps: int, guidance: float) -> tuple:
    """What a hand-written sampler needs: pipeline, text [empty; prompt], noise, keys, steps, guidance."""
    pipe = pipeline()
    prompts = [sample_scene(CAPTIONS + int(rng.integers(10**8)), objects=1).caption() for _ in range(images)]
    prompted, empty = pipe.encode_prompt(prompts, pipe.device, 1, True)
    z = torch.tensor(rng.normal(size=(images, 4, 16, 16)), dtype=torch.float32)
    return pipe, torch.cat([empty, prompted]).detach(), z, keys, num_steps, guidance


def _shifted(pipe: DiffusionPipeline, text: Tensor, z: Tensor, keys: list[int], num_steps: int, guidance: float) -> Tensor:
    half = len(text) // 2
    return library_run(pipe, torch.cat([text[half:], text[:half]]), z, keys, num_steps, guidance)


@contextmanager
def _encodes_at_keys_only(
    pipe: DiffusionPipeline, text: Tensor, z: Tensor, keys: list[int], num_steps: int, guidance: float
) -> Iterator[list[str]]:
    """Count the rows in the first layers of the first block and of the bottleneck."""
    broken: list[str] = []
    unet = pipe.unet
    watched = {"encoder": unet.down_blocks[0].resnets[0], "bottleneck": unet.mid_block.resnets[0]}
    rows = dict.fromkeys(watched, 0)

    def counter(name: str) -> Callable:
        def count(module: Any, args: Any, output: Tensor) -> None:
            rows[name] += len(output)

        return count

    handles = [layer.register_forward_hook(counter(name)) for name, layer in watched.items()]
    try:
        yield broken
    finally:
        for handle in handles:
            handle.remove()
    most = max(rows, key=lambda name: rows[name])
    if rows[most] > len(keys) * len(text):
        broken.append(f"your {most} ran at {rows[most] / len(text):g} steps; it should run at the {len(keys)} keys only")


PROPAGATE = Exercise(
    "propagate",
    ("pipe", "text", "z", "keys", "num_steps", "guidance"),
    _runs,
    library_run,
    {
        "these are the latents of a reused prediction: your decoder is given the same at every step of a group": partial(
            library_run, reuse="prediction"
        ),
        "these are the latents of the baseline: your encoder runs at every step": lambda pipe, text, z, keys, *more: library_run(
            pipe, text, z, None, *more
        ),
        "the halves of guidance are exchanged: first comes the empty text, then the prompt": _shifted,
    },
    partial(nearness, tolerance=1e-4),
    _encodes_at_keys_only,
)


class RowDecoder:
    """A toy decoder: each row of its result depends only on that row's features, text and time-step."""

    def __init__(self) -> None:
        self.calls: list[tuple[list[Tensor], Tensor, Tensor]] = []

    def __call__(self, features: list[Tensor], text: Tensor, time_steps: Tensor) -> Tensor:
        """Predictions (rows, channels, height, width) from a list of features, text and time-steps with as many rows."""
        times = torch.as_tensor(time_steps).reshape(-1)
        counts = {*map(len, features), len(text), len(times)}
        if len(counts) != 1:
            raise ValueError(
                f"decode got {[len(feature) for feature in features]} rows of features, {len(text)} of text and {len(times)} time-steps; "
                "accepted: as many of each"
            )
        self.calls.append((features, text, times))
        said = text.mean(dim=(1, 2))[:, None, None, None]
        phase = times.to(features[0].dtype)[:, None, None, None] / 100
        return torch.tanh(features[0] + sum(feature.mean(dim=(1, 2, 3), keepdim=True) for feature in features[1:]) + 3 * said) * (
            1 + 0.5 * torch.sin(phase)
        )


def _groups(rng: np.random.Generator) -> Iterator[tuple]:
    for images, steps, height, width in ((1, 4, 4, 4), (2, 3, 5, 3), (3, 1, 2, 2), (2, 7, 3, 3)):
        yield group_of(rng, images, steps, height, width)


def group_of(rng: np.random.Generator, images: int, steps: int, height: int, width: int) -> tuple:
    """A key step's features and text, rows [empty; prompt], and the time-steps of its group."""
    rows = 2 * images
    shapes = ((rows, 3, height, width), (rows, 5, 2 * height, width), (rows, 4, 1, 1))
    features = [torch.tensor(rng.normal(size=shape), dtype=torch.float32) for shape in shapes]
    text = torch.tensor(rng.normal(size=(rows, 6, 2)), dtype=torch.float32)
    time_steps = torch.tensor(np.sort(rng.choice(1000, steps, replace=False))[::-1].copy())
    return RowDecoder(), features, text, time_steps, float(rng.uniform(1.5, 8))


def _guided(both: Tensor, guidance: float) -> Tensor:
    without, with_prompt = both.chunk(2)
    return without + guidance * (with_prompt - without)


def _one_by_one(decode: Callable, features: list, text: Tensor, time_steps: Tensor, guidance: float) -> Tensor:
    """Serial decoding, which parallel decoding must equal in any order of rows."""
    return torch.stack([_guided(decode(features, text, t.expand(len(text))), guidance) for t in time_steps])


def _sorted_otherwise(decode: Callable, features: list, text: Tensor, time_steps: Tensor, guidance: float) -> Tensor:
    count, rows = len(time_steps), len(text)
    tiled = [feature.repeat(count, 1, 1, 1) for feature in features]
    out = decode(tiled, text.repeat_interleave(count, 0), time_steps.repeat_interleave(rows))
    return torch.stack([_guided(part, guidance) for part in out.split(rows)])


def _times_otherwise(decode: Callable, features: list, text: Tensor, time_steps: Tensor, guidance: float) -> Tensor:
    count, rows = len(time_steps), len(text)
    out = decode([feature.repeat(count, 1, 1, 1) for feature in features], text.repeat(count, 1, 1), time_steps.repeat(rows))
    return torch.stack([_guided(part, guidance) for part in out.split(rows)])


def _halved_as_a_whole(decode: Callable, features: list, text: Tensor, time_steps: Tensor, guidance: float) -> Tensor:
    count, rows = len(time_steps), len(text)
    tiled = [feature.repeat(count, 1, 1, 1) for feature in features]
    out = decode(tiled, text.repeat(count, 1, 1), time_steps.repeat_interleave(rows))
    return _guided(out, guidance).unflatten(0, (count, rows // 2))


@contextmanager
def _decodes_once(decode: RowDecoder, *others: Any) -> Iterator[list[str]]:
    broken: list[str] = []
    yield broken
    if len(decode.calls) != 1:
        broken.append(
            f"your function called decode {len(decode.calls)} times; parallel decoding calls it once, with the rows of all steps"
        )


DECODE_GROUP = Exercise(
    "decode_group",
    ("decode", "features", "text", "time_steps", "guidance"),
    _groups,
    _one_by_one,
    {
        "features and text are sorted in different orders (repeat and repeat_interleave): rows get another row's text": _sorted_otherwise,
        "rows get another step's time-step: sort the time-steps like the rows": _times_otherwise,
        "chunk(2) over the whole batch halves the steps; the halves of guidance lie inside the block of each step": _halved_as_a_whole,
    },
    rules=_decodes_once,
)


def _operations(rng: np.random.Generator) -> Iterator[tuple[int, int, int, int, int]]:
    for num_steps, num_keys in ((50, 9), (20, 7), (50, 50), (30, 1), (250, 19)):
        encoder, decoder, rest = (int(number) for number in rng.integers((10**8, 10**8, 10**5), (10**9, 2 * 10**9, 10**8)))
        yield encoder, decoder, rest, num_steps, num_keys


def _ceiling(encoder: int, decoder: int, rest: int, num_steps: int, num_keys: int) -> float:
    count = FlopCount(encoder, decoder, rest)
    return count.of_run(num_steps, num_steps) / count.of_run(num_keys, num_steps)


FLOP_CEILING = Exercise(
    "flop_ceiling",
    ("encoder", "decoder", "rest", "num_steps", "num_keys"),
    _operations,
    _ceiling,
    {
        "this is the share that is saved; asked for is how many times less is computed": lambda *given: 1 - 1 / _ceiling(*given),
        "this is the share that is left; asked for is its inverse": lambda *given: 1 / _ceiling(*given),
        "this is the share that is left, and without the rest; asked for is the inverse, of everything": lambda e, d, r, steps, keys: (
            1 / _ceiling(e, d, 0, steps, keys)
        ),
        "the rest (the time embedding) is computed at every step, too": lambda e, d, r, steps, keys: _ceiling(e, d, 0, steps, keys),
        "the rest (the time embedding) is needed by the decoder at every step, it is not saved": lambda e, d, r, steps, keys: (
            _ceiling(e + r, d, 0, steps, keys)
        ),
        "this counts encoder calls only; the decoder runs at every step": lambda e, d, r, steps, keys: steps / keys,
    },
    partial(nearness, tolerance=1e-6),
)

EXERCISES = (KEY_OF_EACH_STEP, PROPAGATE, DECODE_GROUP, FLOP_CEILING)
