"""Answer the messages of the lab's page."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import Any

from .session_files import uploaded_schedule


def answer(lab: Any, content: Any) -> None:
    """Do what a message asks for. An error becomes a sentence on the page, never an exception in the kernel's loop."""
    if not isinstance(content, dict) or not isinstance(content.get("action"), str):
        return
    actions: dict[str, Callable[[], object]] = {
        "run": lab.start,
        "cancel": lab.cancel,
        "measure": lab.measure_ceiling,
        "preset": lambda: lab.use_preset(content.get("name")),
        "num_keys": lambda: lab.use_num_keys(content.get("value")),
        "save": lambda: lab.save(content.get("path")),
        "export": lambda: lab.export(content.get("path")),
        "load": lambda: _load(lab, content),
        "restore": lambda: lab.restore(content.get("run")),
        "clear": lab.clear,
    }
    action = actions.get(content["action"])
    if action is None:
        return
    try:
        lab.problem = {}
        action()
    except Exception as error:
        lab.tell(error, traceback.format_exc())


def _load(lab: Any, content: dict[str, Any]) -> None:
    lab.schedule = uploaded_schedule(content)
    lab.said = f"Loaded {str(content.get('name'))[:80]}: {lab.schedule}"
