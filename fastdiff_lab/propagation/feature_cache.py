"""The features that encoder propagation reuses between key steps, and their way through the host's own forward.

- `Pass`: one evaluation of the host's forward
- `ReusedFeatures`: what the reused children gave at the last key step, handed out at the steps after it
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..hooks.batch_rows import first_rows, repeat_rows
from ..hooks.denoiser_output import sample_of
from .extrapolation import REUSED_FEATURES, Extrapolation, History
from .lines import FittedLines, Lines, feature_name

# How hosts name what an up block or a transformer block gets from the encoder, in the order of its positional arguments.
_ENTRY = ("hidden_states", "res_hidden_states_tuple")


@dataclass(frozen=True)
class Pass:
    """One evaluation of the host's forward: `times` steps of `rows` rows each, with the reused children run or their features reused.

    `frames`: rows of a feature for each row of the sample. `places`: where each of the steps lies on the axis of extrapolation.
    `is_last_use`: no later pass uses these features, and this one is not tried again. `is_written_to`: the host adds to a block's output
    in place (T2I-Adapter).
    """

    rows: int
    frames: int
    places: tuple[float, ...]
    is_key: bool
    is_last_use: bool
    is_written_to: bool = False

    @property
    def times(self) -> int:
        return len(self.places)

    @property
    def feature_rows(self) -> int:
        return self.rows * self.frames


class ReusedFeatures:
    """Outputs of the reused children at the last key step, in the run's dtype, each kept until its last use.

    `reused`: names of the children in the order of the host's calls. `passing`: those whose output has the shape of their input, and goes to
    the next reused child only.
    `extrapolation`: how what enters the decoder follows from what entered it at the last key steps. `lines`: a fit's, used instead.
    """

    def __init__(
        self,
        reused: tuple[str, ...],
        passing: frozenset[str] = frozenset(),
        extrapolation: Extrapolation = REUSED_FEATURES,
        lines: Lines = (),
    ) -> None:
        self.first, self.last, self.passing = reused[0], reused[-1], passing
        self.extrapolation = extrapolation
        self.entered = History(extrapolation)
        self.lines = FittedLines(lines) if lines else None
        self.mine = threading.local()
        self.called: set[str] = set()
        self.kept: dict[str, Any] = {}

    def clear(self) -> None:
        """Lets go of all features, also of those that entered the decoder at the last key steps."""
        self.release()
        self.entered.clear()

    @property
    def now(self) -> Pass | None:
        """The pass that this thread is in: in another one, another pipeline may call the same children."""
        return getattr(self.mine, "now", None)

    @contextmanager
    def during(self, now: Pass) -> Iterator[None]:
        """While the block lasts, the children's calls belong to this pass."""
        if now.is_key:
            self.kept = {}
            self.entered.add(now.places[0], {})
        self.mine.now, self.called = now, set()
        try:
            yield
        except RuntimeError:  # a pass that runs out of memory is tried again, with what it kept given back
            if now.is_key:
                self.kept = {}
                for entered in self.entered.values[-1:]:
                    entered.clear()
            raise
        finally:
            self.mine.now = None

    def release(self) -> None:
        """Lets go of what was kept for the steps of a group: they are all decoded."""
        self.kept = {}

    def call(self, name: str, inner: Callable, args: tuple, kwargs: dict) -> Any:
        """A reused child's call: evaluated on one step's rows at a key step, answered with what is kept at the others."""
        now = self.now
        if now is None:
            return inner(*args, **kwargs)
        self.called.add(name)
        if not now.is_key:
            return self.reused(name, now, args, kwargs)
        args, kwargs = self.of_one_step(name, now, args, kwargs)
        output = inner(*args, **kwargs)
        if now.is_last_use or name in self.passing:
            return output
        self.kept[name] = output
        return self.own(name, output)

    def of_one_step(self, name: str, now: Pass, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        """The arguments with the rows of one step; what comes from the reused child before has no more than those."""
        if now.times == 1:
            return args, kwargs
        rows = (now.rows, now.feature_rows)
        cut, cut_named = first_rows(args, rows, now.times), first_rows(kwargs, rows, now.times)
        if name != self.first:
            cut = args[:1] + cut[1:]
            cut_named |= {"hidden_states": kwargs["hidden_states"]} if "hidden_states" in kwargs else {}
        return cut, cut_named

    def reused(self, name: str, now: Pass, args: tuple, kwargs: dict) -> Any:
        if name in self.passing:  # the next reused child looks at nothing that it is given now
            return args[0] if args else kwargs["hidden_states"]
        return self.kept.pop(name) if now.is_last_use else self.own(name, self.kept[name])

    def own(self, name: str, output: Any) -> Any:
        """`output` with a copy of its sample where the host writes into it: FreeU into the last one, T2I-Adapter into each.

        A skip that is the sample itself stays the same tensor as the copy: T2I-Adapter reaches it that way.
        """
        if self.now is None or not (name == self.last or self.now.is_written_to):
            return output
        sample = sample_of(output)
        return _replaced(output, sample, sample.clone())

    def enter(self, name: str, is_first: bool, inner: Callable, args: tuple, kwargs: dict) -> Any:
        """The call of a child that gets the encoder's features."""
        args, kwargs = self.entering(name, is_first, args, kwargs)
        return inner(*args, **kwargs)

    def entering(self, name: str, is_first: bool, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        """Before a child that gets the encoder's features: gives them the rows of all steps decoded, each step its own features.

        `is_first`: of these children, the one that gets the bottleneck; the others get the decoder's own hidden states.
        """
        now = self.now
        if now is None:
            return args, kwargs
        given = dict(zip(_ENTRY, args, strict=False)) | kwargs
        bottleneck, skips = _ENTRY
        if is_first and bottleneck not in given:
            raise TypeError(
                f"{name!r} gets the encoder's features as {', '.join(given) or 'nothing'}; accepted: {bottleneck} and {skips} by name, or "
                "these first by position"
            )
        for argument in (bottleneck, skips) if is_first else (skips,):
            if argument in given:
                given[argument] = self.for_decoder(now, (name, argument), given[argument], argument == bottleneck)
        return tuple(given.pop(argument) for argument in _ENTRY[: len(args)]) + args[len(_ENTRY) :], given

    def for_decoder(self, now: Pass, entry: tuple[str, str], value: Any, is_bottleneck: bool) -> Any:
        """What enters the decoder, from its value at the key step: the encoder's output and what the host adds."""
        if not self.extrapolation.moves(is_bottleneck):
            return _with_all_rows(value, now, is_read_only=not is_bottleneck)  # FreeU writes into the bottleneck's
        if now.is_key:
            self.entered.values[-1][entry] = value
        values = [seen[entry] for seen in self.entered.values]
        if (
            now.times == 1 and now.is_key
        ):  # FreeU writes into the hidden states that it gets; those of the key step are still needed
            return _copied(value, is_bottleneck)
        return self.entered.at(now.places, values) if self.lines is None else self.lines.at(feature_name(entry), now.places, values)


def _copied(value: Any, is_bottleneck: bool) -> Any:
    return value.clone() if is_bottleneck else value


def _replaced(value: Any, old: Tensor, new: Tensor) -> Any:
    if isinstance(value, tuple | list):
        return type(value)(_replaced(inner, old, new) for inner in value)
    return new if value is old else value


def _with_all_rows(value: Any, now: Pass, is_read_only: bool) -> Any:
    if isinstance(value, tuple | list):
        return type(value)(_with_all_rows(inner, now, is_read_only) for inner in value)
    return repeat_rows(value, now.feature_rows, now.times, is_read_only=is_read_only)
