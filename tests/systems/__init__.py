"""Every system of the paper and of its users: `SYSTEMS`, the one list that tests and docs/systems.md read."""

from typing import Any

from . import deepfloyd, images, latent, personal, schedulers, sound, stable_diffusion, steered, video
from .base import System

SYSTEMS: tuple[System, ...] = (
    *stable_diffusion.SYSTEMS,
    *deepfloyd.SYSTEMS,
    *steered.SYSTEMS,
    *video.SYSTEMS,
    *latent.SYSTEMS,
    *images.SYSTEMS,
    *sound.SYSTEMS,
    *personal.SYSTEMS,
    *schedulers.SYSTEMS,
)
ROWS = {system.name: system for system in SYSTEMS}
# A system of each kind: UNets with and without text, SDXL's, a video's, a transformer, a ControlNet; serial, several runs, few steps. The
# short suite runs the laws over these, the long one over all others (tests/test_systems.py checks that no kind is missing).
KINDS = ("sd", "sdxl-ends-early", "controlnet-part", "text2video-zero", "text-to-video", "ddim", "dit", "lcm")
# What belongs to one prompt, to the number of steps or to guidance is given by `calibrate` and `compare`.
_GIVEN = {
    "prompt", "negative_prompt", "num_images_per_prompt", "num_inference_steps", "guidance_scale", "class_labels", "batch_size",
}  # fmt: skip


def options_of(name: str) -> dict[str, Any]:
    """The further arguments of a system's call, for the `pipe_kwargs` of `calibrate` and `compare`."""
    return {key: value for key, value in ROWS[name].call.items() if key not in _GIVEN}
