"""Settings, key steps and results as JSON that others drop into their lab.

- `as_shared(settings, acceleration, psnr)`: the text
- `from_shared(source, place)`: a `Shared` again, from its text or file
- `gallery(folder)`: what is shared in a folder
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ...inputs.files import read_json
from ...key_schedule import KeySchedule
from .settings import Acceleration, Settings, keys_text

SCHEMA, VERSION = "fastdiff_lab.LabSettings", 1
MOST = 50  # files of a gallery


@dataclass(frozen=True)
class Shared:
    """What someone shared: `psnr` in dB, of the run that was made with it; None if there was none or its images were identical."""

    settings: Settings
    acceleration: Acceleration
    psnr: float | None

    def challenge(self) -> str:
        """What there is to beat, in words."""
        keys = keys_text(len(self.acceleration.schedule.keys))
        return keys if self.psnr is None else f"{keys}, {self.psnr:.1f} dB. Can you beat it with as many keys?"


def as_shared(settings: Settings, acceleration: Acceleration, psnr: float | None) -> str:
    """The JSON text.

    >>> text = as_shared(Settings("a red ring"), Acceleration(KeySchedule(3, (0, 2))), 30.1)
    >>> from_shared(text, "a text").challenge()
    '2 keys, 30.1 dB. Can you beat it with as many keys?'
    """
    options = {name: getattr(acceleration, name) for name in ("reuse", "order", "prior_noise", "prior_start")}
    known = None if psnr is None or not math.isfinite(psnr) else psnr
    document = {"schema": SCHEMA, "version": VERSION, "settings": asdict(settings), "options": options}
    return json.dumps(document | {"schedule": str(acceleration.schedule), "psnr": known}, indent=1)


def from_shared(source: str | Path, place: str) -> Shared:
    """Read a text or file of `as_shared`; `place` names it in errors. Raises ValueError for anything else, also for one too large."""
    fields = read_json(source, place, SCHEMA, VERSION)
    try:
        return _parsed(fields)
    except (TypeError, KeyError) as error:
        raise ValueError(f"{place} lacks a part of the lab's settings ({error}); accepted: a file that Share wrote") from None


def _parsed(fields: dict[str, Any]) -> Shared:
    psnr = fields["psnr"]
    if psnr is not None and not (isinstance(psnr, int | float) and math.isfinite(psnr)):
        raise ValueError(f"psnr={str(psnr)[:80]!r} given; accepted: a number of dB, or null")
    acceleration = Acceleration(KeySchedule.parse(fields["schedule"]), **fields["options"])
    return Shared(Settings(**fields["settings"]), acceleration, psnr)


def gallery(folder: Path) -> list[dict[str, str]]:
    """Name, words and text of each shared file in a folder, by name; others are left out. Raises FileNotFoundError without a folder."""
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {str(folder)!r}; accepted: one with files that Share wrote")
    found = []
    for path in sorted(folder.glob("*.json"))[:MOST]:
        try:
            shared = from_shared(path, path.name)
        except (ValueError, OSError):
            continue
        text = as_shared(shared.settings, shared.acceleration, shared.psnr)
        found.append({"name": path.name, "words": f"{shared.settings.prompt[:60]}: {shared.challenge()}", "text": text})
    return found
