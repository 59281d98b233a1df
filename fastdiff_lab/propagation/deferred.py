"""Comparisons whose outcome is read later: on a device, each look at a value would make the host wait.

- `Later`: what is compared in one run, and read when it ends
"""

from __future__ import annotations

import torch
from torch import Tensor


class Later:
    """Comparisons of arguments that a pipeline makes anew at every step (T2I-Adapter's features, latent diffusion's text).

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
        self.open: list[tuple[str, int, Tensor]] = []

    def is_same(self, name: str, step: int, equal: list[Tensor]) -> bool:
        """Are these all true? An argument that was equal though another object once is taken to be so again, until the run ends."""
        told = torch.stack(equal).all()
        if name in self.made_anew:
            self.open.append((name, step, told))
            return True
        if bool(told):
            self.made_anew.add(name)
            return True
        return False

    def at_end(self) -> list[tuple[Tensor, ValueError]]:
        """What is open when the run ends, for `read_checks`."""
        waiting, self.open = self.open, []
        return [(~equal, _changed(name, step)) for name, step, equal in waiting]


def _changed(name: str, step: int) -> ValueError:
    return ValueError(
        f"step {step}: its {name} is another than at the key step before. This was seen when the run ended, as a device is not read at "
        f"every step; make step {step} a key step, and with order=1 keep {name} the same in the whole run"
    )
