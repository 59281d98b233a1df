"""Messages are short sentences. docs/errors.md: at most sixteen sections, each of an error of the package and with a test."""

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
    for path in sorted([*(ROOT / "fastdiff_lab").rglob("*.py"), *(ROOT / "studies").rglob("*.py")]):
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


def own_words(quote: str, parts: list[str]) -> int:
    """How many letters of a message's own words a quote begins with; 0 if it is no beginning of that message."""
    first, *rest = parts
    if len(quote) <= len(first):
        return len(quote) * first.startswith(quote)
    if not quote.startswith(first) or not rest:
        return 0
    if rest == [""]:
        return len(first)
    after = quote[len(first) :]
    ends = [place for place in range(len(after)) if after.startswith(rest[0][: len(after) - place], place)]
    return max((len(first) + found for place in ends if (found := own_words(after[place:], rest))), default=len(first))


def told(quote: str, shape: str) -> bool:
    return own_words(quote, shape.split(HOLE)) >= 15


MESSAGES = messages()
LONG = [place for place, shape in MESSAGES.items() if any(len(part.split()) > 20 for part in re.split(r"(?<=[.!?:;])\s+", shape))]
SECTIONS = dict(part.split("\n", 1) for part in re.split(r"^### ", PAGE, flags=re.MULTILINE)[1:])


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


def test_messages_have_sentences_of_at_most_20_words():
    assert not LONG


def test_a_quote_is_the_beginning_of_a_message():
    shape = f"{HOLE} steps asked of {HOLE}; accepted: {HOLE}"
    assert told("3 steps asked of x; accept", shape) and told("3 steps asked of x; accepted: a number", shape)
    assert not told("3 steps asked", shape) and not told("3 keys asked of x; accepted: a number", shape)


def test_the_page_is_short():
    assert 10 <= len(SECTIONS) <= 16


@pytest.mark.parametrize("heading", SECTIONS)
def test_every_section_quotes_errors_and_says_what_to_do(heading):
    text = SECTIONS[heading]
    symptom = " ".join(re.search(r"\*\*Symptom\*\*: (.*?)^- ", text, flags=re.MULTILINE | re.DOTALL)[1].split())
    quotes = [quote for quote in re.findall("`([^`]*)`", symptom) if " " in quote]
    assert quotes and not [quote for quote in quotes if not any(told(quote, shape) for shape in MESSAGES.values())]
    assert "- **Cause**: " in text and "- **What to do**: " in text


@pytest.mark.parametrize("heading", SECTIONS)
def test_every_section_names_tests_that_exist(heading):
    named = re.findall(r"^Test: (.*)::(.*)$", SECTIONS[heading], flags=re.MULTILINE)
    assert named
    for file, function in named:
        known = {node.name for node in ast.parse((ROOT / file).read_text()).body if isinstance(node, ast.FunctionDef)}
        assert function in known, f"there is no test {function} in {file}"
