"""Every system of the paper and of its users: `SYSTEMS`, the one list that tests and docs/systems.md read."""

from . import stable_diffusion, steered
from .base import System

SYSTEMS: tuple[System, ...] = (*stable_diffusion.SYSTEMS, *steered.SYSTEMS)
