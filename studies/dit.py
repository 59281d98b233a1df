"""Where should the encoder of a small class-conditional DiT end? It is trained on the embedded pipeline's latents.

- `train_dit(folder, ...)`: train the transformer; `save_dit`, `load_dit_pipeline`: as a real DiTPipeline
- `sweep(pipe, ...)`: split after k blocks, for several schedules: fidelity to the baseline, classes right, operations
- `plot_sweep(table, target)`: the same as a figure

`python -m studies.dit train --minutes 120`, then `python -m studies.dit sweep`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import torch
import typer
from diffusers import AutoencoderTiny, DDIMScheduler, DiTPipeline, DiTTransformer2DModel
from matplotlib.figure import Figure
from torch import Tensor, nn
from tqdm import tqdm

from fastdiff_lab import plot
from fastdiff_lab.comparison.fidelity import mean_psnr
from fastdiff_lab.hooks.flops import FlopCount, count_flops
from fastdiff_lab.inputs.files import writable_folder, write_whole
from fastdiff_lab.key_schedule import KeySchedule
from fastdiff_lab.pipelines import embedded_folder
from fastdiff_lab.propagation.encoder_propagation import encoder_propagation
from fastdiff_lab.shapes.judge import load_judge
from fastdiff_lab.shapes.scenes import COLOURS, SHAPES, Scene, sample_scene

from .training.denoiser_training import loss_weight, new_scheduler
from .training.model_files import save_half
from .training.scene_batches import scene_images
from .training.trainer import NO_LIMIT, fit

CLASSES = tuple(f"{colour} {shape}" for shape in SHAPES for colour in COLOURS)
NULL_CLASS = 1000  # a constant in DiTPipeline
UNCONDITIONAL_SHARE = 0.1
FOLDER = Path("data/dit")
PAPERS_SHARE = 18 / 28


def new_dit() -> DiTTransformer2DModel:
    """Twelve blocks of width 128 over 8x8 patches; 5.7 M parameters, half of them the blocks' own embeddings."""
    return DiTTransformer2DModel(
        num_attention_heads=4, attention_head_dim=32, num_layers=12, in_channels=4, out_channels=4, sample_size=16, patch_size=2,
        num_embeds_ada_norm=NULL_CLASS,
    )  # fmt: skip


def class_of(scene: Scene) -> int:
    """The class of a one-object scene: its shape and colour.

    >>> CLASSES[class_of(sample_scene(3, objects=1))] == f"{sample_scene(3, 1).things[0].colour} {sample_scene(3, 1).things[0].shape}"
    True
    """
    return CLASSES.index(f"{scene.things[0].colour} {scene.things[0].shape}")


@torch.no_grad()
def encoded_scenes(vae: AutoencoderTiny, seeds: range) -> tuple[Tensor, Tensor]:
    """Latents of one-object scenes, shape (scenes, 4, 16, 16), and their classes."""
    latents = vae.encoder(scene_images(seeds, objects=1)) * vae.config.scaling_factor
    return latents, torch.tensor([class_of(sample_scene(seed, objects=1)) for seed in seeds])


def _autoencoder() -> AutoencoderTiny:
    return AutoencoderTiny.from_pretrained(embedded_folder() / "vae", dtype=torch.float32).eval().requires_grad_(False)


def train_dit(
    folder: Path, *, minutes: float, max_steps: int = NO_LIMIT, batch_size: int = 32, learning_rate: float = 1e-3
) -> DiTTransformer2DModel:
    """Train the transformer to predict the noise, with a tenth of the classes left out. The same call resumes.

    >>> model = train_dit(Path("runs/dit"), minutes=120)  # doctest: +SKIP

    Raises ValueError for no time, OSError for a folder that cannot be written.
    """
    if not minutes > 0:
        raise ValueError(f"minutes={minutes!r} asked; accepted: more than 0")
    writable_folder(folder)
    vae, scheduler = _autoencoder(), new_scheduler()
    weight = loss_weight(scheduler)

    def loss(model: nn.Module, draw: int, progress: float) -> Tensor:
        generator = torch.Generator().manual_seed(draw)
        latents, classes = encoded_scenes(vae, range(draw * batch_size, (draw + 1) * batch_size))
        time_steps = torch.randint(1000, (batch_size,), generator=generator)
        noise = torch.randn(latents.shape, generator=generator)
        dropped = torch.rand(batch_size, generator=generator) < UNCONDITIONAL_SHARE
        labels = torch.where(dropped, NULL_CLASS, classes)
        noisy = scheduler.add_noise(latents, noise, time_steps)
        predicted = model(noisy, timestep=time_steps, class_labels=labels).sample
        return (weight[time_steps] * (predicted - noise).square().mean(dim=(1, 2, 3))).mean()

    return fit(
        _ready(new_dit()),
        loss,
        name="dit",
        folder=folder,
        learning_rate=learning_rate,
        max_steps=max_steps,
        max_seconds=60 * minutes,
    )


def _ready(model: DiTTransformer2DModel) -> DiTTransformer2DModel:
    """adaLN-Zero as in the DiT paper: at first, each block adds nothing. The pipeline drops classes itself, so the model does not."""
    for block in model.transformer_blocks:
        nn.init.zeros_(block.norm1.linear.weight)
        nn.init.zeros_(block.norm1.linear.bias)
        block.norm1.emb.class_embedder.dropout_prob = 0.0
    nn.init.zeros_(model.proj_out_2.weight)
    nn.init.zeros_(model.proj_out_2.bias)
    return model


def save_dit(folder: Path, model: DiTTransformer2DModel) -> None:
    """Write the transformer in fp16 safetensors, in diffusers' format; the autoencoder is the embedded pipeline's."""
    save_half(model, folder / "transformer")


def load_dit_pipeline(folder: Path = FOLDER) -> DiTPipeline:
    """Load a DiTPipeline of the trained transformer.

    >>> image = load_dit_pipeline()(class_labels=[0], num_inference_steps=50).images[0]  # doctest: +SKIP
    """
    model = DiTTransformer2DModel.from_pretrained(folder / "transformer", dtype=torch.float32, use_safetensors=True)
    scheduler = DDIMScheduler.from_pretrained(embedded_folder() / "scheduler")
    pipe = DiTPipeline(model.eval(), _autoencoder(), scheduler, dict(enumerate(CLASSES)))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw_images(pipe: DiTPipeline, labels: Sequence[int], steps: int, guidance: float = 4.0) -> Tensor:
    """An image of each class, shape (labels, 3, 64, 64) in [0, 1], always from the same noise."""
    generator = torch.Generator().manual_seed(0)
    return pipe(list(labels), guidance_scale=guidance, num_inference_steps=steps, generator=generator, output_type="pt").images


def classes_right(images: Tensor, labels: Sequence[int]) -> float:
    """Share of images in which the judge sees the class's shape and colour."""
    seen = load_judge().read(2 * images.float() - 1)
    names = [None if found is None else f"{found['colour_1']} {found['shape_1']}" for found in seen]
    return float(np.mean([name == CLASSES[label] for name, label in zip(names, labels, strict=True)]))


def _operations(pipe: DiTPipeline, blocks: int) -> FlopCount:
    call = {"hidden_states": torch.zeros(2, 4, 16, 16), "timestep": torch.zeros(2).long(), "class_labels": torch.zeros(2).long()}
    return count_flops(pipe.transformer, call, blocks)


def sweep(
    pipe: DiTPipeline, splits: Sequence[int] | None = None, *, steps: int = 50, keys: Sequence[int] = (9, 17, 25), count: int = 48
) -> pd.DataFrame:
    """Measure fidelity and operations for each split, with uniform keys and the paper's.

    `splits` are numbers of blocks in the encoder; None for each. All blocks are the prediction reused at the same keys, the rival.
    `count` is the number of images of each method. Returns columns blocks (0 for the baseline), papers_split, schedule, keys,
    psnr (dB), classes_right, gflops of an image.
    """
    labels = [place % len(CLASSES) for place in range(count)]
    baseline = draw_images(pipe, labels, steps)
    all_blocks = len(pipe.transformer.transformer_blocks)
    whole = _operations(pipe, 1).total * steps / 1e9
    rows: list[dict[str, Any]] = [_row(0, "baseline", steps, baseline, baseline, labels, whole)]
    schedules = {f"uniform {number}": KeySchedule.uniform(steps, number) for number in keys} | {
        "paper": KeySchedule.of_paper(steps)
    }
    for blocks in tqdm(splits or range(1, all_blocks + 1), desc="splits"):
        is_all = blocks == all_blocks  # nothing runs between keys: the prediction is reused
        for name, schedule in schedules.items():
            way: dict[str, Any] = {"reuse": "prediction"} if is_all else {"encoder_blocks": blocks, "max_rows": 4 * count}
            with encoder_propagation(pipe, schedule, **way) as counts:
                images = draw_images(pipe, labels, steps)
            decoded = counts.decoder_calls / counts.runs
            gflops = _operations(pipe, 1 if is_all else blocks).of_run(len(schedule.keys), decoded) / 1e9
            rows.append(_row(blocks, name, len(schedule.keys), images, baseline, labels, gflops))
    table = pd.DataFrame(rows)
    table.insert(1, "papers_split", table["blocks"] == round(PAPERS_SHARE * all_blocks))
    return table


def _row(blocks: int, name: str, keys: int, images: Tensor, baseline: Tensor, labels: list[int], gflops: float) -> dict[str, Any]:
    errors = (images.double() - baseline.double()).square().flatten(1).mean(dim=1)
    measured = {"psnr": mean_psnr(errors.numpy()), "classes_right": classes_right(images, labels), "gflops": gflops}
    return {"blocks": blocks, "schedule": name, "keys": keys} | measured


def plot_sweep(table: pd.DataFrame, target: Figure) -> Figure:
    """Plot PSNR to the baseline against encoder blocks and operations, and mark the paper's share.

    >>> plot_sweep(pd.read_csv("data/dit/sweep.csv"), plot.figure(10, 4)).savefig("sweep.png")  # doctest: +SKIP
    """
    by_blocks, by_operations = target.subplots(1, 2, sharey=True)
    split = table[table["blocks"] > 0]
    for place, (name, rows) in enumerate(split.groupby("schedule", sort=False)):
        look = {"color": plot.PETROFF[place], "marker": "os^D"[place % 4], "markersize": 4}
        by_blocks.plot(rows["blocks"], rows["psnr"], label=f"{name} ({rows['keys'].iloc[0]} keys)", **look)
        by_operations.plot(rows["gflops"], rows["psnr"], **look)
    papers = split.loc[split["papers_split"], "blocks"].iloc[0]
    by_blocks.axvline(papers, color="0.6", linestyle="--", label="the paper's share, 18 of 28")
    by_blocks.set(xlabel="blocks that are the encoder (12: the prediction is reused)", ylabel="PSNR to the baseline (dB)")
    by_operations.set(xlabel="GFLOPs per image (2 per multiply-add)")
    by_blocks.legend(fontsize="small")
    return target


app = typer.Typer(add_completion=False, help=__doc__)


@app.command("train")
def train_command(
    minutes: Annotated[float, typer.Option(help="Training time.")] = 120,
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 1,
    work: Annotated[Path, typer.Option(help="Folder of checkpoints; the same call resumes.")] = Path("runs/dit"),
    output: Annotated[Path, typer.Option(help="Folder of the trained model.")] = FOLDER,
) -> None:
    """Train the DiT and save it."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    save_dit(output, train_dit(work, minutes=minutes))


@app.command("sweep")
def sweep_command(
    folder: Annotated[Path, typer.Option(help="Folder of the trained model.")] = FOLDER,
    output: Annotated[Path, typer.Option(help="CSV file to write, with the figure beside it.")] = FOLDER / "sweep.csv",
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 1,
) -> None:
    """Measure every split and write the table."""
    torch.set_num_threads(threads)
    table = sweep(load_dit_pipeline(folder))
    write_whole(output, lambda place: table.to_csv(place, index=False, float_format="%.6g"))
    figure = plot_sweep(table, plot.figure(10, 4))
    write_whole(output.with_suffix(".png"), lambda place: figure.savefig(place, format="png", dpi=90))
    typer.echo(table.to_string(index=False))


if __name__ == "__main__":
    app()
