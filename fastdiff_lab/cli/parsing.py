"""Parse and validate command-line arguments.

- `key_schedule(keys, file)`: key steps by a word, a number, a text or a file
- `propagation(keys, file, order)`, `fitted(file)`: how a run is accelerated
- `derived_order(schedule)`, `derived_reuse(schedule)`: the order and the reuse that a schedule was derived for
- `prompt_lines(file, count)`: the prompts of a file, or captions of drawn scenes
- `own_or_embedded(guidance, model)`: the value of --guidance
- `check_image(path)`: refuse a path that no image can be written to
- `refuse_unused(context, why, names)`: refuse options that would be ignored
- `fitting_keys(costs)`: a number of keys that can be derived from costs
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import typer
from PIL import Image

from ..calibration.reuse_costs import ReuseCosts
from ..inputs.files import check_writable, read_prompts
from ..key_schedule import KeySchedule
from ..pipelines import EMBEDDED_GUIDANCE
from ..propagation.config import PropagationConfig
from ..propagation.fit import PropagationFit
from ..shapes.data import calibration_scenes

_DIGITS = 18  # of a number of keys


def key_schedule(keys: str | None, file: Path | None) -> Callable[[int], KeySchedule | None]:
    """The key steps, as a function of a run's denoiser calls; None for the baseline.

    >>> str(key_schedule("3", None)(10))
    '0,3,7 of 10'

    `keys` is "none", "paper" (the default), a count of uniform keys, or a schedule as text. `file` is one of `KeySchedule.save`, instead.
    Raises ValueError at once for what is wrong with any number of calls, before a model is loaded.
    """
    if file is not None and keys is not None:
        raise ValueError(f"--keys {keys} and --schedule {file} asked; accepted: one of the two")
    if file is None and keys in (None, "paper"):
        return KeySchedule.of_paper
    if keys is not None and keys.isdecimal() and len(keys) <= _DIGITS:
        return lambda calls: KeySchedule.uniform(calls, int(keys))
    given = KeySchedule.load(file) if file is not None else None if keys == "none" else KeySchedule.parse(str(keys))
    return lambda calls: given


def propagation(keys: str | None, file: Path | None, order: int | None) -> Callable[[int], PropagationConfig | None]:
    """Encoder propagation as a function of a run's denoiser calls; None for the baseline.

    Arguments and errors as for `key_schedule`; an order of None is the one that the schedule was derived for.
    """
    schedule_for = key_schedule(keys, file)

    def config(calls: int) -> PropagationConfig | None:
        schedule = schedule_for(calls)
        return None if schedule is None else PropagationConfig(schedule, derived_order(schedule) if order is None else order)

    return config


def fitted(file: Path) -> Callable[[int], PropagationConfig]:
    """Encoder propagation by the file of a fit."""
    config = PropagationConfig.of_fit(PropagationFit.load(file))
    return lambda calls: config


def derived_order(schedule: KeySchedule) -> int:
    """The order that a schedule was derived for, by default 0. Raises ValueError if a file names another."""
    found = (schedule.measured_on or {}).get("order", 0)
    if isinstance(found, bool) or found not in (0, 1):
        raise ValueError(f"the schedule says that it was measured with order {str(found)[:80]!r}; accepted: 0 or 1, or say --order")
    return int(found)


def derived_reuse(schedule: KeySchedule) -> str:
    """What the schedule was derived for reusing, by default "encoder".

    >>> derived_reuse(KeySchedule.paper(50))
    'encoder'
    """
    return str((schedule.measured_on or {}).get("reuse", "encoder"))


def prompt_lines(file: Path | None, count: int) -> list[str]:
    """The lines of a text file that are not empty; without one, captions of so many drawn scenes.

    >>> prompt_lines(None, 1)  # doctest: +SKIP
    ['a small white star at the left on a red background']
    """
    if file is None:
        return [scene.caption() for scene in calibration_scenes(count)]
    return read_prompts(file)


def own_or_embedded(guidance: float | None, model: str | None) -> float | None:
    """The guidance scale of a command; None for the model's own.

    >>> own_or_embedded(None, None)
    5.0
    """
    return EMBEDDED_GUIDANCE if guidance is None and model is None else guidance


def check_image(path: Path) -> None:
    """Raise OSError or ValueError for a path that no image can be written to."""
    check_writable(path)
    if Image.registered_extensions().get(path.suffix.lower()) not in Image.SAVE:  # some formats can only be read
        raise ValueError(f"cannot write an image as {path.name!r}; accepted: names that end in .png, .jpg, .webp, ...")


def refuse_unused(context: typer.Context, why: str, names: Iterable[str]) -> None:
    """Raise ValueError for given options among `names`, which would be ignored for the reason `why`."""
    sources = {name: context.get_parameter_source(name) for name in names}
    said = [name for name, source in sources.items() if source is not None and source.name in ("COMMANDLINE", "ENVIRONMENT")]
    if said:
        options = " and ".join(f"--{name.replace('_', '-')}" for name in said)
        raise ValueError(
            f"{options} asked {why}, which ignores {'it' if len(said) == 1 else 'them'}; accepted: one without the other"
        )


def fitting_keys(costs: ReuseCosts) -> int:
    """The paper's number of keys, 9, or half the steps if that is less; more if only short spans were measured.

    >>> fitting_keys(costs)  # doctest: +SKIP
    9
    """
    return max(-(-costs.num_steps // costs.max_span), min(9, (costs.num_steps + 1) // 2))
