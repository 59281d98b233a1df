"""Tables: one row per image, and their summary by method."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from ..hooks.fingerprint import in_words
from ..shapes.judge import prompt_accuracy
from ..shapes.scenes import parse_caption
from .fidelity import fidelity, interval, mean_psnr, typical_psnr
from .render import Task
from .result_store import Result

if TYPE_CHECKING:
    from .image_quality.scores import Quality

Read = Callable[[str, Sequence[Task]], list[Result]]  # the results of a method for some tasks

BASELINE, REFERENCE = "baseline", "reference"
OF_IMAGES = {"clip_score": "min", "lpips": "max"}  # per-image quality, and which value is the worst
OF_METHODS = ("fid", "kid", "kid_std")
_AT_ONCE = 64  # decoded images of a method at once; ten thousand of 512x512 pixels take 8 GB


def image_rows(read: Read, methods: Sequence[str], tasks: Sequence[Task], quality: Quality | None = None) -> pd.DataFrame:
    """One row per method and task: counts, fidelity to the baseline (and to the reference, if it is a method), quality.

    >>> image_rows(lambda method, tasks: store.read(keys_of(method, tasks)), ["baseline", "paper"], tasks)  # doctest: +SKIP

    `read` gives the results of a method for a few tasks. `fid`, `kid` and `kid_std` belong to all images of a method, and stand in each row.
    """
    judged = _are_captions(tasks)
    with tqdm(desc="measuring", total=len(methods) * len(tasks), leave=False) as bar:
        return pd.concat(
            [_of_method(read, name, methods, tasks, quality, judged, bar) for name in methods if name != REFERENCE],
            ignore_index=True,
        )


def _of_method(
    read: Read, name: str, methods: Sequence[str], tasks: Sequence[Task], quality: Quality | None, judged: bool, bar: tqdm
) -> pd.DataFrame:
    tables, features = [], []
    for start in range(0, len(tasks), _AT_ONCE):
        part = tasks[start : start + _AT_ONCE]
        mine = read(name, part)
        others = {prefix: read(other, part) for other, prefix in ((BASELINE, ""), (REFERENCE, "reference_")) if other in methods}
        tables.append(_rows(name, part, mine, others, quality, judged))
        if quality is not None:
            features.append(quality.features([result.image for result in mine]))
        bar.update(len(part))
    of_method = {} if quality is None else quality.of_set(_joined(features))
    return pd.concat(tables, ignore_index=True).assign(**of_method)


def _joined(features: Sequence[torch.Tensor | None]) -> torch.Tensor | None:
    found = [part for part in features if part is not None]
    return torch.cat(found) if found else None


def _rows(
    name: str, tasks: Sequence[Task], mine: list[Result], others: dict[str, list[Result]], quality: Quality | None, judged: bool
) -> pd.DataFrame:
    table = pd.DataFrame(
        {"method": name, "prompt": [in_words(task.prompt) for task in tasks], "seed": [task.seed for task in tasks]}
    )
    table = table.join(pd.DataFrame([{n: r.counts[n] for n in ("encoder_calls", "decoder_calls", "forward_calls")} for r in mine]))
    for prefix, other in others.items():
        table = table.join(_nearness(mine, other).add_prefix(prefix))
    if quality is not None:
        images, baseline = ([result.image for result in results] for results in (mine, others[""]))
        table = table.join(quality.of_images(images, baseline, [task.prompt for task in tasks]))
    is_square = all(result.image.width == result.image.height for result in mine)  # frames of a video stand one above the other
    return table.assign(prompt_accuracy=_accuracy(mine, tasks) if judged and is_square else np.nan)


def _are_captions(tasks: Sequence[Task]) -> bool:
    """Whether the judge can read all prompts as captions of scenes."""
    try:
        return all(isinstance(task.prompt, str) and parse_caption(task.prompt) for task in tasks)
    except ValueError:
        return False


def _nearness(mine: list[Result], other: list[Result]) -> pd.DataFrame:
    near = fidelity([result.image for result in mine], [result.image for result in other])
    return near.assign(
        latent_mse=[float((a.latent.float() - b.latent.float()).square().mean()) for a, b in zip(mine, other, strict=True)]
    )


def _accuracy(results: list[Result], tasks: Sequence[Task]) -> pd.Series:
    try:
        right = prompt_accuracy([result.image for result in results], [task.prompt for task in tasks])["all"]
    except FileNotFoundError:  # installed without the judge
        return pd.Series(np.nan, index=range(len(tasks)))
    return right.astype(float)


def summarised(images: pd.DataFrame) -> pd.DataFrame:
    """One row per method from `compare_images`: means, worst cases and 95 % bootstrap intervals over prompts and seeds.

    >>> summarised(compare_images(pipe, methods, prompts))  # doctest: +SKIP
    """
    rows = {name: _summary(group) for name, group in images.groupby("method", sort=False)}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("method")


def _summary(rows: pd.DataFrame) -> dict[str, float]:
    found = {name: float(rows[name].mean()) for name in ("encoder_calls", "decoder_calls", "forward_calls")}
    for prefix in ("", "reference_"):
        if f"{prefix}mse" not in rows:
            continue
        low, high = interval(rows[f"{prefix}mse"], mean_psnr)
        found |= {f"{prefix}psnr": mean_psnr(rows[f"{prefix}mse"]), f"{prefix}psnr_worst": rows[f"{prefix}psnr"].min()}
        found |= {
            f"{prefix}psnr_low": low,
            f"{prefix}psnr_high": high,
            f"{prefix}psnr_typical": typical_psnr(rows[f"{prefix}psnr"]),
        }
        found |= _spread(rows, f"{prefix}ssim", "min") | _spread(rows, f"{prefix}latent_mse", "max")
    for name, worst in OF_IMAGES.items():
        found |= _spread(rows, name, worst) if name in rows else {}
    of_method = {name: float(rows[name].iloc[0]) for name in OF_METHODS if name in rows}
    return found | of_method | {"prompt_accuracy": rows["prompt_accuracy"].mean(), "images": len(rows)}


def _spread(rows: pd.DataFrame, name: str, worst: str) -> dict[str, float]:
    """Mean, worst value ("min" or "max") and interval of a column."""
    low, high = interval(rows[name])
    return {name: rows[name].mean(), f"{name}_worst": getattr(rows[name], worst)(), f"{name}_low": low, f"{name}_high": high}
