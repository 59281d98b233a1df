"""The rooms: who may import whom, and what no file may do."""

from __future__ import annotations

import ast
from pathlib import Path

import diffusers
import pytest

PACKAGE = Path(__file__).parent.parent / "fastdiff_lab"
FILES = {path.relative_to(PACKAGE).as_posix(): path for path in sorted(PACKAGE.rglob("*.py"))}


def imports(name: str) -> set[str]:
    """The modules of our own that a file imports at its top, and the outside packages."""
    found = set()
    for node in ast.parse(FILES[name].read_text()).body:
        if isinstance(node, ast.ImportFrom):
            dots = "." * node.level
            found |= {f"{dots}{node.module or alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


def own(name: str) -> set[str]:
    return {module.lstrip(".") for module in imports(name) if module.startswith(".")}


def test_schedules_are_pure_python():
    assert own("schedule.py") == {"files", "given"} and not own("given.py")
    outside = {
        module.split(".")[0]
        for name in ("schedule.py", "files.py", "given.py")
        for module in imports(name)
        if not module.startswith(".")
    }
    assert outside <= {
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
    ("name", "forbidden"),
    [
        ("recording.py", {"propagation", "decoding", "analysis", "evaluation", "plot"}),
        ("propagation.py", {"recording", "analysis", "evaluation", "plot", "pipelines"}),
        ("decoding.py", {"propagation", "recording", "analysis", "evaluation", "plot", "pipelines"}),
        ("features.py", {"decoding", "propagation", "recording", "split", "schedule", "pipelines"}),
        ("metrics.py", {"evaluation", "comparison", "propagation", "recording", "pipelines"}),
        ("distances.py", set(FILES)),
        ("quality/networks.py", set(FILES)),
        ("quality/scores.py", {"comparison", "picture_table", "evaluation", "store"}),
        ("picture_table.py", {"comparison", "evaluation", "pipelines"}),
        ("workers.py", set(FILES) - {"hooks.py"}),
        ("store.py", {"evaluation", "comparison", "propagation", "recording", "pipelines"}),
        ("evaluation.py", {"comparison", "metrics", "store", "plot", "pipelines"}),
        ("analysis.py", {"propagation", "evaluation", "plot", "pipelines"}),
        ("plot.py", set(FILES)),
        ("split.py", {"propagation", "recording", "pipelines", "schedule"}),
        ("hooks.py", set(FILES)),
        ("extrapolation.py", set(FILES)),
        ("reuse_costs.py", set(FILES) - {"files.py"}),
        ("given.py", set(FILES)),
        ("quiet.py", set(FILES)),
        ("call_options.py", {"evaluation", "comparison", "calibration", "refinement", "decoding", "propagation", "pipelines"}),
        ("own_picture.py", {"evaluation", "comparison", "decoding", "propagation", "pipelines"}),
        ("derivation.py", {"calibration", "replay", "propagation", "decoding", "evaluation", "plot", "pipelines"}),
        ("replay.py", {"calibration", "derivation", "reuse_costs", "comparison", "plot", "pipelines"}),
        ("calibration.py", {"derivation", "comparison", "recording", "plot", "pipelines"}),
        ("pictures.py", set(FILES)),
        ("lab/settings.py", {"comparison", "plot", "recording", "pair", "prediction", "history"}),
        ("lab/watching.py", {"evaluation", "propagation", "recording", "plot", "pair", "settings"}),
        ("lab/worker.py", set(FILES)),
        ("lab/prediction.py", {"pair", "history", "watching", "plot", "recording", "comparison"}),
        ("lab/pair.py", {"prediction", "history", "plot", "recording", "calibration", "comparison"}),
        ("lab/history.py", {"plot", "recording", "calibration", "comparison", "watching"}),
    ],
)
def test_data_flows_one_way(name, forbidden):
    assert not own(name) & {module.removesuffix(".py").replace("/", ".") for module in forbidden}


def test_only_the_widgets_know_widgets():
    """ipywidgets and anywidget are imported in their folder only, which nothing else imports; the lab itself works without."""
    for name, path in FILES.items():
        found = {node.module or "" for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)}
        found |= {
            alias.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Import) for alias in node.names
        }
        if not name.startswith("widgets/"):
            assert not found & {"ipywidgets", "anywidget", "traitlets"} and "widgets" not in {m.split(".")[0] for m in found}, name


@pytest.mark.parametrize(("folder", "known_to"), [("exercises", ()), ("studies", ()), ("suite", ("studies",))])
def test_the_library_does_not_know(folder, known_to):
    """At the top of a file; the command line imports what a command needs when it is called."""
    others = [name for name in FILES if name.split("/")[0] not in (folder, *known_to)]
    assert not [name for name in others if any(module.split(".")[0] == folder for module in own(name))]


def test_only_split_and_pipelines_name_diffusers_models():
    # The training in shapes/ names the classes that it builds.
    models = {n for n in dir(diffusers) if n.endswith("Model") or n.startswith(("Autoencoder", "ControlNet"))}
    for name, path in FILES.items():
        if name in ("split.py", "pipelines.py", "full_size.py", "full_pipelines.py") or name.startswith("shapes/"):
            continue
        used = {node.id for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Name)}
        assert not used & models, name


@pytest.mark.parametrize("name", FILES)
def test_no_file_unpickles_or_copies_a_forward(name):
    tree = ast.parse(FILES[name].read_text())
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)} | {
        f"{node.value.id}.{node.attr}"
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
    }
    assert not names & {"pickle", "eval", "exec"}
    loads = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load"]
    assert ("torch.load" in names) == bool(loads) and all("weights_only=True" in ast.unparse(node) for node in loads)
    assert not loads or name == "quality/weights.py"
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    assert all(len(ast.unparse(node).splitlines()) <= 60 for node in functions)
    assert len(FILES[name].read_text().splitlines()) <= 370  # issue 18 takes the longest apart
