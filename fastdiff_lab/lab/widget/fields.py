"""The lab's settings as fields of a form, and back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ...key_schedule import KeySchedule
from ...pipelines import SCHEDULERS
from ...shapes.scenes import COLOURS, POSITIONS, SHAPES, SIZES, words
from ..session.settings import MOST_STEPS, OWN, Acceleration, Settings
from ..session.tuning import FIRST_OPTIONS

OF_SETTINGS = {
    "prompt": "prompt", "seed": "seed", "steps": "num_inference_steps", "scheduler": "scheduler", "guidance": "guidance_scale",
}  # fmt: skip
REUSE = [["encoder", "encoder features"], ["prediction", "whole prediction (rival)"]]
ORDERS = [[0, "reused (order 0)"], [1, "extrapolated (order 1)"]]

PARTS = {
    "size": ["", *SIZES],
    "colour": [*COLOURS],
    "shape": [*SHAPES],
    "place": ["", *POSITIONS.values()],
    "background": [*COLOURS],
}
CAPTIONS = {"words": [*words()], "parts": [{"name": name, "options": options} for name, options in PARTS.items()]}


def lab_fields(own: str, of_scenes: bool = False) -> list[dict[str, Any]]:
    """The fields of the form; `own` names the pipeline's own scheduler. `of_scenes` says that prompts are captions of scenes."""
    schedulers = [[OWN, f"its own ({own.removesuffix('Scheduler')})"], *([name, name] for name in SCHEDULERS)]
    return [
        {"name": "prompt", "label": "Prompt", "kind": "text", "width": "wide", **(CAPTIONS if of_scenes else {})},
        {"name": "seed", "label": "Seed", "kind": "number", "min": 0},
        {"name": "steps", "label": "Steps", "kind": "number", "min": 1, "max": MOST_STEPS},
        {"name": "guidance", "label": "Guidance scale", "kind": "number", "min": 0, "max": 100, "step": 0.5},
        {"name": "scheduler", "label": "Scheduler", "kind": "choice", "options": schedulers, "width": "medium"},
        {"name": "reuse", "label": "Reused between keys", "kind": "choice", "options": REUSE, "width": "medium"},
        {"name": "order", "label": "How it is reused", "kind": "choice", "options": ORDERS, "width": "medium"},
        {"name": "prior_noise", "label": "Prior noise weight", "kind": "number", "min": 0, "max": 1, "step": 0.001,
         "help": "The paper's alpha (0.003); 0 for none"},
        {"name": "prior_start", "label": "… below time-step", "kind": "number", "min": 0, "max": 1, "step": 0.05,
         "help": "As a share of the training time-steps: 0.5 is the later half of the run"},
    ]  # fmt: skip


class WrongFieldError(ValueError):
    """A value that a field does not take."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


@contextmanager
def field_at_fault(field: str) -> Iterator[None]:
    """Name the field in errors of the block."""
    try:
        yield
    except (ValueError, TypeError) as error:
        raise WrongFieldError(field, str(error)) from error


def values(settings: Settings, acceleration: Mapping[str, Any]) -> dict[str, Any]:
    return {field: getattr(settings, name) for field, name in OF_SETTINGS.items()} | dict(acceleration)


def parsed(form: Mapping[str, Any]) -> tuple[Settings, dict[str, Any]]:
    """Settings and options of the acceleration, from the form. Raises WrongFieldError for a wrong or empty value."""
    given: dict[str, Any] = {name: form.get(field) for field, name in OF_SETTINGS.items()}
    for field, name in OF_SETTINGS.items():
        _check_filled(field, given[name])
        with field_at_fault(field):
            Settings(**{"prompt": "any", name: given[name]})
    options: dict[str, Any] = {name: form.get(name) for name in FIRST_OPTIONS}
    for name, value in options.items():
        _check_filled(name, value)
        with field_at_fault(name):
            Acceleration(KeySchedule(1, (0,)), **{name: value})
    return Settings(**given), options


def _check_filled(field: str, value: Any) -> None:
    if value is None and field != "guidance":  # None is the pipeline's own guidance
        label = next(known["label"] for known in lab_fields("") if known["name"] == field)
        raise WrongFieldError(field, f"the field {label!r} is empty; accepted: a value, such as the one before")
