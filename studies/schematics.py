"""Write the schematics of README, site and slides.

`python -m studies.schematics docs/figures` writes them as SVG, `--png` as PNG.

- `schematics()`: all figures by name
- `speedup(most)`: the figure of it
- `measured_seconds(bench, system)`: baseline, serial and parallel, of a benchmark's table
"""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import pandas as pd
import typer

from fastdiff_lab import plot
from fastdiff_lab.inputs.files import write_text
from fastdiff_lab.key_schedule import KeySchedule

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BENCHES = Path(__file__).parent.parent / "data" / "bench"
ON_CPU, ON_GPU = BENCHES / "intel-r-xeon-r-processor-2-threads" / "bench.csv", BENCHES / "nvidia-h200" / "bench.csv"
PAPERS_SECONDS, PAPERS_CEILING = (2.42, 1.82, 1.42), 37050 / 27350  # Table 8 (one A40), and Table 1's multiply-adds
COSTS = {(0, 1): 0, (1, 2): 0, (2, 3): 0, (3, 4): 0, (0, 2): 4, (1, 3): 1, (2, 4): 3, (0, 3): 9, (1, 4): 8, (0, 4): 16}
BEST = {(1, 1): 0, (1, 2): 4, (1, 3): 9, (1, 4): 16, (2, 2): 0, (2, 3): 1, (2, 4): 7, (3, 3): 0, (3, 4): 1}
BEST_KEYS = (0, 1, 3)


def schematics() -> dict[str, Figure]:
    """All schematics by the names of their files."""
    paper = KeySchedule.paper(50)
    return {
        "key_step": plot.key_step(),
        "timeline": plot.timeline(paper.keys, paper.num_steps),
        "speedup": speedup(),
        "fit": plot.landing(),
        "programme": plot.programme(COSTS, BEST, BEST_KEYS),
    }


def speedup(most: int = 3) -> Figure:
    """Where the speed comes from: the paper's, ours on a GPU and on a CPU; the first `most` of them."""
    sources, ceilings = {"The paper: Stable Diffusion 1.5, A40": PAPERS_SECONDS}, [PAPERS_CEILING]
    for title, bench, system in (("Stable Diffusion 1.5, H200", ON_GPU, "sd-1.5"), ("embedded pipeline, CPU", ON_CPU, "embedded")):
        ours = measured_seconds(bench, system)
        sources[f"Here: {title}"] = tuple(ours["seconds"])
        ceilings.append(ours.loc["paper, parallel", "flop_ceiling"])
    return plot.speedup(dict(islice(sources.items(), most)), ceilings[:most])


def measured_seconds(bench: Path, system: str) -> pd.DataFrame:
    """The rows of one image of a system: baseline, serial, parallel."""
    table = pd.read_csv(bench).query(f"system == '{system}' and batch_size == 1 and mode == 'eager' and steps == 50")
    return table.set_index("method").loc[["baseline", "paper, serial", "paper, parallel"]]


def main(
    folder: Annotated[Path, typer.Argument(help="Where to write them.")],
    png: Annotated[bool, typer.Option(help="PNG instead of SVG.")] = False,
) -> None:
    """Write the schematics as SVG, or as PNG for slides."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, figure in schematics().items():
        if png:
            figure.savefig(folder / f"{name}.png", dpi=200)
        else:
            write_text(folder / f"{name}.svg", plot.svg(figure))
        typer.echo(f"{folder / name}.{'png' if png else 'svg'}: {figure.get_label()}")


if __name__ == "__main__":
    typer.run(main)
