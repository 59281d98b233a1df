"""Every system of the paper and of its users: `SYSTEMS`, the one list that tests and docs/systems.md read."""

from . import deepfloyd, latent, personal, schedulers, stable_diffusion, steered, video
from .base import System

SYSTEMS: tuple[System, ...] = (
    *stable_diffusion.SYSTEMS,
    *deepfloyd.SYSTEMS,
    *steered.SYSTEMS,
    *video.SYSTEMS,
    *latent.SYSTEMS,
    *personal.SYSTEMS,
    *schedulers.SYSTEMS,
)
