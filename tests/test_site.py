"""The site of `make site` in a real browser: links, console, requests, accessibility, light and dark, a phone's width."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urldefrag, urljoin

import pytest

from studies.browser import CHROMIUM

ROOT = Path(__file__).parent.parent
RULES = {"preload": False}  # of axe, which would look for style sheets in wrong places
SITE = ROOT / "docs" / "site"
SHOWN = ("index.html", "notebooks/00_quickstart.html", "notebooks/06_derive_a_schedule.html", "docs/fitting.html", "docs/glossary.html",
         "docs/systems.html",
         "docs/errors.html", "api.html", "search.html")  # fmt: skip


def public_names() -> set[str]:
    import fastdiff_lab

    return set(fastdiff_lab.__all__)


def test_the_reference_has_every_public_name_once():
    named = re.findall(r"^\.\. auto(?:function|class):: (\w+)$", (SITE / "api.md").read_text(), flags=re.M)
    assert len(named) == len(set(named)) and set(named) == public_names()


def test_every_document_is_in_the_contents():
    listed = re.findall(r"^docs/([\w-]+)$", (SITE / "repository_pages.py").read_text(), flags=re.M)
    assert sorted(listed) == sorted(path.stem for path in (ROOT / "docs").glob("*.md"))


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    pytest.importorskip("myst_nb", reason="make site installs it")
    place = tmp_path_factory.mktemp("built") / "site"
    environment = os.environ | {
        "PYTHON": sys.executable,
        "PYTHONPATH": str(ROOT),
        "FASTDIFF_REPOSITORY": "https://github.com/an-owner/a-name",
    }
    built = subprocess.run([SITE / "build", place], env=environment, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr[-5000:]
    return place


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *said: object) -> None: ...


@pytest.fixture(scope="module")
def address(site) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def chromium() -> Iterator[object]:
    from playwright.sync_api import sync_playwright

    if CHROMIUM is None:
        pytest.skip("no chromium (apt-get install chromium)")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield browser
        browser.close()


@pytest.mark.long
def test_every_link_of_the_site_leads_somewhere(site):
    """Files and anchors, of all pages."""
    pages = {path.relative_to(site).as_posix(): path.read_text() for path in site.rglob("*.html") if "_static" not in path.parts}
    anchors = {name: set(re.findall(r'\bid="([^"]+)"', text)) for name, text in pages.items()}
    lost = []
    for name, text in pages.items():
        for target in re.findall(r'\b(?:href|src)="([^"]+)"', text):
            path, anchor = urldefrag(unquote(urljoin(name, target)))
            if re.match(r"(https?|data|mailto|javascript):", target) or target == "#":
                continue
            file = path.split("?")[0]
            is_there = (site / file).is_file() and (not anchor or file not in anchors or anchor in anchors[file])
            lost += [] if is_there else [f"{name}: {target}"]
    assert len(pages) > 25 and not lost


@pytest.mark.long
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_site_in_a_browser(address, chromium, scheme, width):
    """No error, no request to anywhere else, nothing wider than the window, and axe finds no violation."""
    from axe_playwright_python.sync_playwright import Axe

    page, wrong = chromium.new_page(viewport={"width": width, "height": 1000}, color_scheme=scheme), []
    page.set_default_timeout(120_000)
    page.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("request", lambda asked: wrong.append(asked.url) if not asked.url.startswith((address, "data:")) else None)
    for name in SHOWN:
        page.goto(address + name)
        assert page.evaluate("document.documentElement.dataset.theme") == scheme
        assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth"), name
        wrong += [
            f"{name}: {found['id']}: {found['nodes'][0]['html']}" for found in Axe().run(page, options=RULES).response["violations"]
        ]
    page.close()
    assert not wrong


@pytest.mark.long
def test_search_words_and_launch_buttons(address, chromium):
    page = chromium.new_page()
    page.set_default_timeout(120_000)
    page.goto(address + "search.html?q=glossary")
    page.wait_for_selector("ul.search li a")
    page.goto(address + "docs/fitting.html")
    word = page.locator("a.word", has_text="group").first
    line = "getComputedStyle(document.activeElement, '::after').content"
    word.focus()
    assert "a key step and the steps up to the next key step" in page.evaluate(line)
    page.goto(address + "notebooks/01_sampling_loop.html")
    launched = page.eval_on_selector_all(
        "a[href*='mybinder.org'], a[href*='colab.research']", "found => found.map(link => link.href)"
    )
    assert len(launched) == 2 and all("an-owner/a-name" in link for link in launched)
    page.close()
