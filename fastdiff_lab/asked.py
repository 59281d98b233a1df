"""What a shell asks for, made into values, or refused in a sentence before anything is computed.

- `key_schedule(keys, file, calls)`: key steps by a word, a number, a text or a file
- `prompt_lines(file, count)`: the prompts of a file, or captions of drawn scenes
- `check_picture(path)`: refuses a path that no picture can be written to
- `fitting_keys(costs)`: a number of keys that can be derived from costs
"""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from .files import check_readable, check_writable
from .reuse_costs import ReuseCosts
from .schedule import KeySchedule
from .shapes.data import calibration_scenes


def key_schedule(keys: str | None, file: Path | None, calls: int) -> KeySchedule | None:
    """The key steps of a run of `calls` denoiser calls; None for an untouched one.

    >>> str(key_schedule("3", None, 10))
    '0,3,7 of 10'

    `keys`: "none", "paper", a count of uniform keys, or the text of a schedule; None for the paper's. `file`: of `KeySchedule.save`, instead.
    Raises ValueError for both.
    """
    if file is not None:
        if keys is not None:
            raise ValueError(f"--keys {keys} and --schedule {file} asked; accepted: one of the two")
        return KeySchedule.load(file)
    if keys == "none":
        return None
    if keys is None or keys == "paper":
        return KeySchedule.of_paper(calls)
    return KeySchedule.uniform(calls, int(keys)) if keys.isdecimal() else KeySchedule.parse(keys)


def prompt_lines(file: Path | None, count: int) -> list[str]:
    """The lines of a text file that are not empty; without one, the captions of so many drawn scenes.

    >>> prompt_lines(None, 1)  # doctest: +SKIP
    ['a small white star at the left on a red background']
    """
    if file is None:
        return [scene.caption() for scene in calibration_scenes(count)]
    check_readable(file, "a text file with a prompt per line")
    lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
    if not any(lines):
        raise ValueError(f"{file} has no prompt; accepted: a text file with a prompt per line")
    return [line for line in lines if line]


def check_picture(path: Path) -> None:
    """Raises OSError or ValueError for a path that no picture can be written to."""
    check_writable(path)
    if path.suffix.lower() not in Image.registered_extensions():
        raise ValueError(f"cannot write a picture as {path.name!r}; accepted: names that end in .png, .jpg, .webp, ...")


def fitting_keys(costs: ReuseCosts) -> int:
    """The paper's number of keys, 9, or half the steps if that is less; more where shorter spans were measured.

    >>> fitting_keys(costs)  # doctest: +SKIP
    9
    """
    return max(-(-costs.num_steps // costs.longest), min(9, (costs.num_steps + 1) // 2))
