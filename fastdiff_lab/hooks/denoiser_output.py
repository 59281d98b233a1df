"""What a denoiser gives: the sample inside its output, in the host's own type.

- `sample_of(output)`: the sample
- `own(output)`: a copy that nobody else writes into
- `as_given(output, sample)`: a sample as the host gives one
- `per_step(sample, rows, times)`: the samples of several steps from one forward
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor


def sample_of(output: Any) -> Tensor:
    """The sample inside of what a denoiser gives: a tensor, a tuple, or an output of diffusers. Raises TypeError for anything else."""
    if isinstance(output, Tensor):
        return output
    try:
        first = output[0]
    except (TypeError, LookupError):
        first = None
    if not isinstance(first, Tensor):
        raise TypeError(
            f"the denoiser gave a {type(output).__name__}; accepted: a tensor, a tuple that begins with one, or an output of diffusers"
        )
    return first


def own(output: Any) -> Any:
    """A copy of a prediction that is handed out more than once: nobody may write into another step's."""
    return as_given(output, sample_of(output).clone())


def as_given(output: Any, sample: Tensor) -> Any:
    """A prediction in the host's own type."""
    if isinstance(output, Tensor):
        return sample
    return (sample,) if isinstance(output, tuple) else type(output)(sample=sample)


def per_step(sample: Tensor, rows: int, times: int) -> Sequence[Tensor]:
    """The sample of a forward over `times` steps as one sample per step."""
    return [sample] if times == 1 else sample.split(rows)
