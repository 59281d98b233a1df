"""The steps at which the encoder runs, as an immutable value with text and JSON forms.

- `KeySchedule`: the number of steps, the key steps, and their source
- `check_num_keys(num_keys, num_steps)`: refuse numbers of keys that no schedule has
- `PAPER_KEYS`: the published key steps, each with its source
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from .inputs.files import read_json, write_text
from .inputs.plain_values import is_whole, plain, whole_number

SCHEMA = "fastdiff_lab.KeySchedule"
VERSION = 1
MAX_STEPS = 100_000
_NUMBER = r"\d{1,18}"  # Python cannot read numbers of thousands of digits


def _index(num_steps: int, time_steps: Iterable[int]) -> tuple[int, ...]:
    """Convert the paper's time-steps, which count down from `num_steps`, to steps from 0."""
    return tuple(sorted(num_steps - t for t in time_steps))


_SD_50 = _index(50, (50, 49, 48, 47, 45, 40, 35, 25, 15))
_MAIN = "paper, section 3.3"
_CODE_LDM = "code, sen-mao/FasterDiffusion-LDM"
# {system: {number of steps: (keys, source)}}. If the paper and its code disagree, this is the paper's list.
PAPER_KEYS: dict[str, dict[int, tuple[tuple[int, ...], str]]] = {
    "stable-diffusion": {
        50: (_SD_50, _MAIN),
        20: (_index(20, (20, 19, 18, 17, 15, 10, 5)), f"{_MAIN} (DPM-Solver, DPM-Solver++)"),
    },
    "controlnet": {50: (_SD_50, f"{_MAIN} and F.2")},
    "text-to-video": {50: (_SD_50, f"{_MAIN} and F.2 (Text2Video-Zero, VideoFusion)")},
    "dreambooth": {50: (tuple(sorted({*_SD_50, 40})), "paper, F.2 (its code uses the 9 keys of stable-diffusion)")},
    "custom-diffusion": {50: (tuple(sorted({*_SD_50, 40})), "paper, F.2 (its code uses the 9 keys of stable-diffusion)")},
    "deepfloyd-if-1": {
        100: (
            _index(100, [*range(91, 101), *range(15, 91, 5), *range(1, 15)]),
            "paper, F.2; 90 to 15 in fives, as its code and its operation counts say (a footnote says every step)",
        )
    },
    "deepfloyd-if-2": {50: (tuple(range(50)), "paper, F.2: every step (its code leaves out 10)")},
    "deepfloyd-if-3": {75: (_index(75, (75, 73, 70, 66, 61, 55, 48, 40, 31, 21, 10)), "paper, F.2")},
    "ablation-uniform-1": {50: (_index(50, range(2, 51, 2)), "paper, Table 5")},
    "ablation-uniform-2": {50: (_index(50, range(2, 51, 6)), "paper, Table 5")},
    "ablation-uniform-3": {50: (_index(50, range(2, 51, 12)), "paper, Table 5")},
    "ablation-nonuniform-1": {50: (_index(50, (50, 40, 39, 38, 30, 25, 20, 15, 5)), "paper, Table 5")},
    "ablation-nonuniform-2": {50: (_index(50, (50, 30, 25, 20, 15, 14, 5, 4, 3)), "paper, Table 5")},
    "ablation-nonuniform-3": {50: (_index(50, (50, 41, 37, 35, 22, 21, 18, 14, 5)), "paper, Table 5")},
    "community-models": {50: (tuple(range(0, 50, 4)), "code, custom_demo.py: every fourth step")},
    "ldm-imagenet": {
        250: (
            (0, 1, 2, 3, 4, 5, 10, 25, 55, 85, 110, 135, 155, 160, 185, 195, 235, 248, 249),
            f"{_CODE_LDM}, infer_ldm.py",
        )
    },
    "ldm-imagenet-evaluation": {
        250: (
            (*range(6), 10, 15, 25, 35, 55, 75, 85, *range(95, 100), 110, 125, 135, 140, *range(145, 150), 155, 160,
             *range(170, 175), 185, *range(195, 200), 210, *range(222, 225), 235, *range(247, 250)),
            f"{_CODE_LDM}, its evaluation script",
        )
    },
    "code-75": {75: (tuple(i for i in range(75) if i > 65 or i < 10 or i % 5 == 0), "code, utils_sd.py: '75ls'")},
    "code-75-sparse": {75: ((0, 1, 2, 3, 5, 10, 15, 25, 35, 45, 55, 65), "code, utils_if.py: '75ls2'")},
}  # fmt: skip


@dataclass(frozen=True)
class KeySchedule:
    """The steps of a run at which the encoder runs (Faster Diffusion, section 3.3).

    >>> schedule = KeySchedule.parse("0-3,5,10,15,25,35 of 50")
    >>> schedule == KeySchedule.paper(50)
    True
    >>> [list(group) for group in KeySchedule(5, [0, 1, 3]).groups()]
    [[0], [1, 2], [3, 4]]

    Args:
        num_steps: Denoiser calls of the run (not always `num_inference_steps`), 1 or more.
        keys: The key steps, ascending, from 0 to `num_steps` - 1. The first is 0.
        source: Where they come from, for people. It does not count when schedules are compared.
        measured_on: Model, scheduler, guidance scale and order of a derived schedule. Using it elsewhere warns.

    Raises:
        TypeError: A value of another type.
        ValueError: A value out of range.
    """

    num_steps: int
    keys: tuple[int, ...]
    source: str = field(default="", compare=False)
    measured_on: Mapping[str, Any] | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        _check_num_steps(self.num_steps)
        object.__setattr__(self, "num_steps", plain(self.num_steps))
        object.__setattr__(self, "keys", _checked_keys(self.keys, self.num_steps))
        if not isinstance(self.source, str):
            raise TypeError(
                f"source={self.source!r} given; accepted: a text on where the keys come from (the keys themselves are one list)"
            )
        _check_measured_on(self.measured_on)

    @classmethod
    def uniform(cls, num_steps: int, num_keys: int) -> KeySchedule:
        """Spread keys as evenly as whole steps allow.

        >>> str(KeySchedule.uniform(50, 9))
        '0,6,11,17,22,28,33,39,44 of 50'

        Raises ValueError unless 1 <= `num_keys` <= `num_steps`.
        """
        num_steps, num_keys = plain(num_steps), plain(num_keys)
        _check_num_steps(num_steps)
        check_num_keys(num_keys, num_steps)
        keys = [(2 * i * num_steps + num_keys) // (2 * num_keys) for i in range(num_keys)]
        return cls(num_steps, tuple(keys), f"uniform, {num_keys} keys")

    @classmethod
    def paper(cls, num_steps: int, system: str = "stable-diffusion") -> KeySchedule:
        """The keys that the paper uses for a system, or its code if the paper lists none; `.source` says which.

        >>> KeySchedule.paper(20).keys
        (0, 1, 2, 3, 5, 10, 15)

        Raises ValueError if none were published for that system and number of steps.
        """
        if system not in PAPER_KEYS:
            raise ValueError(
                f"no published keys for system {system!r}; there are: {', '.join(PAPER_KEYS)}. KeySchedule.uniform spreads keys evenly"
            )
        if num_steps not in PAPER_KEYS[system]:
            published = ", ".join(map(str, PAPER_KEYS[system]))
            raise ValueError(
                f"no published keys for {num_steps} steps of {system}; there are for: {published}. "
                f"KeySchedule.paper({next(iter(PAPER_KEYS[system]))}, {system!r}).rescaled({num_steps}) spreads them over {num_steps}"
            )
        return cls(num_steps, *PAPER_KEYS[system][num_steps])

    @classmethod
    def of_paper(cls, num_steps: int) -> KeySchedule:
        """The paper's Stable Diffusion keys for any number of steps: published, or the 9 of 50 steps rescaled.

        >>> str(KeySchedule.of_paper(100))
        '0,2,4,6,10,20,30,50,70 of 100'

        Raises ValueError for fewer steps than keys.
        """
        num_steps, published = plain(num_steps), PAPER_KEYS["stable-diffusion"]
        if num_steps not in published and num_steps < len(_SD_50):
            raise ValueError(
                f"the paper's {len(_SD_50)} keys asked for {num_steps} steps; accepted: {len(_SD_50)} steps or more, or keys of another kind"
            )
        return cls.paper(num_steps) if num_steps in published else cls.paper(50).rescaled(num_steps)

    @classmethod
    def parse(cls, text: str) -> KeySchedule:
        """Read what `str(schedule)` writes, such as "0-3,5,10 of 20". Raises ValueError for anything else.

        >>> KeySchedule.parse("0-3,5,10 of 20").keys
        (0, 1, 2, 3, 5, 10)
        """
        return cls(*_read(str(text)))

    def __str__(self) -> str:
        return f"{_ranges(self.keys)} of {self.num_steps}"

    def groups(self) -> tuple[range, ...]:
        """The steps of each group: a key step and the steps up to the next key.

        >>> KeySchedule(5, [0, 3]).groups()
        (range(0, 3), range(3, 5))
        """
        return tuple(range(first, after) for first, after in pairwise((*self.keys, self.num_steps)))

    def part(self, start: int, stop: int) -> KeySchedule:
        """The keys from step `start` to before `stop`, counted from `start`, which becomes a key.

        >>> str(KeySchedule.paper(50).part(2, 20))
        '0,1,3,8,13 of 18'

        Text2Video-Zero needs it, which goes through its time-steps in several loops.
        Raises ValueError unless 0 <= `start` < `stop` <= `num_steps`.
        """
        if not 0 <= start < stop <= self.num_steps:
            raise ValueError(
                f"steps {start} to {stop} asked of a schedule of {self.num_steps}; accepted: 0 <= start < stop <= {self.num_steps}"
            )
        keys = (0, *(key - start for key in self.keys if start < key < stop))
        return KeySchedule(stop - start, keys, f"{self.source or str(self)}, steps {start} to {stop - 1}")

    def rescaled(self, num_steps: int) -> KeySchedule:
        """Spread the same number of keys, in the same proportions, over another number of steps.

        >>> str(KeySchedule.paper(50).rescaled(51))
        '0-3,5,10,15,26,36 of 51'

        Raises ValueError if there are more keys than steps.
        """
        num_steps = plain(num_steps)
        _check_num_steps(num_steps)
        check_num_keys(len(self.keys), num_steps)
        begun = re.sub(r", rescaled to \d+ steps$", "", self.source) or str(self)  # rescaling twice is told once
        return KeySchedule(num_steps, _spread(self.keys, self.num_steps, num_steps), f"{begun}, rescaled to {num_steps} steps")

    def to_json(self) -> str:
        """The schedule as small readable JSON with a schema version."""
        document = {"schema": SCHEMA, "version": VERSION, "num_steps": self.num_steps, "keys": list(self.keys)}
        measured = {} if self.measured_on is None else {"measured_on": dict(self.measured_on)}
        return json.dumps(document | {"source": self.source} | measured)

    @classmethod
    def from_json(cls, text: str) -> KeySchedule:
        """Read what `to_json` writes. Raises ValueError that names the wrong field."""
        return _from_document(read_json(text, "the given text", SCHEMA, VERSION), "the given text")

    def save(self, path: str | Path) -> None:
        """Write the schedule as JSON, whole or not at all.

        >>> KeySchedule.paper(50).save("schedule.json")  # doctest: +SKIP
        """
        write_text(Path(path), self.to_json() + "\n")

    @classmethod
    def load(cls, path: str | Path) -> KeySchedule:
        """Read a file that `save` wrote. Raises FileNotFoundError, or ValueError that names the wrong field."""
        return _from_document(read_json(Path(path), str(path), SCHEMA, VERSION), str(path))


def _read(text: str) -> tuple[int, tuple[int, ...]]:
    """The number of steps and the keys that a text names."""
    part = rf"{_NUMBER}(?:-{_NUMBER})?"
    match = re.fullmatch(rf"\s*({part}(?:\s*,\s*{part})*)\s+of\s+({_NUMBER})\s*", text, re.ASCII)
    if match is None or len(text) > 10 * MAX_STEPS:
        raise ValueError(f"cannot read {text[:80]!r} as a key schedule; accepted: text such as '0-3,5,10 of 20'")
    num_steps = int(match[2])
    _check_num_steps(num_steps)
    keys: list[int] = []
    for part in match[1].replace(" ", "").split(","):
        first, _, last = part.partition("-")
        if int(last or first) >= num_steps:
            raise ValueError(f"key step {last or first} asked in {text[:80]!r}; accepted: 0 to {num_steps - 1}")
        keys.extend(range(int(first), int(last or first) + 1))
        if len(keys) > num_steps:  # refused by KeySchedule; a short text can name billions
            break
    return num_steps, tuple(keys)


def _ranges(keys: Iterable[int]) -> str:
    """Keys as text, three or more in a row as a range."""
    runs: list[list[int]] = []
    for key in keys:
        if runs and key == runs[-1][-1] + 1:
            runs[-1].append(key)
        else:
            runs.append([key])
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 2 else ",".join(map(str, run)) for run in runs)


def _spread(keys: tuple[int, ...], old_steps: int, new_steps: int) -> tuple[int, ...]:
    """The same number of keys at the same shares of another number of steps."""
    found: list[int] = []
    for position, key in enumerate(keys):
        wanted = (2 * key * new_steps + old_steps) // (2 * old_steps)
        earliest = found[-1] + 1 if found else 0
        found.append(min(max(wanted, earliest), new_steps - len(keys) + position))
    return tuple(found)


def _from_document(document: dict, place: str) -> KeySchedule:
    if isinstance(document.get("measured_on"), dict) and "what" in document["measured_on"]:
        raise ValueError(f"{place} was written when `reuse` was called 'what'; derive the schedule anew from its costs")
    fields = {"num_steps", "keys", "source", "measured_on"}
    missing, unknown = {"num_steps", "keys"} - document.keys(), document.keys() - fields
    if missing or unknown:
        wrong = f"field {sorted(missing or unknown)[0]!r} is {'missing' if missing else 'unknown'}"
        raise ValueError(f"{place}: {wrong}; a key schedule has: {', '.join(sorted(fields))}")
    try:
        return KeySchedule(**document)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{place}: {error}") from None


def _check_measured_on(given: object) -> None:
    if given is None:
        return
    if not isinstance(given, Mapping):
        raise TypeError(f"measured_on={given!r} given; accepted: names with texts and numbers, or None")
    wrong = next((n for n, v in given.items() if not isinstance(n, str) or not isinstance(v, str | int | float)), None)
    if wrong is not None:
        raise TypeError(f"measured_on[{wrong!r}]={repr(given[wrong])[:80]} given; accepted: a text or a number")


def _check_num_steps(num_steps: object) -> None:
    whole_number("num_steps", num_steps, 1, MAX_STEPS)


def check_num_keys(num_keys: object, num_steps: int) -> None:
    """Raise ValueError for a number of keys that a run of so many steps cannot have.

    >>> check_num_keys(9, 50)
    """
    whole_number("num_keys", num_keys, 1, num_steps, also=" (the steps)")


def _checked_keys(keys: object, num_steps: int) -> tuple[int, ...]:
    if isinstance(keys, str) or not isinstance(keys, Iterable):
        raise TypeError(f"keys={keys!r} given; accepted: a list of whole numbers (KeySchedule.parse reads text)")
    keys = tuple(keys)
    wrong = next((key for key in keys if not is_whole(key) or not 0 <= key < num_steps), None)
    if wrong is not None:
        raise ValueError(
            f"key step {wrong!r} given; accepted: whole numbers from 0 to {num_steps - 1} (num_steps={num_steps}), "
            f"counted up (the paper's time-step t is step {num_steps} - t)"
        )
    keys = tuple(map(plain, keys))
    if not keys or keys[0] != 0:
        raise ValueError(f"keys {_shown(keys)} given; the first step of a run must be a key; accepted: lists that begin with 0")
    later = next(((a, b) for a, b in pairwise(keys) if b <= a), None)
    if later is not None:
        trouble = "stands twice" if later[0] == later[1] else f"comes after {later[0]}"
        raise ValueError(f"key step {later[1]} {trouble} in keys {_shown(keys)}; accepted: ascending keys, each once")
    return keys


def _shown(keys: tuple) -> str:
    return str(list(keys)) if len(keys) <= 20 else f"{str(list(keys[:20]))[:-1]}, ...]"
