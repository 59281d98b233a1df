"""The rooms: who may import whom, and what no file may do."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import diffusers
import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "fastdiff_lab"
FILES = {path.relative_to(PACKAGE).as_posix(): path for path in sorted(PACKAGE.rglob("*.py"))}
TESTS = {path.name: path for path in sorted((ROOT / "tests").glob("*.py"))}
# What is of the repository, and not installed.
BESIDE = {
    path.relative_to(ROOT).as_posix(): path for room in ("studies", "teaching") for path in sorted((ROOT / room).rglob("*.py"))
}
# From the ground up: a room knows those of the floors below it, and nothing beside it or above.
FLOORS = [
    {"inputs"},
    {"plot", "key_schedule", "hooks"},
    {"recording", "propagation"},
    {"sampling"},
    {"calibration"},
    {"shapes"},
    {"pipelines"},
    {"comparison"},
    {"lab", "exercises"},
    {"cli"},
    {"__init__", "__main__"},
]
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}


PLOT = {f"plot.{name}" for name in ("drawing", "images", "output", "schematics", "schematics_of_calibration", "style", "tables")}


def resolved(name: str, module: str | None, level: int) -> str:
    """The module that a relative import of a file names, as seen from the package: `propagation.engine`."""
    package = name.split("/")[:-1]
    return ".".join([*package[: len(package) - level + 1], *filter(None, [module])])


def is_module(module: str) -> bool:
    place = module.replace(".", "/")
    return f"{place}.py" in FILES or f"{place}/__init__.py" in FILES


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def at_the_top(tree: ast.Module) -> Iterator[ast.stmt]:
    """The statements that importing a file runs: also those in a block `with extra(...)`."""
    for node in tree.body:
        yield from node.body if isinstance(node, ast.With) else [node]


def own(name: str) -> set[str]:
    """The modules of our own that a file imports at its top."""
    found = set()
    for node in at_the_top(tree_of(FILES[name])):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = resolved(name, node.module, node.level)
            inside = {".".join(filter(None, [base, alias.name])) for alias in node.names}
            found |= {module for module in inside if is_module(module)} or {base}
    return found


def outside(path: Path, everywhere: bool = False) -> set[str]:
    """The packages of others that a file imports at its top, or anywhere."""
    tree = tree_of(path)
    nodes = list(ast.walk(tree) if everywhere else at_the_top(tree))
    found = {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom) and not node.level}
    found |= {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return {module.split(".")[0] for module in found}


def within(module: str, rooms: set[str]) -> bool:
    return any(module == room or module.startswith(f"{room}.") for room in rooms)


def room(module: str) -> str:
    return module.split(".")[0]


def test_the_house_has_at_most_sixteen_entries():
    entries = {name.split("/")[0].removesuffix(".py") for name in FILES}
    assert entries == set(FLOOR) and len(entries) <= 16


def test_a_room_knows_only_what_is_below():
    for name in FILES:
        here = room(name.removesuffix(".py").replace("/", "."))
        for module in own(name):
            there = room(module)
            assert there == here or FLOOR[there] < FLOOR[here], (name, module)


def test_imports_are_seen():
    """A reader that finds nothing would let the test above pass."""
    assert own("propagation/engine.py") >= {"hooks.denoiser", "propagation.checks", "propagation.run_state"}
    assert "plot" in own("exercises/figures.py") and "lab.widget.schedule_lab" in own("lab/widget/__init__.py")


def test_folders_have_no_circles():
    """Inside of a room, too: no file imports itself by way of others."""
    arrows = {name: {module.replace(".", "/") for module in own(name)} for name in FILES}
    arrows = {
        name: {found for place in places for found in (f"{place}.py", f"{place}/__init__.py") if found in FILES}
        for name, places in arrows.items()
    }
    while free := {name for name, places in arrows.items() if not places}:
        arrows = {name: places - free for name, places in arrows.items() if name not in free}
    assert not arrows


def test_schedules_and_plans_are_pure_python():
    names = ("key_schedule.py", "propagation/planner.py", "inputs/__init__.py", "inputs/files.py", "inputs/plain_values.py")
    assert own("propagation/planner.py") == {"key_schedule"}
    assert own("key_schedule.py") == {"inputs.files", "inputs.plain_values"} and not own("inputs/plain_values.py")
    assert {module for name in names for module in outside(FILES[name])} <= {
        "__future__",
        "json",
        "re",
        "os",
        "tempfile",
        "collections",
        "dataclasses",
        "itertools",
        "pathlib",
        "typing",
        "math",
    }


@pytest.mark.parametrize(
    ("name", "known"),
    [
        *((name, {"inputs.extras", *PLOT}) for name in FILES if name.startswith("plot/")),
        ("inputs/plain_values.py", set()),
        ("hooks/patching.py", {"hooks.private_api"}),
        ("propagation/extrapolation.py", {"inputs.plain_values"}),
        ("sampling/silence.py", {"hooks.private_api"}),
        ("calibration/reuse_costs.py", {"inputs.files", "inputs.plain_values"}),
        ("comparison/workers.py", {"inputs.extras"}),
        ("comparison/image_quality/distances.py", {"inputs.extras", "inputs.plain_values"}),
        ("comparison/image_quality/networks.py", set()),
        ("lab/session/background_job.py", {"lab.session.interrupts"}),
        ("lab/session/interrupts.py", set()),
        ("lab/session/undo.py", set()),
        ("lab/session/images.py", set()),
    ],
)
def test_what_stands_nearly_alone(name, known):
    assert own(name) <= known


@pytest.mark.parametrize(
    ("name", "forbidden"),
    [
        ("recording/record.py", {"recording.analysis"}),
        ("propagation/engine.py", {"propagation.encoder_propagation", "propagation.handle"}),
        ("propagation/evaluation.py", {"propagation.engine", "key_schedule"}),
        ("propagation/feature_cache.py", {"propagation.engine", "hooks.denoiser", "key_schedule"}),
        ("hooks/denoiser.py", {"key_schedule"}),
        ("sampling/call_options.py", {"sampling.methods", "propagation"}),
        ("sampling/output_image.py", {"sampling.methods", "propagation"}),
        ("sampling/run_settings.py", {"sampling.methods", "propagation"}),
        ("sampling/rivals/rival.py", {"sampling.methods", "propagation", "hooks"}),
        ("calibration/derive.py", {"calibration.calibrate", "calibration.replay", "propagation", "sampling"}),
        ("calibration/replay.py", {"calibration.calibrate", "calibration.derive", "calibration.reuse_costs"}),
        ("calibration/calibrate.py", {"calibration.derive", "recording"}),
        ("comparison/fidelity.py", {"sampling", "comparison", "propagation", "recording", "pipelines"}),
        ("comparison/image_quality/scores.py", {"comparison.compare", "comparison.tables", "comparison.result_store", "sampling"}),
        ("comparison/tables.py", {"comparison.compare", "sampling", "pipelines"}),
        ("comparison/result_store.py", {"sampling", "comparison", "propagation", "recording", "pipelines"}),
        ("lab/session/settings.py", {"comparison", "plot", "recording", "lab"}),
        ("lab/session/watching.py", {"sampling", "propagation", "recording", "plot", "lab"}),
        (
            "lab/session/prediction.py",
            {"lab.session.paired_run", "lab.session.history", "lab.session.watching", "plot", "recording", "comparison"},
        ),
        ("lab/session/paired_run.py", {"lab.session.prediction", "lab.session.history", "plot", "recording", "calibration"}),
        ("lab/session/race.py", {"lab.session.history", "plot", "recording", "calibration"}),
        ("lab/session/history.py", {"lab.session.watching", "plot", "recording", "calibration", "comparison"}),
    ],
)
def test_data_flows_one_way(name, forbidden):
    assert not {module for module in own(name) if within(module, forbidden)}


def test_only_the_widget_knows_widgets():
    """ipywidgets and anywidget are imported in their folder only, which nothing else imports; the session works without."""
    for name, path in FILES.items():
        if not name.startswith("lab/widget/"):
            assert not outside(path, everywhere=True) & {"ipywidgets", "anywidget", "traitlets"}, name
            assert not {module for module in own(name) if within(module, {"lab.widget"})}, name
            assert not re.search(r"from [.\w]*\bwidget\b", path.read_text().partition('"""')[2].partition('"""')[2]), name


def test_the_package_does_not_know_what_is_not_installed():
    assert not [name for name, path in FILES.items() if {"studies", "teaching"} & outside(path, everywhere=True)]


def test_only_some_files_name_diffusers_models():
    # The architectures at full size name the classes that they build.
    models = {n for n in dir(diffusers) if n.endswith("Model") or n.startswith(("Autoencoder", "ControlNet"))}
    known = ("hooks/", "pipelines.py", "comparison/architectures.py")
    for name, path in FILES.items():
        used = {node.id for node in ast.walk(tree_of(path)) if isinstance(node, ast.Name)}
        assert name.startswith(known) or not used & models, name


def test_only_hooks_know_the_insides_of_diffusers():
    """What is below `diffusers.` itself: its modules, which change without notice."""
    for name, path in FILES.items():
        nodes = ast.walk(tree_of(path))
        found = {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom) and not node.level}
        assert name.startswith("hooks/") or not [module for module in found if module.startswith("diffusers.")], name


def test_no_file_unpickles_or_copies_a_forward():
    for name, path in (FILES | BESIDE).items():
        nodes = list(ast.walk(tree_of(path)))
        dotted = [node for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)]
        names = {node.id for node in nodes if isinstance(node, ast.Name)} | {f"{node.value.id}.{node.attr}" for node in dotted}
        assert not names & {"pickle", "eval", "exec"}, name
        loads = [node for node in nodes if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load"]
        assert ("torch.load" in names) == bool(loads) and all("weights_only=True" in ast.unparse(node) for node in loads), name
        assert not loads or name == "comparison/image_quality/weights.py"


def lines_of(node: ast.FunctionDef | ast.ClassDef) -> int:
    """Lines of the body of a function or class, without docstrings, comments and blank lines."""
    inside = [inner for inner in ast.walk(node) if isinstance(inner, ast.FunctionDef | ast.ClassDef) and ast.get_docstring(inner)]
    lines = [line for statement in node.body for line in ast.unparse(statement).splitlines() if line.strip()]
    docstrings = [line for inner in inside for line in ast.unparse(inner.body[0]).splitlines() if line.strip()]
    return len(lines) - len(docstrings)


def test_functions_classes_and_files_are_small():
    for name, path in (FILES | BESIDE).items():
        nodes = list(ast.walk(tree_of(path)))
        assert [node.name for node in nodes if isinstance(node, ast.FunctionDef) and lines_of(node) > 45] == [], name
        assert [node.name for node in nodes if isinstance(node, ast.ClassDef) and lines_of(node) > 150] == [], name
        assert len(path.read_text().splitlines()) <= 370, name


def test_no_test_file_imports_another():
    """What several of them need stands in a module that is named by its role."""
    arrows = {
        name: {module for module in outside(path, everywhere=True) if f"{module}.py" in TESTS} for name, path in TESTS.items()
    }
    assert "models" in arrows["test_systems.py"]  # imports are seen
    assert not [(name, module) for name, modules in arrows.items() for module in modules if module.startswith("test_")]
