"""What the lab explains with, in a real browser: comparing images, guesses, projector, architecture, prompts, seeds, sharing, tips, tour."""

from __future__ import annotations

import json
import re

import pytest
from lab_page import browser, layout_faults, shown
from PIL import Image

from fastdiff_lab import KeySchedule
from fastdiff_lab.inputs.files import MAX_JSON_BYTES
from fastdiff_lab.lab.session.images import data_address
from fastdiff_lab.lab.session.settings import Acceleration, Settings
from fastdiff_lab.lab.session.sharing import as_shared, from_shared, gallery
from fastdiff_lab.lab.widget import schedule_lab
from fastdiff_lab.lab.widget.run_row import RunRow
from studies.browser import CHROMIUM, expect

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's chromium: apt-get install chromium"),
]
PROMPT = "a large red star at the left on a white background"


@pytest.fixture(scope="module")
def chromium():
    with browser() as found:
        yield found


@pytest.fixture
def lab(embedded, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    return schedule_lab(embedded, prompt=PROMPT)


@pytest.fixture
def page(chromium, lab):
    with shown(chromium, lab) as page:
        yield page


def with_images(lab) -> None:
    for name, colour in (("baseline", "red"), ("accelerated", "blue")):
        setattr(lab, f"image_{name}", {"address": data_address(Image.new("RGB", (8, 8), colour)), "alt": name})


def with_run(lab, number: int, psnr: float, predicted: float, measured: float) -> None:
    """A run in the table that was never made."""
    values = {column["name"]: None for column in lab.columns}
    values |= {"run": number, "keys": 9, "psnr": psnr, "predicted_error": predicted, "latent_error": measured}
    said = {name: str(value) for name, value in values.items()}
    row = {"run": number, "steps": 50, "values": values, "shown": said, "title": f"{psnr} dB"}
    address = data_address(Image.new("RGB", (8, 8)))
    lab.last_run = RunRow(row=row | dict.fromkeys(("baseline", "accelerated", "difference"), address), before=lab.last_run)


# ---------------------------------------------------------------------------------------------------- both images in one


def test_the_wipe_shows_each_image_at_its_side(page, lab):
    expect(page.locator(".fd-compare")).to_be_hidden()
    with_images(lab)
    expect(page.locator(".fd-compare")).to_be_visible()
    page.locator(".fd-wipe").fill("25")
    assert page.locator(".fd-wiped").evaluate("image => image.style.clipPath").startswith("inset(0px 75%")
    assert page.locator(".fd-wiped").get_attribute("src") == lab.image_baseline["address"]
    expect(page.locator(".fd-stage")).to_have_attribute("aria-label", "Left 25 % the baseline, the rest the accelerated run")


def test_blink_shows_one_and_then_the_other_until_it_is_pressed_again(page, lab):
    with_images(lab)
    page.locator(".fd-blink").click()
    seen = set()
    for _ in range(20):
        seen.add(page.locator(".fd-wiped").evaluate("image => image.style.clipPath"))
        page.wait_for_timeout(100)
    assert len(seen) == 2
    page.locator(".fd-blink").click()
    expect(page.locator(".fd-blink")).to_have_attribute("aria-pressed", "false")
    assert "50%" in page.locator(".fd-wiped").evaluate("image => image.style.clipPath")


def test_zoom_and_arrow_keys(page, lab):
    with_images(lab)
    page.locator(".fd-compare select").select_option("4")
    page.locator(".fd-stage").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowUp")
    style = page.locator(".fd-zoomed").evaluate("box => [box.style.transform, box.style.transformOrigin]")
    assert style == ["scale(4)", "60% 40%"]
    assert layout_faults(page) == []


# ---------------------------------------------------------------------------------------------------- guesses


def test_a_guess_is_kept_during_the_run_and_told_of_after_it(page, lab):
    page.locator(".fd-guess-field").fill("28")
    lab.run_state = {"state": "running", "text": ""}
    page.wait_for_timeout(200)
    page.locator(".fd-guess-field").fill("31")  # too late
    with_run(lab, 1, 31.4, 0.1, 0.2)
    expect(page.locator(".fd-guessed")).to_have_text("You guessed 28 dB, measured were 31.4: 3.4 dB apart.")
    lab.run_state = {"state": "running", "text": "again"}
    expect(page.locator(".fd-guessed")).to_have_text("")


def test_predicted_and_measured_errors_of_all_runs_stand_in_a_chart(page, lab):
    with_run(lab, 1, 30.0, 0.1, 0.2)
    expect(page.locator(".fd-errors")).to_be_hidden()
    with_run(lab, 2, 20.0, 0.3, 0.3)
    expect(page.locator(".fd-errors circle")).to_have_count(2)
    name = page.locator(".fd-errors svg").get_attribute("aria-label")
    assert "run 1: predicted 0.10, measured 0.20; run 2: predicted 0.30, measured 0.30" in name
    assert layout_faults(page) == []


# ---------------------------------------------------------------------------------------------------- projector, architecture


@pytest.mark.parametrize("width", [1024, 1280, 1920])
def test_the_projector_has_large_type_and_nothing_that_is_not_needed(width, chromium, lab):
    with shown(chromium, lab, width=width) as page:
        with_images(lab)
        page.locator(".fd-to-projector").click()
        size = page.locator(".fd-lab").evaluate("root => parseFloat(getComputedStyle(root).fontSize) * root.currentCSSZoom")
        assert size >= 18 and page.locator(".fd-cells").is_visible() and page.locator(".fd-card-error").is_visible()
        assert page.locator(".fd-side:visible").count() == 2 and not page.locator(".fd-history").is_visible()
        assert page.locator(".fd-side img").first.bounding_box()["width"] >= 200
        page.locator(".fd-to-projector").click()
        assert page.locator(".fd-history").is_visible() and page.evaluate("document.fullscreenElement") is None


def test_the_architecture_of_the_step_that_is_looked_at(page, lab):
    lab.schedule = KeySchedule(50, (0, 10, 20))
    page.locator(".fd-architecture-section summary").click()
    page.locator('.fd-cell[data-step="15"]').focus()
    expect(page.locator(".fd-architecture figcaption")).to_contain_text("Step 15: the encoder does not run.")
    expect(page.locator(".fd-encoder.fd-rests")).to_have_count(4)
    lab.form = {**lab.form, "reuse": "prediction"}
    expect(page.locator(".fd-architecture figcaption")).to_have_text(
        "Step 15: nothing runs. The prediction of step 10 is used again."
    )
    page.locator('.fd-cell[data-step="20"]').focus()
    expect(page.locator(".fd-encoder.fd-runs")).to_have_count(4)


# ---------------------------------------------------------------------------------------------------- prompts, seeds


def test_a_prompt_is_built_of_known_words(page, lab):
    page.locator(".fd-builder summary").click()
    for name, value in (
        ("size", "large"),
        ("colour", "orange"),
        ("shape", "ring"),
        ("place", "at the top"),
        ("background", "blue"),
    ):
        page.locator(f".fd-part-{name}").select_option(value)
    page.locator(".fd-use-prompt").click()
    page.wait_for_timeout(300)
    assert lab.settings.prompt == "a large orange ring at the top on a blue background"
    page.locator(".fd-part-size").select_option("")
    page.locator(".fd-use-prompt").click()
    page.wait_for_timeout(300)
    assert lab.settings.prompt == "an orange ring at the top on a blue background"


def test_unknown_words_are_told_while_typing(page):
    page.locator(".fd-prompt").press_sequentially(" dog")
    expect(page.locator(".fd-typed")).to_have_text(re.compile("Not known: .*dog"))


def test_several_seeds_are_run_and_the_worst_is_told(chromium, lab):
    lab.form = {**lab.form, "steps": 5}
    lab.schedule = KeySchedule(5, (0, 2))
    with shown(chromium, lab) as page:
        page.locator(".fd-seeds").fill("3")
        page.locator(".fd-run").click()
        expect(page.locator(".fd-run-state")).to_have_text(
            re.compile(r"3 runs: PSNR [\d.]+ dB on average, [\d.]+ dB at worst \(seed \d\)."), timeout=300_000
        )
        expect(page.locator(".fd-history tbody tr")).to_have_count(3)
        assert list(lab.history["seed"]) == [2, 1, 0] and not lab.out_of_date


# ---------------------------------------------------------------------------------------------------- sharing


def test_what_is_shared_comes_back():
    settings, acceleration = Settings(PROMPT, seed=3), Acceleration(KeySchedule(50, (0, 7)), order=1)
    shared = from_shared(as_shared(settings, acceleration, 30.12), "a file")
    assert (shared.settings, shared.acceleration, shared.psnr) == (settings, acceleration, 30.12)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"schedule": "0 of"}, "key schedule"),
        ({"options": {"order": 7}}, "order=7"),
        ({"options": {"colour": 1}}, "lacks a part"),
        ({"settings": {"prompt": ""}}, "prompt=''"),
        ({"psnr": "high"}, "psnr='high'"),
        ({"version": 9}, "version"),
    ],
)
def test_a_shared_file_that_is_none_is_refused(change, said):
    text = as_shared(Settings(PROMPT), Acceleration(KeySchedule(50, (0, 7))), None)
    with pytest.raises(ValueError, match=said):
        from_shared(json.dumps(json.loads(text) | change), "a file")


def test_a_gallery_leaves_out_what_is_too_large(tmp_path):
    shared = as_shared(Settings(PROMPT), Acceleration(KeySchedule(50, (0, 7))), 30.0)
    (tmp_path / "small.json").write_text(shared)
    (tmp_path / "large.json").write_text(shared + " " * MAX_JSON_BYTES)
    found = gallery(tmp_path)
    assert [each["name"] for each in found] == ["small.json"] and json.loads(found[0]["text"]) == json.loads(shared)


def test_a_shared_file_is_written_found_in_the_gallery_and_loaded(page, lab, tmp_path):
    (tmp_path / "gallery").mkdir()
    (tmp_path / "gallery" / "other.json").write_text("{}")
    page.locator(".fd-files summary").click()
    lab.schedule = KeySchedule(50, (0, 7))
    page.locator(".fd-share-path").fill("gallery/mine.json")
    page.locator(".fd-share").click()
    expect(page.locator(".fd-files .fd-said")).to_contain_text("Shared in ")
    lab.schedule = KeySchedule.paper(50)
    page.locator(".fd-open-gallery").click()
    expect(page.locator(".fd-shared")).to_have_count(1)
    page.locator(".fd-shared").click()
    expect(page.locator(".fd-files .fd-said")).to_have_text("Loaded mine.json: 2 keys")
    assert lab.schedule.keys == (0, 7)
    lab.undo()
    assert lab.schedule == KeySchedule.paper(50)


def test_a_dropped_file_is_loaded(page, lab):
    text = as_shared(Settings(PROMPT, seed=5, guidance_scale=5.0), Acceleration(KeySchedule(50, (0, 9))), 31.0)
    page.evaluate(
        """(text) => {
          const given = new DataTransfer();
          given.items.add(new File([text], "theirs.json", { type: "application/json" }));
          document.querySelector(".fd-cells").dispatchEvent(new DragEvent("drop", { dataTransfer: given, bubbles: true, cancelable: true }));
        }""",
        text,
    )
    expect(page.locator(".fd-files .fd-said")).to_have_text(
        "Loaded theirs.json: 2 keys, 31.0 dB. Can you beat it with as many keys?"
    )
    assert lab.schedule.keys == (0, 9) and lab.settings.seed == 5


# ---------------------------------------------------------------------------------------------------- tips, tour


def test_tips_show_on_focus_and_hover_and_escape_hides_them(page, lab):
    tip = page.locator(".fd-preset-paper + .fd-tip")
    expect(tip).to_be_hidden()
    page.locator(".fd-preset-paper").focus()
    expect(tip).to_have_text("The paper's keys, for 50 steps")
    expect(tip).to_be_visible()
    page.keyboard.press("Escape")
    expect(tip).to_be_hidden()
    page.locator(".fd-preset-uniform").hover()
    expect(page.locator(".fd-preset-uniform + .fd-tip")).to_be_visible()
    assert page.locator(".fd-preset-paper").get_attribute("aria-describedby") == tip.get_attribute("id")


def test_the_tour_of_the_lab(page):
    page.locator(".fd-tour-begin").press("Enter")
    for place in range(1, 6):
        expect(page.locator(".fd-tour-title")).to_have_text(re.compile(f"^{place} of 5: "))
        assert page.locator(".fd-toured").count() == 1
        page.locator(".fd-tour-next").press("Enter")
    expect(page.locator(".fd-tour")).to_be_hidden()


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_all_of_it_is_accessible_and_whole_when_it_is_open(theme, chromium, lab):
    from axe_playwright_python.sync_playwright import Axe

    with_images(lab)
    with_run(lab, 1, 30.0, 0.1, 0.2)
    with_run(lab, 2, 20.0, 0.3, 0.3)
    with shown(chromium, lab, theme=theme) as page:
        for details in page.locator("details > summary").all():
            details.click()
        for width in (400, 800, 1280):
            page.set_viewport_size({"width": width, "height": 1000})
            page.evaluate("(width) => document.querySelector('#host').style.width = `${width}px`", width)
            page.wait_for_timeout(50)
            assert layout_faults(page) == [], width
        found = Axe().run(page, options={"rules": {"page-has-heading-one": {"enabled": False}}}).response["violations"]
        assert [f"{one['id']}: {one['nodes'][0]['html']}" for one in found] == []
