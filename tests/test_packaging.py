"""pyproject.toml, environment.yml and requirements.lock agree; the wheel works where nothing else of ours is."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import sysconfig
import tomllib
import venv
from collections.abc import Iterable, Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution, version
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

HERE = Path(__file__).parent
ROOT = HERE.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
CONDA_NAMES = {"pytorch": "torch", "matplotlib-base": "matplotlib", "seaborn-base": "seaborn"}
# What is imported by another name, or comes with a package that is declared.
COMES_WITH = {
    "PIL": "diffusers", "tokenizers": "transformers", "traitlets": "ipywidgets", "IPython": "ipywidgets", "otter": "otter-grader"
}  # fmt: skip


def declared(*extras: str) -> dict[str, Requirement]:
    """What pyproject.toml asks for, with these extras and those that they name: by normal name."""
    found: dict[str, Requirement] = {}
    for line in [*PROJECT["dependencies"], *(line for extra in extras for line in PROJECT["optional-dependencies"][extra])]:
        requirement = Requirement(line)
        found |= (
            declared(*requirement.extras)
            if requirement.name == PROJECT["name"]
            else {canonicalize_name(requirement.name): requirement}
        )
    return found


def pins(file: str = "requirements.lock", python: str = "3.11") -> dict[str, str]:
    """Name -> exact version, as a Python on Linux reads the file."""
    lines = [Requirement(line) for line in (ROOT / file).read_text().splitlines()]
    mine = [line for line in lines if line.marker is None or line.marker.evaluate({"python_version": python})]
    exact = {canonicalize_name(line.name): str(line.specifier).removeprefix("==") for line in mine}
    assert all(str(line.specifier) == f"=={exact[canonicalize_name(line.name)]}" for line in mine) and len(exact) == len(mine)
    return exact


def test_the_core_is_small():
    assert len(PROJECT["dependencies"]) <= 7


@pytest.mark.parametrize("extra", sorted(set(PROJECT["optional-dependencies"]) - {"classroom"}))
def test_who_develops_has_every_extra(extra):
    """But examinations, which have pins of their own."""
    assert set(declared(extra)) <= set(declared("dev"))


@pytest.mark.parametrize("extra", PROJECT["optional-dependencies"])
def test_pyproject_has_floors_and_no_caps(extra):
    for requirement in declared(extra).values():
        assert {part.operator for part in requirement.specifier} <= {">=", "!="} and requirement.specifier, requirement
    assert PROJECT["requires-python"] == ">=3.11"


def test_conda_asks_for_what_pyproject_asks_for():
    asked = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    conda = dict(entry.split(" ") for entry in asked if isinstance(entry, str) and " " in entry)
    assert conda.pop("python") == PROJECT["requires-python"]
    named = {CONDA_NAMES.get(name, name): ranges for name, ranges in conda.items()}
    assert named == {name: str(requirement.specifier) for name, requirement in declared("notebooks").items()}


@pytest.mark.parametrize("python", PYTHONS)
def test_the_lock_is_within_the_ranges(python):
    locked = pins(python=python)
    for name, requirement in declared("dev").items():
        assert locked[name] in requirement.specifier, name
    assert locked["torch"] == "2.13.0"


def test_make_takes_the_pythons_that_the_lock_is_for():
    makefile = (ROOT / "Makefile").read_text()
    assert all(f"({python.replace('.', ', ')})" in makefile for python in PYTHONS)
    assert [line.rsplit(" ", 1)[-1] for line in PROJECT["classifiers"] if "Python :: 3." in line] == list(PYTHONS)


def test_examinations_need_pins_beside_the_lock_and_change_none():
    further = pins("requirements-classroom.lock")
    assert not set(further) & set(pins())
    for name, requirement in declared("classroom").items():
        assert (further | pins())[name] in requirement.specifier


def test_the_site_needs_pins_beside_the_lock_and_changes_none():
    further, classroom = pins("requirements-site.lock"), pins("requirements-classroom.lock")
    assert not set(further) & set(pins()) and {"sphinx", "myst-nb", "sphinx-book-theme"} <= set(further)
    assert all(further[name] == classroom[name] for name in set(further) & set(classroom))


def test_the_lock_is_what_is_installed():
    locked = pins(python=f"{sys.version_info[0]}.{sys.version_info[1]}")
    for name in declared("dev"):
        assert version(name).split("+")[0] == locked[name], name


def imported(path: Path) -> Iterator[str]:
    """The packages that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            yield node.module.split(".")[0]


def test_every_direct_import_is_declared():
    found = {name for path in (ROOT / "fastdiff_lab").rglob("*.py") for name in imported(path)}
    outside = {canonicalize_name(COMES_WITH.get(name, name)) for name in found - set(sys.stdlib_module_names)}
    assert outside <= set(declared("cli", "notebooks", "quality", "rivals", "workers", "classroom"))


def test_the_core_imports_only_the_core_when_it_is_imported():
    """Outside of a block `with extra(...)`, a function, or the folders that are an extra's."""
    of_extras = ("cli/", "lab/widget/", "exercises/figures.py")
    for path in (ROOT / "fastdiff_lab").rglob("*.py"):
        tree = ast.parse(path.read_text())
        tree.body = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
        names = {alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names}
        names |= {node.module for node in tree.body if isinstance(node, ast.ImportFrom) and not node.level}
        outside = {name.split(".")[0] for name in names} - set(sys.stdlib_module_names)
        if not path.relative_to(ROOT / "fastdiff_lab").as_posix().startswith(of_extras):
            assert {canonicalize_name(COMES_WITH.get(name, name)) for name in outside} <= set(declared()), path


def run(*command: str, cwd: Path, **environment: str) -> str:
    result = subprocess.run(command, cwd=cwd, env=os.environ | environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def needed(names: Iterable[str]) -> dict[str, Distribution]:
    """The distributions that these need, as installed here, by what they say themselves."""
    found: dict[str, Distribution] = {}
    left = [Requirement(name) for name in names]
    while left:
        asked = left.pop()
        try:
            there = distribution(asked.name)
        except PackageNotFoundError:  # CUDA's, beside a torch for the CPU
            continue
        name = canonicalize_name(asked.name)
        if name in found and not asked.extras:
            continue
        found[name] = there
        for line in map(Requirement, there.requires or []):
            if line.marker is None or any(line.marker.evaluate({"extra": extra}) for extra in ("", *asked.extras)):
                left.append(line)
    return found


def link(installed: Distribution, packages: Path) -> None:
    """The files of a distribution, linked into another folder of packages."""
    for top in {file.parts[0] for file in installed.files or [] if file.parts[0] not in ("..", "__pycache__")}:
        place = packages / top
        if not place.exists():
            place.symlink_to(Path(str(installed.locate_file(top))))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    place = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    run(*build, "--wheel-dir", str(place), str(ROOT), cwd=place)
    return next(place.glob("fastdiff_lab-*.whl"))


@pytest.fixture(scope="module")
def core_alone(wheel, tmp_path_factory):
    """The Python of an environment with the wheel, what it says that it needs, and no more; nothing is downloaded."""
    place = tmp_path_factory.mktemp("core") / "environment"
    venv.create(place, with_pip=False)
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(place)}))
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target"]
    run(*install, str(packages), str(wheel), cwd=place)
    for installed in needed(PROJECT["dependencies"]).values():
        link(installed, packages)
    return place / "bin" / "python"


@pytest.mark.long
def test_the_core_alone(core_alone, tmp_path):
    """Records, calibrates, derives, accelerates and compares; names the extra of whatever needs one."""
    code = "import importlib.util as util; print(*map(util.find_spec, ['matplotlib', 'scipy', 'joblib']))"
    missing = run(str(core_alone), "-c", code, cwd=tmp_path, PYTHONPATH="")
    assert missing.split() == ["None"] * 3
    assert run(str(core_alone), str(HERE / "core_alone.py"), cwd=tmp_path, PYTHONPATH="") == "the core works alone\n"


@pytest.mark.long
def test_the_wheel_samples_from_another_folder(core_alone, tmp_path):
    """Our files are all there, and the command line runs (typer comes with transformers 5)."""
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(core_alone.parent.parent)}))
    where = run(str(core_alone), "-c", "import fastdiff_lab; print(fastdiff_lab.__file__)", cwd=tmp_path, PYTHONPATH="")
    assert Path(where.strip()).is_relative_to(packages)
    exercises = list((packages / "fastdiff_lab" / "notebooks" / "exercises").iterdir())
    assert len(exercises) == 4 and all(path.suffix == ".ipynb" for path in exercises)  # no answers, no tests
    scripts = list((packages / "fastdiff_lab" / "lab" / "widget" / "js").glob("*.js"))
    assert len(scripts) > 5 and all(path.stat().st_size > 100 for path in scripts)
    prompt = "a small red circle at the left on a blue background"
    sample = ["-m", "fastdiff_lab", "sample", prompt, "--steps", "10", "--output", "a.png"]
    said = run(str(core_alone), *sample, cwd=tmp_path, PYTHONPATH="")
    assert "encoder calls" in said and (tmp_path / "a.png").stat().st_size > 100
