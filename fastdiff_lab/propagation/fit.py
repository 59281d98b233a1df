"""A fit: a few scalars per group, by which known tensors correct the group's predictions.

- `PropagationFit`: the scalars, with their schedule and what they were fitted on
- `columns_of(schedule, reuse, blocks)`: the names of each group's known tensors
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..inputs.files import read_json, write_text
from ..inputs.plain_values import choice, number, whole_number
from ..key_schedule import KeySchedule
from .lines import Lines, checked_lines

SCHEMA = "fastdiff_lab.PropagationFit"
VERSION = 1
FITTED_REUSES = ("encoder", "prediction")
OLDER_KEYS = 2  # earlier key steps whose predictions are known tensors
MAX_BLOCKS = 4
_FIELDS = ("schedule", "coefficients", "bounds", "reuse", "order", "blocks", "lines", "measured_on", "about")


def columns_of(schedule: KeySchedule, reuse: str, blocks: int = 1) -> tuple[tuple[str, ...], ...]:
    """The names of the known tensors of each group, none for a group of one step.

    >>> columns_of(KeySchedule(5, (0, 2, 3)), "encoder")[0]
    ('latent', 'key', 'ahead')

    `blocks`: how many predictions a step has; several where the pipeline does not tell its guidance scale.
    """
    found, before = [], range(1)
    for place, group in enumerate(schedule.groups()):
        older = [f"older {back}" for back in range(1, min(place, OLDER_KEYS) + 1)]
        decoded = [*(["missed"] if len(before) > 1 else []), "ahead"] if reuse == "encoder" else []
        of_predictions, before = ["key", *older, *decoded], group
        several = [name if blocks == 1 else f"{name}, block {block}" for name in of_predictions for block in range(blocks)]
        found.append(("latent", *several) if len(group) > 1 else ())
    return tuple(found)


@dataclass(frozen=True)
class PropagationFit:
    """A few scalars per group, fitted so that each group ends at the baseline's latents.

    >>> fit = PropagationFit(KeySchedule(3, (0, 1)), ((), (0.0,) * 4), (0.0, 0.0))
    >>> PropagationFit.from_json(fit.to_json()) == fit
    True

    `fit_propagation` makes one, and `encoder_propagation(pipe, fit.schedule, fit=fit)` uses it. Each prediction of a group gets the
    same offset: the group's known tensors, times its scalars.

    Args:
        schedule: The key steps that it was fitted with.
        coefficients: For each group one scalar per known tensor, as `columns_of` names them; none for a group of one step.
        bounds: For each group the largest offset that was seen when fitting, as its root mean square. A larger one is shortened to it.
        reuse: "encoder" or "prediction", as it was fitted with.
        order: 0, 1 or 2, as it was fitted with.
        blocks: How many predictions each step has: 1, or all blocks of rows where the pipeline does not tell its guidance scale.
        lines: Two scalars for each feature and step, for order 1 of "encoder"; else none.
        measured_on: Model, scheduler, guidance scale, steps and number of images. Using the fit elsewhere warns.
        about: Prompts, seeds and versions.

    Raises:
        TypeError, ValueError: For values that do not belong together.
    """

    schedule: KeySchedule
    coefficients: tuple[tuple[float, ...], ...]
    bounds: tuple[float, ...]
    reuse: str = "encoder"
    order: int = 0
    blocks: int = 1
    lines: Lines = ()
    measured_on: Mapping[str, Any] = field(default_factory=dict, compare=False)
    about: Mapping[str, Any] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        choice("reuse", self.reuse, FITTED_REUSES)
        whole_number("order", self.order, 0, 2)
        whole_number("blocks", self.blocks, 1, MAX_BLOCKS)
        _check_numbers(self.coefficients, self.bounds)
        self._check_lines()
        expected = [len(names) for names in columns_of(self.schedule, self.reuse, self.blocks)]
        if [len(group) for group in self.coefficients] != expected or len(self.bounds) != len(expected):
            raise ValueError(
                f"coefficients of {[len(group) for group in self.coefficients]} known tensors and {len(self.bounds)} bounds given; "
                f"accepted for {self.schedule}: {expected}, and {len(expected)} bounds"
            )

    def _check_lines(self) -> None:
        object.__setattr__(self, "lines", checked_lines(self.lines, self.schedule.num_steps))
        asked = takes_lines(self.reuse, self.order)
        if bool(self.lines) != asked:
            raise ValueError(
                f"{len(self.lines)} lines given with reuse={self.reuse!r} and order={self.order}; "
                f"accepted: {'one for each feature' if asked else 'none'}"
            )

    def check_same(self, schedule: KeySchedule, reuse: str, order: int) -> None:
        """Raise ValueError where the fit is asked for another schedule, reuse or order."""
        pairs = (
            ("schedule", str(self.schedule), str(schedule)), ("reuse", self.reuse, reuse), ("order", self.order, order)
        )  # fmt: skip
        other = next(((name, fitted, asked) for name, fitted, asked in pairs if fitted != asked), None)
        if other is not None:
            name, fitted, asked = other
            raise ValueError(f"the fit was made with {name} {fitted}, and {asked} is asked; use the fit's own, or fit anew")

    def digest(self) -> str:
        """A fingerprint of the scalars and bounds: results are stored under it."""
        return hashlib.sha256(repr((self.coefficients, self.bounds, self.lines)).encode()).hexdigest()[:16]

    def to_json(self) -> str:
        """The fit as readable JSON with a schema version."""
        document = {"schema": SCHEMA, "version": VERSION, "schedule": json.loads(self.schedule.to_json())}
        values = {name: getattr(self, name) for name in _FIELDS[1:7]}
        return json.dumps(document | values | {"measured_on": dict(self.measured_on), "about": dict(self.about)})

    @classmethod
    def from_json(cls, text: str) -> PropagationFit:
        """Read what `to_json` writes. Raises ValueError that names what is wrong."""
        return _from_document(read_json(text, "the given text", SCHEMA, VERSION), "the given text")

    def save(self, path: str | Path) -> None:
        """Write the fit as JSON, whole or not at all.

        >>> fit.save("fit.json")  # doctest: +SKIP
        """
        write_text(Path(path), self.to_json() + "\n")

    @classmethod
    def load(cls, path: str | Path) -> PropagationFit:
        """Read a file that `save` wrote. Raises FileNotFoundError, or ValueError that names what is wrong."""
        return _from_document(read_json(Path(path), str(path), SCHEMA, VERSION), str(path))


def takes_lines(reuse: str, order: int) -> bool:
    """Whether a fit has lines. The parabola of order 2 is not fitted, and offsets follow older predictions themselves."""
    return reuse == "encoder" and order == 1


def _check_numbers(coefficients: Any, bounds: Any) -> None:
    if not isinstance(coefficients, tuple | list) or not all(isinstance(group, tuple | list) for group in coefficients):
        raise TypeError(f"coefficients={repr(coefficients)[:80]} given; accepted: for each group a list of numbers")
    if not isinstance(bounds, tuple | list):
        raise TypeError(f"bounds={repr(bounds)[:80]} given; accepted: a list of numbers")
    for value in (value for group in coefficients for value in group):
        number("coefficients", value)
    for value in bounds:
        number("bounds", value, 0)


def _from_document(document: dict, place: str) -> PropagationFit:
    missing, unknown = set(_FIELDS) - document.keys(), document.keys() - set(_FIELDS)
    if missing or unknown:
        wrong = f"field {sorted(missing or unknown)[0]!r} is {'missing' if missing else 'unknown'}"
        raise ValueError(f"{place}: {wrong}; a fit has: {', '.join(_FIELDS)}")
    try:
        for name in ("schedule", "measured_on", "about"):
            if not isinstance(document[name], dict):
                raise TypeError(f"{name}={repr(document[name])[:80]} given; accepted: names with values")
        schedule = KeySchedule.from_json(json.dumps(document["schedule"]))
        _check_numbers(document["coefficients"], document["bounds"])
        lists = {"coefficients": tuple(map(tuple, document["coefficients"])), "bounds": tuple(document["bounds"])}
        return PropagationFit(**document | lists | {"schedule": schedule})
    except (TypeError, ValueError) as error:
        raise ValueError(f"{place}: {error}") from None
