"""The contest: come nearest to the baseline's images with seven encoder calls.

- `ContestEntry`: an entry, a small JSON file (nobody's code is run)
- `leaderboard(entries, seed=)`: scores on captions and noise from the seed, beside well-known schedules
- `read_entries(folder)`: the files of a folder, and why some are refused
- `judged(entry, seed)`: one entry in the notebook, on a few images
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr
from dataclasses import asdict, dataclass, fields
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ..calibration.derive import derive_schedule
from ..comparison.compare import BASELINE
from ..comparison.fidelity import fidelity
from ..comparison.render import drawn
from ..comparison.result_store import Result
from ..inputs.files import read_json, write_text
from ..inputs.plain_values import number, whole_number
from ..key_schedule import KeySchedule
from ..pipelines import EMBEDDED_GUIDANCE, embedded_costs, load_pipeline
from ..propagation.extrapolation import Extrapolation
from ..sampling.methods import Method
from ..sampling.run_settings import RunSettings
from ..shapes.scenes import sample_scene

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


NAME = "contest"
SCHEMA = "fastdiff_lab.ContestEntry"
VERSION = 1
NUM_STEPS, MOST_CALLS = 50, 7
BEST_PSNR = 60.0  # dB; an infinite score would hide all others
SCENES = 3_000_000_000  # beyond the seeds of training, calibration and reports
PRACTICE, GRADED = 4, 24  # images


@dataclass(frozen=True)
class ContestEntry:
    """An entry of the contest: at most seven key steps of a DDIM run of 50 steps, and the order between them.

    >>> entry = ContestEntry(KeySchedule.uniform(50, 7))
    >>> entry.save("entry.json")  # doctest: +SKIP

    Args:
        schedule: 50 steps with at most 7 keys.
        order: As in `Extrapolation`; so are `damping`, `axis` and `parts`.
        prior_noise: Weight of prior noise injection, 0 to 1; 0 for none.

    Raises:
        TypeError: A value of another type.
        ValueError: A value out of range.
    """

    schedule: KeySchedule
    order: int = 0
    damping: float = 1.0
    axis: str = "step"
    parts: str = "all"
    prior_noise: float = 0.0

    def __post_init__(self) -> None:
        if not isinstance(self.schedule, KeySchedule):
            raise TypeError(f"schedule={str(self.schedule)[:80]!r} given; accepted: a KeySchedule of {NUM_STEPS} steps")
        if self.schedule.num_steps != NUM_STEPS or len(self.schedule.keys) > MOST_CALLS:
            raise ValueError(
                f"the contest is for {NUM_STEPS} steps and at most {MOST_CALLS} encoder calls; "
                f"{self.schedule} has {self.schedule.num_steps} steps and makes {len(self.schedule.keys)} calls"
            )
        if not isinstance(self.order, int):
            raise TypeError(f"order={str(self.order)[:80]!r} given; accepted: 0, 1 or 2")
        if self.order == 0 and self.damping != 1:
            raise ValueError(
                f"damping={self.damping!r} asked with order 0, which reuses features; accepted: order 1 or 2, or damping 1"
            )
        number("prior_noise", self.prior_noise, 0, 1)
        self.method()

    def method(self) -> Method:
        """The entry as a method."""
        how = Extrapolation(self.order, self.damping, self.axis, self.parts)
        plain = KeySchedule(self.schedule.num_steps, self.schedule.keys)  # else its `measured_on` would warn of the order
        return Method(plain, order=how, prior_noise=float(self.prior_noise))

    def to_json(self) -> str:
        """The entry as small JSON with a schema version."""
        return json.dumps({"schema": SCHEMA, "version": VERSION, **asdict(self), "schedule": str(self.schedule)})

    def save(self, path: str | Path) -> None:
        """Write the entry as JSON, whole or not at all."""
        write_text(Path(path), self.to_json() + "\n")

    @classmethod
    def load(cls, path: str | Path) -> ContestEntry:
        """Read a file that `save` wrote. Raises FileNotFoundError, or ValueError that says its fault."""
        return cls._read(Path(path), Path(path).name)

    @classmethod
    def from_json(cls, text: str) -> ContestEntry:
        """Read what `to_json` writes. Raises ValueError that says its fault."""
        return cls._read(text, "the given text")

    @classmethod
    def _read(cls, source: str | Path, place: str) -> ContestEntry:
        document = read_json(source, place, SCHEMA, VERSION)
        known = {field.name for field in fields(cls)}
        if "schedule" not in document or not document.keys() <= known:
            raise ValueError(f"{place} has fields {', '.join(sorted(document))[:80]!r}; accepted: schedule, and of {sorted(known)}")
        try:
            return cls(**{**document, "schedule": KeySchedule.parse(document["schedule"])})
        except (TypeError, ValueError) as error:
            raise ValueError(f"{place}: {error}") from None


def well_known() -> dict[str, ContestEntry]:
    """The schedules that an entry has to beat, each with seven keys."""
    return {
        "uniform": ContestEntry(KeySchedule.uniform(NUM_STEPS, MOST_CALLS)),
        "the paper's 7 of 20, rescaled": ContestEntry(KeySchedule.paper(20).rescaled(NUM_STEPS)),
        "derived": ContestEntry(derive_schedule(embedded_costs(), MOST_CALLS)),
    }


def drawn_tasks(seed: int, count: int) -> list[tuple[str, int]]:
    """Captions of one object, all different, with a noise seed each, both from `seed`."""
    rng = np.random.default_rng(seed)
    captions: dict[str, int] = {}
    while len(captions) < count:
        captions[sample_scene(SCENES + int(rng.integers(10**9)), objects=1).caption()] = int(rng.integers(2**31))
    return list(captions.items())


def leaderboard(
    entries: Mapping[str, ContestEntry], *, seed: int, images: int = GRADED, pipe: DiffusionPipeline | None = None
) -> pd.DataFrame:
    """Score entries, best first, beside uniform, the paper's and derived keys.

    >>> leaderboard({"Ada": ContestEntry(KeySchedule.uniform(50, 7))}, seed=2026)  # doctest: +SKIP

    Args:
        entries: Name -> entry.
        seed: 0 or more; captions and noise follow from it. Choose it when all entries are in.
        images: 1 or more.

    Returns:
        One row per entry: `score`, the mean PSNR to the baseline in dB (at most 60 for an image); the `worst` image;
        `encoder_calls` and `decoder_calls` per image, as the library counted them.

    Raises:
        ValueError: Other numbers, or an entry with the name of a schedule to beat.
    """
    seed, images = whole_number("seed", seed, 0), whole_number("images", images, 1)
    beside = well_known()
    taken = next((name for name in entries if name in (*beside, BASELINE)), None)
    if taken is not None:
        raise ValueError(f"an entry is called {taken!r}, like a schedule to beat; accepted: another name")
    methods = {BASELINE: Method()} | {name: entry.method() for name, entry in (beside | dict(entries)).items()}
    results = draw(load_pipeline() if pipe is None else pipe, methods, drawn_tasks(seed, images))
    return _ranked(_scored(results), set(entries))


def draw(pipe: DiffusionPipeline, methods: Mapping[str, Method], tasks: Sequence[tuple[str, int]]) -> dict[str, list[Result]]:
    """Draw each method for captions and seeds, with the contest's steps and guidance."""
    # A red bar looks like an error to a student, so it goes to stdout.
    with redirect_stderr(sys.stdout):
        return drawn(pipe, dict(methods), tasks, RunSettings(NUM_STEPS, EMBEDDED_GUIDANCE))


@cache
def practice(seed: int) -> dict[str, list[Result]]:
    """The baseline and the schedules to beat on the images of a seed, drawn once."""
    methods = {BASELINE: Method()} | {name: entry.method() for name, entry in well_known().items()}
    return draw(load_pipeline(), methods, drawn_tasks(seed, PRACTICE))


def _scored(results: Mapping[str, list[Result]]) -> pd.DataFrame:
    """One row per method and image: its fidelity to the baseline, and its calls."""
    baseline = [result.image for result in results[BASELINE]]
    rows = []
    for name, found in results.items():
        near = fidelity([result.image for result in found], baseline)["psnr"]
        rows += [{"method": name, "psnr": psnr, **result.counts} for psnr, result in zip(near, found, strict=True)]
    table = pd.DataFrame(rows)
    return table[table["method"] != BASELINE]


def _ranked(table: pd.DataFrame, handed_in: set[str]) -> pd.DataFrame:
    counted = table.assign(psnr=table["psnr"].clip(upper=BEST_PSNR)).groupby("method", sort=False)
    found = counted.agg(
        score=("psnr", "mean"), worst=("psnr", "min"), encoder_calls=("encoder_calls", "max"), decoder_calls=("decoder_calls", "max")
    ).reset_index(names="entry")  # fmt: skip
    assert (found["encoder_calls"] <= MOST_CALLS).all() and (found["decoder_calls"] == NUM_STEPS).all()
    found["handed in"] = found["entry"].isin(handed_in)
    return found.sort_values("score", ascending=False, ignore_index=True)


def read_entries(folder: str | Path) -> tuple[dict[str, ContestEntry], dict[str, str]]:
    """Read the entries in a folder's JSON files, by file name, and say what is wrong with refused ones.

    Raises FileNotFoundError for a folder without JSON files.
    """
    files = sorted(Path(folder).glob("*.json"))
    if not files:
        raise FileNotFoundError(f"no entries in {folder}; accepted: a folder of .json files that ContestEntry.save wrote")
    entries: dict[str, ContestEntry] = {}
    refused: dict[str, str] = {}
    for file in files:
        try:
            entries[_printable(file.stem)] = ContestEntry.load(file)
        except (ValueError, OSError) as error:
            refused[_printable(file.stem)] = _printable(str(error))
    return entries, refused


def _printable(text: str) -> str:
    """Drop characters that could move a terminal's cursor, because anybody may have written the file."""
    return "".join(character if character.isprintable() else "?" for character in text)[:200]


def judged(entry: Any, seed: int) -> tuple[bool, str]:
    """Judge an entry: valid, and at least as good as the weakest schedule beside it?"""
    if not isinstance(entry, ContestEntry):
        return False, f"A ContestEntry is wanted, found {type(entry).__name__}: ContestEntry(fl.KeySchedule(50, [0, ...]), order=0)"
    results = practice(seed) | draw(load_pipeline(), {"yours": entry.method()}, drawn_tasks(seed, PRACTICE))
    scores = _ranked(_scored(results), {"yours"}).set_index("entry")["score"]
    weakest = scores.drop("yours").min()
    said = f"{entry.schedule}, {len(entry.schedule.keys)} encoder calls; mean PSNR on {PRACTICE} images of seed {seed}:"
    lines = [f"  {name}: {score:.1f} dB" for name, score in scores.items()]
    passed = bool(math.isfinite(scores["yours"]) and scores["yours"] >= weakest - 1e-9)
    return passed, "\n".join([said, *lines, *([] if passed else ["  expected: no less than the weakest of the others"])])
