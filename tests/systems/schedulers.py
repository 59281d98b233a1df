"""Stable Diffusion with schedulers beyond the nine of tests/test_serial_is_parallel.py, and pipelines of few steps."""

from __future__ import annotations

from typing import Any

from diffusers import LatentConsistencyModelPipeline

from .base import System, done, given
from .parts import SIZE, UNET, scheduler
from .stable_diffusion import LATENT, OTHER_TEXT, sdxl, stable_diffusion

OTHERS = "Schedulers beyond the nine of `fastdiff_lab.pipelines.SCHEDULERS`"
FEW = "Few steps: it works, and a warning says that nothing is gained"


def _ddim(pipe: Any) -> None:
    pipe.scheduler = scheduler()


def _row(
    name: str,
    title: str,
    kind: str,
    calls: int = 6,
    keys: tuple[int, ...] = (0, 2),
    close: float = 1e-10,
    note: str = "",
    **options: Any,
) -> System:
    features = {"scheduler": done(_ddim)} | OTHER_TEXT
    return System(
        name, f"Stable Diffusion, {title}", lambda: stable_diffusion(scheduler=scheduler(kind, **options)), LATENT, features,
        calls, keys, close=close, note=note, group=OTHERS,
    )  # fmt: skip


def latent_consistency() -> Any:
    """Guidance is embedded with the time-step, so the UNet sees no unconditional rows."""
    return stable_diffusion(
        LatentConsistencyModelPipeline,
        UNET | {"time_cond_proj_dim": 6},
        scheduler=scheduler("LCMScheduler", original_inference_steps=50),
    )


def turbo() -> Any:
    return sdxl(scheduler=scheduler("EulerAncestralDiscreteScheduler", timestep_spacing="trailing"))


SYSTEMS = (
    _row("ddpm-sampler", "DDPM", "DDPMScheduler"),
    _row("deis", "DEIS", "DEISMultistepScheduler"),
    _row("dpm-single", "DPM-Solver++ single-step", "DPMSolverSinglestepScheduler"),
    _row("dpm-sde", "DPM-Solver++ SDE, multistep", "DPMSolverMultistepScheduler", algorithm_type="sde-dpmsolver++"),
    _row("dpm-torchsde", "DPM-Solver++ SDE (torchsde)", "DPMSolverSDEScheduler", 11, (0, 4), noise_sampler_seed=0, close=1e-5),
    _row("kdpm2-ancestral", "KDPM2-ancestral", "KDPM2AncestralDiscreteScheduler", 11, (0, 4), close=1e-5),
    _row("karras", "DPM-Solver++ with Karras sigmas", "DPMSolverMultistepScheduler", use_karras_sigmas=True),
    _row("euler-karras", "Euler with Karras sigmas", "EulerDiscreteScheduler", use_karras_sigmas=True, close=1e-5),
    System(
        "lcm", "Latent consistency models, 4 steps", latent_consistency,
        {"prompt": "a red circle", "num_inference_steps": 4, "guidance_scale": 8.0, "output_type": "latent", **SIZE},
        OTHER_TEXT | {"embedded guidance": given(guidance_scale=1.0)}, calls=4, group=FEW,
    ),
    System(
        "turbo", "SDXL Turbo, 4 steps without guidance", turbo,
        LATENT | {"guidance_scale": 0.0, "num_inference_steps": 4, "negative_prompt": None},
        OTHER_TEXT, calls=4, close=1e-5, group=FEW,
    ),
)  # fmt: skip
