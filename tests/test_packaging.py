"""pyproject.toml, environment.yml and requirements.lock agree; the wheel works where nothing else of ours is."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
import tomllib
import venv
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parent.parent
CONDA_NAMES = {"pytorch": "torch", "matplotlib-base": "matplotlib", "seaborn-base": "seaborn"}


def declared(extra: str | None = None) -> dict[str, Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = project["dependencies"] if extra is None else project["optional-dependencies"][extra]
    return {(requirement := Requirement(line)).name: requirement for line in lines}


def locked() -> dict[str, str]:
    lines = (ROOT / "requirements.lock").read_text().split()
    return {name.lower().replace("_", "-"): number for name, _, number in (line.partition("==") for line in lines)}


def test_conda_asks_for_what_pyproject_asks_for():
    asked = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    conda = dict(entry.split(" ") for entry in asked if isinstance(entry, str) and " " in entry)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert conda.pop("python") == project["requires-python"]
    named = {CONDA_NAMES.get(name, name): set(ranges.split(",")) for name, ranges in conda.items()}
    assert named == {name: set(str(requirement.specifier).split(",")) for name, requirement in declared().items()}


def test_the_lock_is_within_the_ranges():
    pins = locked()
    assert pins["torch"] == "2.13.0"
    for name, requirement in (declared() | declared("suite") | declared("dev")).items():
        assert Version(pins[name.lower()]) in requirement.specifier, name
    assert all(re.fullmatch(r"[\w.!+-]+", number) for number in pins.values())


def test_examinations_need_pins_beside_the_lock_and_change_none():
    lines = (ROOT / "requirements-classroom.lock").read_text().split()
    pins = {name.lower().replace("_", "-"): number for name, _, number in (line.partition("==") for line in lines)}
    assert not set(pins) & set(locked())
    for name, requirement in declared("classroom").items():
        assert Version(pins[name]) in requirement.specifier


def test_the_lock_is_what_is_installed():
    for name in declared():
        assert version(name).split("+")[0] == locked()[name.lower()], name


def test_every_direct_import_is_declared():
    import ast

    names = {"PIL": "pillow", "sklearn": "scikit-learn", "IPython": "ipykernel"}
    found = set()
    for path in (ROOT / "fastdiff_lab").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module] if isinstance(node, ast.ImportFrom) and not node.level and node.module else []
            found |= {module.split(".")[0] for module in modules}
    outside = {names.get(name, name) for name in found if name not in sys.stdlib_module_names and name != "fastdiff_lab"}
    assert outside <= set(declared() | declared("suite")), outside - set(declared())


def run(*command, cwd, **environment):
    result = subprocess.run(command, cwd=cwd, env=os.environ | environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.mark.long
def test_the_wheel_samples_from_another_folder(tmp_path):
    """Installed into an empty environment that sees our dependencies (a path file, so not our editable install) and no more."""
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    run(*build, "--wheel-dir", str(tmp_path), str(ROOT), cwd=tmp_path)
    (wheel,) = tmp_path.glob("fastdiff_lab-*.whl")
    place = tmp_path / "empty"
    venv.create(place, with_pip=False)
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(place)}))
    run(
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        "--target",
        str(packages),
        str(wheel),
        cwd=tmp_path,
    )
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    python = str(place / "bin" / "python")
    where = run(python, "-c", "import fastdiff_lab; print(fastdiff_lab.__file__)", cwd=elsewhere, PYTHONPATH="")
    exercises = packages / "fastdiff_lab" / "notebooks" / "exercises"
    assert len(list(exercises.iterdir())) == 3 and all(
        path.suffix == ".ipynb" for path in exercises.iterdir()
    )  # no answers, no tests
    assert Path(where.strip()).is_relative_to(place)
    widgets = "from fastdiff_lab.lab.widget import assets; print(len(assets.module('lab')), len(assets.style()))"
    assert min(map(int, run(python, "-c", widgets, cwd=elsewhere, PYTHONPATH="").split())) > 1000
    command = "from fastdiff_lab.cli.commands import main; main()"
    prompt = "a small red circle at the left on a blue background"
    said = run(python, "-c", command, "sample", prompt, "--steps", "10", "--output", "a.png", cwd=elsewhere, PYTHONPATH="")
    assert "encoder calls" in said and (elsewhere / "a.png").stat().st_size > 100
