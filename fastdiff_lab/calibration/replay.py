"""Record one run, then run it again with some steps changed, by the pipeline's own loop, guidance and scheduler.

- `Call`: prompts, seeds and options of a run; `call_for(prompts, ...)` and `seeds_for(prompts, seeds)` make them
- `Trajectory`: what a baseline run did; `seen(pipe, call)` records one
- `latents_after(pipe, trajectory, ...)`: latents of a run in which some steps are evaluated anew
- `replayed(engine, trajectory, ...)`: latents of a recorded run that any engine makes again
"""

from __future__ import annotations

import copy
import inspect
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from ..hooks.adapters import processors_kept
from ..hooks.denoiser import denoiser_of
from ..hooks.denoiser_call import arguments_of
from ..hooks.denoiser_classes import conditions_of, sample_argument
from ..hooks.denoiser_output import own
from ..hooks.device import device_of, synchronize
from ..hooks.patching import replaced_call, replaced_method
from ..inputs.plain_values import seeds_of
from ..key_schedule import KeySchedule
from ..propagation.config import PropagationConfig
from ..propagation.engine import PropagationEngine
from ..propagation.extrapolation import REUSED_FEATURES, Extrapolation
from ..propagation.handle import PropagationHandle
from ..propagation.row_capacity import RowLimit
from ..sampling.methods import generators
from ..sampling.run_settings import RunSettings
from ..sampling.silence import no_bars

_JITTER = 1e-4  # relative; two runs of a text encoder differ by 1e-7 to 1e-5


class _Enough(Exception):
    """Everything that a run was for is known."""


@dataclass(frozen=True)
class Call:
    """A call of a pipeline: one seed per prompt, and further options."""

    prompts: tuple[Any, ...]
    seeds: tuple[int, ...]
    pipe_kwargs: dict[str, Any] = field(default_factory=dict)

    def run(self, pipe: DiffusionPipeline) -> None:
        """Call the pipeline, until the block around it ends the run."""
        with suppress(_Enough), processors_kept(denoiser_of(pipe)), no_bars(pipe), torch.no_grad():
            pipe(list(self.prompts), generator=generators(self.seeds), **self.pipe_kwargs)


def seeds_for(prompts: Sequence[Any], seeds: Any) -> list[int]:
    """One seed for each prompt; by default 0, 1, 2 and so on. Raises ValueError for another number of seeds."""
    found = list(range(len(prompts))) if seeds is None else seeds_of(seeds)
    if len(found) != len(prompts):
        raise ValueError(f"{len(found)} seeds given for {len(prompts)} prompts; accepted: one for each")
    return found


def call_for(prompts: Sequence[Any], seeds: Sequence[int], part: slice, run: RunSettings) -> Call:
    """The call for a part of the prompts, with their own options."""
    return Call(tuple(prompts[part]), tuple(seeds[part]), run.of(range(len(prompts))[part]).arguments())


@dataclass
class Trajectory:
    """A baseline run, step by step: outputs of the denoiser, arguments of the scheduler, and samples.

    `samples` are the latents at each step and the final ones: steps + 1 tensors of shape (images, ...).
    `seconds` is the time of the whole run; `arguments` are those of the first denoiser call.
    """

    call: Call
    predictions: list[Any] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)
    timesteps: list[Any] = field(default_factory=list)
    samples: list[Tensor] = field(default_factory=list)
    arguments: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def num_steps(self) -> int:
        return len(self.outputs)

    def check_same(self, pipe: DiffusionPipeline, arguments: Mapping[str, Any]) -> None:
        """Raise ValueError if a replay's first denoiser call has other conditions than this run's."""
        model = denoiser_of(pipe)
        compared = conditions_of(model)
        now, before = ({name: of[name] for name in compared if of.get(name) is not None} for of in (arguments, self.arguments))
        names = [sample_argument(model), *sorted(now.keys() | before.keys())]
        now[names[0]], before[names[0]] = arguments[names[0]], self.arguments[names[0]]
        other = next((name for name in names if not _nearly_same(before.get(name), now.get(name))), None)
        if other is not None:
            raise ValueError(
                f"calibration asked of {type(pipe).__name__}, whose runs differ with the same seed (in the first denoiser call, "
                f"its {other} is another): it draws without its generator; accepted: a pipeline that gives the same again"
            )


def _nearly_same(one: Any, other: Any) -> bool:
    """Compare but for rounding, because kernels on a device may add in another order each time."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        if one.shape != other.shape or one.dtype != other.dtype:
            return False
        if not one.is_floating_point():
            return torch.equal(one, other)
        most = max(_JITTER, 2 * torch.finfo(one.dtype).eps) * one.float().norm()
        return bool((one.float() - other.float()).norm() <= most)  # the host waits once
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(_nearly_same(one[name], other[name]) for name in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(_nearly_same, one, other))
    return type(one) is type(other) and bool(one == other)


Step = Callable[..., Any]


def _alike(pipe: DiffusionPipeline, trajectory: Trajectory) -> Callable:
    """Compare a replay's first denoiser call with the recorded run's."""
    first = True

    def around(inner: Step) -> Step:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal first
            if first:
                trajectory.check_same(pipe, arguments_of(denoiser_of(pipe), args, kwargs))
            first = False
            return inner(*args, **kwargs)

        return call

    return around


def _stepping(pipe: DiffusionPipeline, stack: ExitStack, watch: Callable[[Step, Any, tuple, dict], Any]) -> None:
    """Route the scheduler's steps through `watch(inner, arguments, args, kwargs)` while the stack is open."""
    signature = inspect.signature(pipe.scheduler.step)

    def around(inner: Step) -> Step:
        return lambda *args, **kwargs: watch(inner, signature.bind(*args, **kwargs).arguments, args, kwargs)

    stack.enter_context(replaced_method(pipe.scheduler, "step", around))


def seen(pipe: DiffusionPipeline, call: Call, num_steps: int) -> Trajectory:
    """Run the baseline and record it. Raises ValueError if it does not make `num_steps` denoiser calls."""
    found = Trajectory(call)

    def watch(inner: Step, arguments: Any, args: tuple, kwargs: dict) -> Any:
        found.outputs.append(arguments["model_output"])
        found.timesteps.append(arguments["timestep"])
        found.samples.append(arguments["sample"].clone())
        result = inner(*args, **kwargs)
        if found.num_steps == num_steps:
            found.samples.append(result[0].clone())
            raise _Enough
        return result

    def predicting(inner: Step) -> Step:
        def predict(*args: Any, **kwargs: Any) -> Any:
            if not found.arguments:
                found.arguments = arguments_of(model, args, kwargs)
                found.arguments[name] = found.arguments[name].clone()  # pipelines may go on to write into it
            output = inner(*args, **kwargs)
            found.predictions.append(own(output))
            return output

        return predict

    model = denoiser_of(pipe)
    name = sample_argument(model)
    started = time.perf_counter()
    with ExitStack() as stack:
        stack.enter_context(replaced_call(model, predicting))
        _stepping(pipe, stack, watch)
        call.run(pipe)
    synchronize(device_of(pipe))
    found.seconds = time.perf_counter() - started
    if not found.num_steps == len(found.predictions) == num_steps:
        raise ValueError(
            f"the run makes {len(found.predictions)} denoiser calls and {found.num_steps} scheduler steps; accepted: {num_steps} of each"
        )
    return found


def latents_after(
    pipe: DiffusionPipeline,
    trajectory: Trajectory,
    evaluated: Sequence[int],
    schedule: KeySchedule,
    until: int,
    *,
    extrapolation: Extrapolation = REUSED_FEATURES,
    reuse: str = "encoder",
    max_rows: int | RowLimit | None = None,
    lookahead: int = 0,
) -> dict[int, Tensor]:
    """Latents of a run in which some steps are evaluated with a schedule; the others get the baseline's predictions.

    Args:
        evaluated: The steps that are evaluated.
        until: The step whose latents end the run; the number of steps for the final ones.
        lookahead: Further steps with the baseline's predictions before latents are compared. Then a multistep
            scheduler has forgotten the evaluated steps.

    Returns:
        The latents by step, of shape (images, ...), from the first evaluated step on.
    """
    engine = PropagationEngine(
        pipe, PropagationConfig(schedule, order=extrapolation, reuse=reuse),
        known={s: p for s, p in enumerate(trajectory.predictions) if s not in set(evaluated)},
        limit=max_rows if isinstance(max_rows, RowLimit) else RowLimit(max_rows),
    )  # fmt: skip
    return replayed(engine, trajectory, evaluated[0], until, lookahead)


def replayed(engine: PropagationEngine, trajectory: Trajectory, after: int, until: int, lookahead: int = 0) -> dict[int, Tensor]:
    """Latents by step of a recorded run that an engine makes again, from behind step `after` until step `until`.

    `lookahead`: as for `latents_after`, which returns the same.
    """
    found: dict[int, Tensor] = {}
    pipe, step = engine.pipe, -1

    def watch(inner: Step, arguments: Any, args: tuple, kwargs: dict) -> Any:
        nonlocal step
        step += 1
        if step > after:
            found[step] = _looked_ahead(pipe.scheduler, trajectory, step, arguments, lookahead)
        if step == until:
            raise _Enough
        result = inner(*args, **kwargs)
        if step + 1 == trajectory.num_steps:
            found[step + 1] = result[0].clone()
            raise _Enough
        return result

    with ExitStack() as stack:
        stack.enter_context(PropagationHandle(engine))
        stack.enter_context(replaced_call(denoiser_of(pipe), _alike(pipe, trajectory)))
        _stepping(pipe, stack, watch)
        trajectory.call.run(pipe)
    return found


def _looked_ahead(scheduler: Any, trajectory: Trajectory, step: int, arguments: Any, lookahead: int) -> Tensor:
    sample = arguments["sample"]
    if not lookahead:
        return sample.clone()
    fork = copy.deepcopy(scheduler)
    others = {n: v for n, v in arguments.items() if n not in ("model_output", "timestep", "sample")}
    if others.get("generator") is not None:
        others["generator"] = _cloned(others["generator"])
    for later in range(step, min(step + lookahead, trajectory.num_steps)):
        sample = type(fork).step(fork, trajectory.outputs[later], trajectory.timesteps[later], sample, **others)[0]
    return sample


def _cloned(generator: Any) -> Any:
    if isinstance(generator, list):
        return [_cloned(one) for one in generator]
    return torch.Generator(generator.device).set_state(generator.get_state())


def memory_of(scheduler: Any) -> int:
    """Further steps on which a scheduler's memory of a step still acts; 0 for one-step schedulers."""
    if hasattr(scheduler, "ets"):  # PNDM
        return 3
    if hasattr(scheduler, "derivatives"):  # LMS
        return 3
    return int(scheduler.config.get("solver_order", 1)) - 1
