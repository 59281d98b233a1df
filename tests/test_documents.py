"""README.md and docs/results.md say what the committed tables say; glossary and map are short."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import pandas as pd
import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusionXLPipeline
from systems import ROWS

from studies.document_tables import TABLES, rows_of
from studies.explainer.measured import longer_on_gpu

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
SUITE = pd.read_csv(ROOT / "data/suite/ddim-50/table.csv").set_index("method")
IMAGES = pd.read_csv(ROOT / "data/suite/ddim-50/images.csv")
RULES = pd.read_csv(ROOT / "data/ablation/rules.csv")
PUBLISHED = pd.read_csv(ROOT / "data/ablation/published.csv")
MAKINGS = pd.read_csv(ROOT / "data/ablation/fit_makings.csv")
AVERAGES = pd.read_csv(ROOT / "data/ablation/averages.csv")


def claims(page: str) -> list[tuple[float, ...]]:
    """Differences with their intervals as a text gives them: "3.6 dB (1.1 to 6.9)", "(difference 2.7, -0.2 to 6.2)"."""
    found = re.findall(r"(-?\d+\.\d)(?: dB)?,? \(?(-?\d+\.\d) to (-?\d+\.\d)", re.sub(r"^\|.*$", "", page, flags=re.M))
    return [tuple(map(float, claim)) for claim in found]


def measured_differences() -> set[tuple[float, float, float]]:
    """Each paired difference with its interval as a text rounds it, and the same seen from the other method."""
    of_rules = pd.concat([RULES, PUBLISHED, AVERAGES, MAKINGS]).rename(
        columns={"ahead": "difference", "ahead_low": "low", "ahead_high": "high"}
    )
    measured = pd.concat([of_rules, *(pd.read_csv(path) for path in (ROOT / "data/suite").glob("*/paired.csv"))])
    rounded = {tuple(round(value, 1) for value in row) for row in measured[["difference", "low", "high"]].itertuples(index=False)}
    return rounded | {(-difference, -high, -low) for difference, low, high in rounded}


def test_differences_are_those_that_were_measured():
    known = measured_differences()
    for page, least in (("docs/results.md", 12), ("docs/teaching.md", 1)):
        said = claims((ROOT / page).read_text())
        assert len(said) >= least and set(said) <= known, set(said) - known


def test_the_readme_has_differences_without_intervals():
    text = re.sub(r"^\|.*$", "", README, flags=re.M)
    said = [float(number) for number in re.findall(r"(\d+\.\d) dB", text)]
    assert len(said) >= 2 and set(said) <= {difference for difference, _, _ in measured_differences()} and not claims(README)


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 110 and len(README.split()) <= 1000


def test_the_verdict_at_the_top():
    fitted, control = SUITE.loc["features, fitted 9, order 0"], SUITE.loc["predictions, fitted 13, order 0"]
    top = README.split("\n## ")[0]
    assert f"nine key steps of fifty are {fitted.ratio:.1f}x faster" in top
    assert (
        "A simpler method with a fit is as fast and closer" in top and control.ratio >= fitted.ratio and control.psnr > fitted.psnr
    )


def test_the_verdict_of_the_notebook_was_printed_from_this_table():
    cells = nbformat.read(ROOT / "notebooks/07_is_it_worth_it.ipynb", as_version=4).cells
    printed = "".join(output.get("text", "") for cell in cells for output in cell.get("outputs", []))
    for count in (9, 17):
        features, prediction = (SUITE.loc[f"{kind}, derived {count}, order 0", "psnr"] for kind in ("features", "predictions"))
        fewer = SUITE.loc[f"fewer steps ({count})", "psnr"]
        assert f"{count} calls: features {features:.1f} dB, prediction {prediction:.1f} dB, fewer steps {fewer:.1f} dB" in printed


def test_how_much_longer_features_take_on_a_gpu():
    said = f"{longer_on_gpu():.1f} times as long"
    assert f"fitted\n  features took {said} at the same keys" in (ROOT / "docs/results.md").read_text() and said in README


def test_how_many_images_flip():
    flips = (
        "Of N images, N end below 20 dB with the paper's keys. "
        "With uniform keys it is N, with derived ones N, with nine steps N, with the fit N."
    )
    said = re.search(flips.replace("N", r"(\d+)"), (ROOT / "docs/results.md").read_text())
    low = IMAGES[IMAGES["psnr"] < 20]["method"].value_counts()
    methods = [
        *(f"features, {keys} 9, order 0" for keys in ("paper", "uniform", "derived")),
        "fewer steps (9)",
        "features, fitted 9, order 0",
    ]
    assert [int(number) for number in said.groups()] == [int(SUITE["images"].iloc[0]), *(low.get(method, 0) for method in methods)]


def code_of(page: str, **shorter: str) -> str:
    """The Python of a page, its blocks one after the other, with further arguments for the calls of `fl` that `shorter` names."""
    code = "\n".join(re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), flags=re.S))
    for name, arguments in shorter.items():
        code, found = re.subn(rf"(fl\.{name}\([^()]*)\)", rf"\1, {arguments})", code)
        assert found, name
    return code


@pytest.mark.long
def test_the_code_of_the_page_on_using_runs_and_gives_what_it_says(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code, ran = code_of("docs/using.md", compare="repeats=1"), {}
    exec(compile(code, "using.md", "exec"), ran)
    printed = capsys.readouterr().out
    assert f"# {ran['schedule']};" in code
    counts = re.search(r"print\(counts\)  # ([^:]*):", code)[1]
    assert all(part in printed for part in counts.split(", ")) and (tmp_path / "ring.png").stat().st_size > 1000
    assert list(ran["change"].columns) == re.search(r"a table: (.*)", code)[1].split(", ")
    assert "derived" in set(ran["table"]["method"])


@pytest.mark.long
def test_the_code_of_the_readme_runs(tmp_path, monkeypatch, capsys):
    """On a tiny SDXL in the place of the published one, whose weights are not here."""
    monkeypatch.chdir(tmp_path)
    pipe = ROWS["sdxl"].build().to(torch.float32)
    monkeypatch.setattr(DiffusionPipeline, "to", lambda self, device: self)
    monkeypatch.setattr(StableDiffusionXLPipeline, "from_pretrained", lambda *names, **options: pipe)
    code, ran = code_of("README.md", calibrate="max_span=8", compare="repeats=1"), {}
    exec(compile(code, "README.md", "exec"), ran)
    assert re.search(r"print\(counts\)  # (.*)", code)[1] in capsys.readouterr().out and (tmp_path / "star.png").exists()
    assert {"derived", "fitted", "baseline"} <= set(ran["table"]["method"])


def test_the_glossary_is_short_and_linked():
    words = (ROOT / "docs/glossary.md").read_text().removeprefix("# Glossary\n\n").splitlines()
    assert 0 < len(words) <= 14 and all(re.match(r"- \*\*[a-z -]+\*\*.*: .*\.$", line) for line in words)
    linking = {"README.md": "docs/", "CONTRIBUTING.md": "docs/", "notebooks/00_quickstart.py": "../docs/", "docs/errors.md": ""}
    assert all(f"({folder}glossary.md)" in (ROOT / page).read_text() for page, folder in linking.items())


def anchors(page: Path) -> set[str]:
    """Of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", re.sub(r"\]\([^)]*\)", "", heading)).lower().replace(" ", "-") for heading in headings}


def test_links_of_the_documents_lead_somewhere():
    pages = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]
    links = [(page, link) for page in pages for link in re.findall(r"\]\((?!https?:)([^)\s]+)\)", page.read_text())]
    for page, link in links:
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists() and (not anchor or anchor in anchors(target)), f"{page.name}: {link}"
    assert len(links) > 80


def test_the_map_fits_on_one_screen():
    lines = (ROOT / "CONTRIBUTING.md").read_text().splitlines()
    assert len(lines) <= 50 and max(map(len, lines)) <= 132


@pytest.mark.parametrize("table", TABLES, ids=lambda table: f"{table.page}: {table.first}")
def test_tables_say_what_was_measured(table):
    """`python -m studies.document_tables` writes them."""
    said = rows_of((ROOT / table.page).read_text(), table.first)
    assert said == table.rows() and len(said) >= 5


def test_all_tables_are_of_the_same_images():
    rules = [pd.read_csv(ROOT / f"data/ablation/{name}.csv") for name in ("rules", "published", "averages")]
    assert {*SUITE["images"], *(count for table in rules for count in table["images"])} == {128}
