"""Options that several studies take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Output = Annotated[Path, typer.Argument(help="CSV file to write.")]
Captions = Annotated[int, typer.Option("--count", help="Held-out captions, half of them of two objects.")]
Seeds = Annotated[int, typer.Option("--seeds", help="Seeds of each.")]
Threads = Annotated[int, typer.Option("--threads", help="CPU threads.")]
Kept = Annotated[Path, typer.Option("--store", help="File that keeps each image.")]
Jobs = Annotated[int | None, typer.Option("--jobs", help="Processes that draw; by default, this one.")]
Keys = Annotated[list[int] | None, typer.Option("--keys", help="Number of keys; repeat for several.")]
RULES_STORE = Path("runs/rules.sqlite")
