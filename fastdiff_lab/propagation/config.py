"""How a pipeline is accelerated, checked once.

- `PropagationConfig`: the schedule and the options of encoder propagation
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ..inputs.plain_values import choice, whole_number
from ..key_schedule import KeySchedule
from .extrapolation import Extrapolation
from .fit import PropagationFit
from .reuse import REUSES

if TYPE_CHECKING:  # some builds of torch have none
    from torch.distributed import ProcessGroup


@dataclass(frozen=True)
class PropagationConfig:
    """The schedule and the options of encoder propagation.

    >>> PropagationConfig(KeySchedule.paper(50), max_rows=8).is_parallel
    True

    Args:
        schedule: The key steps, for as many steps as the run makes denoiser calls.
        order: 0, 1 or 2, or an `Extrapolation`; read as `extrapolation`.
        reuse: What the steps between keys reuse: "encoder", "decoder" or "prediction".
        parallel_decoding: Decode the steps of a group in one batch.
        max_rows: The most rows decoded at once, 1 or more; None for as many as fit.
        encoder_blocks: How many blocks of a transformer are its encoder; None for the paper's share.
        process_group: The processes that share the steps of each group; None for this one alone.
        fit: Corrects the predictions of each group; made with this schedule, reuse and order. None for none.

    Raises:
        TypeError, ValueError: For values that are not accepted, or that exclude each other.
    """

    schedule: KeySchedule
    order: int | Extrapolation = 0
    reuse: str = "encoder"
    parallel_decoding: bool = True
    max_rows: int | None = None
    encoder_blocks: int | None = None
    process_group: ProcessGroup | None = None
    fit: PropagationFit | None = None

    def __post_init__(self) -> None:
        order = self.extrapolation.order
        if not isinstance(self.schedule, KeySchedule):
            raise TypeError(f"schedule={self.schedule!r} given; accepted: a KeySchedule, such as KeySchedule.paper(50)")
        choice("reuse", self.reuse, REUSES)
        if order and self.reuse == "decoder":
            raise ValueError(f"order={order} asked with reuse='decoder'; accepted: reuse='encoder' or 'prediction', or order=0")
        if self.max_rows is not None:
            whole_number("max_rows", self.max_rows, 1, also=" or None")
        for name, asked in (("max_rows", self.max_rows), ("process_group", self.process_group)):
            if asked is not None and not self.is_parallel:
                raise ValueError(
                    f"{name} asked with parallel_decoding={self.parallel_decoding} and reuse={self.reuse!r}, where each step is decoded "
                    "alone; leave one of them out"
                )
        if self.fit is not None:
            self._check_fit(self.fit)

    def _check_fit(self, fit: Any) -> None:
        if not isinstance(fit, PropagationFit):
            raise TypeError(f"fit={repr(fit)[:80]} given; accepted: a PropagationFit, as fit_propagation makes one, or None")
        fit.check_same(self.schedule, self.reuse, self.extrapolation.order)
        if self.extrapolation != Extrapolation(self.extrapolation.order) or self.encoder_blocks is not None:
            raise ValueError(
                f"a fit asked with {self.extrapolation} and encoder_blocks={self.encoder_blocks}; accepted with a fit: order=0, 1 or 2, "
                "and encoder_blocks=None, as it was made"
            )

    @classmethod
    def of_fit(cls, fit: PropagationFit) -> PropagationConfig:
        """A fit with its own schedule, reuse and order."""
        return cls(fit.schedule, order=fit.order, reuse=fit.reuse, fit=fit)

    @classmethod
    def of(cls, schedule: KeySchedule | PropagationConfig, **options: Any) -> PropagationConfig:
        """A `PropagationConfig` as it is, or one of a schedule and options. Raises TypeError for a config and options together."""
        if not isinstance(schedule, cls):
            return cls(schedule, **options)  # type: ignore[arg-type]
        defaults = {field.name: field.default for field in fields(cls)}
        beside = next((name for name, value in options.items() if value != defaults.get(name)), None)
        if beside is not None:
            raise TypeError(f"{beside}={options[beside]!r} given beside a PropagationConfig; accepted: one or the other")
        return schedule

    @cached_property
    def extrapolation(self) -> Extrapolation:
        return Extrapolation.of(self.order)

    @property
    def is_parallel(self) -> bool:
        """Are several steps decoded in one batch? Only where the decoder runs at every step."""
        return self.parallel_decoding and self.reuse == "encoder"

    @property
    def measured(self) -> str:
        """What says on what it was measured: "fit", or "schedule"."""
        return "schedule" if self.fit is None else "fit"

    @property
    def measured_on(self) -> Mapping[str, Any]:
        """What the fit, or else the schedule, was measured on; empty if nothing says it."""
        return (self.schedule if self.fit is None else self.fit).measured_on or {}

    def about(self) -> dict[str, Any]:
        """The options as text and numbers. Results are stored under them, so a new option stands here only where it is used."""
        found = {name: getattr(self, name) for name in ("reuse", "order", "parallel_decoding", "max_rows", "encoder_blocks")}
        extrapolation = {"order": asdict(self.order)} if isinstance(self.order, Extrapolation) else {}
        fit = {} if self.fit is None else {"fit": self.fit.digest()}
        return {"schedule": str(self.schedule)} | found | extrapolation | fit
