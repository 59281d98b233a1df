"""Does the accelerated sampler keep an object that DreamBooth or Custom Diffusion taught the embedded pipeline from five images?

- `dreambooth(...)`: fine-tune the whole UNet; `custom_diffusion(...)`: new keys and values for the text, and a new word
- `judged(...)`: the object in images of new scenes, for each method

`python -m studies.personalise dreambooth` or `custom-diffusion`; about a quarter of an hour each on one CPU thread.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import torch
import typer
from diffusers import StableDiffusionPipeline
from diffusers.models.attention_processor import CustomDiffusionAttnProcessor2_0
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from fastdiff_lab import plot
from fastdiff_lab.calibration.derive import derive_schedule
from fastdiff_lab.comparison.fidelity import fidelity, mean_psnr
from fastdiff_lab.inputs.files import writable_folder, write_whole
from fastdiff_lab.key_schedule import KeySchedule
from fastdiff_lab.pipelines import assemble, embedded_costs, load_pipeline
from fastdiff_lab.propagation.encoder_propagation import encoder_propagation
from fastdiff_lab.shapes.data import as_tensor
from fastdiff_lab.shapes.judge import load_judge
from fastdiff_lab.shapes.scenes import sample_scene

from .crescent import FIVE, NEW, Keepsake, crescent_overlap, draw_keepsake, outline_overlap
from .training.denoiser_training import loss_weight
from .training.scene_batches import scene_images as drawn_scenes
from .training.tokens import tokens_of
from .training.trainer import fit

STEPS, GUIDANCE = 50, 5.0
SEEDS = 4  # images of each new place
PRIORS = 64  # known scenes, so that the pipeline does not forget them
WORDS = {"dreambooth": "sks circle", "custom-diffusion": "<new1> circle"}
_MARK = "<new1>"


def untrained() -> StableDiffusionPipeline:
    """The embedded pipeline without its refusal of unknown words, which it learns here."""
    known = load_pipeline()
    parts = {name: known.components[name] for name in ("vae", "text_encoder", "unet", "scheduler")}
    pipe = assemble(**parts, tokenizer=known.tokenizer.as_clip_tokenizer())
    pipe.set_progress_bar_config(disable=True)
    return pipe


class _Lessons:
    """The five images and as many known scenes in every batch, as latents with their texts."""

    def __init__(self, pipe: StableDiffusionPipeline, word: str) -> None:
        self.pipe, scale = pipe, pipe.vae.config.scaling_factor
        self.weight = loss_weight(pipe.scheduler, cap=10.0)  # as in the pipeline's training: the noisiest steps decide the colour
        new = torch.stack([as_tensor(draw_keepsake(place)) for place in FIVE])
        with torch.no_grad():
            self.new, self.known = (scale * pipe.vae.encoder(batch) for batch in (new, drawn_scenes(range(PRIORS), 1)))
        captions = [place.prompt(word) for place in FIVE], [sample_scene(seed, 1).caption() for seed in range(PRIORS)]
        self.new_tokens, self.known_tokens = (tokens_of(texts, pipe.tokenizer) for texts in captions)

    def loss(self, draw: int) -> Tensor:
        """Weighted squared error of the noise on the five images, plus that on five known scenes (prior preservation)."""
        generator = torch.Generator().manual_seed(draw)
        rows = torch.randperm(PRIORS, generator=generator)[: len(self.new)]
        latents = torch.cat([self.new, self.known[rows]])
        noise = torch.randn(latents.shape, generator=generator)
        time_steps = torch.randint(1000, (len(latents),), generator=generator)
        text = self.pipe.text_encoder(torch.cat([self.new_tokens, self.known_tokens[rows]])).last_hidden_state
        noisy = self.pipe.scheduler.add_noise(latents, noise, time_steps)
        errors = (self.pipe.unet(noisy, time_steps, text).sample - noise).square().mean(dim=(1, 2, 3))
        return 2 * (self.weight[time_steps] * errors).mean()


def _trained(
    lessons: _Lessons,
    parameters: list[nn.Parameter],
    *,
    folder: Path,
    steps: int,
    seconds: float,
    rate: float,
    settle: Callable[[], None] = lambda: None,
) -> None:
    """Train the parameters in place; `settle` restores what must not change, before each step and at the end."""

    def loss(_: nn.Module, draw: int, progress: float) -> Tensor:
        settle()
        return lessons.loss(draw)

    options: dict[str, Any] = {"name": "lessons", "folder": writable_folder(folder), "learning_rate": rate}
    with torch.enable_grad():
        fit(nn.ParameterList(parameters), loss, max_steps=steps, max_seconds=seconds, **options)
    settle()
    for parameter in parameters:
        parameter.requires_grad_(False)


def dreambooth(
    pipe: StableDiffusionPipeline, folder: Path, *, steps: int = 2500, seconds: float = math.inf, rate: float = 3e-4
) -> None:
    """Fine-tune the whole UNet in place (Ruiz et al. 2023): "sks" becomes the object's name.

    >>> pipe = untrained()
    >>> dreambooth(pipe, Path("runs/dreambooth"), seconds=300)  # doctest: +SKIP

    The checkpoint and the losses go to `folder`; the same call resumes. Training ends after `steps` or `seconds`.
    `rate` is the largest learning rate. Raises OSError for a folder that cannot be written.
    """
    pipe.text_encoder.requires_grad_(False)
    parameters = list(pipe.unet.requires_grad_(True).parameters())
    _trained(_Lessons(pipe, WORDS["dreambooth"]), parameters, folder=folder, steps=steps, seconds=seconds, rate=rate)


def custom_diffusion(
    pipe: StableDiffusionPipeline, folder: Path, *, steps: int = 2500, seconds: float = math.inf, rate: float = 1e-3
) -> None:
    """Train keys and values of the cross-attention and the embedding of a new word (Kumari et al. 2023), in place.

    >>> pipe = untrained()
    >>> custom_diffusion(pipe, Path("runs/custom-diffusion"), seconds=300)  # doctest: +SKIP

    Arguments and errors as for `dreambooth`.
    """
    pipe.unet.requires_grad_(False)
    pipe.text_encoder.requires_grad_(False)
    table = _with_new_word(pipe)
    pipe.unet.set_attn_processor({name: _processor(pipe.unet, name) for name in pipe.unet.attn_processors})
    trained = [p for processor in pipe.unet.attn_processors.values() for p in processor.parameters()]
    others = table.detach()[:-1].clone()

    def only_the_new_word() -> None:
        with torch.no_grad():
            table[:-1] = others

    lessons = _Lessons(pipe, WORDS["custom-diffusion"])
    _trained(lessons, [*trained, table], folder=folder, steps=steps, seconds=seconds, rate=rate, settle=only_the_new_word)


def _with_new_word(pipe: StableDiffusionPipeline) -> nn.Parameter:
    """Add a word, which begins as "green"; return the table of all embeddings."""
    pipe.tokenizer.add_tokens(_MARK)
    pipe.text_encoder.resize_token_embeddings(len(pipe.tokenizer), mean_resizing=False)
    table = pipe.text_encoder.get_input_embeddings().weight
    begin = pipe.tokenizer.convert_tokens_to_ids("green</w>")
    with torch.no_grad():
        table[pipe.tokenizer.convert_tokens_to_ids(_MARK)] = table[begin]
    return table.requires_grad_(True)


def _processor(unet: nn.Module, name: str) -> CustomDiffusionAttnProcessor2_0:
    """diffusers' own processor, with the keys and values of the layer."""
    attention = unet.get_submodule(name.removesuffix(".processor"))
    is_text = attention.is_cross_attention
    inside, outside = attention.to_q.weight.shape[0], attention.to_k.weight.shape[1]
    processor = CustomDiffusionAttnProcessor2_0(
        train_kv=is_text, train_q_out=False, hidden_size=inside, cross_attention_dim=outside if is_text else None
    )  # fmt: skip
    if is_text:
        processor.to_k_custom_diffusion.load_state_dict({"weight": attention.to_k.weight})
        processor.to_v_custom_diffusion.load_state_dict({"weight": attention.to_v.weight})
    return processor


LESSONS = {"dreambooth": dreambooth, "custom-diffusion": custom_diffusion}


def schedules(method: str) -> dict[str, KeySchedule | None]:
    """The methods: baseline, the paper's list for the way of teaching, as many uniform and as many derived keys."""
    paper = KeySchedule.paper(STEPS, method)
    count = len(paper.keys)
    derived = derive_schedule(embedded_costs(), count)
    return {"baseline": None, "paper": paper, f"uniform {count}": KeySchedule.uniform(STEPS, count), f"derived {count}": derived}


def _places() -> list[Keepsake]:
    """The place of each image: all new places once, then all again, from other noise."""
    return [*NEW] * SEEDS


def _images(pipe: StableDiffusionPipeline, word: str, schedule: KeySchedule | None) -> list[Image.Image]:
    """An image of each place, each from its own noise."""
    places = _places()
    call = {
        "prompt": [place.prompt(word) for place in places], "num_inference_steps": STEPS, "guidance_scale": GUIDANCE,
        "generator": [torch.Generator().manual_seed(seed) for seed in range(len(places))],
    }  # fmt: skip
    if schedule is None:
        return pipe(**call).images
    with encoder_propagation(pipe, schedule, max_rows=4 * len(places)):
        return pipe(**call).images


def _likeness(images: list[Image.Image]) -> list[float]:
    """Cosine of the judge's features of each image with those of the drawn place."""
    with torch.no_grad():
        seen, drawn = (
            load_judge().features(torch.stack(list(map(as_tensor, batch)))) for batch in (images, map(draw_keepsake, _places()))
        )
    return functional.cosine_similarity(seen, drawn).tolist()


def judged(
    pipe: StableDiffusionPipeline, method: str, methods: Mapping[str, KeySchedule | None]
) -> tuple[pd.DataFrame, dict[str, list[Image.Image]]]:
    """For each method: overlap with the crescent in any colour and in its own, likeness, and PSNR to the baseline in dB.

    Means over images of each new place, and the worst overlap; the PSNR is of the averaged error. Returns also each method's
    first image of each place.
    """
    rows, shown, baseline = [], {}, None
    for name, schedule in methods.items():
        images = _images(pipe, WORDS[method], schedule)
        baseline = baseline or images
        overlap, likeness = crescent_overlap(images), _likeness(images)
        near = mean_psnr(fidelity(images, baseline)["mse"])
        row: dict[str, Any] = {"method": name, "keys": STEPS if schedule is None else len(schedule.keys), "images": len(images)}
        row["outline"] = sum(outline_overlap(images, _places())) / len(images)
        row |= {"overlap": sum(overlap) / len(overlap), "worst_overlap": min(overlap), "likeness": sum(likeness) / len(likeness)}
        rows.append(row | {"psnr": near})
        shown[name] = images[: len(NEW)]
    return pd.DataFrame(rows), shown


def drawn_methods(shown: Mapping[str, list[Image.Image]], target: Figure) -> Figure:
    """Show the five images that were learned from, and below a row of new scenes for each method.

    >>> drawn_methods(judged(pipe, "dreambooth", methods)[1], plot.figure(8, 6)).savefig("object.png")  # doctest: +SKIP
    """
    rows = {"learned from": [draw_keepsake(place) for place in FIVE], **shown}
    grid = target.subplots(len(rows), len(NEW), squeeze=False)
    for axes, (name, images) in zip(grid, rows.items(), strict=True):
        axes[0].set_ylabel(name, rotation=0, ha="right", va="center")
        for ax in axes:
            ax.set(xticks=[], yticks=[], frame_on=False)
        for ax, image in zip(axes, images, strict=False):
            ax.imshow(image)
    return target


class Method(StrEnum):
    """The ways of teaching."""

    DREAMBOOTH = "dreambooth"
    CUSTOM_DIFFUSION = "custom-diffusion"


def main(
    method: Annotated[Method, typer.Argument(help="How the object is learned.")],
    steps: Annotated[int, typer.Option(help="Training steps.")] = 2500,
    minutes: Annotated[float, typer.Option(help="Most minutes of training.")] = 60,
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 1,
    output: Annotated[Path, typer.Option(help="Folder of the table and the images.")] = Path("data/personalised"),
    work: Annotated[Path, typer.Option(help="Folder of checkpoints; the same call resumes.")] = Path("runs/personalised"),
) -> None:
    """Learn the object, and judge images of it before and after, for the baseline and accelerated."""
    torch.set_num_threads(threads)
    pipe = untrained()
    before, first = judged(pipe, "dreambooth", {"before training": None})
    LESSONS[method](pipe, work / method, steps=steps, seconds=60 * minutes)
    after, images = judged(pipe, method, schedules(method))
    table = pd.concat([before, after])
    write_whole(output / f"{method}.csv", lambda place: table.to_csv(place, index=False, float_format="%.4g"))
    figure = drawn_methods(first | images, plot.figure(9, 6.5))
    write_whole(output / f"{method}.png", lambda place: figure.savefig(place, format="png", dpi=80))
    typer.echo(table.to_string(index=False))


if __name__ == "__main__":
    typer.run(main)
