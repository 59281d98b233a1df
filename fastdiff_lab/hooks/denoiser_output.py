"""What a denoiser gives: the sample inside its output, in the host's own type.

- `own(output)`: a copy that nobody else writes into
- `as_given(output, sample)`: a sample as the host gives one
- `per_step(sample, rows, times)`: the samples of several steps from one forward
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor


def own(output: Any) -> Any:
    """A copy of a prediction that is handed out more than once: nobody may write into another step's."""
    return as_given(output, output[0].clone())


def as_given(output: Any, sample: Tensor) -> Any:
    """A prediction in the host's own type."""
    return (sample,) if isinstance(output, tuple) else type(output)(sample=sample)


def per_step(sample: Tensor, rows: int, times: int) -> Sequence[Tensor]:
    """The sample of a forward over `times` steps as one sample per step."""
    return [sample] if times == 1 else sample.split(rows)
