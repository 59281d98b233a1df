"""Encoder propagation: the encoder runs at key steps only (Faster Diffusion, section 3.3).

- `encoder_propagation(pipe, schedule, ...)`: the pipeline accelerated, while the block lasts
- `Counts`: what was evaluated in the block
"""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .conditions import Conditions, first_rows, repeat_rows, rounded
from .hooks import replaced_call
from .residuals import HeldResiduals
from .runs import Run, RunTracker, time_step_value
from .schedule import KeySchedule
from .split import (
    CONDITIONS,
    HELD_RESIDUALS,
    Split,
    adapter_scales,
    controlnet_of,
    denoiser_of,
    row_mixing_processor,
    split_denoiser,
)

_accelerated: weakref.WeakSet[nn.Module] = weakref.WeakSet()


@dataclass
class Counts:
    """What was evaluated in the block, over all its runs.

    `encoder_calls`: evaluations of the encoder (and bottleneck). `decoder_calls`: steps that were decoded; several may share a
    forward. `forward_calls`: calls of the denoiser's own forward. `controlnet_calls`: evaluations of the ControlNet.
    `runs`: runs begun. `steps`: denoiser calls of the pipeline that were answered; fewer than `runs` times the schedule's steps
    if a run ended early.
    """

    encoder_calls: int = 0
    decoder_calls: int = 0
    forward_calls: int = 0
    controlnet_calls: int = 0
    runs: int = 0
    steps: int = 0


@dataclass
class _Pass:
    """One evaluation of the host's forward: `times` steps of `rows` rows each, with the encoder run or its features reused."""

    rows: int
    times: int
    encode: bool
    is_last_use: bool


class _Propagation:
    """The state of one `encoder_propagation` block."""

    def __init__(self, pipe: Any, schedule: KeySchedule, max_rows: int | None, parallel: bool) -> None:
        self.pipe, self.schedule, self.max_rows, self.parallel = pipe, schedule, max_rows, parallel
        self.model = denoiser_of(pipe)
        self.split: Split = split_denoiser(self.model)
        self.signature = inspect.signature(type(self.model).forward)
        self.tracker = RunTracker(pipe)
        self.group_of = {step: group for group in schedule.groups() for step in group}
        self.counts = Counts()
        self.controlnet = controlnet_of(pipe)
        self.residuals = HeldResiduals(self.tracker, schedule)
        self.forget()

    def forget(self) -> None:
        """Drops all that belongs to a run."""
        self.features: dict[str, Any] = {}  # outputs of the encoder's children at the last key step, while still needed
        self.ahead: dict[int, Any] = {}  # step -> prediction that was decoded ahead
        self.conditions: Conditions | None = None  # of the last key step
        self.key_step = -1
        self.current: _Pass | None = None
        self.scales_at: list = []

    # ---- the pipeline's calls of the denoiser

    def call_denoiser(self, inner: Callable, args: tuple, kwargs: dict) -> Any:
        arguments = self.signature.bind(self.model, *args, **kwargs).arguments
        arguments.pop("self")
        arguments |= arguments.pop("kwargs", {})
        sample, timestep = arguments["sample"], arguments["timestep"]
        _, is_new = self.tracker.current(timestep)
        if is_new:
            self.begin_run()
        run, step, _ = self.tracker.advance(timestep)
        _check_finite(sample, step, timestep)
        difference = self.difference(run, step, timestep, arguments)
        if step in self.ahead and difference is None:
            prediction = self.ahead.pop(step)
        else:
            prediction = self.decode(inner, run, step, arguments, difference)
        self.counts.steps += 1
        return prediction

    def begin_run(self) -> None:
        self.forget()
        run = self.tracker.run
        if run is not None and run.num_steps not in (None, self.schedule.num_steps):
            raise ValueError(
                f"the schedule is for {self.schedule.num_steps} steps, this run makes {run.num_steps} denoiser calls with "
                f"{type(self.pipe.scheduler).__name__}; use schedule.rescaled({run.num_steps}), or call the pipeline with other steps"
            )
        _check_rows_stay_apart(self.model, self.parallel)  # pipelines may install processors when they are called
        self.counts.runs += 1
        self.scales_at = adapter_scales(self.model)

    def scales(self) -> list:
        return [rounded(getattr(owner, name)) for owner, name in self.scales_at]

    def compared(self, arguments: dict) -> dict:
        # The residuals of a held ControlNet are ours already, and its own arguments are compared at its own call.
        names = CONDITIONS if self.controlnet is not None else CONDITIONS + HELD_RESIDUALS
        return {name: arguments[name] for name in names if arguments.get(name) is not None}

    def difference(self, run: Run, step: int, timestep: Any, arguments: dict) -> str | None:
        """What keeps this call from using what was encoded at the last key step; None if nothing does."""
        if self.conditions is None:
            return "no key step came before it"
        if run.planned is not None and not run.is_at(timestep, step):
            return f"it comes at time-step {time_step_value(timestep)}, not at the planned one"
        rows = len(arguments["sample"])
        return self.conditions.difference(rows=rows, arguments=self.compared(arguments), scales=self.scales())

    def decode(self, inner: Callable, run: Run, step: int, arguments: dict, difference: str | None) -> Any:
        """Evaluates the denoiser for this step, and ahead for later steps of its group as far as allowed."""
        if step >= self.schedule.num_steps:
            raise ValueError(f"the schedule is for {self.schedule.num_steps} steps, this run makes more denoiser calls")
        group = self.group_of[step]
        is_key = step == group.start
        if not is_key and difference is not None:
            if self.parallel and run.planned is not None:
                raise self.refusal(step, arguments, difference)
            is_key = True
        rows = len(arguments["sample"])
        times = self.steps_at_once(run, group, step, rows)
        if is_key:
            self.key_step, self.features = step, {}
            self.conditions = Conditions(rows, self.compared(arguments), self.scales())
        self.current = _Pass(rows, times, encode=is_key, is_last_use=step + times == group.stop)
        try:
            output = inner(**self.expanded(run, step, arguments, rows, times))
        finally:
            self.current = None
        self.counts.forward_calls += 1
        self.counts.encoder_calls += is_key
        self.counts.decoder_calls += times
        parts = _per_step(output, rows, times)
        self.ahead = dict(enumerate(parts, start=step))
        return self.ahead.pop(step)

    def refusal(self, step: int, arguments: dict, difference: str) -> ValueError:
        return ValueError(
            f"step {step} (time-step {time_step_value(arguments['timestep'])}) cannot use what was decoded ahead at key step "
            f"{self.key_step}: {difference}. Make step {step} a key step, or use parallel_decoding=False"
        )

    def steps_at_once(self, run: Run, group: range, step: int, rows: int) -> int:
        if not self.parallel or run.planned is None:
            return 1
        if self.max_rows is None:
            return group.stop - step
        if self.max_rows < rows:
            raise ValueError(f"max_rows={self.max_rows} asked, but one step of this run has {rows} rows; accepted: {rows} or more")
        return min(group.stop - step, self.max_rows // rows)

    def expanded(self, run: Run, step: int, arguments: dict, rows: int, times: int) -> dict:
        """The arguments with the rows of `times` steps; the held residuals keep the rows of one, as the encoder does."""
        if times == 1:
            return arguments
        assert run.planned is not None
        sample = arguments["sample"]
        unknown = arguments.keys() - {"sample", "timestep", "return_dict", *CONDITIONS, *HELD_RESIDUALS}
        if unknown:
            raise TypeError(f"argument {sorted(unknown)[0]!r} is not known to parallel decoding; use parallel_decoding=False")
        repeated = {name: repeat_rows(arguments[name], rows, times, name) for name in CONDITIONS if name in arguments}
        time_steps = run.planned[step : step + times].to(sample.device).repeat_interleave(rows)
        return arguments | repeated | {"sample": repeat_rows(sample, rows, times, "sample"), "timestep": time_steps}

    def call_controlnet(self, inner: Callable, args: tuple, kwargs: dict) -> Any:
        residuals, evaluated = self.residuals.call(inner, args, kwargs)
        self.counts.controlnet_calls += evaluated
        return residuals

    # ---- the host's calls of the denoiser's children

    def call_encoder(self, name: str, inner: Callable, args: tuple, kwargs: dict) -> Any:
        now = self.current
        if now is None:
            return inner(*args, **kwargs)
        if not now.encode:
            kept = self.features.pop(name) if now.is_last_use else self.features[name]
            return kept if now.is_last_use else _own_sample(kept)
        output = inner(*first_rows(args, now.rows, now.times), **first_rows(kwargs, now.rows, now.times))
        if now.is_last_use:
            return output
        self.features[name] = output
        return _own_sample(output)

    def enter_decoder(self, module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        """Before an up block: gives the encoder's features, still with the rows of one step, those of all steps decoded."""
        now = self.current
        if now is None or now.times == 1:
            return args, kwargs
        names = ("hidden_states", "res_hidden_states_tuple")
        kwargs = dict(zip(names, args, strict=False)) | kwargs
        for name in names:
            kwargs[name] = _with_all_rows(kwargs[name], now)
        return args[2:], kwargs


def _check_finite(sample: Tensor, step: int, timestep: Any) -> None:
    # Only where looking costs nothing: on a device, each look would make the host wait for it.
    if sample.device.type == "cpu" and not torch.isfinite(sample).all():
        raise ValueError(f"the latents that step {step} (time-step {time_step_value(timestep)}) gets hold NaN or infinite values")


def _own_sample(output: Any) -> Any:
    """A child's output with a copy of its sample, which hosts write into (FreeU, T2I-Adapter); skips are only read.

    A skip that is the sample itself stays the same tensor as the copy: T2I-Adapter reaches it that way.
    """
    if isinstance(output, Tensor):
        return output.clone()
    sample, skips = output
    copy = sample.clone()
    return copy, tuple(copy if skip is sample else skip for skip in skips)


def _with_all_rows(value: Any, now: _Pass) -> Any:
    if isinstance(value, tuple | list):
        return type(value)(_with_all_rows(inner, now) for inner in value)
    return repeat_rows(value, now.rows, now.times) if len(value) == now.rows else value


def _per_step(output: Any, rows: int, times: int) -> list:
    """The output of a forward over `times` steps as one output per step, of the host's own type."""
    sample = output[0]
    parts = [sample] if times == 1 else sample.split(rows)
    return [(part,) if isinstance(output, tuple) else type(output)(sample=part) for part in parts]


def _check_options(pipe: Any, schedule: Any, order: int, parallel: bool, max_rows: int | None) -> None:
    if not isinstance(schedule, KeySchedule):
        raise TypeError(f"schedule={schedule!r} given; accepted: a KeySchedule, such as KeySchedule.paper(50)")
    if order != 0:
        raise ValueError(f"order={order!r} asked; accepted: 0 (features held, the paper)")
    if max_rows is not None and (not isinstance(max_rows, int) or max_rows < 1):
        raise ValueError(f"max_rows={max_rows!r} asked; accepted: a whole number of 1 or more, or None for no limit")
    if max_rows is not None and not parallel:
        raise ValueError("max_rows asked with parallel_decoding=False, where each step is decoded alone; leave one of them out")
    model = denoiser_of(pipe)
    if model in _accelerated:
        raise RuntimeError("this pipeline is accelerated already; leave the outer encoder_propagation block first")
    _check_rows_stay_apart(model, parallel)


def _check_rows_stay_apart(model: nn.Module, parallel: bool) -> None:
    mixing = row_mixing_processor(model)
    if parallel and mixing is not None:
        raise ValueError(f"{mixing} mixes the rows of a batch, so steps cannot share one; use parallel_decoding=False")


@contextmanager
def encoder_propagation(
    pipe: Any,
    schedule: KeySchedule,
    *,
    order: int = 0,
    parallel_decoding: bool = True,
    max_rows: int | None = None,
) -> Iterator[Counts]:
    """While the block lasts, runs of the pipeline evaluate the encoder at the schedule's key steps only.

    >>> with fl.encoder_propagation(pipe, fl.KeySchedule.paper(50)) as counts:  # doctest: +SKIP
    ...     image = pipe("a small red circle on a blue background", num_inference_steps=50).images[0]
    >>> counts.encoder_calls  # doctest: +SKIP
    9

    `pipe`: a diffusers pipeline with a UNet2DConditionModel. A ControlNet is evaluated at key steps only, too.
    `schedule`: for as many steps as the run makes denoiser calls.
    `order`: 0 holds the features of the last key step (the paper).
    `parallel_decoding`: decodes all steps of a group in one batch; possible because the prediction at a non-key step does not
    depend on that step's latent (Fig. 4). False decodes each step alone: the same result with less memory.
    `max_rows`: the most rows decoded at once, 1 or more (two rows per picture with guidance); None for no limit.

    Yields `Counts`. Afterwards, also after an exception, the pipeline is as it was. Raises TypeError or ValueError for a
    pipeline or options that cannot be accelerated, at a run's first step if the schedule does not fit it, and where a prediction
    decoded ahead does not fit the call it is meant for (text, rows or adapter scales changed in mid-run).
    """
    _check_options(pipe, schedule, order, parallel_decoding, max_rows)
    state = _Propagation(pipe, schedule, max_rows, parallel_decoding)

    def around_encoder(name: str) -> Callable:
        return lambda inner: lambda *args, **kwargs: state.call_encoder(name, inner, args, kwargs)

    with ExitStack() as stack:
        _accelerated.add(state.model)
        stack.callback(_accelerated.discard, state.model)
        stack.callback(state.forget)
        stack.callback(state.residuals.forget)
        for name, child in state.split.encoder.items():
            stack.enter_context(replaced_call(child, around_encoder(name)))
        for name in state.split.entries:
            hook = state.split.decoder[name].register_forward_pre_hook(state.enter_decoder, with_kwargs=True)
            stack.callback(hook.remove)
        if state.controlnet is not None:
            stack.enter_context(replaced_call(state.controlnet, lambda inner: lambda *a, **k: state.call_controlnet(inner, a, k)))
        stack.enter_context(replaced_call(state.model, lambda inner: lambda *a, **k: state.call_denoiser(inner, a, k)))
        yield state.counts
