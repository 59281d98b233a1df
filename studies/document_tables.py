"""Write the tables of README.md, docs/results.md and docs/benchmarks.md from what was measured: `python -m studies.document_tables`.

- `TABLES`: each table, with its rows as text
- `rows_of(text, first)`: the rows that a page has now
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from statistics import median
from typing import Any

import pandas as pd

from fastdiff_lab.inputs.files import write_text

ROOT = Path(__file__).parent.parent
DDIM, DPM = "data/suite/ddim-50", "data/suite/dpm-solver++-20"
Rows = dict[str, list[str]]

IN_README = {
    "the decoder, the paper's keys": "features, paper 9, order 0",
    "the decoder, derived keys": "features, derived 9, order 0",
    "**the decoder, derived keys, fitted**": "features, fitted 9, order 0",
    "*control:* nothing, predictions reused": "predictions, derived 9, order 0",
    "*control:* the same, fitted": "predictions, fitted 9, order 0",
    "*control:* the same, fitted, at 13 keys": "predictions, fitted 13, order 0",
    "*control:* a run of 17 steps": "fewer steps (17)",
}
IN_RESULTS = {
    "baseline": "baseline",
    "features reused, the paper's 9 keys": "features, paper 9, order 0",
    "the same with prior noise": "features, paper 9, order 0, prior noise",
    "features reused, uniform 9": "features, uniform 9, order 0",
    "features reused, derived 9": "features, derived 9, order 0",
    "features extrapolated, derived 9": "features, derived 9, order 1",
    "features, fitted, uniform 9": "features, uniform, fitted 9, order 0",
    "**features, fitted, derived 9**": "features, fitted 9, order 0",
    "features, fitted, 9 keys moved for the fit": "features, refined, fitted 9, order 0",
    "predictions reused, the features' derived 9": "predictions, derived 9, order 0",
    "predictions reused, their own derived 9": "predictions, derived for predictions 9, order 0",
    "predictions, fitted, uniform 9": "predictions, uniform, fitted 9, order 0",
    "predictions, fitted, the features' derived 9": "predictions, fitted 9, order 0",
    "predictions, fitted, their own derived 9": "predictions, derived for predictions, fitted 9, order 0",
    "predictions, fitted, 9 keys moved for the fit": "predictions, refined, fitted 9, order 0",
    "fewer steps (9)": "fewer steps (9)",
    "*in the same time:* predictions, fitted, the features' derived 13": "predictions, fitted 13, order 0",
    "*in the same time:* fewer steps (17)": "fewer steps (17)",
    "*in more time:* DeepCache 3": "DeepCache 3",
    "*in more time:* DeepCache 3, fitted": "DeepCache 3, fitted",
}
KNOWN = {
    "latent": "the latent",
    "key": "the key's prediction",
    "older": "the older keys' predictions",
    "missed": "what the group before missed",
    "ahead": "what is decoded ahead",
}
SCHEDULERS = {"euler": "Euler", "dpm-solver++": "DPM-Solver++", "unipc": "UniPC"}
FAMILIES = {
    "features reused": "features, derived {}, order 0",
    "**features, fitted**": "features, fitted {}, order 0",
    "predictions reused": "predictions, derived {}, order 0",
    "predictions, fitted": "predictions, fitted {}, order 0",
    "predictions, fitted, their own keys": "predictions, derived for predictions, fitted {}, order 0",
    "fewer steps": "fewer steps ({})",
}

LEADS = {
    "fitted over reused features": "fitted over derived keys",
    "fitted over reused predictions": "fitted predictions over derived keys",
    "fitted features over fewer steps": "fitted over fewer steps",
    "fitted predictions over fewer steps": "fitted predictions over fewer steps",
    "fitted features over fitted predictions, same keys": "fitted features over fitted predictions",
    "fitted features over fitted predictions, keys derived for each": "fitted features over fitted predictions at keys derived for each",
    "reused features over reused predictions, same keys": "features over predictions at the same derived keys",
    "reused features: derived over uniform keys": "derived over uniform keys",
}

ELSEWHERE = ("guidance", "scheduler")  # questions with a run of their own without a fit
# (question, rule) of data/ablation/fit_makings.csv
MAKINGS = {
    "none, features reused": ("images", "reused"),
    **{f"on {count} image{'s' * (count > 1)}": ("images", f"{count} images") for count in (1, 2, 4, 8, 16, 32)},
    **{f"without {what}": ("known tensors", f"without {name}") for name, what in KNOWN.items()},
    "on other noise": ("seeds", "other seeds"),
    "on one-object captions, used on two objects": ("captions of 2 objects", "fitted on 1 objects"),
    "on two-object captions, used on one object": ("captions of 1 objects", "fitted on 2 objects"),
    "used with guidance 2 (there without a fit)": ("guidance 2", "fitted"),
    "used with guidance 7.5 (there without a fit)": ("guidance 7.5", "fitted"),
    **{f"{title} (there without a fit)": (f"scheduler {name}", "fitted") for name, title in SCHEDULERS.items()},
    "lines for each feature": ("order", "on lines"),
}
GPU = "data/bench/nvidia-h200"
ON_GPU = {
    "baseline": "baseline",
    "features, parallel": "paper, parallel",
    "features, serial": "paper, serial",
    "features at uniform keys, parallel": "uniform 9, parallel",
    "features at uniform keys, serial": "uniform 9, serial",
    "features, parallel, 8 steps at once": "paper, parallel, 8 steps at once",
    "features extrapolated, parallel": "paper, parallel, order 1",
    "*control:* predictions reused": "paper, predictions reused",
    "*control:* 9 steps": "fewer steps (9)",
    "*control:* 25 steps": "fewer steps (25)",
    "DeepCache 2": "DeepCache 2",
    "DeepCache 3": "DeepCache 3",
    "DeepCache 5": "DeepCache 5",
    "token merging 0.5": "token merging 0.5",
}


@dataclass(frozen=True)
class Table:
    """A table of a page, found by the title of its first column."""

    page: str
    first: str
    rows: Callable[[], Rows]

    def written(self) -> str:
        """The page with the rows of this table as they were measured."""
        text = (ROOT / self.page).read_text()
        start = text.index(f"| {self.first} |")
        head, _, rest = text[start:].partition("\n\n")
        lines = [*head.splitlines()[:2], *(f"| {' | '.join([label, *cells])} |" for label, cells in self.rows().items())]
        return text[:start] + "\n".join(lines) + "\n\n" + rest


def rows_of(text: str, first: str) -> Rows:
    """The rows of the table with this first column: label -> other cells.

    >>> rows_of("| what | dB |\\n|---|---|\\n| ours | 3.0 |\\n\\n", "what")
    {'ours': ['3.0']}
    """
    table = text[text.index(f"| {first} |") :].split("\n\n")[0].splitlines()[2:]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    return {label: rest for label, *rest in cells}


@cache
def suite(folder: str = DDIM) -> pd.DataFrame:
    """The table of a suite by method."""
    return pd.read_csv(ROOT / folder / "table.csv").set_index("method")


def _readme() -> Rows:
    return {
        label: [f"{one.encoder_calls:.0f}", f"{one.ratio:.2f}x", f"{one.psnr:.1f}", f"{one.psnr_worst:.1f}"]
        for label, one in _named(IN_README)
    }


def _results() -> Rows:
    return {label: _cells(one) for label, one in _named(IN_RESULTS)}


def _named(names: dict[str, str]) -> Iterable[tuple[str, pd.Series]]:
    return ((label, suite().loc[name]) for label, name in names.items())


def _cells(one: pd.Series) -> list[str]:
    costs = [f"{one.forward_calls:.0f}", f"{one.gflops:.1f}", f"{one.seconds:.2f}", f"{one.ratio:.2f}"]
    near = [f"{one.psnr:.1f} ({one.psnr_low:.1f} to {one.psnr_high:.1f})", f"{one.psnr_typical:.1f}", f"{one.psnr_worst:.1f}"]
    return [*costs, *(["identical"] * 3 if one.name == "baseline" else near), f"{100 * one.prompt_accuracy:.0f} %"]


def _by_count(folder: str, counts: tuple[int, ...]) -> Rows:
    found = suite(folder)
    return {
        label: [_three(found, name.format(count)) for count in counts]
        for label, name in FAMILIES.items()
        if name.format(counts[0]) in found.index
    }


def _three(found: pd.DataFrame, name: str) -> str:
    """Averaged, typical and worst dB."""
    one = found.loc[name]
    return f"{one.psnr:.1f} / {one.psnr_typical:.1f} / {one.psnr_worst:.1f}"


def _leads(folder: str, counts: tuple[int, ...]) -> Rows:
    found = pd.read_csv(ROOT / folder / "paired.csv")
    found = found[found["order"] == 0].set_index(["claim", "num_keys"])
    return {
        label: [_lead(found.loc[(claim, count)]) for count in counts]
        for label, claim in LEADS.items()
        if (claim, counts[0]) in found.index
    }


def _lead(one: pd.Series) -> str:
    """A difference with its interval, bold if the interval excludes 0."""
    mark = "**" if one.low > 0 or one.high < 0 else ""
    return f"{mark}{one.difference:.1f}{mark} ({one.low:.1f} to {one.high:.1f})"


def _rules(name: str, counts: tuple[int, ...]) -> Rows:
    found = pd.read_csv(ROOT / f"data/ablation/{name}.csv").set_index(["rule", "num_keys"])
    return {
        rule: [f"{found.loc[(rule, count), 'psnr']:.1f} ({found.loc[(rule, count), 'typical']:.1f})" for count in counts]
        for rule in found.index.get_level_values("rule").unique()
    }


def _makings() -> Rows:
    found = pd.read_csv(ROOT / "data/ablation/fit_makings.csv").set_index(["question", "rule"])

    def near(question: str, rule: str) -> str:
        one = found.loc[(question, rule)]
        return f"{one.psnr:.1f} / {one.typical:.1f} / {one.worst:.1f}"

    return {
        label: [near(question, rule) + (f" ({near(question, 'reused')})" if question.startswith(ELSEWHERE) else "")]
        for label, (question, rule) in MAKINGS.items()
    }


def _scene_distance() -> Rows:
    found = pd.read_csv(ROOT / "data/suite/scene_distance.csv")
    return {one.method: [f"{one.kernel_distance:.3f}", f"{one.deviation:.3f}"] for one in found.itertuples()}


def _on_gpu() -> Rows:
    found = pd.read_csv(ROOT / GPU / "bench.csv").set_index(["system", "method"])
    runs = {entry["case"]["system"]: entry["runs"] for entry in _gpu_entries()}

    def timed(system: str, method: str) -> list[str]:
        if (system, method) not in found.index:
            return ["", "", ""]
        one = found.loc[(system, method)]
        single = [run["seconds"] for run in runs[system][method]]
        extent = f" ({min(single):.2f} to {max(single):.2f})" if len(single) > 1 else ""
        return [f"{one.seconds:.2f}{extent}", f"{one.ratio:.1f}x", f"{one.flop_ceiling:.2f}x"]

    return {label: [*timed("sd-1.5", method), *timed("sdxl", method)] for label, method in ON_GPU.items()}


def _gpu_entries() -> list[dict[str, Any]]:
    return json.loads((ROOT / GPU / "bench.json").read_text())["entries"]


def _decoded_at_once() -> Rows:
    seconds = {
        entry["case"]["system"]: {int(size): median(runs) for size, runs in entry["decoder"].items()} for entry in _gpu_entries()
    }
    return {
        str(size): [f"{1000 * of[size]:.0f} ms, {of[size] / of[1]:.1f}x" for of in (seconds["sd-1.5"], seconds["sdxl"])]
        for size in (1, 2, 5, 8, 10, 15)
    }


TABLES = (
    Table("README.md", "what runs between key steps", _readme),
    Table("docs/results.md", "method", _results),
    Table("docs/results.md", "keys, DDIM 50", partial(_by_count, DDIM, (5, 7, 9, 13, 17))),
    Table("docs/results.md", "keys, DPM-Solver++ 20", partial(_by_count, DPM, (5, 7, 9, 13))),
    Table("docs/results.md", "keys, other weights", partial(_by_count, "data/suite/other-weights", (5, 7, 9, 13))),
    Table("docs/results.md", "lead in dB, DDIM 50", partial(_leads, DDIM, (5, 7, 9, 13, 17))),
    Table("docs/results.md", "lead in dB, DPM-Solver++ 20", partial(_leads, DPM, (5, 7, 9, 13))),
    Table("docs/results.md", "fit", _makings),
    Table("docs/results.md", "rule", partial(_rules, "rules", (9, 17))),
    Table("docs/results.md", "time-steps", partial(_rules, "published", (10,))),
    Table("docs/results.md", "as sets", _scene_distance),
    Table("docs/benchmarks.md", "on an H200", _on_gpu),
    Table("docs/benchmarks.md", "steps decoded at once", _decoded_at_once),
)


def main() -> None:
    for table in TABLES:
        write_text(ROOT / table.page, table.written())


if __name__ == "__main__":
    main()
