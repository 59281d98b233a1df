"""The explainer page: its predictions are those of Python; it works by mouse and keyboard, on a phone and in the dark, and asks nobody."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from explainer_page import small_data, written
from lab_page import browser, layout_faults
from PIL import Image

from fastdiff_lab import KeySchedule
from fastdiff_lab.calibration.derive import derive_schedule, group_costs
from fastdiff_lab.pipelines import embedded_costs
from studies.browser import CHROMIUM, expect
from studies.explainer.page import data_of, whole_page
from studies.explainer.sheets import Sheet

COMMITTED = Path(__file__).parent.parent / "docs" / "explainer.html"
in_a_browser = pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's chromium: apt-get install chromium")
SETTINGS = [("light", 360), ("dark", 360), ("light", 800), ("dark", 1280)]


@pytest.fixture(scope="module")
def data():
    return small_data()


@pytest.fixture(scope="module")
def address(tmp_path_factory, data):
    return written(tmp_path_factory.mktemp("page"), data)


@pytest.fixture(scope="module")
def chromium():
    with browser() as found:
        yield found


def opened(chromium, address: str, width: int = 1000, scheme: str = "light"):
    """The page, with what went wrong and what was asked of others."""
    page = chromium.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme, reduced_motion="reduce")
    page.set_default_timeout(60_000)
    page.wrong = []
    page.on("pageerror", lambda error: page.wrong.append(str(error)))
    page.on("console", lambda said: page.wrong.append(said.text) if said.type in ("error", "warning") else None)
    page.on("request", lambda asked: page.wrong.append(asked.url) if not asked.url.startswith((address, "data:")) else None)
    page.goto(address)
    page.locator(".fd-page").wait_for()
    return page


@pytest.fixture
def page(chromium, address):
    page = opened(chromium, address)
    yield page
    assert page.wrong == []
    page.close()


def keys(page) -> list[int]:
    return [int(step) for step in page.eval_on_selector_all(".fd-cell.fd-key", "cells => cells.map(cell => cell.dataset.step)")]


# ---------------------------------------------------------------------------------------------------- the file


def test_tiles_come_back_from_their_sheet():
    sheet = Sheet()
    colours = [(20 * place, 100, 200 - 20 * place) for place in range(7)]
    assert [sheet.add([Image.new("RGB", (64, 64), colour)]) for colour in colours] == list(range(7))
    told = sheet.address()
    packed = Image.open(BytesIO(base64.b64decode(told["address"].partition(",")[2])))
    for place, colour in enumerate(colours):
        left, top = place % told["columns"] * 64, place // told["columns"] * 64
        assert (np.asarray(packed.crop((left, top, left + 64, top + 64))) == colour).all()


def test_the_page_runs_its_own_script_alone_and_gives_its_data_back(data):
    page = whole_page(data)
    assert data_of(page) == json.loads(json.dumps(data))
    script = re.search(r'<script type="module">(.*?)</script>', page, re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)[1]
    assert policy == f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"


def test_text_cannot_end_the_data(data):
    text = "</script><script>alert(1)</script>"
    page = whole_page(data | {"prompts": [{**data["prompts"][0], "text": text}]})
    assert text not in page and data_of(page)["prompts"][0]["text"] == text


def test_a_page_of_another_kind_is_refused():
    with pytest.raises(ValueError, match="accepted: one that `python -m studies.explainer` wrote"):
        data_of("<html></html>")


# ---------------------------------------------------------------------------------------------------- predictions


@in_a_browser
def test_predictions_are_those_of_python(page, data):
    """For every number of keys the same derived schedule, and for any keys the same error."""
    costs = embedded_costs()
    for count in (2, 3, 9, 17, 50):
        page.locator(".fd-keys-number").fill(str(count))
        page.locator(".fd-keys-number").press("Enter")
        assert keys(page) == list(derive_schedule(costs, count).keys)
        page.locator(".fd-preset-uniform").click()
        schedule = KeySchedule.uniform(50, count)
        assert keys(page) == list(schedule.keys)
        error = float(np.sqrt(np.sum(group_costs(costs, schedule)) / 1024))
        shown = float(page.locator(".fd-card-error strong").inner_text())
        assert shown == pytest.approx(error, rel=6e-3)
    page.locator(".fd-preset-paper").click()
    assert keys(page) == list(KeySchedule.paper(50).keys)
    assert page.locator(".fd-card-gflops strong").inner_text() == f"{(9 * 3 + 50 * 3) / 1e9:.1f} G"


@in_a_browser
def test_keys_by_the_keyboard(page):
    page.locator('.fd-cell[data-step="0"]').focus()
    before = keys(page)
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Space")
    assert keys(page) == sorted({*before} ^ {1})
    expect(page.locator(".fd-readout")).to_contain_text("Step 1")
    expect(page.locator(".fd-architecture figcaption")).to_contain_text("Step 1")
    expect(page.locator(".fd-spoken")).to_contain_text(f"{len(keys(page))} keys, predicted error")


@in_a_browser
def test_the_architecture_follows_the_step(page):
    first, then = keys(page)[1:3]
    page.locator(".fd-player-slider").fill(str(first))
    expect(page.locator(".fd-architecture figcaption")).to_contain_text("is a key step: the encoder runs")
    assert page.locator(".fd-encoder.fd-runs").count() == 4
    page.locator(".fd-player-slider").fill(str(then - 1))
    expect(page.locator(".fd-architecture figcaption")).to_contain_text(f"takes the features of step {first}")
    assert page.locator(".fd-encoder.fd-rests").count() == 4 and page.locator(".fd-decoder.fd-runs").count() >= 3


# ---------------------------------------------------------------------------------------------------- images


@in_a_browser
def test_a_guess_comes_before_each_reveal(page):
    """Predictions are nearest in this page's data."""
    images = page.locator("#pictures .fd-picture")
    expect(images).to_have_count(1)
    page.locator(".fd-option", has_text="prediction reused").click()
    expect(images).to_have_count(4)  # without a fit
    expect(page.locator(".fd-verdict")).to_have_text(
        re.compile("Right. Nearest is “prediction reused”: .* dB. You were right 1 of 1 times.")
    )
    assert page.evaluate("document.activeElement.className") == "fd-verdict"
    page.locator("#pictures select").nth(1).select_option("1")  # another seed
    expect(images).to_have_count(1)
    page.locator(".fd-option", has_text="fewer steps").click()
    expect(page.locator(".fd-verdict")).to_contain_text("Not this time. ")
    expect(page.locator(".fd-best-picture strong")).to_have_text("prediction reused")
    page.locator("#pictures select").nth(1).select_option("0")
    expect(images).to_have_count(4)  # once seen


@in_a_browser
def test_the_number_of_keys_chooses_the_images(page):
    page.locator("#pictures select").nth(2).select_option(label="5 keys")
    assert keys(page) == list(derive_schedule(embedded_costs(), 5).keys)
    page.locator(".fd-skip-guess").click()
    expect(page.locator("#pictures .fd-picture small").nth(2)).to_contain_text("5 calls: ")
    page.locator(".fd-preset-uniform").click()
    expect(page.locator("#pictures > .fd-note")).to_contain_text("Drawn beforehand are derived keys.")


@in_a_browser
def test_a_finger_taps_a_key_and_scrolls_the_strip(page):
    touch = """([kind, step]) => {
      const box = document.querySelectorAll(".fd-cell")[step].getBoundingClientRect();
      const at = { clientX: box.x + box.width / 2, clientY: box.y + 5, pointerType: "touch", pointerId: 7, bubbles: true, button: 0 };
      document.querySelector(".fd-cells").dispatchEvent(new PointerEvent(kind, at));
    }"""
    before = keys(page)
    for kind, step in (("pointerdown", 2), ("pointermove", 5), ("pointercancel", 8), ("pointerdown", 2), ("pointerup", 5)):
        page.evaluate(touch, [kind, step])
    assert keys(page) == before
    for kind in ("pointerdown", "pointerup"):
        page.evaluate(touch, [kind, 2])
    assert keys(page) == sorted([*before, 2])


@in_a_browser
def test_the_scrubber_shows_both_runs_on_their_way(page):
    images = page.locator("#film img")
    end = [images.nth(side).get_attribute("src") for side in (0, 1)]
    page.locator(".fd-film-slider").fill("0")
    seen = [images.nth(side).get_attribute("src") for side in (0, 1)]
    assert len({*end, *seen}) == 4
    expect(page.locator("#film output")).to_contain_text("4 of 49 (")
    page.locator("#pictures select").nth(1).select_option("1")  # the film is of seed 0: it stays
    assert [images.nth(side).get_attribute("src") for side in (0, 1)] == seen
    page.locator("#film select").select_option(label="prediction reused")
    expect(page.locator("#film output")).to_contain_text("49 of 49")
    assert images.nth(1).get_attribute("src") != end[1]


@in_a_browser
def test_the_race_says_who_is_nearest_in_equal_time(page):
    page.locator(".fd-race").click()
    expect(page.locator(".fd-lane")).to_have_count(4)
    expect(page.locator("#race [role=status]")).to_contain_text("Nearest to the baseline: prediction reused")


# ---------------------------------------------------------------------------------------------------- for everybody


@in_a_browser
def test_the_tour_by_the_keyboard(page):
    page.locator(".fd-tour-begin").focus()
    page.keyboard.press("Enter")
    for place in range(1, 7):
        expect(page.locator(".fd-tour-title")).to_have_text(re.compile(f"^{place} of 6: "))
        assert page.evaluate("document.activeElement.className") == "fd-tour-title" and page.locator(".fd-toured").count() == 1
        page.locator(".fd-tour-next").press("Enter")
    expect(page.locator(".fd-tour")).to_be_hidden()
    assert (
        page.evaluate("document.activeElement.className").startswith("fd-button fd-tour-begin")
        and page.locator(".fd-toured").count() == 0
    )
    page.keyboard.press("Enter")
    page.keyboard.press("Escape")
    expect(page.locator(".fd-tour")).to_be_hidden()


SMALL = """() => [...document.querySelectorAll(".fd-page :is(button, select, input, summary)")]
  .filter((one) => one.checkVisibility() && Math.min(one.offsetWidth, one.offsetHeight) < 24)
  .map((one) => `small: ${one.outerHTML.slice(0, 120)}`)"""


def faults(page) -> list[str]:
    """What axe, the layout and small targets say of the page as it is."""
    from axe_playwright_python.sync_playwright import Axe

    axe = [f"{found['id']}: {found['nodes'][0]['html']}" for found in Axe().run(page).response["violations"]]
    wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    return [*axe, *page.evaluate(SMALL), *layout_faults(page), *([f"wider by {wide} px"] if wide > 0 else [])]


def seen_whole(page) -> None:
    """Opens all that can be opened."""
    page.locator(".fd-option").first.click()
    page.locator(".fd-race").click()
    page.locator("summary").click()


def faults_beside_the_tour(page) -> list[str]:
    """The tour's box lies over what is scrolled below it."""
    page.locator(".fd-tour-begin").click()
    return [fault for fault in faults(page) if not fault.startswith("overlap: ")]


@in_a_browser
@pytest.mark.long
@pytest.mark.parametrize(("scheme", "width"), SETTINGS)
def test_for_eyes_fingers_and_screen_readers(chromium, address, scheme, width):
    page = opened(chromium, address, width, scheme)
    assert faults(page) == []
    seen_whole(page)
    assert faults(page) == faults_beside_the_tour(page) == page.wrong == []
    page.close()


# ---------------------------------------------------------------------------------------------------- the committed page


def test_the_committed_page_is_of_todays_scripts_and_costs(data):
    """After a change of the lab's JavaScript: `python -m studies.explainer docs/explainer.html --again`."""
    page = COMMITTED.read_text(encoding="utf-8")
    told = data_of(page)
    assert page == whole_page(told) and len(page.encode()) <= 4_000_000
    assert told["errors"] == data["errors"] and told["paper"] == data["paper"]


@in_a_browser
@pytest.mark.long
@pytest.mark.parametrize(("scheme", "width"), SETTINGS)
def test_the_committed_page_in_a_browser(chromium, scheme, width):
    page = opened(chromium, COMMITTED.as_uri(), width, scheme)
    seen_whole(page)
    assert faults(page) == faults_beside_the_tour(page) == page.wrong == []
    page.close()
