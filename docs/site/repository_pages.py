"""The repository's pages as they stand, read as pages of the site.

- README.md is the first page, and names the others.
- A link to a folder or a file that is no page leads to the public repository, or is plain text without one.
- Tables of pandas have no heading without words.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx

PAGES = """

```{toctree}
:hidden:
:glob:
:caption: Learn

notebooks/*
```

```{toctree}
:hidden:
:glob:
:caption: Exercises

notebooks/exercises/*
docs/teaching
```

```{toctree}
:hidden:
:caption: Use

docs/install
docs/using
docs/fitting
docs/systems
docs/adding-a-model
docs/scaling
docs/errors
api
```

```{toctree}
:hidden:
:caption: Check

docs/results
docs/benchmarks
docs/quality
data/shapes/README
```

```{toctree}
:hidden:
:caption: More

docs/glossary
CONTRIBUTING
CHANGELOG
```
"""
LINK = re.compile(r"(?<!!)\[([^]]*)\]\(([^)\s#:]+)((?:#[^)]*)?)\)")
FILES = {".md", ".ipynb", ".csv", ".png", ".json"}  # pages, and what readers take with them


def link(folder: str, source: Path, address: str, found: re.Match[str]) -> str:
    """One link, as it stands if it leads to a page or a small file."""
    text, target, anchor = found.groups()
    path = posixpath.normpath(posixpath.join(folder, target))
    if path == "README.md":
        return f"[{text}]({posixpath.relpath('index.md', folder or '.')}{anchor})"
    if path.endswith(".html") and (source / path).is_file():
        return f'<a href="{target}{anchor}">{text}</a>'  # a page of its own, which the build copies
    if (source / path).suffix in FILES and (source / path).is_file():
        return found[0]
    return f"[{text}]({address}/blob/HEAD/{path})" if address else text


def read(app: Sphinx, name: str, content: list[str]) -> None:
    folder, address = posixpath.dirname(name), app.config.html_theme_options.get("repository_url", "")
    if name != "api":
        content[0] = LINK.sub(lambda found: link(folder, Path(app.srcdir), address, found), content[0])
    if name == "index":
        content[0] += PAGES


def without_empty_headings(app: Sphinx, page: nodes.document, name: str) -> None:
    for table in list(page.findall(nodes.raw)):
        html = re.sub(r"<th([^>]*)>(?:&nbsp;|\s)*</th>", r"<td\1></td>", table.astext())
        if html != table.astext():
            table.replace_self(nodes.raw("", html, format="html"))


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("source-read", read)
    app.connect("doctree-resolved", without_empty_headings)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
