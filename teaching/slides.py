"""Draw eight slides and a handout for the lesson of docs/teaching.md.

`python -m teaching.slides runs/slides` writes each slide as SVG and PNG, and `handout.pdf` of two pages. It takes about a minute.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Sequence
from functools import wraps
from io import BytesIO
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import matplotlib.image
import numpy as np
import pandas as pd
import torch
import typer
from matplotlib.axes import Axes
from matplotlib.backends.backend_pdf import PdfPages
from matplotlib.figure import Figure

import fastdiff_lab as fl
from fastdiff_lab import plot
from fastdiff_lab.inputs.files import write_text
from studies.schematics import schematics, speedup

ROOT = Path(__file__).parent.parent
PROMPT = "a large red star at the left on a blue background"
STEPS = 50
SHOWN = (0, 4, 9, 14, 19, 29, 39, 49)
PIXELS = 1920
QUESTION = "A UNet runs fifty times for one picture. Must it compute everything each time?"
# File's name -> title and sentence.
TEXTS = {
    "1_loop": (QUESTION, "The picture is decided long before you can see it."),
    "2_halves": ("What changes from step to step?", "The paper saw a steady encoder. Here both halves are equally steady."),
    "3_key_step": ("Run the encoder at key steps only", "It is one if, and the decoder must know its own time-step."),
    "4_timeline": ("Which latents does a prediction between keys need?", "None but the key's, so all steps of a group share one batch."),
    "5_speedup": ("Where does the speed come from?", "Here more from the batches than from the encoder."),
    "6_programme": ("Which steps should be keys?", "Keys belong to a model: measure them, do not copy them."),
    "7_fit": ("What corrects what is reused?", "Tensors that are known at the key step, and a few scalars per group."),
    "8_verdict": ("Does it pay?", "A reused prediction is DDIM with uneven steps, which every claim must beat."),
}  # fmt: skip
COMPARED = {
    "features, paper 9, order 0": "the paper's 9 keys",
    "features, uniform 9, order 0": "9 uniform keys",
    "features, derived 9, order 0": "9 derived keys",
    "features, fitted 9, order 0": "9 derived keys, fitted",
    "predictions, derived 9, order 0": "control: predictions reused",
    "predictions, fitted 9, order 0": "control: the same, fitted",
    "predictions, fitted 13, order 0": "control: at 13 keys, fitted",
    "fewer steps (13)": "control: 13 steps",
}
LOWERED = ("features, derived 9, order 0", "predictions, derived 9, order 0")  # names that another would touch


class Run(NamedTuple):
    """The images that the sampler has and expects after each step, and the change of its features."""

    has: list[np.ndarray]
    expects: list[np.ndarray]
    change: pd.DataFrame


def sampled() -> Run:
    """One run of the embedded pipeline, watched."""
    pipe, kept = fl.load_pipeline(), []
    step = pipe.scheduler.step

    @wraps(step)
    def watched(*given: Any, return_dict: bool = True, **options: Any) -> tuple[torch.Tensor]:
        stepped = step(*given, return_dict=True, **options)
        kept.append((stepped.prev_sample, stepped.pred_original_sample))
        return (stepped.prev_sample,)

    pipe.scheduler.step = watched
    with fl.record(pipe) as recording:
        pipe(
            PROMPT, num_inference_steps=STEPS, guidance_scale=5.0, generator=torch.Generator().manual_seed(0), output_type="latent"
        )
    has, expects = ([_decoded(pipe, kept[place][row]) for place in SHOWN] for row in (0, 1))
    return Run(has, expects, fl.feature_change(recording, kind="relative"))


def _decoded(pipe: Any, latents: torch.Tensor) -> np.ndarray:
    with torch.no_grad():
        image = pipe.vae.decode(latents / pipe.vae.config.scaling_factor).sample
    return pipe.image_processor.postprocess(image, output_type="np")[0]


def loop(run: Run) -> Figure:
    """Two rows of images over the steps."""
    figure = Figure(figsize=(11, 3.4))
    for row, (name, images) in enumerate((("what it has", run.has), ("what it expects", run.expects))):
        for place, (step, image) in enumerate(zip(SHOWN, images, strict=True)):
            ax = figure.add_axes((0.1 + 0.112 * place, 0.48 - 0.46 * row, 0.108, 0.42))
            ax.imshow(image)
            ax.set(xticks=[], yticks=[])
            if row == 0:
                ax.set_title(f"step {step}", fontsize=13)
            if place == 0:
                ax.set_ylabel(name, fontsize=13)
    return figure


def halves(run: Run) -> Figure:
    """The mean relative change of encoder and decoder over the steps."""
    figure = Figure(figsize=(9, 4.2))
    ax = figure.add_axes((0.1, 0.14, 0.86, 0.82))
    mean = run.change.groupby(["part", "step"])["value"].mean()
    for part, colour, dash in (("encoder", plot.PETROFF[0], "-"), ("decoder", plot.PETROFF[1], "--")):
        ax.plot(mean[part], color=colour, linestyle=dash, linewidth=3, label=part)
    ax.legend(frameon=False, fontsize=14, loc="upper left")
    ax.set(xlabel="step", ylabel="change from the step before", xlim=(0, STEPS), ylim=(0, None))
    _readable(ax)
    return figure


def verdict(table: pd.DataFrame) -> Figure:
    """Speed-up and PSNR of the paper's method and of its controls."""
    figure = Figure(figsize=(9, 4.2))
    ax = figure.add_axes((0.1, 0.14, 0.86, 0.82))
    for method, name in COMPARED.items():
        control = name.startswith("control")
        ax.scatter(
            table.loc[method, "ratio"],
            table.loc[method, "psnr"],
            s=120,
            color=plot.PETROFF[control],
            marker="D" if control else "o",
        )
        ax.annotate(
            name,
            table.loc[method, ["ratio", "psnr"]].astype(float),
            xytext=(10, -13 if method in LOWERED else -4),
            textcoords="offset points",
            fontsize=13,
        )
    fastest = float(table.loc[list(COMPARED), "ratio"].max())
    ax.set(xlabel="times as fast as the baseline", ylabel="PSNR to the baseline, dB", xlim=(None, 1.4 * fastest))
    _readable(ax)
    return figure


def _readable(ax: Axes) -> None:
    """Two axes alone, with letters for the last row."""
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(labelsize=13)
    for label in (ax.xaxis.label, ax.yaxis.label):
        label.set_fontsize(15)


def slide(figure: Figure, title: str, sentence: str) -> Figure:
    """The figure on a sheet of 16 to 9, its title above, its sentence below."""
    width, height = figure.get_size_inches()
    wide = max(1.12 * width, height / 0.6 * 16 / 9)
    high = wide * 9 / 16
    figure.set_size_inches(wide, high)
    left, low = (wide - width) / 2, 0.18 * high + (0.6 * high - height) / 2
    for ax in figure.axes:
        x, y, across, up = ax.get_position(original=True).bounds
        ax.set_position(((left + x * width) / wide, (low + y * height) / high, across * width / wide, up * height / high))
    figure.text(0.05, 0.95, textwrap.fill(title, 48), fontsize=2.1 * wide, weight="bold", va="top")
    figure.text(0.05, 0.08, textwrap.fill(sentence, 80), fontsize=1.5 * wide, va="center")
    figure.set_label(f"{title} {figure.get_label()} {sentence}")
    return figure


def figures() -> list[Figure]:
    """The figures of the eight slides, in their order."""
    drawn, run = schematics(), sampled()
    table = pd.read_csv(ROOT / "data/suite/ddim-50/table.csv").set_index("method")
    drawn["speedup"] = speedup(most=2)
    named = [drawn[name] for name in ("key_step", "timeline", "speedup", "programme", "fit")]
    return [loop(run), halves(run), *named, verdict(table)]


def _blocks() -> Iterator[tuple[str, Sequence[str]]]:
    """Headings and paragraphs of the handout's second page."""
    glossary = (ROOT / "docs/glossary.md").read_text().splitlines()
    lines = [re.sub(r"\[([^]]*)\]\([^)]*\)|[*`]", r"\1", line) for line in glossary if line.startswith("- ")]
    yield (
        "Find the bug",
        [
            "A student tells the decoder the time-step of the key step, and reuses the key's features. What does the run compute?",
            "Write down your answer, then try exercise 2.2. The check names what it found.",
        ],
    )
    yield (
        "The criterion",
        [
            "Reused features must beat a prediction reused at the same keys, and a run with fewer steps that is as fast.",
            "Ask of every speed-up: at which batch size, against which control, on how many images?",
        ],
    )
    yield "The words", lines


def handout(path: Path) -> None:
    """Two pages of A4: the question with its schematics, then an exercise, the criterion and the words."""
    first, second = (Figure(figsize=(8.27, 11.69)) for _ in range(2))
    first.text(0.08, 0.95, textwrap.fill(QUESTION, 46), fontsize=17, weight="bold", va="top")
    for name, low in (("key_step", 0.6), ("timeline", 0.32)):
        ax = first.add_axes((0.06, low, 0.88, 0.26))
        ax.imshow(_pixels(schematics()[name]))
        ax.axis("off")
    said = [f"{place}. {_told(*texts)}" for place, texts in enumerate(TEXTS.values(), 1)]
    first.text(0.08, 0.29, "\n".join(textwrap.fill(line, 90) for line in said), fontsize=10, va="top", linespacing=1.6)
    high = 0.95
    for heading, paragraphs in _blocks():
        text = "\n".join(textwrap.fill(line, 98, subsequent_indent="  ") for line in paragraphs)
        second.text(0.08, high, heading, fontsize=15, weight="bold", va="top")
        second.text(0.08, high - 0.03, text, fontsize=9.5, va="top", linespacing=1.5)
        high -= 0.07 + 0.0185 * len(text.splitlines())
    with PdfPages(path, metadata={"Title": "fastdiff_lab: handout", "CreationDate": None}) as pages:
        pages.savefig(first)
        pages.savefig(second)


def _told(title: str, sentence: str) -> str:
    """Both as sentences; the lesson's question stands above all of them."""
    if title == QUESTION:
        return sentence
    return f"{title if title.endswith('?') else f'{title}.'} {sentence}"


def _pixels(figure: Figure) -> np.ndarray:
    file = BytesIO()
    figure.savefig(file, format="png", dpi=250)
    file.seek(0)
    return matplotlib.image.imread(file)


def main(folder: Annotated[Path, typer.Argument(help="Where to write them.")]) -> None:
    """Write slides, the same without their sentences, and handout."""
    (folder / "questions").mkdir(parents=True, exist_ok=True)
    for (name, texts), figure in zip(TEXTS.items(), figures(), strict=True):
        drawn = slide(figure, *texts)
        write_text(folder / f"{name}.svg", plot.svg(drawn))
        dots = PIXELS / drawn.get_size_inches()[0]
        drawn.savefig(folder / f"{name}.png", dpi=dots)
        drawn.texts[-1].set_visible(False)
        drawn.savefig(folder / "questions" / f"{name}.png", dpi=dots)
    handout(folder / "handout.pdf")
    typer.echo(f"eight slides and a handout: {folder}")


if __name__ == "__main__":
    typer.run(main)
