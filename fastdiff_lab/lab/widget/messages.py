"""Answer the messages of the lab's page."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import Any

from ..session.sharing import Shared
from .session_files import beside_notebook, uploaded

# The part of the page where an action's error is shown.
WHERE = {
    "run": "run", "cancel": "run", "measure": "prediction", "preset": "keys", "num_keys": "keys", "undo": "keys", "redo": "keys",
    "share": "files", "gallery": "files",
    "save": "files", "load": "files", "export": "runs", "restore": "runs", "clear": "runs", "race": "race",
}  # fmt: skip


def answer(lab: Any, content: Any) -> None:
    """Do what a message asks for. An error becomes a sentence on the page, never an exception in the kernel's loop."""
    if not isinstance(content, dict) or not isinstance(content.get("action"), str):
        return
    action = _actions(lab, content).get(content["action"])
    if action is not None:
        lab.problem, lab.said = {}, {}
        try:
            action()
        except Exception as error:
            lab.tell(error, "" if isinstance(error, ValueError | OSError) else traceback.format_exc(), WHERE[content["action"]])
    lab.hear(content.get("beat"))


def _actions(lab: Any, content: dict[str, Any]) -> dict[str, Callable[[], object]]:
    replace = content.get("replace") is True
    return {
        "run": lambda: lab.is_running or lab.start(content.get("seeds", 1)),  # a second click on Run asks for nothing more
        "cancel": lab.cancel,
        "measure": lambda: lab.is_running or lab.measure_ceiling(),
        "race": lambda: lab.is_running or lab.start_race(),
        "preset": lambda: lab.use_preset(content.get("name")),
        "num_keys": lambda: lab.use_num_keys(content.get("value"), content.get("gesture")),
        "undo": lab.undo,
        "redo": lab.redo,
        "save": lambda: lab.save(beside_notebook(content.get("path")), replace=replace),
        "share": lambda: lab.share(beside_notebook(content.get("path")), replace=replace),
        "gallery": lambda: lab.show_gallery(beside_notebook(content.get("path"))),
        "export": lambda: lab.export(beside_notebook(content.get("path")), replace=replace),
        "load": lambda: _load(lab, content),
        "restore": lambda: lab.restore(content.get("run")),
        "clear": lab.clear,
    }


def _load(lab: Any, content: dict[str, Any]) -> None:
    found, name = uploaded(content), str(content.get("name"))[:80]
    if isinstance(found, Shared):
        lab.take(found)
        lab.said = {"where": "files", "text": f"Loaded {name}: {found.challenge()}"}
    else:
        lab.schedule = found
        lab.said = {"where": "files", "text": f"Loaded {name}: {lab.schedule}"}
