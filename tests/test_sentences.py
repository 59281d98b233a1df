"""Sentences of docstrings have at most 20 words."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
FILES = {
    path.relative_to(ROOT).as_posix(): path
    for room in ("fastdiff_lab", "studies", "teaching")
    for path in (ROOT / room).rglob("*.py")
}
MOST = 20


def sentences(docstring: str) -> list[str]:
    """The sentences of a docstring without its examples; a paragraph, a list's item and an argument begin one."""
    prose = re.sub(r"^ *>>>.*(?:\n(?! *$).*)*", "", docstring, flags=re.MULTILINE)
    prose = re.sub(r"\n\s*\n|\n(?=\s*-\s)|\n(?=\s*\w+:\s)", ". ", prose)
    return re.split(r"(?<=[.!?:;])\s+", " ".join(prose.split()))


def long_sentences(path: Path) -> list[str]:
    nodes = [
        node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
    ]
    found = [sentence for node in nodes for sentence in sentences(ast.get_docstring(node) or "")]
    return [sentence for sentence in found if len(sentence.split()) > MOST]


def test_sentences_are_seen():
    text = "One two. Three:\nfour\n\n>>> five six\nseven\n\nArgs:\n    eight: Nine ten."
    assert sentences(text) == ["One two.", "Three:", "four.", "Args:.", "eight:", "Nine ten."]


def test_docstrings_have_short_sentences():
    assert len(FILES) > 100 and not [sentence for path in FILES.values() for sentence in long_sentences(path)]
