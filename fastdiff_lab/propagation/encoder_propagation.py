"""Encoder propagation: the encoder runs at key steps only (Faster Diffusion, section 3.3).

- `encoder_propagation(pipe, schedule, ...)`: the pipeline accelerated, while the block lasts
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import nn

from ..hooks.adapters import processors_kept
from ..hooks.denoiser import controlnet_of, denoiser_of, inner_loop, split_denoiser
from ..hooks.fingerprint import differences
from ..hooks.patching import replaced_call, replaced_method
from ..hooks.run_tracking import announced
from ..inputs.plain_values import is_whole
from ..key_schedule import KeySchedule
from .cached_calls import holding
from .checks import check_rows_stay_apart, warn_of_few_steps
from .counts import Counts
from .distributed import Ranks
from .engine import HELD, Decoding
from .extrapolation import Extrapolation

if TYPE_CHECKING:  # some builds of torch have none
    from torch.distributed import ProcessGroup

_accelerated: weakref.WeakSet[nn.Module] = weakref.WeakSet()


def _check_options(
    pipe: Any, schedule: Any, order: Extrapolation, what: str, parallel: bool, max_rows: int | None, process_group: Any = None
) -> None:
    if not isinstance(schedule, KeySchedule):
        raise TypeError(f"schedule={schedule!r} given; accepted: a KeySchedule, such as KeySchedule.paper(50)")
    if what not in HELD:
        raise ValueError(f"what={what!r} asked; accepted: {', '.join(HELD)}")
    if order.order and what == "decoder":
        raise ValueError(f"order={order.order} asked with what='decoder'; accepted: what='encoder' or 'prediction', or order=0")
    if max_rows is not None and (not is_whole(max_rows) or max_rows < 1):
        raise ValueError(f"max_rows={max_rows!r} asked; accepted: a whole number of 1 or more, or None for as many as fit")
    for name, asked in (("max_rows", max_rows), ("process_group", process_group)):
        if asked is not None and not (parallel and what == "encoder"):
            raise ValueError(
                f"{name} asked with parallel_decoding={parallel} and what={what!r}, where each step is decoded alone; leave one of them out"
            )
    check_not_accelerated(pipe)
    check_rows_stay_apart(pipe, parallel and what == "encoder")


def _warn_of_other_use(pipe: Any, schedule: KeySchedule, order: int, what: str) -> None:
    if schedule.measured_on is None:
        return
    found = differences(schedule.measured_on, pipe, order=order, what=what)
    if found:
        warnings.warn(
            f"this schedule was measured on something else: {'; '.join(found)}. Its keys need not be good here; calibrate again",
            stacklevel=4,
        )


def check_not_accelerated(pipe: Any) -> None:
    """Raises RuntimeError inside an `encoder_propagation` block of the same pipeline, or of one with the same denoiser or ControlNet."""
    taken = next((model for model in (denoiser_of(pipe), controlnet_of(pipe)) if model in _accelerated), None)
    if taken is not None:
        raise RuntimeError(
            f"this pipeline is accelerated already (its {type(taken).__name__}); leave the outer encoder_propagation block first"
        )


@contextmanager
def encoder_propagation(
    pipe: Any,
    schedule: KeySchedule,
    *,
    order: int | Extrapolation = 0,
    what: str = "encoder",
    parallel_decoding: bool = True,
    max_rows: int | None = None,
    encoder_blocks: int | None = None,
    process_group: ProcessGroup | None = None,
) -> Iterator[Counts]:
    """While the block lasts, runs of the pipeline evaluate the encoder at the schedule's key steps only.

    >>> with fl.encoder_propagation(pipe, fl.KeySchedule.paper(50)) as counts:  # doctest: +SKIP
    ...     image = pipe("a small red circle on a blue background", num_inference_steps=50).images[0]
    >>> counts.encoder_calls  # doctest: +SKIP
    9

    `pipe`: a diffusers pipeline with a UNet (2D, conditional or not, 3D, spatio-temporal, motion) or a transformer such as DiT's; all
    that were tested stand in docs/systems.md. A ControlNet is evaluated at key steps only, too.
    `schedule`: for as many steps as the run makes denoiser calls.
    `order`: 0 holds the features of the last key step (the paper); 1 extrapolates them along the line through the last two key
    steps (ours), which needs the memory of one more set of features. An `Extrapolation` says more.
    `what`: "encoder"; for teaching also "decoder" (the encoder runs at every step, the outputs of the up blocks are held) and
    "prediction" (nothing runs between keys). In a UNet the two give the same pictures: the prediction depends on the up blocks'
    output only, so the paper's decoder propagation and its encoder-and-decoder propagation (Table 14) are one arm here.
    `parallel_decoding`: decodes all steps of a group in one batch; possible because the prediction at a non-key step does not
    depend on that step's latent (Fig. 4). False decodes each step alone: the same result with less memory. Attention processors, hooks
    and forwards in the decoder that are none of diffusers' are checked once in each run: two steps are decoded alone as well.
    `max_rows`: the most rows decoded at once, 1 or more (two rows per picture with guidance). None: on the CPU no limit; elsewhere as
    many as fit into the memory that is free when a run begins. Where memory runs out all the same, the group goes on with half the rows,
    and so do later ones, with a warning.
    `encoder_blocks`: how many blocks of a diffusion transformer are its encoder; None for the paper's share, 18 of 28.

    `process_group`: of torch.distributed; its processes share the steps of each group, all make the same call and all get the picture
    (the paper's "multiple GPUs", docs/scaling.md). None for this process alone.

    Yields `Counts`, of this process. Afterwards, also after an exception, the pipeline is as it was. Warns at the end of a block that
    accelerated nothing. A run is one call for each of the scheduler's time-steps; others (tiles, inversions, masks) are refused.
    Raises TypeError or ValueError for a pipeline or options that cannot be accelerated. Raises ValueError at a run's first step if the
    schedule does not fit the run. It does so at a later step if a prediction decoded ahead does not fit its call (text, rows or adapter
    scales changed in mid-run).
    """
    extrapolation = Extrapolation.of(order)
    _check_options(pipe, schedule, extrapolation, what, parallel_decoding, max_rows, process_group)
    split = split_denoiser(denoiser_of(pipe), encoder_blocks)
    _warn_of_other_use(pipe, schedule, extrapolation.order, what)
    if what == "encoder":
        warn_of_few_steps(pipe, schedule)
    parallel = parallel_decoding and what == "encoder"
    ranks = Ranks(process_group)
    with installed(
        Decoding(pipe, schedule, split, what=what, extrapolation=extrapolation, parallel=parallel, max_rows=max_rows, ranks=ranks)
    ) as state:
        yield state.counts
        warn_of_nothing_accelerated(state)


def warn_of_nothing_accelerated(state: Decoding) -> None:
    """Warns at the end of a block in which no step used what another had left, though the schedule has such steps."""
    kind = type(state.pipe).__name__
    if denoiser_of(state.pipe) is not state.model:
        why = f"the denoiser of {kind} was replaced inside it; enter the block after the change"
    elif not state.was_called:
        shared = (
            f" ({state.others_calls} calls of its denoiser came from other pipelines that share it)" if state.others_calls else ""
        )
        why = f"{kind} made no denoiser call inside it{shared}; call this pipeline there"
    elif state.why_key is not None and not state.reused:
        why = f"every step was evaluated as a key step: at the last of them, {state.why_key}"
    else:
        return
    warnings.warn(f"the encoder_propagation block accelerated nothing, or not all: {why}", stacklevel=4)


@contextmanager
def installed(state: Decoding) -> Iterator[Decoding]:
    """While the block lasts, the calls of the pipeline's denoiser, of its held children and of its ControlNet go through `state`."""
    model = state.model
    with ExitStack() as stack:
        for shared in (model, state.controlnet):
            if shared is not None:
                _accelerated.add(shared)
                stack.callback(_accelerated.discard, shared)
        stack.callback(state.tracker.forget)
        stack.callback(state.forget)
        stack.callback(state.residuals.forget)
        holding(stack, state.features, state.split, state.what)
        if state.controlnet is not None:
            stack.enter_context(replaced_call(state.controlnet, lambda inner: lambda *a, **k: state.call_controlnet(inner, a, k)))
        stack.enter_context(replaced_call(model, lambda inner: lambda *a, **k: state.call_denoiser(inner, a, k)))
        loop = inner_loop(state.pipe)
        stack.enter_context(processors_kept(model, after_errors_only=loop is None))
        if loop is not None:
            stack.enter_context(replaced_method(state.pipe, loop, partial(announced, state.tracker.begin_loop)))
        yield state
