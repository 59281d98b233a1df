"""A real JupyterLab in a real browser, for the tests that need one.

- `lab(folder, place)`: JupyterLab on the notebooks of a folder, as its address
- `opened(address)`: a page in Debian's chromium that may ask nothing outside this machine, and what went wrong on it
- `run_all(page)`: runs every cell and gives the notebook as it is then
- `expect(locator)`: waits until what is said of a part of the page is true
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium")
# As in jupyterlab/galata: no token, no password, the application within reach of scripts.
SERVER = """
c.ServerApp.open_browser = False
c.ServerApp.port_retries = 0
c.ServerApp.allow_root = True
c.IdentityProvider.token = ""
c.ServerApp.password = ""
c.ServerApp.disable_check_xsrf = True
c.LabApp.expose_app_in_browser = True
"""
MINUTE = 60_000  # in milliseconds


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _setting(folder: Path, name: str, values: dict[str, Any]) -> None:
    file = folder / "@jupyterlab" / "apputils-extension" / f"{name}.jupyterlab-settings"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(values))


def _wait_for(address: str, server: subprocess.Popen, log: Path) -> None:
    for _ in range(600):
        assert server.poll() is None, log.read_text()
        try:
            with urllib.request.urlopen(f"{address}/api", timeout=5):
                return
        except (urllib.error.URLError, TimeoutError):
            time.sleep(0.2)
    raise AssertionError(f"JupyterLab did not answer: {log.read_text()}")


@contextmanager
def lab(folder: Path, place: Path, theme: str = "JupyterLab Light") -> Iterator[str]:
    """JupyterLab on the notebooks in `folder`, its own files under `place`; gives its address."""
    (place / "config.py").write_text(SERVER)
    settings, log = place / "settings", place / "log"
    _setting(
        settings, "notification", {"fetchNews": "false", "checkForUpdates": False}
    )  # no question, and no request, at the start
    _setting(settings, "themes", {"theme": theme})
    kept = {"JUPYTERLAB_SETTINGS_DIR": settings, "JUPYTERLAB_WORKSPACES_DIR": place / "workspaces"}
    kept |= {"JUPYTER_CONFIG_DIR": place / "jupyter", "JUPYTER_RUNTIME_DIR": place / "runtime", "IPYTHONDIR": place / "ipython"}
    port = _free_port()
    command = [sys.executable, "-m", "jupyterlab", f"--config={place / 'config.py'}", "--ip=127.0.0.1", f"--port={port}"]
    with log.open("w") as lines:
        server = subprocess.Popen(
            [*command, f"--ServerApp.root_dir={folder}"],
            env=os.environ | {name: str(path) for name, path in kept.items()},
            stdout=lines, stderr=subprocess.STDOUT,
        )  # fmt: skip
    try:
        _wait_for(f"http://127.0.0.1:{port}", server, log)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(30)


@dataclass
class Watched:
    """A page, what it said in error, and what it asked of other machines."""

    page: Any
    errors: list[str] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)

    def guard(self, route: Any) -> None:
        if route.request.url.startswith("http://127.0.0.1:"):
            route.continue_()
        else:
            self.foreign.append(route.request.url)
            route.abort()


@contextmanager
def opened(address: str) -> Iterator[Watched]:
    """A page at an address; requests to other machines are noted and refused."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        options = ["--no-sandbox", "--disable-dev-shm-usage"]
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=options)
        page = browser.new_page(viewport={"width": 1280, "height": 1000})
        page.set_default_timeout(2 * MINUTE)
        watched = Watched(page)
        page.on("console", lambda said: watched.errors.append(said.text) if said.type == "error" else None)
        page.on("pageerror", lambda error: watched.errors.append(str(error)))
        page.route("**/*", watched.guard)
        page.goto(address)
        page.wait_for_function("() => window.jupyterapp")
        page.evaluate("() => window.jupyterapp.restored")
        yield watched
        browser.close()


READY = "() => window.jupyterapp.shell.currentWidget?.sessionContext?.session?.kernel?.status === 'idle'"
RUN = """async () => {
  const commands = window.jupyterapp.commands;
  await commands.execute('editmenu:clear-all');
  window.fdRun = 'running';
  commands.execute('notebook:run-all-cells').then(() => { window.fdRun = 'over'; }, error => { window.fdRun = String(error); });
}"""
OVER = "() => window.fdRun !== 'running'"
NOTEBOOK = "() => window.jupyterapp.shell.currentWidget.content.model.toJSON()"


def run_all(page: Any) -> dict[str, Any]:
    """Clears the open notebook's outputs, runs every cell to the end, and gives the notebook's JSON."""
    page.wait_for_function(READY)
    page.evaluate(RUN)
    page.wait_for_function(OVER, timeout=10 * MINUTE)
    assert page.evaluate("() => window.fdRun") == "over"
    page.wait_for_function(READY)
    return page.evaluate(NOTEBOOK)


def expect(locator: Any) -> Any:
    from playwright.sync_api import expect

    expect.set_options(timeout=MINUTE)  # a busy machine is no failure
    return expect(locator)
