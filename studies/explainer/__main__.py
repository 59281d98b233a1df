"""Write the explainer page: `python -m studies.explainer docs/explainer.html`. The same call goes on where it was stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer

from fastdiff_lab.comparison.environment import about_machine
from fastdiff_lab.inputs.files import write_text
from fastdiff_lab.lab.session.prediction import Predictor
from fastdiff_lab.lab.session.settings import Settings
from fastdiff_lab.pipelines import embedded_costs, load_pipeline

from .drawing import Drawer
from .measured import costs_of, images_of
from .methods import COUNTS, Plan, methods
from .page import whole_page


def explainer(
    page: Annotated[Path, typer.Argument(help="HTML file to write.")],
    prompts: Annotated[int, typer.Option(help="How many of the notebooks' prompts.")] = 6,
    seeds: Annotated[int, typer.Option(help="How many seeds of each, from 0 on.")] = 3,
    keys: Annotated[list[int] | None, typer.Option(help="Number of keys; repeat for several.")] = None,
    fitted: Annotated[bool, typer.Option(help="Fit each number of keys, too.")] = True,
    store: Annotated[Path, typer.Option(help="Folder that keeps what is drawn.")] = Path("runs/explainer"),
) -> None:
    """Draw what is missing with one thread, then write the page."""
    torch.set_num_threads(1)
    pipe, costs = load_pipeline(), embedded_costs()
    plan = Plan(prompts, seeds, tuple(sorted(set(keys or COUNTS))), costs.num_steps)
    drawer = Drawer(pipe, costs, store, plan.steps)
    fits = {count: drawer.fit(count) for count in plan.counts} if fitted else {}
    images = images_of(drawer, plan, methods(costs, plan.counts, fits), tell=typer.echo)
    predictor = Predictor(pipe, costs, Settings(plan.images()[0][0]))
    operations = predictor.operations[True]
    if operations is None:
        raise RuntimeError("the operations of the embedded pipeline could not be counted")
    about = {"machine": f"{about_machine('cpu')['processor']}, one thread", "times": predictor.time_steps(Settings(plan.images()[0][0]))}
    write_text(page, whole_page({**costs_of(costs, predictor.values, operations), **images, **about}))
    typer.echo(f"{page}: {page.stat().st_size / 2**20:.2f} MB")


if __name__ == "__main__":
    typer.run(explainer)
