"""Running a benchmark in parts of limited time: each goes on where the last one stopped.

- `run_part(book, cases, ...)`: times what is missing, until it is whole or time is over
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from itertools import chain
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from ..arm_costs import flops_kind, flops_of_call
from ..evaluation import Arm, denoiser_calls, first_arguments, generators
from ..flops import on_meta
from ..split import controlnet_of, denoiser_of, sample_argument
from .arms import bench_arms
from .book import Book
from .cases import Case, prepared
from .halves import decoder_seconds, encoder_seconds
from .timing import timed_run


class OutOfTime(Exception):
    """The part's time is over; all that was measured is written."""


class _Clock:
    def __init__(self, minutes: float) -> None:
        self.end = time.monotonic() + 60 * minutes

    def check(self) -> None:
        if time.monotonic() >= self.end:
            raise OutOfTime


def run_part(book: Book, cases: Sequence[Case], *, device: str, repeats: int = 5, minutes: float = 10.0) -> bool:
    """Times what is missing of the cases, each run written as it comes; True if nothing is missing any more.

    >>> run_part(Book(folder, about), [Case("embedded", 64)], device="cpu", repeats=3)  # doctest: +SKIP

    `repeats`: timed runs per arm, which take turns, after one that is not timed. `minutes`: after which no further run is begun.
    Raises ValueError for fewer than one repeat or no time.
    """
    if repeats < 1 or not minutes > 0:
        raise ValueError(f"repeats={repeats!r}, minutes={minutes!r} asked; accepted: 1 run or more, more than 0 minutes")
    clock = _Clock(minutes)
    try:
        for case in cases:
            _Part(book, case, device, repeats, clock).run()
    except OutOfTime:
        return False
    return True


class _Part:
    """One case in one process."""

    def __init__(self, book: Book, case: Case, device: str, repeats: int, clock: _Clock) -> None:
        self.book, self.case, self.device, self.repeats, self.clock = book, case, device, repeats, clock
        self.entry = book.entry(case)

    def run(self) -> None:
        if self.is_whole():
            return
        self.clock.check()
        pipe = prepared(self.case, self.device)
        arguments = first_arguments(denoiser_of(pipe), lambda: self.call(pipe))
        rows = len(arguments[sample_argument(denoiser_of(pipe))])
        arms = bench_arms(pipe, denoiser_calls(pipe, self.case.steps), rows)
        self.entry.arms = {name: decoded_at_once(arm, rows) for name, arm in arms.items()}
        self.count_operations(pipe, arguments, arms)
        self.time_all(pipe, arguments, arms)

    def is_whole(self) -> bool:
        return bool(self.entry.arms) and all(
            len(self.entry.runs.get(arm, [])) >= self.repeats for arm in self.entry.arms if arm not in self.entry.failed
        )

    def call(self, pipe: Any) -> None:
        pipe(**self.case.call, num_inference_steps=self.case.steps, generator=generators([0])[0])

    def count_operations(self, pipe: Any, arguments: dict[str, Any], arms: dict[str, Arm]) -> None:
        if self.entry.flops:
            return
        model, held, found = denoiser_of(pipe), self.controlnet_operations(pipe), {}
        for name, arm in arms.items():
            kind = flops_kind(arm)
            if kind not in found:
                counted = flops_of_call(model, arguments, arm)
                found[kind] = asdict(replace(counted, encoder=counted.encoder + held))
            self.entry.flops[name] = found[kind]
        self.book.save()

    def controlnet_operations(self, pipe: Any) -> int:
        """Of one call of what is held with the encoder."""
        controlnet = controlnet_of(pipe)
        if controlnet is None:
            return 0
        stand_in, shapes = on_meta(controlnet, first_arguments(controlnet, lambda: self.call(pipe)))
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            stand_in(**shapes)
        return counter.get_total_flops()

    def time_all(self, pipe: Any, arguments: dict[str, Any], arms: dict[str, Arm]) -> None:
        """Turn by turn, so that a machine that slows down slows all alike: halves first, then each arm."""
        runs = self.entry.runs
        is_warm: set[str] = set()
        with tqdm(desc=str(self.case), total=self.repeats * len(arms), initial=sum(map(len, runs.values()))) as bar:
            for turn in range(self.repeats):
                self.time_halves(pipe, arguments, turn)
                for name in [name for name in arms if name not in self.entry.failed and len(runs.get(name, [])) <= turn]:
                    self.clock.check()
                    self.time_arm(pipe, name, arms[name], is_warm)
                    bar.update()

    def time_halves(self, pipe: Any, arguments: dict[str, Any], turn: int) -> None:
        model, entry = denoiser_of(pipe), self.entry
        if len(entry.encoder) <= turn:
            entry.encoder.append(encoder_seconds(model, arguments, repeats=1))
        for size in sorted({1, *chain.from_iterable(sizes or () for sizes in entry.arms.values())}):
            found = entry.decoder.setdefault(size, [])
            if len(found) <= turn:
                self.clock.check()
                found.append(decoder_seconds(model, arguments, size, repeats=1))
                self.book.save()

    def time_arm(self, pipe: Any, name: str, arm: Arm, is_warm: set[str]) -> None:
        try:
            if name not in is_warm:
                timed_run(pipe, arm, self.case.call, self.case.steps)
                is_warm.add(name)
            self.entry.runs.setdefault(name, []).append(timed_run(pipe, arm, self.case.call, self.case.steps))
        except Exception as error:  # whatever one arm cannot do must not cost the others' numbers; it is written and shown
            self.entry.failed[name] = f"{type(error).__name__}: {error}".splitlines()[0]
            torch.cuda.empty_cache()
        self.book.save()


def decoded_at_once(arm: Arm, rows: int) -> list[int] | None:
    """How many steps each forward of an arm decodes, empty if one each; None if its calls are none of the two halves. `rows`: of one step.

    >>> decoded_at_once(Arm(KeySchedule(10, [0, 4]), max_rows=8), rows=2)
    [4, 4, 2]
    """
    if arm.deepcache or arm.token_merging:
        return None
    if arm.schedule is None or not arm.parallel_decoding or arm.what != "encoder":
        return []
    most = arm.max_rows // rows if arm.max_rows else arm.schedule.num_steps
    found = []
    for group in arm.schedule.groups():
        whole, rest = divmod(len(group), most)
        found += [most] * whole + [rest] * bool(rest)
    return found
