"""Measure again what was tried, as tables: `python -m studies.ablation`.

- `extrapolations(pipe, schedules, ...)`: axis, damping, order 2, skips or bottleneck only, at given schedules
- `predicted_and_real(pipe, costs, ...)`: how well costs of single spans rank real runs of random schedules
- `stability(costs, num_keys)`: how far keys move with the calibrated images
- `transfer(costs, num_keys)`: how far keys move with the settings, and what foreign keys cost
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import pandas as pd
import torch
import typer
from tqdm import tqdm

from fastdiff_lab.calibration.derive import derive_schedule, group_costs
from fastdiff_lab.calibration.refine import final_errors
from fastdiff_lab.calibration.replay import Call, seen
from fastdiff_lab.calibration.reuse_costs import ReuseCosts
from fastdiff_lab.hooks.peak_memory import peak_bytes
from fastdiff_lab.inputs.files import write_whole
from fastdiff_lab.key_schedule import KeySchedule
from fastdiff_lab.pipelines import EMBEDDED_GUIDANCE, load_pipeline
from fastdiff_lab.propagation.extrapolation import Extrapolation
from fastdiff_lab.sampling.run_settings import RunSettings
from fastdiff_lab.shapes.data import calibration_scenes

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


TRIED = {
    "reused": Extrapolation(0), "order 1": Extrapolation(1), "order 1, log-SNR axis": Extrapolation(1, axis="log_snr"),
    "order 1, damping 0.75": Extrapolation(1, damping=0.75), "order 1, damping 0.5": Extrapolation(1, damping=0.5),
    "order 1, skips only": Extrapolation(1, parts="skips"), "order 1, bottleneck only": Extrapolation(1, parts="bottleneck"),
    "order 2": Extrapolation(2),
}  # fmt: skip


def _call(prompts: Sequence[str], num_inference_steps: int, guidance_scale: float | None) -> Call:
    return Call(tuple(prompts), tuple(range(len(prompts))), RunSettings(num_inference_steps, guidance_scale).arguments())


def extrapolations(
    pipe: DiffusionPipeline,
    schedules: Mapping[str, KeySchedule],
    prompts: Sequence[str],
    *,
    num_inference_steps: int = 50,
    guidance_scale: float | None = None,
) -> pd.DataFrame:
    """Run each way of extrapolating at each schedule, on the same images.

    >>> extrapolations(pipe, {"uniform 13": KeySchedule.uniform(50, 13)}, prompts)  # doctest: +SKIP

    Returns columns schedule, what, extrapolation; latent_mse (mean over images), typical (geometric mean), worst;
    peak_bytes (of all tensors but the weights, decoding serially; features only).
    """
    trajectory = seen(pipe, _call(prompts, num_inference_steps, guidance_scale), next(iter(schedules.values())).num_steps)
    alone = seen(pipe, _call(prompts[:1], num_inference_steps, guidance_scale), trajectory.num_steps)
    rows = []
    tried = [
        (n, s, w, x)
        for n, s in schedules.items()
        for w in ("encoder", "prediction")
        for x in TRIED
        if w == "encoder" or "only" not in x
    ]
    for name, schedule, reuse, how in tqdm(tried, desc="extrapolations", leave=False):
        errors = final_errors(pipe, trajectory, schedule, order=TRIED[how], reuse=reuse, max_rows=_rows(reuse, 120)).numpy()
        row = {"schedule": name, "reuse": reuse, "extrapolation": how, "latent_mse": errors.mean(), "worst": errors.max()}
        if reuse == "encoder":
            with peak_bytes() as peak:
                final_errors(pipe, alone, schedule, order=TRIED[how], max_rows=2)
            row["peak_bytes"] = peak.bytes
        rows.append(row | {"typical": np.exp(np.log(np.maximum(errors, 1e-12)).mean())})
    return pd.DataFrame(rows)


def _rows(reuse: str, rows: int) -> int | None:
    return rows if reuse == "encoder" else None


def random_schedules(num_steps: int, count: int, max_span: int) -> Iterator[KeySchedule]:
    """Schedules of 7 to 17 keys with groups of up to `max_span` steps, from even to crowded at one end."""
    rng = np.random.default_rng(0)
    while count:
        keys = int(rng.integers(min(7, num_steps), min(17, num_steps) + 1))
        spread = (np.arange(1, keys) + rng.uniform(-0.3, 0.3, keys - 1)) / keys
        places = {0, *np.clip(np.round(num_steps * spread ** rng.uniform(0.7, 1.8)), 1, num_steps - 1).astype(int).tolist()}
        schedule = KeySchedule(num_steps, tuple(sorted(places)))
        if max(len(group) for group in schedule.groups()) <= max_span:
            count -= 1
            yield schedule


def predicted_and_real(
    pipe: DiffusionPipeline,
    costs: ReuseCosts,
    prompts: Sequence[str],
    *,
    count: int = 30,
    num_inference_steps: int = 50,
    guidance_scale: float | None = None,
) -> pd.DataFrame:
    """Real errors of random schedules, beside those predicted from the costs of single spans.

    >>> table = predicted_and_real(pipe, costs, prompts)  # doctest: +SKIP
    >>> table.groupby("power")[["predicted", "real"]].corr(method="spearman")  # doctest: +SKIP

    `prompts` are the first of those that were calibrated on, with the same seeds. Returns columns schedule, image, power,
    predicted, real (the norm of the final latents' difference). Power 2 is the root of the sum of squares, power 1 the sum of norms.
    """
    trajectory = seen(pipe, _call(prompts, num_inference_steps, guidance_scale), costs.num_steps)
    images = [costs.subset([place]) for place in range(len(prompts))]
    size = trajectory.samples[0][0].numel()
    reuse, rows = str(costs.measured_on["reuse"]), []
    for schedule in tqdm(list(random_schedules(costs.num_steps, count, costs.max_span)), desc="random schedules", leave=False):
        real = (final_errors(pipe, trajectory, schedule, order=costs.order, reuse=reuse, max_rows=_rows(reuse, 120)) * size).sqrt()
        for place, alone in enumerate(images):
            groups = np.array(group_costs(alone, schedule))
            for power in (1, 2):
                predicted = float((groups ** (power / 2)).sum() ** (1 / power))
                rows.append(
                    {
                        "schedule": str(schedule),
                        "image": place,
                        "power": power,
                        "predicted": predicted,
                        "real": float(real[place]),
                    }
                )
    return pd.DataFrame(rows)


def _error(costs: ReuseCosts, schedule: KeySchedule) -> float:
    """The predicted error: the root of the sum of the groups' costs."""
    return float(sum(group_costs(costs, schedule)) ** 0.5)


def stability(costs: ReuseCosts, num_keys: int, sizes: Sequence[int] = (1, 4, 16)) -> pd.DataFrame:
    """Measure how far derived keys move with the calibrated images, and what that costs on all images.

    >>> stability(costs, 9)  # doctest: +SKIP

    Returns one row per disjoint part of each size: images, part, schedule; moved (mean distance of its keys to those of all
    images); predicted_error on all images, best (the error of the schedule from all).
    """
    whole = derive_schedule(costs, num_keys)
    best = _error(costs, whole)
    rows = []
    for size in (size for size in sizes if size <= costs.num_images):
        for part in range(min(4, costs.num_images // size)):
            schedule = derive_schedule(costs.subset(list(range(part * size, (part + 1) * size))), num_keys)
            moved = np.abs(np.subtract(schedule.keys, whole.keys)).mean()
            error = _error(costs, schedule)
            rows.append(
                {"images": size, "part": part, "schedule": str(schedule), "moved": moved, "predicted_error": error, "best": best}
            )
    return pd.DataFrame(rows)


def transfer(costs: Mapping[str, ReuseCosts], num_keys: int) -> pd.DataFrame:
    """Measure what keys derived under one setting cost under another, for each pair of costs.

    >>> transfer({"guidance 2": costs_at_2, "guidance 5": costs_at_5}, 9)  # doctest: +SKIP

    Returns columns derived_at, used_at, schedule; moved (mean distance of its keys to those derived where it is used);
    predicted_error where it is used, best (the error of the schedule derived there).
    """
    schedules = {name: derive_schedule(given, num_keys) for name, given in costs.items()}
    rows = []
    for derived, used in product(costs, costs):
        own, schedule = schedules[used], schedules[derived]
        best, error = (_error(costs[used], keys) for keys in (own, schedule))
        moved = np.abs(np.subtract(schedule.keys, own.keys)).mean()
        row = {"derived_at": derived, "used_at": used, "schedule": str(schedule), "moved": moved}
        rows.append(row | {"predicted_error": error, "best": best})
    return pd.DataFrame(rows)


def _by_guidance(costs: Sequence[ReuseCosts]) -> dict[str, ReuseCosts]:
    """By guidance scale, each with as many images as the smallest has."""
    fewest = min(given.num_images for given in costs)
    return {f"guidance {given.measured_on['guidance_scale']:g}": given.subset(list(range(fewest))) for given in costs}


def main(
    folder: Annotated[Path, typer.Argument(help="Folder with costs by reuse and order, such as encoder-1.safetensors.")],
    output: Annotated[Path, typer.Option(help="Folder for the tables.")],
    count: Annotated[int, typer.Option(help="Random schedules per file of costs.")] = 30,
    images: Annotated[int, typer.Option(help="Images to draw for each.")] = 4,
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 2,
    other_costs: Annotated[
        list[Path] | None, typer.Option(help="Costs at another guidance scale, order 0; repeat for several.")
    ] = None,
) -> None:
    """Measure the ablation on the embedded pipeline (DDIM, 50 steps, guidance 5) and write its tables."""
    torch.set_num_threads(threads)
    pipe, prompts = load_pipeline(), [scene.caption() for scene in calibration_scenes(images)]
    files = {path.stem: ReuseCosts.load(path) for path in sorted(folder.glob("*.safetensors"))}
    schedules = {f"uniform {keys}": KeySchedule.uniform(50, keys) for keys in (9, 17)}
    schedules |= {f"derived {keys}": derive_schedule(files["encoder-1"], keys) for keys in (9, 17)}
    schedules = {name: KeySchedule(50, schedule.keys) for name, schedule in schedules.items()}
    _write(extrapolations(pipe, schedules, prompts, guidance_scale=EMBEDDED_GUIDANCE), output / "extrapolations.csv")
    moved = {name: stability(costs, keys) for name, costs in files.items() for keys in (9,)}
    _write(pd.concat(moved, names=["costs"]).reset_index("costs"), output / "stability.csv")
    others = _by_guidance([files["encoder-0"], *map(ReuseCosts.load, other_costs or [])])
    _write(pd.concat([transfer(others, keys).assign(num_keys=keys) for keys in (9, 17)]), output / "guidance.csv")
    of_run: dict[str, Any] = {"count": count, "guidance_scale": EMBEDDED_GUIDANCE}
    ranks = {name: predicted_and_real(pipe, costs, prompts, **of_run) for name, costs in files.items() if name != "prediction-0"}
    _write(pd.concat(ranks, names=["costs"]).reset_index("costs"), output / "predicted_and_real.csv")


def _write(table: pd.DataFrame, path: Path) -> None:
    write_whole(path, lambda place: table.to_csv(place, index=False, float_format="%.6g"))
    typer.echo(f"{path}\n{table.to_string(index=False) if len(table) < 60 else ''}")


if __name__ == "__main__":
    typer.run(main)
