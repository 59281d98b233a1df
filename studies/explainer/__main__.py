"""Write the explainer page: `python -m studies.explainer docs/explainer.html`. The same call goes on where it was stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from fastdiff_lab.inputs.files import write_text
from fastdiff_lab.lab.session.prediction import Predictor
from fastdiff_lab.lab.session.settings import Settings
from fastdiff_lab.pipelines import embedded_costs, load_pipeline

from .drawing import Drawer
from .measured import costs_of, images_of, longer_on_gpu, timed_on, timeline_of
from .methods import COUNTS, Plan, methods
from .page import data_of, whole_page


def drawn_data(plan: Plan, store: Path) -> dict[str, Any]:
    """Draw what is missing, with one thread; give all that the page is told."""
    torch.set_num_threads(1)
    pipe, costs, settings = load_pipeline(), embedded_costs(), Settings(plan.texts()[0])
    images = images_of(Drawer(pipe, store, plan.steps), plan, methods(costs, plan.counts), tell=typer.echo)
    predictor = Predictor(pipe, costs, settings)
    operations = predictor.operations[True]
    if operations is None:
        raise RuntimeError("the operations of the embedded pipeline could not be counted")
    about = {
        "machine": timed_on(),
        "on_gpu": longer_on_gpu(),
        "times": predictor.time_steps(settings),
        "timeline": timeline_of(costs),
    }
    return {**costs_of(costs, predictor.values, operations), **images, **about}


def explainer(
    page: Annotated[Path, typer.Argument(help="HTML file to write.")],
    prompts: Annotated[int, typer.Option(help="How many of the notebooks' prompts.")] = 6,
    seeds: Annotated[int, typer.Option(help="How many seeds of each, from 0 on.")] = 3,
    keys: Annotated[list[int] | None, typer.Option(help="Number of keys; repeat for several.")] = None,
    again: Annotated[bool, typer.Option("--again", help="Only put today's JavaScript and style around the page's data.")] = False,
    store: Annotated[Path, typer.Option(help="Folder that keeps what is drawn.")] = Path("runs/explainer"),
) -> None:
    """Draw what is missing, then write the page."""
    plan = Plan(prompts, seeds, tuple(sorted(set(keys or COUNTS))))
    data = data_of(page.read_text(encoding="utf-8")) if again else drawn_data(plan, store)
    write_text(page, whole_page(data))
    typer.echo(f"{page}: {page.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    typer.run(explainer)
