"""Images of notebook 09 after its runs, light and dark: those that the README shows, made when asked for. Look at them.

FASTDIFF_SCREENSHOTS=docs python -m pytest tests/test_lab_screenshots.py
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from PIL import Image

from studies.browser import CHROMIUM, expect, lab, opened, run_all

SCREENSHOTS = os.environ.get("FASTDIFF_SCREENSHOTS", "")

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's chromium: apt-get install chromium"),
    pytest.mark.skipif(not SCREENSHOTS, reason="set FASTDIFF_SCREENSHOTS to a folder for images of the lab"),
]


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_images_of_the_lab(theme, tmp_path):
    folder = tmp_path / "notebooks"
    folder.mkdir()
    shutil.copy(Path(__file__).parent.parent / "notebooks" / "09_interactive_lab.ipynb", folder)
    with (
        lab(folder, tmp_path, theme=f"JupyterLab {theme.title()}") as address,
        opened(f"{address}/lab/tree/09_interactive_lab.ipynb") as watched,
    ):
        page = watched.page
        run_all(page)
        page.set_viewport_size({"width": 1280, "height": 1700})
        page.locator(".fd-measure").click()
        expect(page.locator(".fd-card-time-ceiling strong")).to_contain_text("×")
        for tick in page.locator(".fd-history-table input[type=checkbox]").all()[:2]:
            tick.check()
        expect(page.locator(".fd-compared-run")).to_have_count(2)
        target = Path(SCREENSHOTS) / f"lab-{theme}.png"
        shown = page.locator(".fd-lab:not(.fd-explorer)")
        # JupyterLab scrolls the notebook in a panel, beyond which nothing is drawn.
        page.set_viewport_size({"width": 1280, "height": int(shown.bounding_box()["height"]) + 300})
        shown.screenshot(path=target)
        height = page.locator(".fd-compare").bounding_box()["y"] - shown.bounding_box()["y"]
        with Image.open(target) as whole:  # down to the run's images
            whole.crop((0, 0, whole.width, int(height))).save(target, optimize=True)
        page.locator(".fd-explorer").screenshot(path=tmp_path / "explorer.png")
    assert not watched.foreign and not watched.errors and target.stat().st_size < 300_000
