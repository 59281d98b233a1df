"""What the lab writes beside the notebook and reads from the page: never over a file that is no such file.

- `save_schedule(schedule, path)`, `save_runs(history, path)`
- `uploaded_schedule(content)`: a schedule from a file that the page has read
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...key_schedule import KeySchedule
from ..session.history import COLUMNS, History

MOST_BYTES = 1_000_000


def save_schedule(schedule: KeySchedule, path: str) -> Path:
    """Writes a schedule as JSON. Raises ValueError for another kind of file, or one that is there and is no schedule."""
    target = _target(path, ".json")
    if target.exists():
        KeySchedule.load(target)  # raises for what is not ours
    schedule.save(target)
    return target


def save_runs(history: History, path: str) -> Path:
    """Writes the runs as CSV. Raises ValueError for another kind of file, or one that is there and holds no runs of the lab."""
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
    """The schedule in a file that the page has read. Raises ValueError that names the file and what is wrong with it."""
    name, text, size = str(content.get("name"))[:80], content.get("text"), content.get("bytes")
    if not isinstance(text, str) or not isinstance(size, int) or size > MOST_BYTES:
        raise ValueError(f"{name} has {size} bytes; accepted: a key schedule of at most {MOST_BYTES} bytes")
    try:
        return KeySchedule.from_json(text)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
