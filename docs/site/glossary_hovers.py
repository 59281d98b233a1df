"""Words of docs/glossary.md: on every page the first of each in a section leads there, and shows its line when pointed at or focused."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html import escape

from docutils import nodes
from sphinx.application import Sphinx

GLOSSARY = "docs/glossary"
NOT_IN = (nodes.title, nodes.reference, nodes.literal, nodes.strong, nodes.table, nodes.caption)


def entries(page: nodes.document) -> dict[str, tuple[str, str]]:
    """Each word of the glossary -> its anchor and its line."""
    found: dict[str, tuple[str, str]] = {}
    for item in page.findall(nodes.list_item):
        for word in item.findall(nodes.strong):
            found[word.astext()] = (anchor(word.astext()), " ".join(item.astext().split()))
    return found


def anchor(word: str) -> str:
    return "word-" + re.sub(r"\W+", "-", word.lower())


def linked(text: str, words: dict[str, tuple[str, str]], seen: set[str], page: str) -> Iterator[nodes.Node]:
    """The pieces of a text, words that are new in this section as links."""
    at = 0
    for match in re.finditer(r"\b(" + "|".join(sorted(map(re.escape, words), key=len, reverse=True)) + r")s?\b", text):
        if match[1] in seen:
            continue
        seen.add(match[1])
        name, line = words[match[1]]
        yield nodes.Text(text[at : match.start()])
        html = f'<a class="word" href="{page}#{name}" data-line="{escape(line)}">{escape(match[0])}</a>'
        yield nodes.raw("", html, format="html")
        at = match.end()
    yield nodes.Text(text[at:])


def section_of(node: nodes.Node) -> nodes.Node | None:
    while node is not None and not isinstance(node, nodes.section):
        node = node.parent
    return node


def mark(app: Sphinx, page: nodes.document, name: str) -> None:
    """The glossary gets its anchors, every other page its links."""
    if name == GLOSSARY:
        for word in page.findall(nodes.strong):
            word["ids"].append(anchor(word.astext()))
        return
    words = entries(app.env.get_doctree(GLOSSARY))
    address = app.builder.get_relative_uri(name, GLOSSARY)
    seen: dict[nodes.Node | None, set[str]] = {}
    for text in [text for text in page.findall(nodes.Text) if isinstance(text.parent, nodes.paragraph)]:
        outer = text.parent
        while outer is not None and not isinstance(outer, NOT_IN):
            outer = outer.parent
        if outer is None:
            pieces = [*linked(text.astext(), words, seen.setdefault(section_of(text), set()), address)]
            if len(pieces) > 1:
                text.parent.replace(text, pieces)


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("doctree-resolved", mark)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
