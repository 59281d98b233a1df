"""Read and write the lab's files, and never overwrite one without being told to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...inputs.files import check_writable, write_text
from ...key_schedule import KeySchedule
from ..session.history import COLUMNS, History
from ..session.sharing import SCHEMA, Shared, from_shared

MOST_BYTES = 1_000_000


def save_schedule(schedule: KeySchedule, path: str, replace: bool = False) -> Path:
    """Write a schedule as JSON. Raises ValueError for another ending, OSError for what cannot be written or is there."""
    target = _target(path, ".json")
    if target.exists():
        KeySchedule.load(target)  # raises for a file that is not ours
        _check_may_replace(target, replace)
    schedule.save(target)
    return target


def save_runs(history: History, path: str, replace: bool = False, after: int = 0) -> Path:
    """Write the runs as CSV. Raises ValueError for another ending or a foreign file, OSError for what cannot be written or is there."""
    target = _target(path, ".csv")
    if target.exists():
        with target.open(encoding="utf-8", errors="replace") as file:
            if file.readline(10_000).strip() != ",".join(COLUMNS):
                raise ValueError(f"{path} is there and holds no runs of the lab; accepted: a new file, or one that the lab wrote")
        _check_may_replace(target, replace)
    history.save(target, after)
    return target


def save_shared(text: str, path: str, replace: bool = False) -> Path:
    """Write what `as_shared` made. Raises ValueError for another ending or a foreign file, OSError for what cannot be written or is there."""
    target = _target(path, ".json")
    if target.exists():
        from_shared(target, target.name)  # raises for a file that is not ours
        _check_may_replace(target, replace)
    write_text(target, text)
    return target


def beside_notebook(path: Any) -> Any:
    """The path, if it stays in the notebook's folder. Raises ValueError for one that leads out of it."""
    if isinstance(path, str) and (Path(path).is_absolute() or ".." in Path(path).parts):
        raise ValueError(f"file {path[:80]!r} asked; accepted here: a file in the notebook's folder, such as schedule.json")
    return path


def _check_may_replace(target: Path, replace: bool) -> None:
    if not replace:
        raise FileExistsError(f"{target.name} is there already; press Replace to write over it (in code: replace=True)")


def _target(path: Any, ending: str) -> Path:
    if not isinstance(path, str) or Path(path).suffix != ending:
        shown = path if not isinstance(path, str) or len(path) < 80 else path[:80] + "…"
        raise ValueError(f"file {shown!r} asked; accepted: a path that ends in {ending}")
    if len(Path(path).name) > 200:
        raise ValueError(f"a file name of {len(Path(path).name)} letters asked; accepted: at most 200")
    target = Path(path)
    if not target.parent.is_dir():
        raise FileNotFoundError(f"no folder {str(target.parent)!r} to write {target.name} to; it is looked for beside the notebook")
    check_writable(target)
    return target


def uploaded(content: dict[str, Any]) -> KeySchedule | Shared:
    """Read a schedule, or what someone shared, from a file of the page. Raises ValueError that names the file and its fault."""
    name, text, size = str(content.get("name"))[:80], content.get("text"), content.get("bytes")
    if not isinstance(text, str) or not isinstance(size, int) or size > MOST_BYTES:
        raise ValueError(f"{name} has {size} bytes; accepted: a key schedule of at most {MOST_BYTES} bytes")
    if f'"{SCHEMA}"' in text:
        return from_shared(text, name)
    try:
        return KeySchedule.from_json(text)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
