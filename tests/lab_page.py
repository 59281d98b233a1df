"""A widget of the lab on a page in Debian's chromium, without JupyterLab: the page's JavaScript and the Python behind it, and nothing else.

- `shown(*widgets, ...)`: the widgets on one page, each connected to Python
- `THEMES`: pages with JupyterLab's variables and without
- `layout_faults(page)`: texts that are cut, overlap, or cannot be read on their ground
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from traitlets import All

from fastdiff_lab.lab.widget.messages import answer
from studies.browser import CHROMIUM

HERE = Path(__file__).parent
MODEL, FAULTS = ((HERE / f"lab_page_{name}.js").read_text() for name in ("model", "faults"))
JUPYTERLAB = {
    "light": {"ui-font-color1": "rgba(0,0,0,0.87)", "border-color2": "#e0e0e0",
              "layout-color1": "#ffffff", "layout-color2": "#eeeeee"},
    "dark": {"ui-font-color1": "rgba(255,255,255,0.87)", "border-color2": "#424242",
             "layout-color1": "#111111", "layout-color2": "#424242"},
}  # fmt: skip
GROUNDS = {"light": "#ffffff", "dark": "#111111"}
THEMES = ["light", "dark", "light without variables", "dark without variables"]


class Bridge:
    """What the page says to Python, and Python's answers. Threads may change traits at any time."""

    def __init__(self, widgets: tuple[Any, ...]) -> None:
        self.widgets = {widget.model_id: widget for widget in widgets}
        self.news: deque[tuple[str, str]] = deque()
        self.known: set[str] = set()
        self.said: list[tuple[str, dict]] = []  # what the page sent
        self.bytes_sent: list[tuple[str, int]] = []  # of each trait that went to the page
        self.own: dict[str, Any] = {}
        for widget in widgets:
            widget.observe(self._changed, All)

    def _changed(self, change: Any) -> None:
        widget, name = change["owner"], change["name"]
        if name in widget.keys and not (name in self.own and self.own[name] == change["new"]):
            self.news.append((widget.model_id, name))

    def tell(self, ident: str, kind: str, content: dict) -> None:
        widget = self.widgets[ident]
        self.said.append((kind, content))
        if kind == "message":
            answer(widget, content)
            return
        self.own = content
        widget.set_state(content)
        self.own = {}

    def models(self, widget: Any) -> list[list[Any]]:
        """Runs that the page does not know yet."""
        found, run = [], getattr(widget, "last_run", None)
        while run is not None and run.model_id not in self.known:
            self.known.add(run.model_id)
            found.append([run.model_id, run.get_state(["row", "before"])])
            run = run.before
        return found

    def pull(self) -> dict[str, Any]:
        states, models = [], []
        while self.news:
            ident, name = self.news.popleft()
            models += self.models(self.widgets[ident])
            states.append([ident, self.widgets[ident].get_state([name])])
        self.bytes_sent += [(name, len(json.dumps(value))) for _, state in states for name, value in state.items()]
        self.bytes_sent += [("run", len(json.dumps(state))) for _, state in models]
        return {"models": models, "states": states}


@contextmanager
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        options = ["--no-sandbox", "--disable-dev-shm-usage"]
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=options)
        yield found
        found.close()


@contextmanager
def shown(
    chromium: Any, *widgets: Any, width: int = 1100, theme: str = "light", scale: float = 1, alive: bool = True
) -> Iterator[Any]:
    """A page with the widgets in a column of so many CSS pixels; yields it, with its `bridge` and its `errors`."""
    page = chromium.new_page(viewport={"width": max(width, 400), "height": 1000}, device_scale_factor=scale)
    page.set_default_timeout(60_000)
    page.errors, page.bridge = [], Bridge(widgets)
    page.on("pageerror", lambda error: page.errors.append(str(error)))
    page.on("console", lambda said: page.errors.append(said.text) if said.type == "error" else None)
    page.expose_function("fdTell", page.bridge.tell)
    page.expose_function("fdPull", page.bridge.pull)
    page.set_content(_document(widgets, width, theme))
    page.evaluate(f"() => {{ window.fdIsDead = {json.dumps(not alive)};\n{MODEL} }}")
    for widget in widgets:
        page.evaluate("(news) => window.fdReceive({ models: news, states: [] })", page.bridge.models(widget))
        state = {name: value for name, value in widget.get_state().items() if not name.startswith("_")}
        page.evaluate("([id, state, code]) => window.fdShow(id, state, code, '#host')", [widget.model_id, state, str(widget._esm)])
    yield page
    assert not page.errors, page.errors
    for widget in widgets:
        widget.unobserve(page.bridge._changed, All)
    page.close()


def _document(widgets: tuple[Any, ...], width: int, theme: str) -> str:
    kind, _, without = theme.partition(" ")
    variables = "" if without else ";".join(f"--jp-{name}:{value}" for name, value in JUPYTERLAB[kind].items())
    mark = "" if without else f'data-jp-theme-light="{str(kind == "light").lower()}"'
    ground = GROUNDS[kind]
    return (
        f'<!doctype html><html lang="en"><head><title>lab</title><style>{widgets[0]._css}</style></head>'
        f'<body {mark} style="margin:0;background:{ground};{variables}"><main id="host" style="width:{width}px"></main></body></html>'
    )


def layout_faults(page: Any) -> list[str]:
    """What is wrong with how the page looks, in words; nothing if it is fine."""
    return page.evaluate(FAULTS.partition("\n")[2])
