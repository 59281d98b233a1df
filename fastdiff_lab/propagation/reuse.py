"""What the steps between keys reuse of the key step before: one strategy for each value of `reuse`.

- `EncoderReuse`, `DecoderReuse`, `PredictionReuse`: each made for one run
- `REUSES`: by the names that users give
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from ..hooks.denoiser import Split
from ..hooks.denoiser_output import as_given, own, sample_of
from .extrapolation import Extrapolation, History
from .feature_cache import Pass, ReusedFeatures
from .lines import Lines
from .planner import PlannedPass

Place = Callable[[int], float]  # of a step, on the axis of extrapolation


class EncoderReuse:
    """The encoder's features are reused, and the decoder runs at every step (Faster Diffusion, section 3.3)."""

    @staticmethod
    def children(split: Split) -> dict[str, nn.Module]:
        """The children whose outputs are reused between keys."""
        return split.encoder

    @staticmethod
    def entries(split: Split) -> tuple[str, ...]:
        """Those of the decoder's children that get reused features."""
        return split.entries

    def __init__(self, split: Split, extrapolation: Extrapolation, lines: Lines) -> None:
        self.features = ReusedFeatures(tuple(split.encoder), split.passing, extrapolation, lines)

    def clear(self) -> None:
        """Drops what was seen at key steps."""
        self.features.clear()

    def evaluations(self, now: Pass) -> tuple[int, int]:
        """How many times a pass evaluates the encoder and the decoder."""
        return int(now.is_key), now.times

    def predictions(self, planned: PlannedPass, place: Place, output: Any, decoded: Mapping[int, Tensor]) -> dict[int, Any]:
        """Step -> prediction, as far as they are known after a pass.

        `output`: what the host's forward gave. `decoded`: step -> sample, of all steps of the pass.
        """
        return {step: as_given(output, sample) for step, sample in decoded.items()}


class DecoderReuse(EncoderReuse):
    """The outputs of the up blocks are reused, and the encoder runs at every step (Table 14).

    With all up blocks reused the prediction is the key step's, whatever the encoder does: the paper's "decoder" and its "encoder and
    decoder" propagation give the same images.
    """

    @staticmethod
    def children(split: Split) -> dict[str, nn.Module]:
        return {name: child for name, child in split.blocks.items() if name in split.decoder}

    @staticmethod
    def entries(split: Split) -> tuple[str, ...]:
        return ()

    def __init__(self, split: Split, extrapolation: Extrapolation, lines: Lines) -> None:
        self.features = ReusedFeatures(split.entries, extrapolation=extrapolation)

    def evaluations(self, now: Pass) -> tuple[int, int]:
        return 1, int(now.is_key)


class PredictionReuse(EncoderReuse):
    """The predictions of key steps are reused, as they are or extrapolated; nothing runs between keys (Table 14)."""

    @staticmethod
    def entries(split: Split) -> tuple[str, ...]:
        return ()

    def __init__(self, split: Split, extrapolation: Extrapolation, lines: Lines) -> None:
        # Every child passes its output on: no feature is kept.
        self.features = ReusedFeatures(tuple(split.encoder), frozenset(split.encoder), extrapolation)
        self.history = History(extrapolation)

    def clear(self) -> None:
        super().clear()
        self.history.clear()

    def predictions(self, planned: PlannedPass, place: Place, output: Any, decoded: Mapping[int, Tensor]) -> dict[int, Any]:
        key, *later = range(planned.steps.start, planned.group.stop)
        self.history.add(place(key), sample_of(output))
        at = {step: self.history.at([place(step)], self.history.values) for step in later}
        return {key: own(output)} | {step: as_given(output, sample) for step, sample in at.items()}


REUSES: dict[str, type[EncoderReuse]] = {"encoder": EncoderReuse, "decoder": DecoderReuse, "prediction": PredictionReuse}
