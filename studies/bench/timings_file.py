"""The file of a benchmark, which holds each timed run as it comes.

- `Book(folder, about)`: open or begin the file
- `Entry`: what is known of one case
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fastdiff_lab.hooks.flops import FlopCount
from fastdiff_lab.inputs.files import read_json, write_text

from .cases import Case
from .timing import Timed

SCHEMA = "fastdiff_lab.Bench"
VERSION = 2
SAME = ("device", "processor", "threads", "versions", "code")  # all parts of a benchmark share these


@dataclass
class Entry:
    """One case: its methods with the steps that each parallel forward decodes, their timed runs, and why one could not run.

    `encoder` and `decoder` are seconds of each half of the denoiser alone, one for each turn and number of steps.
    `flops` are operations of a call of each method: "encoder", "decoder" and "rest". `clocks` are the device's after each turn.
    """

    case: Case
    methods: dict[str, list[int] | None] = field(default_factory=dict)
    runs: dict[str, list[Timed]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    encoder: list[float] = field(default_factory=list)
    decoder: dict[int, list[float]] = field(default_factory=dict)
    flops: dict[str, dict[str, int]] = field(default_factory=dict)
    clocks: list[dict[str, str]] = field(default_factory=list)


class Book:
    """The benchmark of one machine, in `folder/bench.json`.

    >>> book = Book(Path("data/bench/nvidia-h200"), about)  # doctest: +SKIP

    `about` has the machine and the versions. Raises ValueError for a file that is no benchmark, or of another machine.
    """

    def __init__(self, folder: Path, about: dict[str, Any]) -> None:
        self.path, self.about = folder / "bench.json", about
        self.entries: dict[Case, Entry] = {}
        if self.path.exists():
            self._read()

    def _read(self) -> None:
        document = read_json(self.path, str(self.path), SCHEMA, VERSION)
        try:
            before = {name: document["about"].get(name) for name in SAME}
            entries = [_entry(found) for found in document["entries"]]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"{self.path} is damaged ({error}); accepted: a file that bench wrote") from None
        now = json.loads(json.dumps({name: self.about.get(name) for name in SAME}))
        other = [f"{name} {before[name]}, here {now[name]}" for name in SAME if before[name] != now[name]]
        if other:
            raise ValueError(
                f"{self.path} was measured on something else: {'; '.join(other)}. Parts of one benchmark share these; give another --output"
            )
        self.entries = {entry.case: entry for entry in entries}

    def entry(self, case: Case) -> Entry:
        """The entry of a case; a new one if nothing is known."""
        return self.entries.setdefault(case, Entry(case))

    def save(self) -> None:
        """Write everything, whole or not at all."""
        document = {
            "schema": SCHEMA,
            "version": VERSION,
            "about": self.about,
            "entries": [asdict(e) for e in self.entries.values()],
        }
        write_text(self.path, json.dumps(document, indent=1) + "\n")


def _entry(found: dict[str, Any]) -> Entry:
    """Rebuild an entry from JSON. Raises KeyError, TypeError, ValueError or AttributeError for anything else."""
    entry = Entry(
        Case(**found["case"]),
        {str(method): None if sizes is None else [int(size) for size in sizes] for method, sizes in found["methods"].items()},
        {method: [_timed(run) for run in runs] for method, runs in found["runs"].items()},
        {str(name): str(reason) for name, reason in found["failed"].items()},
        list(map(_seconds, found["encoder"])),
        {int(size): list(map(_seconds, seconds)) for size, seconds in found["decoder"].items()},
        {
            method: asdict(FlopCount(**{part: int(count) for part, count in counts.items()}))
            for method, counts in found["flops"].items()
        },
        [{str(name): str(value) for name, value in turn.items()} for turn in found["clocks"]],
    )
    if not entry.runs.keys() <= entry.flops.keys() & entry.methods.keys():
        raise ValueError("runs of methods that it does not name")
    return entry


def _timed(run: dict[str, Any]) -> Timed:
    timed = Timed(**run)
    _ = _seconds(timed.seconds), _seconds(timed.denoiser_seconds)
    for number in (
        timed.encoder_calls,
        timed.decoder_calls,
        timed.forward_calls,
        timed.peak_bytes or 0,
        timed.denoiser_peak_bytes or 0,
    ):
        if not isinstance(number, int) or number < 0:
            raise ValueError(f"{number!r} is no count")
    if not isinstance(timed.is_finite, bool):
        raise ValueError(f"is_finite={timed.is_finite!r} is neither true nor false")
    return timed


def _seconds(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
        raise ValueError(f"{value!r} is no number of seconds")
    return float(value)
