"""Measure the rows of the paper's Table 1 for a sampler, beside our schedules: `python -m studies.table_1 --help`.

- `table_methods(sampler, calls, schedules)`: the methods by name
- `table_1(pipe, sampler, tasks, ...)`: costs and quality of the methods, beside the published numbers
- `PUBLISHED`: the paper's numbers, measured on its authors' machine
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import pandas as pd
import torch
import typer

from fastdiff_lab.comparison.compare import compare_tasks, with_costs
from fastdiff_lab.comparison.environment import about_run
from fastdiff_lab.comparison.image_quality.scores import METRICS, Quality, quality_of
from fastdiff_lab.comparison.tables import BASELINE
from fastdiff_lab.hooks.denoiser import denoiser_of
from fastdiff_lab.inputs.files import writable_folder, write_text, write_whole
from fastdiff_lab.key_schedule import KeySchedule
from fastdiff_lab.pipelines import load_pipeline
from fastdiff_lab.sampling.methods import Method, denoiser_calls
from fastdiff_lab.sampling.run_settings import RunSettings

from .captions import read_captions
from .suite.suite_methods import DEEPCACHE_INTERVALS, PRIOR_NOISE

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


STEPS = {"ddim": 50, "dpm-solver++": 20}
TOKENS_MERGED = 0.5  # tomesd's own ratio; the paper states none
# CLIPScore as in its authors' code, which the paper used: 2.5 times the cosine, with these words before each caption.
CLIP_WEIGHT, CLIP_PREFIX = 2.5, "A photo depicts "


@dataclass(frozen=True)
class Published:
    """A row of the paper: FID, CLIPScore, multiply-adds in 1e9 and seconds per image (one A40), and its source."""

    paper_fid: float
    paper_clip: float
    paper_gmacs: float | None
    paper_seconds: float | None
    paper_source: str


PUBLISHED = {
    "ddim": {
        BASELINE: Published(21.75, 0.773, 37050, 2.42, "Table 1"),
        "fewer steps (25)": Published(22.16, 0.761, None, 1.54, "Table 11"),
        "fewer steps (9)": Published(27.58, 0.735, None, 0.96, "Table 11"),
        "uniform 25": Published(21.55, 0.775, 31011, 1.81, "Table 5, uniform I"),
        "uniform 9": Published(21.54, 0.773, 27350, 1.46, "Table 5, uniform II"),
        "paper's 9": Published(21.71, 0.779, None, None, "Table 6"),
        "paper's 9, prior noise": Published(21.08, 0.783, 27350, 1.42, "Table 1"),
        "token merging": Published(22.32, 0.782, 35123, 2.26, "Table 1"),
        "token merging, paper's 9, prior noise": Published(20.73, 0.781, 26053, 1.33, "Table 1"),
        "DeepCache, interval not stated": Published(21.53, 0.770, None, 1.05, "Table 2"),
    },
    "dpm-solver++": {
        BASELINE: Published(20.51, 0.782, 14821, 1.13, "Table 1"),
        "fewer steps (10)": Published(21.25, 0.771, None, None, "Table 12"),
        "paper's 7, prior noise": Published(20.76, 0.781, 11743, 0.64, "Table 1"),
    },
}


def table_methods(sampler: str, calls: int, schedules: Mapping[str, KeySchedule] | None = None) -> dict[str, Method]:
    """The baseline, fewer steps, uniform keys, the paper's keys without and with prior noise, token merging, DeepCache, given schedules.

    >>> list(table_methods("dpm-solver++", 20))[:5]
    ['baseline', 'fewer steps (10)', 'fewer steps (7)', 'uniform 7', "paper's 7"]

    Args:
        sampler: "ddim" or "dpm-solver++".
        calls: Denoiser calls of a run, 9 or more.
        schedules: By name; each is run with the order that it was derived for.

    Raises:
        ValueError: Another sampler, or a name that is taken.
    """
    _check_sampler(sampler)
    paper = KeySchedule.of_paper(calls)
    keys = len(paper.keys)
    methods = {BASELINE: Method()} | {f"fewer steps ({steps})": Method(steps=steps) for steps in (calls // 2, keys)}
    methods |= {f"uniform {len(keys.keys)}": Method(keys) for keys in _uniform(sampler, calls, keys)}
    methods |= {f"paper's {keys}": Method(paper), f"paper's {keys}, prior noise": Method(paper, prior_noise=PRIOR_NOISE)}
    methods |= {
        "token merging": Method(token_merging=TOKENS_MERGED),
        f"token merging, paper's {keys}, prior noise": Method(paper, prior_noise=PRIOR_NOISE, token_merging=TOKENS_MERGED),
    }
    methods |= {f"DeepCache {interval}": Method(deepcache=interval) for interval in DEEPCACHE_INTERVALS}
    taken = next((name for name in schedules or {} if name in methods), None)
    if taken is not None:
        raise ValueError(f"a schedule is named {taken!r}, and so is a method of the table; accepted: another name")
    return methods | {name: _as_derived(schedule) for name, schedule in (schedules or {}).items()}


def _check_sampler(sampler: str) -> None:
    if sampler not in STEPS:
        raise ValueError(f"sampler={sampler!r} asked; accepted: {' or '.join(STEPS)}")


def _uniform(sampler: str, calls: int, keys: int) -> list[KeySchedule]:
    """Uniform keys: the paper's own lists if it published some for this run, else ours with as many keys."""
    if sampler == "ddim" and calls == STEPS["ddim"]:
        return [KeySchedule.paper(calls, f"ablation-uniform-{number}") for number in (1, 2)]
    return [KeySchedule.uniform(calls, keys)]


def _as_derived(schedule: KeySchedule) -> Method:
    on = schedule.measured_on or {}
    return Method(schedule, reuse=str(on.get("reuse", "encoder")), order=int(on.get("order", 0)))


def table_1(
    pipe: DiffusionPipeline,
    sampler: str,
    tasks: Sequence[tuple],
    *,
    quality: Quality | None = None,
    schedules: Mapping[str, KeySchedule] | None = None,
    num_inference_steps: int | None = None,
    guidance_scale: float = 7.5,
    repeats: int = 3,
    batch_size: int = 8,
    store: str | Path | None = None,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Draw each task with each method; return the table, and the rows per image behind it.

    >>> table, images = table_1(pipe, "ddim", read_captions("captions_val2014.json", 10_000), quality=quality)  # doctest: +SKIP

    Args:
        sampler: That of the pipeline.
        tasks: Pairs of prompt and seed.
        num_inference_steps: None for the paper's, 50 or 20. With others, no published numbers stand beside ours.
            Other arguments as for `table_methods`, `quality_of` and `compare`.

    Returns:
        Columns method, fid, kid, kid_std, clip (2.5 times the cosine), lpips, psnr, gmacs, seconds, ratio, images, as far as
        asked. The paper's are paper_fid, paper_clip, paper_gmacs, paper_seconds, paper_source.
    """
    _check_sampler(sampler)
    steps = STEPS[sampler] if num_inference_steps is None else num_inference_steps
    methods = table_methods(sampler, denoiser_calls(pipe, steps), schedules)
    run = RunSettings(steps, guidance_scale)
    images = compare_tasks(pipe, methods, tasks, run, quality=quality, batch_size=batch_size, store=store)
    table = with_costs(pipe, methods, images, repeats=repeats, num_inference_steps=steps, guidance_scale=guidance_scale)
    return beside_published(table, sampler if steps == STEPS[sampler] else None), images


def beside_published(table: pd.DataFrame, sampler: str | None) -> pd.DataFrame:
    """The columns of Table 1 from the table of `with_costs`, beside the paper's numbers; none of them for no sampler.

    >>> beside_published(with_costs(pipe, methods, images), "ddim")  # doctest: +SKIP
    """
    if "clip_score" in table:
        table = table.assign(clip=table["clip_score"] * (CLIP_WEIGHT / 100))
    names = ("method", "fid", "kid", "kid_std", "clip", "lpips", "psnr", "gmacs", "seconds", "ratio", "images")
    ours = table[[name for name in names if name in table]]
    rows = {name: asdict(row) for name, row in PUBLISHED.get(str(sampler), {}).items()}
    columns = list(Published.__dataclass_fields__)
    theirs = pd.DataFrame.from_dict(rows, orient="index", columns=columns).rename_axis("method").reset_index()
    order = dict.fromkeys([*ours["method"], *(theirs["method"] if sampler else ())])
    return pd.DataFrame({"method": list(order)}).merge(ours, on="method", how="left").merge(theirs, on="method", how="left")


def main(
    captions: Annotated[Path, typer.Option(help="COCO's captions, such as captions_val2014.json.")],
    weights: Annotated[Path | None, typer.Option(help="Folder of the weight files; docs/quality.md says which.")] = None,
    real: Annotated[Path | None, typer.Option(help="Folder of real images, such as val2014, for fid and kid.")] = None,
    model: Annotated[
        str | None, typer.Option(help="Folder of a diffusers pipeline, such as SD 1.5; by default, the embedded one.")
    ] = None,
    sampler: Annotated[str, typer.Option(help="ddim (50 steps) or dpm-solver++ (20 steps).")] = "ddim",
    images: Annotated[int, typer.Option(help="Images per method.")] = 10_000,
    metric: Annotated[
        list[str] | None, typer.Option(help="fid, kid, clip_score or lpips; repeat for several. By default, all.")
    ] = None,
    schedule: Annotated[list[Path] | None, typer.Option(help="File of a derived key schedule; repeat for several.")] = None,
    steps: Annotated[int | None, typer.Option(help="Other steps than the paper's, without its numbers.")] = None,
    guidance: Annotated[float, typer.Option(help="Guidance scale; the paper states none.")] = 7.5,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1 or mps.")] = "cpu",
    dtype: Annotated[str, typer.Option(help="float32, float16 or bfloat16.")] = "float32",
    batch_size: Annotated[int, typer.Option(help="Images drawn at once.")] = 8,
    repeats: Annotated[int, typer.Option(help="Timed runs per method; 0 for none.")] = 3,
    threads: Annotated[int | None, typer.Option(help="CPU threads.")] = None,
    output: Annotated[Path, typer.Option(help="Folder for table_1.csv, images.csv and about.json.")] = Path("runs/table_1"),
    store: Annotated[Path | None, typer.Option(help="File that keeps each image; by default, in the output folder.")] = None,
) -> None:
    """Measure rows of the paper's Table 1 and given schedules, beside the paper's numbers. The same call resumes."""
    _check_sampler(sampler)
    place = writable_folder(output)
    if threads is not None:
        torch.set_num_threads(threads)
    tasks = read_captions(captions, images)
    loaded = {path.stem: KeySchedule.load(path) for path in schedule or []}
    asked = METRICS if metric is None else metric
    pipe = load_pipeline(model, device=device, dtype=dtype, scheduler=sampler)
    on = next(denoiser_of(pipe).parameters()).device
    quality = quality_of(asked, metric_weights=weights, real_images=real, images=images, device=on, caption_prefix=CLIP_PREFIX)
    table, rows = table_1(
        pipe, sampler, tasks, quality=quality, schedules=loaded, num_inference_steps=steps, guidance_scale=guidance, repeats=repeats,
        batch_size=batch_size, store=store or place / "images.sqlite",
    )  # fmt: skip
    about = {"captions": captions, "weights": weights, "real": real, "metrics": asked, "guidance": guidance, "steps": steps}
    write_text(place / "about.json", json.dumps(about_run(pipe) | {"asked": about}, indent=2, default=str) + "\n")
    for name, found in (("images", rows), ("table_1", table)):
        write_whole(place / f"{name}.csv", partial(found.to_csv, index=False, float_format="%.7g"))
    typer.echo(table.to_string(index=False, na_rep="", float_format=lambda value: f"{value:.4g}"))
    typer.echo("paper_*: the paper's numbers, on its authors' machine (one A40); the rest was measured here")


if __name__ == "__main__":
    typer.run(main)
