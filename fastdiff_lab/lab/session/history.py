"""The runs of a session as a table."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from ...inputs.files import write_text
from .paired_run import ACCELERATED, BASELINE, Pair
from .prediction import Prediction
from .settings import Acceleration, Settings

IDENTICAL = 100.0  # dB that identical images count as in a mean

COLUMNS = (
    "run", "prompt", "seed", "scheduler", "steps", "guidance_scale", "keys", "schedule", "source", "reuse", "order", "prior_noise",
    "prior_start", "encoder_calls", "forward_calls", "gflops", "seconds_baseline", "seconds", "ratio", "psnr", "ssim", "latent_error",
    "predicted_error", "prompt_right_baseline", "prompt_right",
)  # fmt: skip


class History:
    """The runs so far, in their order.

    >>> history = History(); history.add(pair, prediction); history.table()[["keys", "psnr", "ratio"]]  # doctest: +SKIP
    """

    def __init__(self) -> None:
        self.pairs: list[Pair] = []
        self.rows: list[dict] = []

    def add(self, pair: Pair, prediction: Prediction) -> dict:
        """Add a run and return its row."""
        row = {"run": len(self.rows) + 1} | _of_settings(pair) | _of_results(pair, prediction)
        self.pairs.append(pair)
        self.rows.append(row)
        return row

    def table(self, after: int = 0) -> pd.DataFrame:
        """One row per run: its settings, its cost, and its fidelity to the baseline.

        `psnr` is in dB, infinite for identical images. `latent_error` and `predicted_error` are root mean squares of a value of the
        final latents. `ratio` is seconds of the baseline by seconds accelerated; `gflops` counts 2 per multiply-add. `after` leaves
        out the first runs.
        """
        return pd.DataFrame(self.rows[after:], columns=list(COLUMNS))

    def psnr_of(self, settings: Settings, acceleration: Acceleration) -> float | None:
        """The PSNR of the last run with these settings, in dB; None without one."""
        found = [pair.psnr for pair in self.pairs if (pair.settings, pair.acceleration) == (settings, acceleration)]
        return found[-1] if found else None

    def worst_of(self, count: int) -> str:
        """Mean and smallest PSNR of the last runs, in words."""
        values = {pair.settings.seed: min(pair.psnr, IDENTICAL) for pair in self.pairs[-count:]}
        worst = min(values, key=lambda seed: values[seed])
        return (
            f"{count} runs: PSNR {sum(values.values()) / count:.1f} dB on average, {values[worst]:.1f} dB at worst (seed {worst})."
        )

    def save(self, path: str | Path, after: int = 0) -> None:
        """Write the table as CSV, whole or not at all."""
        write_text(Path(path), self.table(after).to_csv(index=False))


def _of_settings(pair: Pair) -> dict:
    settings, acceleration = pair.settings, pair.acceleration
    return {
        "prompt": settings.prompt, "seed": settings.seed, "scheduler": settings.scheduler, "steps": settings.num_inference_steps,
        "guidance_scale": settings.guidance_scale, "keys": len(acceleration.schedule.keys), "schedule": str(acceleration.schedule),
        "source": acceleration.schedule.source, "reuse": acceleration.reuse, "order": acceleration.order,
        "prior_noise": acceleration.prior_noise, "prior_start": acceleration.prior_start,
    }  # fmt: skip


def _of_results(pair: Pair, prediction: Prediction) -> dict:
    right = pair.prompt_right or {}
    return {
        "encoder_calls": pair.accelerated.counts.encoder_calls, "forward_calls": pair.accelerated.counts.forward_calls,
        "gflops": prediction.gflops, "seconds_baseline": pair.baseline.seconds, "seconds": pair.accelerated.seconds,
        "ratio": pair.baseline.seconds / pair.accelerated.seconds, "psnr": pair.psnr, "ssim": pair.ssim,
        "latent_error": pair.latent_error, "predicted_error": prediction.error, "prompt_right_baseline": right.get(BASELINE),
        "prompt_right": right.get(ACCELERATED),
    }  # fmt: skip
