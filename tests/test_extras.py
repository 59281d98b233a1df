"""Public names are imported when they are used, and what needs an extra says so."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import fastdiff_lab as fl
from fastdiff_lab.inputs.extras import check_installed

HERE = Path(__file__).parent
OPTIONAL = (
    "matplotlib", "seaborn", "sklearn", "scipy", "torchmetrics", "joblib", "distributed", "ipywidgets", "anywidget", "IPython", "nbformat",
    "nbconvert", "jupytext", "papermill", "DeepCache", "tomesd",
)  # fmt: skip


def run(*command: str) -> str:
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_import_alone_imports_nothing_of_others():
    code = "import sys; before = set(sys.modules); import fastdiff_lab; print(*set(sys.modules) - before)"
    imported = {name.split(".")[0] for name in run("-c", code).split()}
    assert imported - set(sys.stdlib_module_names) == {"fastdiff_lab"}


def test_public_names_import_no_optional_package():
    """What diffusers imports where it is installed, such as scipy, is not ours."""
    code = "import sys; from diffusers import DDIMScheduler, StableDiffusionPipeline; before = set(sys.modules); import fastdiff_lab as fl; "
    code += "[getattr(fl, name) for name in fl.__all__]; print(*set(sys.modules) - before)"
    imported = {name.split(".")[0] for name in run("-c", code).split()}
    assert "fastdiff_lab" in imported and not imported & {*OPTIONAL, "typer"}


@pytest.mark.long
def test_the_core_works_without_the_extras_and_names_them():
    """As in an environment of the core alone, which `test_packaging.py` makes."""
    assert run(str(HERE / "core_alone.py"), *OPTIONAL) == "the core works alone\n"


def test_the_command_line_without_typer():
    code = "import sys; sys.modules['typer'] = None; from fastdiff_lab.__main__ import main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: the command line needs typer, which is not installed; get the extra cli: pip install")


def test_what_another_process_imports_is_checked():
    with pytest.raises(ModuleNotFoundError, match='a lesson needs no_such_package.*pip install "fastdiff-lab\\[classroom\\]"'):
        check_installed("no_such_package", "classroom", "a lesson")


def test_public_names_are_what_their_modules_have():
    for name in fl.__all__:
        assert getattr(fl, name) is getattr(sys.modules[f"fastdiff_lab.{fl._HOME[name]}"], name)
    assert set(fl.__all__) <= set(dir(fl)) and fl.__all__ == sorted(fl.__all__)
    with pytest.raises(AttributeError, match="module 'fastdiff_lab' has no attribute 'recrod'"):
        fl.recrod  # noqa: B018


def test_type_checkers_see_the_same_names():
    (block,) = (node for node in ast.parse(inspect.getsource(fl)).body if isinstance(node, ast.If))
    seen = {alias.asname: node.module for node in block.body for alias in node.names if alias.name == alias.asname}
    assert seen == fl._HOME
