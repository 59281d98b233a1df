"""Measured reuse costs, as a value that can be saved."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..inputs.files import check_readable, write_whole
from ..inputs.plain_values import choice

SCHEMA = "fastdiff_lab.ReuseCosts"
VERSION = 2
OF_VERSION_1 = {"what": "reuse", "pictures": "images", "options": "pipe_kwargs"}  # its names -> those of today
REDUCTIONS: dict[str, Callable[..., np.ndarray]] = {"mean": np.mean, "median": np.median, "worst": np.max}
POWERS = (1, 2)
MAX_BYTES = 2**28


@dataclass(frozen=True)
class ReuseCosts:
    """The cost of reusing the features of step i until step e, for every measured span.

    >>> import fastdiff_lab as fl
    >>> costs = fl.embedded_costs(order=1)
    >>> costs.num_steps, costs.max_span, costs.order
    (50, 25, 1)

    The cost of a span is displacement times sensitivity; see `calibrate`.

    Args:
        displacement: Shape (images, gaps, steps, max_span + 1). Distance of the latents at i + length to the baseline's;
            the steps between use the features of key step i. NaN where not measured.
        gaps: For each entry of the second axis, the steps from i back to the key before, for extrapolation; 0 for none.
        sensitivity: Shape (images, steps + 1): the share of a displacement that remains in the final latents.
        measured_on: Model, scheduler, guidance scale, steps, order and number of prompts.
        about: Prompts, seeds and versions.
    """

    displacement: Tensor
    gaps: tuple[int, ...]
    sensitivity: Tensor
    measured_on: Mapping[str, Any] = field(default_factory=dict)
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def num_images(self) -> int:
        return self.displacement.shape[0]

    @property
    def num_steps(self) -> int:
        return self.displacement.shape[2]

    @property
    def max_span(self) -> int:
        """The longest span, in steps from a key to the next."""
        return self.displacement.shape[3] - 1

    @property
    def order(self) -> int:
        return int(self.measured_on["order"])

    def title(self) -> str:
        """Describe in one line what was measured on what."""
        on = self.measured_on
        return f"{on['model']} with {on['scheduler']}, {self.num_steps} steps, guidance {on['guidance_scale']}, order {self.order}"

    def errors(self) -> np.ndarray:
        """Error in the final latents that each span makes, as a norm; array (images, gaps, steps, max_span + 1)."""
        step, length = np.indices(self.displacement.shape[2:])
        ends = np.minimum(step + length, self.num_steps)
        found = self.displacement.numpy() * self.sensitivity.numpy()[:, None, :, None][:, :, ends, 0]
        found[..., 1] = 0.0  # nothing is reused
        return np.where(step + length <= self.num_steps, found, np.nan)

    def spans(self, reduction: str = "mean", power: int = 2) -> np.ndarray:
        """The cost of each span for `optimal_keys`: array (gaps, steps, max_span + 1), infinite where not measured.

        With order 0 there is one gap. With order 1 there are all from 0 (no key before) to `max_span`.
        Gaps that were not measured are interpolated over the logarithm of the gap.

        Args:
            reduction: "mean", "median" or "worst" of the images.
            power: 2 for the squared error, 1 for its norm.

        Raises:
            ValueError: Another name or power.
        """
        power = choice("power", power, POWERS)
        cost = REDUCTIONS[choice("reduction", reduction, REDUCTIONS)](self.errors() ** power, axis=0)
        cost = np.where(np.isnan(cost), np.inf, cost)
        return cost if self.order == 0 else _for_every_gap(cost ** (1 / power), self.gaps, self.max_span) ** power

    def subset(self, images: list[int]) -> ReuseCosts:
        """The costs of some of the images."""
        measured_on = {**self.measured_on, "images": len(images)}
        chosen = {name: [self.about[name][i] for i in images] for name in ("prompts", "seeds") if name in self.about}
        about = {**self.about, **chosen}
        return ReuseCosts(self.displacement[images], self.gaps, self.sensitivity[images], measured_on, about)

    def save(self, path: str | Path) -> None:
        """Write one safetensors file with a JSON header, whole or not at all."""
        header = {
            "schema": SCHEMA, "version": VERSION, "gaps": self.gaps, "measured_on": dict(self.measured_on), "about": dict(self.about)
        }  # fmt: skip
        tensors = {"displacement": self.displacement.contiguous(), "sensitivity": self.sensitivity.contiguous()}
        write_whole(Path(path), lambda place: save_file(tensors, place, metadata={"fastdiff_lab": json.dumps(header)}))

    @classmethod
    def load(cls, path: str | Path) -> ReuseCosts:
        """Read a file that `save` wrote. Raises FileNotFoundError, or ValueError for a truncated or foreign file."""
        check_readable(Path(path), "a file that ReuseCosts.save wrote, as calibrate does")
        if Path(path).stat().st_size > MAX_BYTES:
            raise ValueError(f"{path} has {Path(path).stat().st_size} bytes; accepted: at most {MAX_BYTES}")
        try:
            with safe_open(str(path), framework="pt") as file:
                header = json.loads((file.metadata() or {}).get("fastdiff_lab", "null"))
                tensors = {name: file.get_tensor(name) for name in file.keys()}
        except (SafetensorError, json.JSONDecodeError, RecursionError) as error:
            raise ValueError(
                f"{path} is no whole file of reuse costs ({error}); accepted: a file that ReuseCosts.save wrote"
            ) from None
        return _checked(header, tensors, str(path))


def _checked(header: Any, tensors: dict[str, Tensor], path: str) -> ReuseCosts:
    if not isinstance(header, dict) or header.get("schema") != SCHEMA or header.get("version") not in (1, VERSION):
        raise ValueError(f"{path} holds no reuse costs of version {VERSION}; accepted: a file that ReuseCosts.save wrote")
    gaps, measured_on, about = (header.get(name) for name in ("gaps", "measured_on", "about"))
    if (
        set(tensors) != {"displacement", "sensitivity"}
        or not isinstance(gaps, list)
        or not isinstance(measured_on, dict)
        or not isinstance(about, dict)
        or measured_on.get("order") not in (0, 1)
        or not _fit(tensors["displacement"], tensors["sensitivity"], gaps)
    ):
        raise ValueError(f"{path}: its header and its tensors do not belong together; accepted: a file that ReuseCosts.save wrote")
    if header["version"] == 1:
        measured_on, about = _of_version_1(measured_on), _of_version_1(about)
    return ReuseCosts(tensors["displacement"], tuple(gaps), tensors["sensitivity"], measured_on, about)


def _of_version_1(part: dict[str, Any]) -> dict[str, Any]:
    return {OF_VERSION_1.get(name, name): value for name, value in part.items()}


def _fit(displacement: Tensor, sensitivity: Tensor, gaps: list) -> bool:
    if displacement.dim() != 4 or not displacement.is_floating_point() or not all(displacement.shape):
        return False
    images, count, steps, lengths = displacement.shape
    whole = all(isinstance(gap, int) and 0 <= gap < steps for gap in gaps)
    return whole and gaps == sorted(set(gaps)) and len(gaps) == count and lengths >= 2 and sensitivity.shape == (images, steps + 1)


def _for_every_gap(error: np.ndarray, gaps: tuple[int, ...], max_span: int) -> np.ndarray:
    """Interpolate the error to all gaps, linearly in the logarithm of the gap; constant beyond the last measured one."""
    dense = np.full((max_span + 1, *error.shape[1:]), np.inf)
    dense[0] = error[0]  # no key before: the first key of a run, whose features are reused
    dense[0, 1:] = np.inf
    known = np.asarray(gaps[1:])
    for gap in range(1, max_span + 1):
        above = min(int(np.searchsorted(known, gap)), len(known) - 1)
        below = above - 1 if gap < known[above] else above
        share = 0.0 if above == below else float(np.log(gap / known[below]) / np.log(known[above] / known[below]))
        between = error[1 + below] * (1 - share) + (error[1 + above] * share if share else 0)
        dense[gap, gap:] = between[gap:]
    return dense
