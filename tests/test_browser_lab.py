"""The interactive lab as a user works with it: mouse, keyboard, files, in JupyterLab in a real browser."""

from __future__ import annotations

import json
import re
from pathlib import Path

import nbformat
import pytest

from fastdiff_lab import KeySchedule
from studies.browser import CHROMIUM, READY, expect, lab, opened, run_all

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's chromium: apt-get install chromium"),
]
# What JupyterLab itself says when a kernel is restarted before it answered, for instance its debugger.
CANCELED = "Canceled future for"
CELLS = [
    "import fastdiff_lab as fl\nfrom fastdiff_lab.lab.widget import recording_explorer, schedule_lab\npipe = fl.load_pipeline()",
    'prompt = "a large red star at the left on a white background"',
    "with fl.record(pipe, keep=['mid_block']) as recording:\n    pipe(prompt, num_inference_steps=50)",
    "lab = schedule_lab(pipe, recording=recording, prompt=prompt)\nlab",
    "recording_explorer(recording, lab)",
    "print('over')",
]


def written(folder: Path, cells: list[str]) -> None:
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(notebook, folder / "lab.ipynb")


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    """The lab on a page, and the folder of its notebook."""
    place = tmp_path_factory.mktemp("lab")
    folder = place / "notebooks"
    folder.mkdir()
    written(folder, CELLS)
    with lab(folder, place) as address, opened(f"{address}/lab/tree/lab.ipynb") as watched:
        notebook = run_all(watched.page)
        outputs = [output for cell in notebook["cells"] for output in cell.get("outputs", [])]
        assert not [output for output in outputs if output["output_type"] == "error" or output.get("name") == "stderr"]
        watched.page.locator(".fd-run").first.wait_for()
        watched.page.set_default_timeout(60_000)
        yield watched, folder
        assert not watched.foreign
        assert not [error for error in watched.errors if CANCELED not in error]


@pytest.fixture
def page(session):
    """The page with the derived keys, and nothing running."""
    page = session[0].page
    page.locator(".fd-keys-number").fill("9")
    page.locator(".fd-keys-number").press("Enter")
    page.locator(".fd-preset-derived").click()
    expect(page.locator(".fd-schedule-text")).to_contain_text("derived, 9 keys")
    return page


def cell(page, step: int):
    return page.locator(f'.fd-cell[data-step="{step}"]')


def keys(page) -> list[int]:
    marked = page.locator('.fd-cell[aria-checked="true"]').all()
    return [int(mark.get_attribute("data-step")) for mark in marked]


def text_of_schedule(page, schedule: KeySchedule) -> None:
    expect(page.locator(".fd-schedule-text")).to_contain_text(str(schedule))


def error_card(page):
    return page.locator(".fd-card-error strong")


def test_a_click_sets_and_clears_a_key_and_the_numbers_follow(page):
    before, shown = keys(page), error_card(page).inner_text()
    step = next(step for step in range(15, 50) if step not in before)
    cell(page, step).click()
    expect(page.locator(".fd-card-calls strong")).to_have_text("10")
    expect(error_card(page)).not_to_have_text(shown)
    assert keys(page) == sorted([*before, step])
    cell(page, step).click()
    expect(error_card(page)).to_have_text(shown)
    assert keys(page) == before
    cell(page, 0).click(force=True)  # the first step stays a key, and says that it is disabled
    assert keys(page) == before


def drag(page, start: int, end: int) -> None:
    boxes = [cell(page, step).bounding_box() for step in (start, end)]
    (x, y), (to_x, _) = [(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2) for box in boxes]
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(to_x, y, steps=8)
    page.mouse.up()


def test_dragging_moves_a_key_sets_several_and_clears_them(page):
    page.locator(".fd-preset-paper").click()
    text_of_schedule(page, KeySchedule.paper(50))
    page.locator(".fd-cells").scroll_into_view_if_needed()
    drag(page, 35, 40)
    expect(cell(page, 40)).to_have_attribute("aria-checked", "true")
    assert keys(page) == [0, 1, 2, 3, 5, 10, 15, 25, 40]
    drag(page, 30, 33)
    assert keys(page) == [0, 1, 2, 3, 5, 10, 15, 25, 30, 31, 32, 33, 40]
    page.keyboard.down("Shift")
    drag(page, 30, 33)
    page.keyboard.up("Shift")
    assert keys(page) == [0, 1, 2, 3, 5, 10, 15, 25, 40]
    text_of_schedule(page, KeySchedule(50, (0, 1, 2, 3, 5, 10, 15, 25, 40)))


def test_the_keyboard_does_all_that_the_mouse_does(page):
    page.locator(".fd-preset-paper").click()
    text_of_schedule(page, KeySchedule.paper(50))
    cell(page, 0).focus()
    for press in ("PageDown", "PageDown", "PageDown", "PageDown", "PageDown", "ArrowRight", "ArrowRight", "Space"):
        page.keyboard.press(press)
    assert keys(page) == [0, 1, 2, 3, 5, 10, 12, 15, 25, 35]
    page.keyboard.press("Shift+ArrowRight")
    assert keys(page) == [0, 1, 2, 3, 5, 10, 13, 15, 25, 35]
    expect(cell(page, 13)).to_be_focused()
    page.keyboard.press("Delete")
    text_of_schedule(page, KeySchedule.paper(50))
    page.keyboard.press("End")
    expect(cell(page, 49)).to_be_focused()
    assert re.match(r"step 49, reuses step 35, time-step \d+", cell(page, 49).get_attribute("aria-label"))
    # JupyterLab has shortcuts of its own for these keys; the notebook must not have moved.
    assert page.evaluate("() => window.jupyterapp.shell.currentWidget.content.model.cells.length") == len(CELLS)


def test_the_slider_moves_along_the_derived_front(page):
    slider = page.locator(".fd-keys-slider")
    slider.focus()
    for _ in range(4):
        page.keyboard.press("ArrowRight")
    expect(page.locator(".fd-schedule-text")).to_contain_text("derived, 13 keys")
    expect(page.locator(".fd-keys-number")).to_have_value("13")
    expect(slider).to_have_attribute("aria-valuetext", "13 key steps")
    expect(page.get_by_label("Number of key steps")).to_have_value("13")


def test_settings_that_were_not_measured_give_a_sentence_and_no_number(page):
    page.get_by_label("Guidance scale").fill("7.5")
    page.get_by_label("Guidance scale").press("Enter")
    expect(error_card(page)).to_have_text("–")
    expect(page.locator(".fd-predicted .fd-note")).to_contain_text("guidance scale 5.0, here 7.5")
    expect(page.locator(".fd-preset-derived")).to_be_disabled()
    page.get_by_label("Guidance scale").fill("500")
    page.get_by_label("Guidance scale").press("Enter")
    expect(page.locator(".fd-form-error")).to_contain_text("`guidance_scale` must be a number from 0 to 100, got 500")
    page.get_by_label("Guidance scale").fill("5")
    page.get_by_label("Guidance scale").press("Enter")
    expect(page.locator(".fd-form-error")).to_be_hidden()
    expect(page.locator(".fd-preset-derived")).to_be_enabled()


def test_a_run_shows_both_images_and_becomes_a_row(page, session):
    page.locator(".fd-run").click()
    expect(page.locator(".fd-run-state")).to_have_attribute("data-state", "running")
    expect(page.locator(".fd-side-baseline img.fd-image")).to_be_visible()  # an intermediate image, or the last
    expect(page.locator(".fd-run-state")).to_have_attribute("data-state", "done")
    for name in ("baseline", "accelerated", "difference"):
        image = page.locator(f".fd-side-{name} img.fd-image")
        assert image.evaluate("image => image.complete && image.naturalWidth") == 64 and image.get_attribute("alt")
    expect(page.locator(".fd-result")).to_contain_text("PSNR, dB")
    rows = page.locator(".fd-history-table tbody tr")
    first = rows.count()
    page.locator(".fd-preset-paper").click()
    page.locator(".fd-run").click()
    expect(rows).to_have_count(first + 1)
    expect(page.locator(".fd-run-panel p.fd-note")).to_contain_text("made before")
    page.locator(".fd-sort", has_text="PSNR").click()
    psnr = [float(text) for text in page.locator(".fd-history-table tbody tr td:nth-child(6)").all_inner_texts()]
    assert psnr == sorted(psnr) and len(psnr) >= 2
    for tick in page.locator(".fd-history-table input[type=checkbox]").all()[:2]:
        tick.check()
    expect(page.locator(".fd-compared-run")).to_have_count(2)
    page.locator(".fd-export-path").fill("runs.csv")
    page.locator(".fd-export").click()
    expect(page.locator(".fd-history .fd-said")).to_contain_text("runs written to")
    assert (session[1] / "runs.csv").read_text().startswith("run,prompt,seed")


def test_a_lab_with_its_result_fits_beside_the_file_browser(page):
    assert page.locator(".fd-result").is_visible()
    outputs = page.locator(".jp-OutputArea-output").evaluate_all("all => all.map(one => one.scrollWidth - one.clientWidth)")
    assert max(outputs) <= 0
    assert page.locator(".fd-static").count() == 2  # the same as images, for pages where no widget lives
    assert not any(image.is_visible() for image in page.locator(".fd-static").all())


def test_cancel_stops_the_run(page):
    page.get_by_label("Seed", exact=True).fill("7")
    page.get_by_label("Seed", exact=True).press("Enter")
    rows = page.locator(".fd-history-table tbody tr").count()
    page.locator(".fd-run").click()
    expect(page.locator(".fd-side-baseline .fd-progress-text")).to_contain_text(re.compile(r"step \d\d of 50"))
    page.locator(".fd-cancel").click()
    expect(page.locator(".fd-run-state")).to_have_text("Cancelled; the pipeline is as before.")
    expect(page.locator(".fd-run")).to_be_enabled()
    assert page.locator(".fd-history-table tbody tr").count() == rows


def test_the_stop_button_ends_a_run(page):
    steps, said = page.get_by_label("Steps", exact=True), page.locator(".fd-run-state")
    steps.fill("500")
    steps.press("Enter")
    page.locator(".fd-run").click()
    expect(page.locator(".fd-side-baseline .fd-progress-text")).to_contain_text(re.compile(r"step \d\d of 500"))
    page.evaluate("() => window.jupyterapp.shell.currentWidget.sessionContext.session.kernel.interrupt()")
    expect(said).to_have_text("Cancelled; the pipeline is as before.")
    steps.fill("50")
    steps.press("Enter")
    expect(page.locator(".fd-schedule-text")).to_contain_text("derived, 9 keys")  # as before, since nothing else was chosen


def test_a_prompt_that_is_not_known_is_refused_before_a_run(page):
    prompt = page.get_by_label("Prompt", exact=True)
    before = prompt.input_value()
    prompt.fill("a red <b>dog</b>")
    prompt.press("Enter")
    wrong = page.locator(".fd-form-error")
    expect(wrong).to_contain_text("does not know '<b>dog</b>'")
    page.locator(".fd-run").click()
    problem = page.locator(".fd-run-panel .fd-problem")
    expect(problem).to_contain_text("nothing is run while a setting is wrong")
    assert wrong.locator("b").count() == problem.locator("b").count() == 0
    prompt.fill(before)
    prompt.press("Enter")
    expect(wrong).to_be_hidden()
    expect(problem).to_be_hidden()


def test_schedules_are_saved_and_loaded(page, session, tmp_path):
    page.locator(".fd-save-path").fill("mine.json")
    page.locator(".fd-save").click()
    expect(page.locator(".fd-files .fd-said")).to_contain_text("mine.json")
    saved = KeySchedule.load(session[1] / "mine.json")
    assert list(saved.keys) == keys(page) and saved.measured_on
    KeySchedule.parse("0,3,9 of 20").save(tmp_path / "twenty.json")
    page.locator(".fd-load").set_input_files(tmp_path / "twenty.json")
    text_of_schedule(page, KeySchedule.parse("0,3,9 of 20"))
    expect(page.get_by_label("Steps", exact=True)).to_have_value("20")
    (tmp_path / "wrong.json").write_text(json.dumps({"schema": "other"}))
    page.locator(".fd-load").set_input_files(tmp_path / "wrong.json")
    expect(page.locator(".fd-files .fd-problem")).to_contain_text("wrong.json: the given text is no fastdiff_lab.KeySchedule")
    text_of_schedule(page, KeySchedule.parse("0,3,9 of 20"))
    page.locator(".fd-load").set_input_files(session[1] / "mine.json")
    text_of_schedule(page, saved)


def test_the_explorer_follows_the_lab(page):
    figures = page.locator(".fd-explorer .fd-figure [role=img]")
    expect(figures).to_have_count(4)
    page.get_by_label("Layer").select_option("conv_in")
    expect(figures).to_have_count(2)  # only statistics were recorded, and it says so
    expect(page.locator(".fd-explorer .fd-figure-maps")).to_contain_text("fl.record(pipe, keep=['conv_in'])")
    page.locator(".fd-preset-paper").click()
    change = page.locator(".fd-explorer .fd-figure-change [role=img]")
    expect(change).to_have_attribute("aria-label", re.compile(r"Key steps: 0, 1, 2, 3, 5, 10"))


def test_the_page_can_be_loaded_again(session):
    watched, _ = session
    page = watched.page
    page.locator(".fd-preset-paper").click()
    text_of_schedule(page, KeySchedule.paper(50))
    rows = page.locator(".fd-history-table tbody tr").count()
    page.evaluate("() => window.jupyterapp.commands.execute('docmanager:save')")
    page.reload()
    page.wait_for_function("() => window.jupyterapp")
    page.evaluate("() => window.jupyterapp.restored")
    page.wait_for_function(READY)
    text_of_schedule(page, KeySchedule.paper(50))
    assert keys(page) == list(KeySchedule.paper(50).keys)
    expect(page.locator(".fd-history-table tbody tr")).to_have_count(rows)
    cell(page, 30).click()
    expect(page.locator(".fd-card-calls strong")).to_have_text("10")


def test_a_kernel_that_was_restarted_is_told(session):
    page = session[0].page
    lost = page.locator(".fd-lost")
    expect(lost).to_have_count(2)
    assert not any(box.is_visible() for box in lost.all())
    page.locator(".fd-run").click()
    expect(page.locator(".fd-run-state")).to_have_attribute("data-state", "running")
    page.evaluate("() => window.jupyterapp.shell.currentWidget.sessionContext.session.kernel.restart()")
    expect(page.locator(".fd-run-state")).to_have_text("No word from the run: the kernel does not answer.")
    expect(lost.first).to_contain_text("run the notebook's cells again")
    expect(lost.first).to_be_visible()
    expect(lost.last).to_be_visible()
