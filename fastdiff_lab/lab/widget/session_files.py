"""Read and write the lab's files, and never overwrite one of another kind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...key_schedule import KeySchedule
from ..session.history import COLUMNS, History

MOST_BYTES = 1_000_000


def save_schedule(schedule: KeySchedule, path: str) -> Path:
    """Write a schedule as JSON. Raises ValueError for another ending, or a file that is no schedule."""
    target = _target(path, ".json")
    if target.exists():
        KeySchedule.load(target)  # raises for a file that is not ours
    schedule.save(target)
    return target


def save_runs(history: History, path: str) -> Path:
    """Write the runs as CSV. Raises ValueError for another ending, or a file that holds no runs of the lab."""
    target = _target(path, ".csv")
    if target.exists():
        with target.open(encoding="utf-8", errors="replace") as file:
            if file.readline(10_000).strip() != ",".join(COLUMNS):
                raise ValueError(f"{path} is there and holds no runs of the lab; accepted: a new file, or one that the lab wrote")
    history.save(target)
    return target


def _target(path: Any, ending: str) -> Path:
    if not isinstance(path, str) or Path(path).suffix != ending:
        raise ValueError(f"file {path!r} asked; accepted: a path that ends in {ending}")
    target = Path(path)
    if not target.parent.is_dir():
        raise FileNotFoundError(f"no folder {str(target.parent)!r} to write {target.name} to; it is looked for beside the notebook")
    return target


def uploaded_schedule(content: dict[str, Any]) -> KeySchedule:
    """Read the schedule in a file from the page. Raises ValueError that names the file and its fault."""
    name, text, size = str(content.get("name"))[:80], content.get("text"), content.get("bytes")
    if not isinstance(text, str) or not isinstance(size, int) or size > MOST_BYTES:
        raise ValueError(f"{name} has {size} bytes; accepted: a key schedule of at most {MOST_BYTES} bytes")
    try:
        return KeySchedule.from_json(text)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
