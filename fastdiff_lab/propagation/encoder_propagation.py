"""Encoder propagation: the encoder runs at key steps only (Faster Diffusion, section 3.3).

- `encoder_propagation(pipe, schedule, ...)`: accelerates a pipeline while the block lasts
- `apply_encoder_propagation(pipe, schedule, ...)`: accelerates it until the handle is removed
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ..hooks.fingerprint import differences
from ..key_schedule import KeySchedule
from .checks import check_rows_stay_apart, warn_of_few_steps
from .config import PropagationConfig
from .counts import Counts
from .engine import PropagationEngine
from .extrapolation import Extrapolation
from .fit import PropagationFit
from .handle import PropagationHandle, check_not_accelerated

if TYPE_CHECKING:  # some builds of torch have none
    from diffusers import DiffusionPipeline
    from torch.distributed import ProcessGroup


@contextmanager
def encoder_propagation(
    pipe: DiffusionPipeline,
    schedule: KeySchedule | PropagationConfig,
    *,
    order: int | Extrapolation = 0,
    reuse: str = "encoder",
    parallel_decoding: bool = True,
    max_rows: int | None = None,
    encoder_blocks: int | None = None,
    process_group: ProcessGroup | None = None,
    fit: PropagationFit | None = None,
) -> Iterator[Counts]:
    """Evaluate the encoder at the schedule's key steps only, in all runs of the pipeline inside the block.

    >>> with fl.encoder_propagation(pipe, fl.KeySchedule.paper(50)) as counts:  # doctest: +SKIP
    ...     image = pipe("a small red circle on a blue background", num_inference_steps=50).images[0]
    >>> counts.encoder_calls  # doctest: +SKIP
    9

    Afterwards, also after an exception, the pipeline is as it was. A run is one denoiser call per time-step of the scheduler. Others
    (tiles, inversions, masks) are refused. A block that accelerated nothing warns at its end.

    Args:
        pipe: A diffusers pipeline with a UNet (2D, conditional or not, 3D, spatio-temporal, motion) or a transformer such as DiT's. All
            that were tested stand in docs/systems.md. A ControlNet is evaluated at key steps only, too.
        schedule: The key steps, for as many steps as the run makes denoiser calls. Or a `PropagationConfig`, without the options below.
        order: 0 reuses the features of the last key step (the paper). 1 extrapolates along the line through the last two key steps
            (ours). It needs the memory of one more set of features. An `Extrapolation` says more.
        reuse: "encoder". For teaching also "decoder" and "prediction". With "decoder" the encoder runs at every step, and the outputs
            of the up blocks are reused. With "prediction" nothing runs between keys. In a UNet the two give the same images, as the
            prediction depends on the up blocks' output only. So two rows of the paper's Table 14 are one method here.
        parallel_decoding: Decode all steps of a group in one batch. The prediction at a non-key step does not depend on that step's
            latent (Fig. 4). False decodes each step alone: the same result with less memory. Classes, attention processors,
            hooks and forwards in the decoder that are not diffusers' are checked: two steps of each run are decoded alone.
            Attention stores and counters get the rows of several steps in one call, which a warning says. Those in the
            encoder are called at key steps only.
        max_rows: The most rows decoded at once, 1 or more (two rows per image with guidance). None: no limit on the CPU; elsewhere as
            many as fit into the memory that is free when a run begins. Where memory still runs out, this and later groups go on with
            half the rows, and a warning.
        encoder_blocks: How many blocks of a diffusion transformer are its encoder; None for the paper's share, 18 of 28.
        process_group: Of torch.distributed. Its processes share the steps of each group. All make the same call and get the same image
            (the paper's "multiple GPUs", docs/scaling.md). None for this process alone.
        fit: From `fit_propagation`, made with this schedule, reuse and order (ours). Each group is decoded at its key step, and its
            predictions are corrected. `counts.images_beyond_fit` says how many images left what was seen when fitting.

    Yields:
        `Counts` of what this process evaluated.

    Raises:
        TypeError, ValueError: For a pipeline or options that cannot be accelerated.
        ValueError: At a run's first step, if the schedule does not fit the run. At a later step, if text, rows, weights or
            adapter scales changed since the key step, or for NaN. On a device, NaN and some changes are told when the run ends.
        RuntimeError: For a pipeline that is accelerated already.
    """
    config = PropagationConfig.of(
        schedule, order=order, reuse=reuse, parallel_decoding=parallel_decoding, max_rows=max_rows, encoder_blocks=encoder_blocks,
        process_group=process_group, fit=fit,
    )  # fmt: skip
    with _applied(pipe, config, stacklevel=5) as handle:
        yield handle.counts
        why = handle.why_nothing_accelerated()
        if why is not None:
            warnings.warn(why, stacklevel=3)


def apply_encoder_propagation(
    pipe: DiffusionPipeline, schedule: KeySchedule | PropagationConfig, **options: Any
) -> PropagationHandle:
    """Accelerate the runs of a pipeline until the handle is removed.

    >>> handle = fl.apply_encoder_propagation(pipe, fl.KeySchedule.paper(50))  # doctest: +SKIP
    >>> image = pipe("a small red circle on a blue background", num_inference_steps=50).images[0]  # doctest: +SKIP
    >>> handle.counts.encoder_calls  # doctest: +SKIP
    9
    >>> handle.remove()  # doctest: +SKIP

    Args:
        pipe: As in `encoder_propagation`, which does the same for a block.
        schedule: The key steps, or a `PropagationConfig`, then without options.
        options: Those of `encoder_propagation`.

    Returns:
        A handle with `counts` and `remove()`.

    Raises:
        TypeError, ValueError, RuntimeError: As `encoder_propagation` does.
    """
    return _applied(pipe, PropagationConfig.of(schedule, **options), stacklevel=4)


def _applied(pipe: DiffusionPipeline, config: PropagationConfig, stacklevel: int) -> PropagationHandle:
    check_not_accelerated(pipe)
    engine = PropagationEngine(pipe, config)
    check_rows_stay_apart(pipe, engine.split, config.is_parallel)
    _warn_of_other_use(pipe, config, stacklevel)
    if config.reuse == "encoder":
        warn_of_few_steps(pipe, config.schedule, stacklevel)
    return PropagationHandle(engine)


def _warn_of_other_use(pipe: DiffusionPipeline, config: PropagationConfig, stacklevel: int) -> None:
    if not config.measured_on:
        return  # looking at all weights takes a few denoiser calls' time on a small model
    found = differences(config.measured_on, pipe, order=config.extrapolation.order, reuse=config.reuse)
    if found:
        again = {
            "schedule": "Its keys need not be good here; calibrate again",
            "fit": "It need not correct anything here; fit anew",
        }
        warnings.warn(
            f"this {config.measured} was measured on something else: {'; '.join(found)}. {again[config.measured]}",
            stacklevel=stacklevel,
        )
