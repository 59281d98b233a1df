"""Run a benchmark in parts of limited time, each of which resumes the last one.

- `run_part(book, cases, ...)`: time what is missing, until nothing is or time is over
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
import torch._dynamo
from tqdm import tqdm

from fastdiff_lab.comparison.costs import controlnet_flops, flops_kind, flops_of_call
from fastdiff_lab.comparison.environment import clocks
from fastdiff_lab.comparison.time_ceiling import decoder_seconds, encoder_seconds
from fastdiff_lab.hooks.denoiser import denoiser_of
from fastdiff_lab.hooks.denoiser_classes import sample_argument
from fastdiff_lab.hooks.flops import FlopCount
from fastdiff_lab.sampling.methods import Method, denoiser_calls, first_arguments, generators

from .cases import COMPILED, Case, prepared
from .timed_methods import bench_methods
from .timing import Timed, timed_run
from .timings_file import Book

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


MOST_WARM_UPS = 6


class OutOfTime(Exception):
    """The part's time is over; everything measured is written."""


class Clock:
    """When a part ends."""

    def __init__(self, minutes: float) -> None:
        self.end = time.monotonic() + 60 * minutes

    def check(self, seconds: float = 0.0) -> None:
        """Raise OutOfTime if so many seconds are not left."""
        if time.monotonic() + seconds >= self.end:
            raise OutOfTime


def run_part(
    book: Book, cases: Sequence[Case], *, device: str, repeats: int = 5, minutes: float = 10.0, retries_failed: bool = False
) -> bool:
    """Time what is missing of the cases, writing each run as it comes; return whether nothing is missing.

    >>> run_part(Book(folder, about), [Case("embedded", 64)], device="cpu", repeats=3)  # doctest: +SKIP

    Args:
        repeats: Timed runs per method, which take turns after one warm-up.
        minutes: No run begins after them, or if it would probably not end within them.
        retries_failed: Try again what could not run before (memory, a missing package); else its reason stays written.

    Raises:
        ValueError: Fewer than one repeat, or no time.
    """
    if repeats < 1 or not minutes > 0:
        raise ValueError(f"repeats={repeats!r}, minutes={minutes!r} asked; accepted: 1 run or more, more than 0 minutes")
    clock = Clock(minutes)
    for case in cases if retries_failed else ():
        book.entry(case).failed.clear()
    try:
        for case in cases:
            _Part(book, case, device, repeats, clock).run()
    except OutOfTime:
        return False
    return True


def methods_of(case: Case, pipe: DiffusionPipeline, rows: int) -> dict[str, Method]:
    """The methods that are timed in a case, by name; `pipe` from `prepared`, `rows` of one denoiser call."""
    return bench_methods(pipe, denoiser_calls(pipe, case.steps), rows, is_compiled=case.mode == COMPILED)


def _free() -> None:
    """Free memory and graphs of earlier runs, since compiled modules are cycles that wait for a collection."""
    torch._dynamo.reset()
    gc.collect()
    torch.cuda.empty_cache()


class _Part:
    """One case in one process."""

    def __init__(self, book: Book, case: Case, device: str, repeats: int, clock: Clock) -> None:
        self.book, self.case, self.device, self.repeats, self.clock = book, case, device, repeats, clock
        self.entry = book.entry(case)
        self.took: dict[str, float] = {}  # seconds of each method's last run in this process

    def run(self) -> None:
        if self.is_whole():
            return
        self.clock.check()
        self.prepare()
        rows = len(self.arguments[sample_argument(denoiser_of(self.pipe))])
        methods = methods_of(self.case, self.pipe, rows)
        self.entry.methods = {name: decoded_at_once(method, rows) for name, method in methods.items()}
        self.count_operations(methods)
        self.time_all(methods)

    def is_whole(self) -> bool:
        return bool(self.entry.methods) and all(
            len(self.entry.runs.get(method, [])) >= self.repeats for method in self.entry.methods if method not in self.entry.failed
        )

    def prepare(self) -> None:
        self.pipe: Any = None
        self.arguments: dict[str, Any] = {}
        _free()
        self.pipe = prepared(self.case, self.device)
        self.arguments = first_arguments(denoiser_of(self.pipe), self.call)

    def call(self) -> None:
        self.pipe(**self.case.call, num_inference_steps=self.case.steps, generator=generators([0])[0])

    def tried(self, name: str, action: Callable[..., Any], *given: Any) -> Any:
        """Try the action. If it fails, note the reason, return None, and make the pipeline anew, which may be half changed."""
        failure = None
        try:
            return action(*given)
        except Exception as error:  # one method's failure must not cost the others' numbers
            failure = f"{type(error).__name__}: {error}".splitlines()[0]
        self.entry.failed[name] = failure
        self.book.save()
        self.prepare()
        return None

    def count_operations(self, methods: dict[str, Method]) -> None:
        missing = {
            name: method for name, method in methods.items() if name not in self.entry.flops and name not in self.entry.failed
        }
        reused = controlnet_flops(self.pipe, self.call) if missing else 0
        found: dict[Any, FlopCount | None] = {}
        for name, method in missing.items():
            kind = flops_kind(method)
            if kind not in found:
                found[kind] = self.tried(name, self.operations, method)
            counted = found[kind]
            if counted is None:
                self.entry.failed.setdefault(name, "its operations cannot be counted, see the method before")
            else:
                self.entry.flops[name] = asdict(replace(counted, encoder=counted.encoder + reused))
        self.book.save()

    def operations(self, method: Method) -> FlopCount | None:
        return flops_of_call(denoiser_of(self.pipe), self.arguments, method)

    def time_all(self, methods: dict[str, Method]) -> None:
        """Time turn by turn (halves first, then each method), so that a slower machine slows all alike."""
        entry = self.entry
        with tqdm(desc=str(self.case), total=self.repeats * len(methods), initial=sum(map(len, entry.runs.values()))) as bar:
            for turn in range(self.repeats):
                self.time_halves(turn)
                for name, method in methods.items():
                    if name not in entry.failed and len(entry.runs.get(name, [])) <= turn:
                        self.time_method(name, method)
                        bar.update()
                entry.clocks = [*entry.clocks, clocks(self.device)][-self.repeats :]
                self.book.save()

    def time_halves(self, turn: int) -> None:
        entry = self.entry
        self.time_half("encoder", entry.encoder, turn, encoder_seconds)
        for size in sorted({1, *chain.from_iterable(sizes or () for sizes in entry.methods.values())}):
            self.time_half(f"decoder, {size} steps", entry.decoder.setdefault(size, []), turn, decoder_seconds, size)

    def time_half(self, name: str, found: list[float], turn: int, measure: Callable[..., float], *size: int) -> None:
        if len(found) <= turn and name not in self.entry.failed:
            self.clock.check()
            seconds = self.tried(name, self.half, measure, *size)
            found += [] if seconds is None else [seconds]
            self.book.save()

    def half(self, measure: Callable[..., float], *size: int) -> float:
        return measure(denoiser_of(self.pipe), self.arguments, *size, repeats=1)

    def one_run(self, method: Method) -> Timed:
        return timed_run(self.pipe, method, self.case.call, self.case.steps)

    def time_method(self, name: str, method: Method) -> None:
        """Time one run, after a warm-up if it is the first in this process or compiled something."""
        for _ in range(MOST_WARM_UPS):
            self.clock.check(self.took.get(name, 0.0))
            is_warm, graphs = name in self.took, _graphs()
            run = self.tried(name, self.one_run, method)
            if run is None:
                return
            self.took[name] = run.seconds
            if is_warm and _graphs() == graphs:
                self.entry.runs.setdefault(name, []).append(run)
                break
        else:
            self.entry.failed[name] = f"compiled something in each of {MOST_WARM_UPS} runs"
        self.book.save()


def _graphs() -> int:
    """The number of graphs compiled in this process."""
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


def decoded_at_once(method: Method, rows: int) -> list[int] | None:
    """The steps that each forward of a method decodes; empty if one each, None if its calls have no such halves.

    >>> import fastdiff_lab as fl
    >>> decoded_at_once(Method(fl.KeySchedule(10, [0, 4]), max_rows=8), rows=2)
    [4, 4, 2]
    """
    if method.rivals:
        return None
    config = method.propagation
    if config is None or not config.is_parallel:
        return []
    most = config.max_rows // rows if config.max_rows else config.schedule.num_steps
    found = []
    for group in config.schedule.groups():
        whole, rest = divmod(len(group), most)
        found += [most] * whole + [rest] * bool(rest)
    return found
