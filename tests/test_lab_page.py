"""The lab's page in a real browser, with the Python behind it and without JupyterLab: layouts, focus, two labs, a kernel that is gone."""

from __future__ import annotations

import re

import nbformat
import pytest
from lab_page import THEMES, browser, layout_faults, shown
from nbclient import NotebookClient
from nbconvert import HTMLExporter

import fastdiff_lab as fl
from fastdiff_lab import KeySchedule
from fastdiff_lab.lab.widget import recording_explorer, schedule_lab
from studies.browser import CHROMIUM, expect

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's chromium: apt-get install chromium"),
]
PROMPT = "a large red star at the left on a white background"


@pytest.fixture(scope="module")
def recording(embedded):
    with fl.record(embedded, keep=["mid_block"]) as recording:
        embedded(PROMPT, num_inference_steps=50)
    return recording


@pytest.fixture(scope="module")
def made(embedded, recording):
    """A lab with two short runs in its table, at its first settings."""
    lab = schedule_lab(embedded, recording=recording, prompt=PROMPT)
    steps = lab.settings.num_inference_steps
    lab.schedule = KeySchedule(6, (0, 2))
    lab.run()
    lab.form = {**lab.form, "order": 1}
    lab.run()
    lab.form = {**lab.form, "order": 0, "steps": steps}
    return lab


@pytest.fixture
def lab(made):
    made.use_num_keys(9)
    made.chosen, made.said, made.problem = [], {}, {}
    yield made
    made.cancel()
    assert made.wait(120)
    made.form = {**made.form, "prompt": PROMPT, "steps": 50, "seed": 0, "guidance": 5.0}


@pytest.fixture(scope="module")
def chromium():
    with browser() as found:
        yield found


@pytest.fixture
def page(chromium, lab):
    with shown(chromium, lab) as page:
        yield page


def cell(page, step: int):
    return page.locator(f'.fd-cell[data-step="{step}"]').first


# ---------------------------------------------------------------------------------------------------- layout


@pytest.mark.parametrize("theme", THEMES)
def test_no_text_is_cut_nothing_overlaps_and_all_can_be_read_at_every_width(theme, chromium, lab, recording):
    explorer = recording_explorer(recording, lab)
    lab.chosen = [1, 2]
    with shown(chromium, lab, explorer, theme=theme) as page:
        expect(page.locator(".fd-compared-run")).to_have_count(2)
        for width in (400, 480, 640, 800, 905, 1024, 1280, 1920):  # 640 is also 1280 at 200 %, and half of a split view
            page.set_viewport_size({"width": width, "height": 1000})
            page.evaluate("(width) => document.querySelector('#host').style.width = `${width}px`", width)
            page.wait_for_timeout(50)
            assert layout_faults(page) == [], width


@pytest.mark.parametrize(
    ("style", "fault"),
    [
        (".fd-card { max-width: 60px; overflow: hidden; } .fd-card * { white-space: nowrap; }", "cut: "),
        (".fd-lab .fd-side { margin-left: -60px; }", "overlap: "),
        (".fd-card small { color: #999; }", "contrast "),
        (".fd-cards { grid-template-columns: repeat(5, 400px) !important; }", "cut: "),
    ],
)
def test_faults_of_a_layout_are_seen(style, fault, page):
    page.add_style_tag(content=style)
    assert any(found.startswith(fault) for found in layout_faults(page))


def test_its_own_width_decides_not_the_windows(chromium, lab):
    with shown(chromium, lab, width=500) as page:
        page.set_viewport_size({"width": 1920, "height": 1000})
        page.wait_for_timeout(50)
        assert layout_faults(page) == []
        result, pictures = (page.locator(f".fd-{name}").bounding_box() for name in ("result", "pictures"))
        assert result["y"] > pictures["y"] + pictures["height"]


@pytest.mark.parametrize("width", [400, 800, 905, 1024, 1280, 1920])
def test_the_result_is_seen_at_every_width(width, chromium, lab):
    with shown(chromium, lab, width=width) as page:
        box = page.locator(".fd-result").bounding_box()
        assert box["width"] > 200 and box["height"] > 100 and box["x"] + box["width"] <= width
        assert page.locator(".fd-metrics").evaluate("box => box.scrollWidth <= box.clientWidth")


@pytest.mark.parametrize("steps", [1, 50, 999])
def test_steps_can_be_hit_however_many_there_are(steps, chromium, lab):
    lab.form = {**lab.form, "steps": steps}
    with shown(chromium, lab, width=800) as page:
        assert cell(page, 0).bounding_box()["width"] >= 11.5 and layout_faults(page) == []


def test_a_very_long_word_stays_inside_and_is_told_of(chromium, lab):
    lab.form = {**lab.form, "prompt": "a" * 10_000}
    with shown(chromium, lab, width=800) as page:
        expect(page.locator(".fd-form-error")).to_contain_text("does not know 'aaa")
        assert layout_faults(page) == []
    lab.form = {**lab.form, "prompt": " ".join(["a red ring"] * 300)}
    with shown(chromium, lab, width=800) as page:
        expect(page.locator(".fd-form-note")).to_contain_text("the pipeline reads the first 24")
        assert layout_faults(page) == []


# ---------------------------------------------------------------------------------------------------- several labs


def test_two_labs_share_no_id_and_no_radio_name(chromium, lab, embedded):
    with shown(chromium, lab, schedule_lab(embedded, prompt=PROMPT)) as page:
        ids = page.evaluate("() => [...document.querySelectorAll('[id]')].map((one) => one.id)")
        assert len(ids) == len(set(ids)) > 20
        assert page.locator(".fd-segment input:checked").count() == 2
        page.locator(".fd-lab").nth(1).get_by_text("Seed", exact=True).click()
        assert page.evaluate("() => document.activeElement.closest('.fd-lab') === document.querySelectorAll('.fd-lab')[1]")


def test_a_second_lab_is_refused_in_words_while_the_first_runs(chromium, lab, embedded):
    other = schedule_lab(embedded, prompt=PROMPT)
    lab.form = {**lab.form, "steps": 500}
    lab.start()
    with shown(chromium, other) as page:
        page.locator(".fd-run").click()
        expect(page.locator(".fd-run-panel .fd-problem")).to_contain_text(
            "this pipeline is in use by the lab's run of 'a large red star"
        )
        expect(page.locator(".fd-run")).to_be_enabled()
        assert not other.is_running
    lab.cancel()
    assert lab.wait(60)


# ---------------------------------------------------------------------------------------------------- the kernel


@pytest.mark.parametrize("alive", [True, False])
def test_a_page_that_nobody_answers_says_so(alive, chromium, lab):
    lab.run_state = {"state": "running", "text": "Running …"}
    with shown(chromium, lab, alive=alive) as page:
        sign = page.locator(".fd-lost")
        if alive:
            cell(page, 30).click()
            page.wait_for_timeout(3500)
            assert sign.is_hidden() and page.locator(".fd-run-state").inner_text() == "Running …"
            page.evaluate("() => (window.fdIsDead = true)")
            cell(page, 31).click()
        expect(sign).to_contain_text("The kernel does not answer")
        expect(page.locator(".fd-run-state")).to_have_text("No word from the run: the kernel does not answer.")
        if alive:
            page.evaluate("() => { window.fdIsDead = false; }")
            cell(page, 32).click()
            expect(sign).to_be_hidden()
    lab.run_state = {"state": "idle", "text": ""}


def test_an_exported_page_shows_the_lab_as_an_image_without_a_network(chromium, tmp_path):
    code = "import fastdiff_lab as fl\nfrom fastdiff_lab.lab.widget import schedule_lab\nschedule_lab(fl.load_pipeline())"
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    (tmp_path / "lab.html").write_text(HTMLExporter().from_notebook_node(notebook)[0])
    page = chromium.new_page()
    page.route(re.compile("^https?:"), lambda route: route.abort())
    page.goto((tmp_path / "lab.html").as_uri())
    image = page.locator(".fd-static img").first
    expect(image).to_be_visible()
    assert image.evaluate("image => image.naturalWidth") > 300


# ---------------------------------------------------------------------------------------------------- keys


def test_the_first_click_after_typing_a_number_counts(page, lab):
    page.locator(".fd-keys-number").fill("13")
    cell(page, 46).click()
    expect(page.locator(".fd-card-calls strong")).to_have_text(re.compile("12|14"))
    assert set(lab.schedule.keys) ^ {46} == set(fl.derive_schedule(fl.embedded_costs(), 13).keys)
    page.locator(".fd-keys-number").fill("9")
    page.locator(".fd-keys-number").press("Enter")
    expect(page.locator(".fd-card-calls strong")).to_have_text("9")
    cell(page, 47).click()
    expect(page.locator(".fd-card-calls strong")).to_have_text(re.compile("8|10"))


@pytest.mark.parametrize(("typed", "kept"), [("999", "50"), ("-5", "1"), ("9.5", "10")])
def test_the_number_of_keys_is_one_that_is_there(typed, kept, page, lab):
    number = page.locator(".fd-keys-number")
    number.fill(typed)
    number.press("Enter")
    expect(number).to_have_value(kept)
    number.blur()
    expect(page.locator(".fd-card-calls strong")).to_have_text(str(len(lab.schedule.keys)))
    expect(number).to_have_value(str(len(lab.schedule.keys)))


def test_undo_and_redo_take_back_gestures_settings_and_clear(page, lab):
    first = list(lab.schedule.keys)
    boxes = [cell(page, step).bounding_box() for step in (35, 42)]
    page.locator(".fd-preset-paper").click()
    expect(page.locator(".fd-card-calls strong")).to_have_text("9")
    page.mouse.move(boxes[0]["x"] + 3, boxes[0]["y"] + 5)
    page.mouse.down()
    page.mouse.move(boxes[1]["x"] + 3, boxes[1]["y"] + 5, steps=12)
    page.mouse.up()
    expect(cell(page, 42)).to_have_attribute("aria-checked", "true")
    page.locator(".fd-undo").click()  # the drag is one change
    expect(cell(page, 35)).to_have_attribute("aria-checked", "true")
    expect(cell(page, 42)).to_have_attribute("aria-checked", "false")
    page.locator(".fd-undo").click()
    expect(page.locator(".fd-schedule-text")).to_contain_text("derived")
    assert list(lab.schedule.keys) == first
    cell(page, 0).focus()
    page.keyboard.press("Control+Shift+Z")
    page.keyboard.press("Control+Shift+Z")
    expect(cell(page, 42)).to_have_attribute("aria-checked", "true")
    page.locator(".fd-clear").click()
    expect(page.locator(".fd-history-table tbody tr")).to_have_count(0)
    page.locator(".fd-undo").click()
    expect(page.locator(".fd-history-table tbody tr")).to_have_count(2)
    assert len(lab.history) == 2


def test_other_steps_and_back_restore_the_keys(page, lab):
    cell(page, 33).click()
    expect(page.locator(".fd-schedule-text")).to_contain_text("set by hand")
    before = lab.schedule.keys
    steps = page.get_by_label("Steps", exact=True)
    for number in ("5", "50"):
        steps.fill(number)
        steps.press("Enter")
        expect(page.locator(".fd-schedule-text")).to_contain_text(f"of {number}")
    assert lab.schedule.keys == before


# ---------------------------------------------------------------------------------------------------- words


def test_an_error_stands_at_its_row_and_no_old_success_beside_it(page, lab, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path, said = page.locator(".fd-save-path"), page.locator(".fd-files .fd-said")
    path.fill("mine.json")
    page.locator(".fd-save").click()
    expect(said).to_contain_text("mine.json")
    page.locator(".fd-save").click()
    problem = page.locator(".fd-files .fd-problem")
    expect(problem).to_contain_text("mine.json is there already; press Replace")
    expect(said).to_be_hidden()
    expect(page.locator(".fd-save")).to_have_text("Replace")
    page.locator(".fd-save").click()
    expect(said).to_contain_text("mine.json")
    expect(problem).to_be_hidden()
    for wrong in ("../mine.json", str(tmp_path / "other.json")):
        path.fill(wrong)
        page.locator(".fd-save").click()
        expect(problem).to_contain_text("accepted here: a file in the notebook's folder")
    path.fill("nowhere/mine.json")
    page.locator(".fd-save").click()
    expect(problem).to_contain_text("no folder 'nowhere'")
    page.locator(".fd-export-path").fill("runs.txt")
    page.locator(".fd-export").click()
    expect(page.locator(".fd-history .fd-problem")).to_contain_text("a path that ends in .csv")
    assert problem.is_hidden() and [file.name for file in tmp_path.iterdir()] == ["mine.json"]


def test_an_empty_or_wrong_field_is_named_and_marked(page):
    for label, wrong, words in (
        ("Seed", "", "the field 'Seed' is empty"), ("Guidance scale", "500", "a number from 0 to 100"), ("Prompt", "a dog", "know 'dog'"),
    ):  # fmt: skip
        field = page.get_by_label(label, exact=True)
        before = field.input_value()
        field.fill(wrong)
        field.press("Enter")
        expect(page.locator(".fd-form-error")).to_contain_text(words)
        expect(field).to_have_attribute("aria-invalid", "true")
        assert page.locator("[aria-invalid]").count() == 1
        field.fill(before)
        field.press("Enter")
        expect(page.locator(".fd-form-error")).to_be_hidden()


def test_what_is_known_is_told_before_a_run_and_punctuation_does_not_matter(page, lab):
    expect(page.locator(".fd-form-note")).to_contain_text("Known words: a, above, an")
    prompt = page.get_by_label("Prompt", exact=True)
    prompt.fill("a large red star, on a white background.")
    prompt.press("Enter")
    expect(page.locator(".fd-form-error")).to_be_hidden()
    page.wait_for_function("() => [...Object.values(fdModels)].some((one) => one.get('form')?.prompt.includes('star,'))")
    assert lab.settings.prompt == "a large red star, on a white background."


# ---------------------------------------------------------------------------------------------------- runs


def test_run_twice_is_one_run_keeps_the_focus_and_marks_what_is_old(page, lab):
    runs = len(lab.history)
    page.get_by_label("Steps", exact=True).fill("6")
    page.get_by_label("Steps", exact=True).press("Enter")
    expect(page.locator(".fd-old")).to_contain_text("of other keys or settings")
    page.locator(".fd-run").dblclick()
    assert page.evaluate("() => document.activeElement.classList.contains('fd-run')")
    expect(page.locator(".fd-run-state")).to_have_attribute("data-state", "done")
    expect(page.locator(".fd-history-table tbody tr")).to_have_count(runs + 1)
    expect(page.locator(".fd-old")).to_be_hidden()
    assert page.locator(".fd-run-panel .fd-problem").is_hidden()
    assert page.evaluate("() => document.activeElement.classList.contains('fd-run')")
    cell(page, 3).click()
    expect(page.locator(".fd-old")).to_be_visible()


def test_an_error_is_a_sentence_with_its_traceback_folded(page, lab, embedded):
    def fail(*args, **kwargs):
        raise ValueError("no memory for <b>this</b>")

    lab.form = {**lab.form, "steps": 6, "seed": 5}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(embedded.scheduler, "step", fail)
        page.locator(".fd-run").click()
        problem = page.locator(".fd-run-panel .fd-problem")
        expect(problem).to_contain_text("ValueError: no memory for <b>this</b>")
        assert lab.wait(60)
    expect(problem.locator("pre")).to_be_hidden()
    problem.locator("summary").click()
    expect(problem.locator("pre")).to_contain_text("Traceback")
    assert problem.locator("b").count() == 0


def test_the_scrubber_shows_what_both_runs_predicted_on_their_way(page, lab):
    lab.form = {**lab.form, "steps": 12}
    lab.key_steps = [0, 5]
    lab.run()
    slider, tile = page.locator(".fd-film-slider"), page.locator(".fd-side-accelerated .fd-over")
    expect(slider).to_have_attribute("aria-valuetext", re.compile("^11 of 11 .the images themselves"))
    assert tile.is_hidden()
    slider.focus()
    page.keyboard.press("Home")
    expect(slider).to_have_attribute(
        "aria-valuetext", re.compile(r"^4 of 11 .reuses key step 0.: PSNR in dB: baseline to its end \d")
    )
    expect(tile).to_be_visible()
    assert page.evaluate("(tile) => tile.style.backgroundImage.startsWith('url(\"data:image/png')", tile.element_handle())
    page.keyboard.press("End")
    expect(tile).to_be_hidden()


def test_measured_runs_stand_on_the_chart_and_a_click_restores_them(page, lab):
    lab.form = {**lab.form, "steps": 50, "seed": 3}
    lab.key_steps = [0, 10, 20, 30]
    lab.run()
    lab.use_preset("paper")
    point = page.locator(".fd-measured")
    expect(point).to_have_count(1)
    point.click()
    expect(page.locator(".fd-schedule-text")).to_contain_text("0,10,20,30 of 50")


def test_a_race_shows_a_lane_for_each_method_and_the_finish_line(page, lab):
    lab.form = {**lab.form, "steps": 12}
    page.locator(".fd-race").click()
    expect(page.locator(".fd-run-state")).to_have_attribute("data-state", "done")
    lanes = page.locator(".fd-lane")
    expect(lanes).to_have_count(6)
    expect(lanes.first.locator(".fd-lane-name")).to_contain_text("yours, ")
    expect(page.locator(".fd-race-section .fd-note")).to_contain_text("Nearest to the baseline: ")
    bar, line = (lanes.first.locator(f".fd-{name}") for name in ("lane-bar", "finish"))
    assert bar.evaluate("node => node.style.width") == line.evaluate("node => node.style.left")  # its time is the finish line
    page.wait_for_timeout(7000)
    assert layout_faults(page) == []


def test_presets_and_measure_keep_the_focus(page, lab, monkeypatch):
    monkeypatch.setattr("fastdiff_lab.lab.session.ceiling.SIZES", (1, 2))
    page.locator(".fd-preset-uniform").click()
    expect(page.locator(".fd-schedule-text")).to_contain_text("uniform")
    assert page.evaluate("() => document.activeElement.classList.contains('fd-preset-uniform')")
    page.locator(".fd-measure:visible").click()
    expect(page.locator(".fd-card-time-ceiling strong")).to_contain_text("×")
    assert page.evaluate("() => document.activeElement.closest('.fd-card-time-ceiling') !== null")


def test_a_run_sends_itself_and_not_those_before_it(page, lab):
    lab.form = {**lab.form, "steps": 6}
    sent = []
    for _ in range(3):
        page.bridge.bytes_sent.clear()
        rows = page.locator(".fd-history-table tbody tr").count()
        page.locator(".fd-run").click()
        expect(page.locator(".fd-history-table tbody tr")).to_have_count(rows + 1)
        sent.append(sum(size for _, size in page.bridge.bytes_sent))
    assert max(sent) < 1.1 * min(sent)  # the first also makes the baseline


@pytest.mark.parametrize("by", ["mouse", "keyboard"])
def test_what_belongs_to_a_step_is_shown_together(by, chromium, lab, recording):
    lab.use_preset("paper")
    explorer = recording_explorer(recording, lab)
    with shown(chromium, lab, explorer) as page:
        if by == "mouse":
            cell(page, 28).hover()
        else:
            cell(page, 0).focus()
            page.keyboard.press("End")
        step = 28 if by == "mouse" else 49
        key = 25 if by == "mouse" else 35
        words = page.locator(".fd-readout")
        expect(words).to_contain_text(re.compile(rf"^Step {step} \(time-step \d+\) reuses the features of step {key}\. .* \d+ %"))
        expect(page.locator(".fd-reused")).to_have_attribute("data-step", str(key))
        expect(page.locator(".fd-bar-looked-at")).to_have_count(1)
        expect(page.locator(".fd-explorer .fd-map-chosen small")).to_have_text(str(step))
        page.mouse.move(5, 5)
        page.locator(".fd-run").focus()
        expect(words).to_have_text("")
        expect(page.locator(".fd-explorer .fd-map-chosen small")).to_have_text("0 ◆")


# ---------------------------------------------------------------------------------------------------- the explorer


def test_a_key_that_moves_sends_the_explorer_its_number_alone(chromium, lab, recording):
    explorer = recording_explorer(recording, lab)
    with shown(chromium, lab, explorer) as page:
        change = page.locator(".fd-explorer .fd-figure-change svg")
        curve = change.locator(".fd-curve").element_handle()
        page.bridge.bytes_sent.clear()
        page.locator(".fd-preset-paper").click()
        expect(change).to_have_attribute("aria-label", re.compile(r"Key steps: 0, 1, 2, 3, 5, 10, 15, 25, 35$"))
        assert curve.evaluate("curve => curve.isConnected")  # nothing but marks is drawn again
        assert not {"curves", "similarity", "maps"} & {name for name, _ in page.bridge.bytes_sent}
        page.locator(".fd-explorer").get_by_label("Step", exact=True).fill("12")
        page.locator(".fd-explorer").get_by_label("Step", exact=True).press("Enter")
        expect(page.locator(".fd-explorer .fd-note")).to_have_text(re.compile(r"Step 12 .* features of key step 10\."))
        expect(page.locator(".fd-explorer .fd-map-chosen small")).to_have_text("12")
