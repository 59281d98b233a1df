"""Checks whose outcome is read later: on a device, each look at a value would make the host wait.

- `Later`: what is checked in one run, and read when it ends
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..hooks.run_tracking import time_step_value


class Later:
    """Checks of values (are they finite?) and of arguments that a pipeline makes anew at every step (latent diffusion's text).

    >>> later = Later()
    >>> later.is_same("class_labels", 1, [torch.tensor(True)])  # the first time it is read: most changes show here
    True
    >>> later.is_same("class_labels", 2, [torch.tensor(False)])  # from now on, at the end
    True
    >>> [str(error).partition(".")[0] for _, error in later.at_end()]
    ['step 2: its class_labels is another than at the key step before']
    """

    def __init__(self) -> None:
        self.made_anew: set[str] = set()
        self.open: list[tuple[Tensor, ValueError]] = []

    def is_same(self, name: str, step: int, equal: list[Tensor]) -> bool:
        """Are these all true? An argument that was equal though another object once is taken to be so again, until the run ends."""
        told = torch.stack(equal).all()
        if name in self.made_anew:
            self.open.append((~told, _changed(name, step)))
            return True
        if bool(told):
            self.made_anew.add(name)
            return True
        return False

    def check_finite(self, found: Tensor, step: int, timestep: Any, what: str = "latents", does: str = "gets") -> None:
        """Raises ValueError for NaN or infinite values: at once on the CPU, where looking costs nothing; else when the run ends."""
        if found.device.type == "meta":
            return
        is_astray = ~found.isfinite().all()
        if found.device.type != "cpu":
            self.open.append((is_astray, _astray(what, f"step {step}", does)))
        elif is_astray:
            raise _astray(what, f"step {step} (time-step {time_step_value(timestep)})", does)

    def at_end(self) -> list[tuple[Tensor, ValueError]]:
        """What is open when the run ends, for `read_checks`."""
        waiting, self.open = self.open, []
        return waiting


def _changed(name: str, step: int) -> ValueError:
    return ValueError(
        f"step {step}: its {name} is another than at the key step before. This was seen when the run ended, as a device is not read at "
        f"every step; make step {step} a key step, and with order=1 keep {name} the same in the whole run"
    )


def _astray(what: str, step: str, does: str) -> ValueError:
    return ValueError(f"the {what} that {step} {does} hold NaN or infinite values")
