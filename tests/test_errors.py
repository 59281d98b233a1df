"""docs/errors.md: every section has an error and a test."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "errors.md").read_text()
# Functions that make a message, or a part of one, for an error that is raised elsewhere.
HELPERS = {"unknown_layer", "difference", "refusal", "_astray", "_of_another_scheduler", "_of_the_hub"}
HOLE = "\0"  # stands for a value in a message


def shapes(node: ast.expr) -> list[str]:
    """What a message can look like, with a hole for each value; several where an expression chooses between two."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return [node.value]
    if isinstance(node, ast.JoinedStr):
        return ["".join(part.value if isinstance(part, ast.Constant) else HOLE for part in node.values)]
    if isinstance(node, ast.BinOp):
        return [left + right for left in shapes(node.left) for right in shapes(node.right)]
    if isinstance(node, ast.IfExp):
        return shapes(node.body) + shapes(node.orelse)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "format":
        return [re.sub(r"\{[^}]*\}", HOLE, shape) for shape in shapes(node.func.value)]
    return [HOLE]


def called(node: ast.AST | None) -> str:
    """The name of what a call calls."""
    return "" if not isinstance(node, ast.Call) else ast.unparse(node.func).split(".")[-1]


def error_calls(node: ast.AST | None, helper: bool) -> Iterator[ast.expr]:
    """The messages that a `raise` or a `return` holds."""
    value = getattr(node, "exc", None) if isinstance(node, ast.Raise) else getattr(node, "value", None)
    if isinstance(node, ast.Raise | ast.Return) and called(value).endswith("Error"):
        yield from value.args[:1]
    elif isinstance(node, ast.Return) and helper and value is not None:
        yield value


def messages() -> dict[str, str]:
    """Where each message stands -> its shape, of all that have words in them."""
    found: dict[str, str] = {}
    for path in sorted([*(ROOT / "fastdiff_lab").rglob("*.py"), *(ROOT / "studies").glob("*.py")]):
        tree = ast.parse(path.read_text())
        helped = {
            inner
            for outer in ast.walk(tree)
            if isinstance(outer, ast.FunctionDef) and outer.name in HELPERS
            for inner in ast.walk(outer)
        }
        for node in ast.walk(tree):
            for message in error_calls(node, node in helped):
                for number, shape in enumerate(shapes(message)):
                    if re.search(r"[a-z]{2}", shape):
                        found[f"{path.relative_to(ROOT)}:{node.lineno}" + f" ({number + 1})" * (number > 0)] = shape
    return found


def sections() -> dict[str, str]:
    """Heading -> text, whitespace made single spaces."""
    parts = re.split(r"^### ", PAGE, flags=re.MULTILINE)[1:]
    parts = [re.split(r"^## ", part, flags=re.MULTILINE)[0] for part in parts]
    return {part.partition("\n")[0]: " ".join(part.split()) for part in parts}


def quoted(shape: str, text: str) -> bool:
    """Does the text quote the message, with some values in it, as `code`?"""
    words = [re.escape(" ".join(f"|{part}|".split()).strip("|")) for part in shape.split(HOLE)]
    return re.search("[^`]*?".join(words), text) is not None


MESSAGES, SECTIONS = messages(), sections()
TESTS = re.findall(r"^Test: (.*)$", PAGE, flags=re.MULTILINE)


def test_messages_are_found_however_they_are_made():
    tree = ast.parse('f"a {x} b" "c"; "a {} b".format(x); f"one {x}" if x else "two"; "a" + f"{x}"; str(x)')
    assert [shapes(node.value) for node in tree.body] == [
        [f"a {HOLE} bc"],
        [f"a {HOLE} b"],
        [f"one {HOLE}", "two"],
        [f"a{HOLE}"],
        [HOLE],
    ]
    assert len(MESSAGES) >= 85 and any("propagation/evaluation.py" in place for place in MESSAGES)
    assert quoted(f"a {HOLE} b", "`an a 3 b`") and not quoted(f"a {HOLE} b", "`a 3`, ` b`")


@pytest.mark.parametrize("heading", SECTIONS)
def test_every_section_is_of_an_error_and_says_what_to_do(heading):
    text = SECTIONS[heading]
    assert any(quoted(shape, text) for shape in MESSAGES.values()), "no error of the package is quoted in this section"
    assert all(f"**{part}**: " in text for part in ("Symptom", "Cause", "What to do")) and "Test: tests/" in text


@pytest.mark.parametrize("name", sorted(set(TESTS)))
def test_every_named_test_exists(name):
    file, _, function = name.partition("::")
    path = ROOT / file
    assert path.is_file(), f"{name}: there is no file {file}"
    known = {node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)}
    assert function in known, f"{name}: there is no such test in {file}"


def test_the_table_of_contents_leads_to_every_group():
    groups = re.findall(r"^## (.*)$", PAGE, flags=re.MULTILINE)
    assert re.findall(r"\(#([a-z-]+)\)", PAGE) == [group.lower().replace(" ", "-") for group in groups]
