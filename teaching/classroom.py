"""Examinations with otter-grader (extra `classroom`), from the same masters: `python -m teaching.classroom`.

- `assign(folder, output)`: for each sheet the students' notebook, and the zip that grades it
- `grade(autograder, submissions, seed=)`: points of each submission; hidden tests draw their inputs from the seed
- `points(scores)`: the sums

Grading runs the students' code. Do it where nothing but the submissions can be harmed.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

import nbformat
import pandas as pd

from fastdiff_lab.inputs.extras import check_installed
from fastdiff_lab.inputs.files import writable_folder, write_text
from fastdiff_lab.inputs.plain_values import whole_number

from .sheets import read_master

_SEED = re.compile(r"\bGRADING_SEED = \d+")


def assign(folder: str | Path, output: str | Path) -> dict[str, Path]:
    """Make for each sheet the students' notebook and the zip that grades it, in `output/SHEET`.

    >>> assign("notebooks/exercises", "runs/classroom")  # doctest: +SKIP

    Each zip is tried on the solutions. Returns the zip of each sheet.
    Raises FileNotFoundError without `folder/masters/*.py`, ModuleNotFoundError without otter-grader, RuntimeError if otter fails.
    """
    check_installed("otter", "classroom", "an examination")
    masters = sorted((Path(folder) / "masters").glob("*.py"))
    if not masters:
        raise FileNotFoundError(f"no masters in {Path(folder) / 'masters'}; accepted: a folder with masters/*.py")
    place, made = writable_folder(Path(output)), {}
    for path in masters:
        master = place / "masters" / f"{path.stem}.ipynb"
        notebook = read_master(path)
        notebook.metadata.pop("jupytext", None)
        write_text(master, nbformat.writes(notebook) + "\n")
        for old in (place / path.stem / "autograder").glob("*.zip"):
            old.unlink()
        _otter("assign", str(master), str(place / path.stem))
        (made[path.stem],) = (place / path.stem / "autograder").glob("*.zip")
    return made


def grade(autograder: str | Path, submissions: Sequence[str | Path], *, seed: int, timeout: float = 1800) -> pd.DataFrame:
    """Grade notebooks with a zip that `assign` made, each in its own processes without a network.

    >>> grade("runs/classroom/2_propagation/autograder/....zip", ["ada.ipynb"], seed=2026)  # doctest: +SKIP

    Args:
        seed: 1 or more (0 is the notebooks' own), chosen when all submissions are in.
        timeout: Seconds for one submission.

    Returns:
        One row per submission and question: `submission`, `question`, `points`, `possible`, `said` (why points are missing).
        A submission that cannot be graded has one row without a question and points.

    Raises:
        ValueError: Another seed or zip.
    """
    check_installed("otter", "classroom", "an examination")
    seed = whole_number("seed", seed, 1, also=" (0 is the seed of the notebooks' own checks)")
    with tempfile.TemporaryDirectory() as folder:
        seeded = _seeded(Path(autograder), Path(folder) / "autograder.zip", seed)
        tables = [_graded(seeded, Path(path), Path(folder), timeout) for path in submissions]
    return pd.concat(tables, ignore_index=True)


def _seeded(autograder: Path, place: Path, seed: int) -> Path:
    """Copy the zip with this seed in the text of its hidden tests, where no notebook can set it before."""
    with zipfile.ZipFile(autograder) as source, zipfile.ZipFile(place, "w") as target:
        for name in source.namelist():
            content = source.read(name)
            if name.startswith("tests/"):
                text, found = _SEED.subn(f"GRADING_SEED = {seed}", content.decode())
                if not found:
                    raise ValueError(f"{autograder.name}: {name} draws from no GRADING_SEED; accepted: a zip that `assign` made")
                content = text.encode()
            target.writestr(name, content)
    return place


def _graded(autograder: Path, submission: Path, folder: Path, timeout: float) -> pd.DataFrame:
    place = Path(tempfile.mkdtemp(dir=folder))
    try:
        _otter("run", "-a", str(autograder), "-o", str(place), "--no-logo", str(submission.resolve()), timeout=timeout)
        results = json.loads((place / "results.json").read_text())
    except (RuntimeError, OSError, ValueError, subprocess.TimeoutExpired) as error:
        text = " ".join(str(error).split())
        said = f"not graded: {text if len(text) <= 600 else f'{text[:100]} ... {text[-500:]}'}"
        return pd.DataFrame([{"submission": submission.stem, "question": "", "points": 0.0, "possible": 0.0, "said": said}])
    rows = [
        {"submission": submission.stem, "question": test["name"], "points": test["score"], "possible": test["max_score"],
         "said": test["output"] if test["score"] < test["max_score"] else ""}
        for test in results["tests"] if "score" in test
    ]  # fmt: skip
    return pd.DataFrame(rows)


def points(scores: pd.DataFrame) -> pd.DataFrame:
    """Sum up the points of each submission, most points first.

    >>> points(grade(zip, ["ada.ipynb"], seed=2026))  # doctest: +SKIP
    """
    sums = scores.groupby("submission")[["points", "possible"]].sum()
    return sums.sort_values("points", ascending=False).reset_index()


def _otter(*arguments: str, timeout: float | None = None) -> None:
    """Run otter in its own process with this package. Raises RuntimeError with otter's words."""
    paths = [str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    ran = subprocess.run(
        [sys.executable, "-m", "otter", *arguments], env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True, text=True, timeout=timeout,
    )  # fmt: skip
    if ran.returncode:
        raise RuntimeError(f"otter {arguments[0]} failed: {(ran.stderr or ran.stdout)[-2000:]}")


def main() -> None:
    """The command line: `assign FOLDER OUTPUT`, or `grade ZIP SUBMISSION ... --seed N`."""
    parser = argparse.ArgumentParser(prog="python -m teaching.classroom", description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    assigning = commands.add_parser("assign", help="make the students' notebooks and the zips that grade them")
    assigning.add_argument("folder", nargs="?", default="notebooks/exercises")
    assigning.add_argument("output", nargs="?", default="runs/classroom")
    grading = commands.add_parser("grade", help="grade notebooks; this runs the students' code")
    grading.add_argument("autograder", help="zip that assign made")
    grading.add_argument("submissions", nargs="+", help="notebooks")
    grading.add_argument("--seed", type=int, required=True, help="1 or more, chosen when all submissions are in")
    grading.add_argument("--output", default="scores.csv", help="table to write, with a row per submission and question")
    options = parser.parse_args()
    if options.command == "assign":
        for sheet, made in assign(options.folder, options.output).items():
            print(f"{sheet}: students get {made.parents[1] / 'student'}, {made} grades")
        return
    scores = grade(options.autograder, options.submissions, seed=options.seed)
    write_text(Path(options.output), scores.to_csv(index=False))
    print(points(scores).to_string(index=False))


if __name__ == "__main__":
    main()
