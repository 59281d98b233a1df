"""What was measured on the embedded pipeline, as it is shipped.

- `measured(name)`: one of the tables
- `measured_with(name)`: whether it was measured with the weights of today
- `demo(count)`: the prompts and seeds of all notebooks, which are among those of the suite
"""

from __future__ import annotations

import json

import pandas as pd

from ..inputs.plain_values import whole_number
from ..pipelines import data_file, embedded_costs
from ..shapes.data import held_out_scenes

SEEDS = 4  # of the suite


def measured(name: str) -> pd.DataFrame:
    """Read a table that was measured on the embedded pipeline.

    >>> measured("suite/ddim-50/table").set_index("method").loc["baseline", "images"].item()
    128

    Args:
        name: Folder and file without its ending, in the folder `data`.
            "suite/ddim-50/table" compares all methods on 128 images; "images" and "paired" stand beside it.
            "bench/intel-r-xeon-r-processor-2-threads/bench" is timed.

    Returns:
        The table.

    Raises:
        FileNotFoundError: No such table.
    """
    table = pd.read_csv(data_file(f"{name}.csv", f"the table {name}"))
    return table.assign(keys=table["keys"].fillna("")) if "keys" in table else table


def measured_with(name: str) -> str:
    """Say whether tables were measured with the weights that are shipped.

    >>> measured_with("suite/ddim-50").startswith("measured with ")
    True

    Args:
        name: A folder of tables in the folder `data`.

    Returns:
        Some words for a sentence.

    Raises:
        FileNotFoundError: No such folder.
    """
    about = json.loads(data_file(f"{name}/about.json", f"what was measured for {name}").read_text(encoding="utf-8"))
    if about["pipeline"]["weights"] == embedded_costs().measured_on["weights"]:
        return "measured with these weights"
    return "measured with earlier weights, not yet with these"


def demo(count: int = 4) -> tuple[list[str], list[int]]:
    """Give the prompts and seeds of all notebooks.

    >>> prompts, seeds = demo(2)
    >>> seeds
    [0, 1]

    No training has seen these captions. The suite has drawn them with these seeds, too.

    Args:
        count: Of images, 1 to 16.

    Returns:
        Captions of one object, and a seed for each.
    """
    count = whole_number("count", count, 1)
    return [scene.caption() for scene in held_out_scenes(count, objects=1)], [place % SEEDS for place in range(count)]
