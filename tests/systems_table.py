"""Writes docs/systems.md from the list that the tests run over: `python tests/systems_table.py`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from systems import SYSTEMS, System
from systems.refused import LATER, REFUSED

from fastdiff_lab import KeySchedule
from fastdiff_lab.hooks.denoiser import denoiser_of, split_denoiser
from studies.architectures import ALL, PUBLISHED

PAGE = Path(__file__).parent.parent / "docs" / "systems.md"
HEAD = """# Systems

Made by `python tests/systems_table.py` from the list in [tests/systems](../tests/systems). A test fails if this page says anything
else.

A system stands here only if `tests/test_systems.py` runs the **real pipeline class** of diffusers 0.42.1 end to end. It is built at
a tiny size from configs, with every all-zero parameter drawn anew. The tests show for every row:

1. What stands under *matters* does: changing any of it changes the output by more than 0.001.
2. With every step a key, the output is the baseline's, bit for bit.
3. Serial and parallel decoding give the same, with features reused and extrapolated. They agree to 1e-10 in float64. Where pipeline
   or scheduler compute in float32, they agree to the number in the last column.
4. Non-key steps are those of a forward split by hand in the tests ([oracle.py](../tests/oracle.py)), unless the last column says
   otherwise.
5. Encoder, decoder and ControlNet were evaluated as often as the schedule says.
6. Recording its features (`fl.record`) changes nothing.
7. Afterwards denoiser, scheduler and pipeline have the attributes and hooks they had. The next run is bit-identical.

If the paper or its code has a key list, the tests run it at the paper's number of steps. These are facts about the sampler's
mechanics. **They say nothing about images**. How faithful a schedule is has to be measured on trained weights (`fastdiff-lab
compare`).

*Reused*: what is evaluated at key steps only. *Ceiling*: how many times fewer operations a run at full size needs with the keys
given. It is counted on the meta device from the model card's config, with guidance where the system has it. It is a limit by
arithmetic, not a time.
"""
FULL = """
## Full sizes

Parameters tell whether a config is the published one. Where a number was published, `tests/test_full_size.py` compares. A
ControlNet's operations count with the encoder's. What is missing to 100 % runs at every step and is neither encoder nor decoder:
the embeddings. In IF-I-XL these include the projection of the text from 4096 to 2816 channels and its pooling.

DiT-XL/2 has more weights here than the 675,129,632 of the original. diffusers gives every block its own embedding of time-step and
class. That makes 27 copies too many. Each has (256 + 1) x 1152 + (1152 + 1) x 1152 + 1001 x 1152 = 2,777,472 weights. The fixed
embedding of the places is no parameter here, which takes 256 x 1152 = 294,912 away. So 675,129,632 + 27 x 2,777,472 - 294,912 =
749,826,464.

| denoiser | parameters | published | GMACs per call | encoder and bottleneck | decoder |
|---|---|---|---|---|---|
"""
APART = """
## Ways of running

`tests/test_systems_apart.py` runs

- fp16, bf16, channels_last, attention and VAE slicing and tiling;
- model offload, sequential offload (weights on disk) and group offload by blocks and by leaves;
- these offloads switched on before and inside the block;
- two pipelines in two threads;
- LoRA scales and image-to-image strengths changed between runs.

`tests/test_shared_parts.py` runs pipelines that share a UNet or ControlNet with an accelerated one (`from_pipe`,
`**pipe.components`). They run as the baseline, also in other threads.

On an NVIDIA H200, `tests/test_on_a_gpu.py` ran all rows once: law 2, law 3 with features reused, law 6, and the next run of law 7.
It ran them on every scheduler, too. They hold for 68 of 72 rows. Two pipelines do not run there untouched. Token merging draws at
random. In `sd-inpaint` the last bits differ with every step a key. Nobody has looked yet whether two untouched runs differ, too.
Offloading, half precision, memory that runs out, calibration and fits work there. Otherwise none of this was run on a GPU.

## What cannot work

The error comes on entering the block and says where to go on.

| pipeline | why | the error names |
|---|---|---|
"""

DATA = PAGE.parent.parent / "data"
TRAINED = """
## Trained on the embedded pipeline

The rows above say that the mechanics are right. These say what becomes of the images. The pipeline learned one new object, a blue
crescent, from five images by DreamBooth and by Custom Diffusion. Each took 2,500 steps, 10 to 30 minutes on one CPU thread:
`python -m studies.personalise dreambooth` or `custom-diffusion`. Then it drew the object in eight other scenes, four images each,
DDIM 50, guidance 5.

- *Outline*: overlap (intersection over union) with the crescent at its best place and size, in any colour. *Object*: the same in
  its own colour. A blue disc of its size has about 0.5.
- *Likeness*: cosine of our judge's features to those of the scene as it would be drawn.
- *PSNR*: to the baseline, of the averaged error. The derived keys were derived before the training.
"""

DIT = """
### A small DiT: where should its encoder end?

The model is a class-conditional DiT of 12 blocks on the embedded autoencoder's latents, with 24 classes of colour and shape. Its
5.7 M weights ([data/dit](../data/dit)) took 95 minutes on one CPU thread (`python -m studies.dit train`). `python -m studies.dit
sweep` splits it after each number of blocks: 48 images, DDIM 50, guidance 4. PSNR is of the averaged error to the baseline. The
paper's share, 18 of 28, is 8 of 12. With all 12 blocks reused, the prediction is reused: the control.

![PSNR to the baseline against the number of encoder blocks and against operations, for four schedules](../data/dit/sweep.png)

**Where it is split hardly matters for fidelity here**. At uniform keys the PSNR moves by 2.2 dB at most between 1 and 11 blocks. So
the later the cheaper, down to a quarter of the operations with 9 keys. Compared with reused predictions, decoding a last block for
each step is worth 0.3 dB with 17 keys. It is worth 0.5 dB with 25 and nothing with 9. The paper's 9 keys are dense early and sparse
late. They get better with every block that is reused. This is one model and one seed of the noise: no more than a hint for larger
ones.
"""


def reused(system: System, pipe: object) -> str:
    model = denoiser_of(pipe)
    split = split_denoiser(model, system.options.get("encoder_blocks"))
    blocks = sum("transformer_blocks." in name for name in split.encoder)
    part = f"the first {blocks} of {len(model.transformer_blocks)} blocks" if blocks else "encoder and bottleneck"
    return part + {0: "", 1: ", ControlNet"}.get(system.controlnets, ", ControlNets")


def keys_of(system: System) -> KeySchedule:
    return KeySchedule.paper(system.paper_steps, system.paper) if system.paper else KeySchedule.paper(50)


def ceiling(system: System) -> str:
    keys = keys_of(system)
    if len(keys.keys) == keys.num_steps:
        return f"1.00x (every one of {keys.num_steps} steps a key)"
    if system.size is None:
        return "not counted"
    counted = ALL[system.size].count
    times = counted.total * keys.num_steps / counted.of_run(len(keys.keys), keys.num_steps)
    return f"{times:.2f}x ({len(keys.keys)} keys of {keys.num_steps})"


def papers_keys(system: System) -> str:
    return (
        f"{keys_of(system)} ({keys_of(system).source.partition(':')[0].partition(';')[0].partition(' (')[0]})"
        if system.paper
        else ""
    )


def built_cells(system: System, pipe: object) -> list[str]:
    """The cells of a row that need its pipeline: the classes of pipeline and denoiser, and what is reused."""
    return [f"`{type(pipe).__name__}`", f"`{type(denoiser_of(pipe)).__name__}`", reused(system, pipe)]


def row(system: System, built: list[str]) -> str:
    remarks = [system.note] if system.note else []
    remarks += [] if system.by_hand else ["no forward split by hand"]
    remarks += [] if system.close == 1e-10 else [f"to {system.close:g}"]
    cells = [
        system.title, *built, "serial, parallel" if system.parallel else "serial", ", ".join(system.features), papers_keys(system),
        ceiling(system), "; ".join(remarks),
    ]  # fmt: skip
    return "| " + " | ".join(cells) + " |"


def cells_on_page() -> dict[str, list[str]]:
    """What the page says in `built_cells`, by the system's name."""
    lines = [line.strip("| ").split(" | ") for line in PAGE.read_text().splitlines()]
    of_titles = {line[0]: line[1:4] for line in reversed(lines) if len(line) > 3}  # the first of several tables
    return {system.name: of_titles.get(system.title, []) for system in SYSTEMS}


def full_size_row(name: str) -> str:
    size, counted = ALL[name], ALL[name].count
    published = ", ".join(PUBLISHED.get(name, ("",)))
    shares = [f"{part / counted.total:.1%}" for part in (counted.encoder, counted.decoder)]
    return f"| {size.description} | {size.parameters:,} | {published} | {counted.total / 2e9:.0f} | {shares[0]} | {shares[1]} |"


def personalised(method: str, title: str) -> Iterator[str]:
    table = pd.read_csv(DATA / "personalised" / f"{method}.csv").iloc[1:]  # not the row before training
    rows = "what was learned from, before training, baseline, the paper's keys, uniform and derived keys"
    yield f"\n![{title}: {rows}](../data/personalised/{method}.png)\n"
    yield f"| {title} | keys | outline | object | object, worst | likeness | PSNR (dB) |\n|---|---|---|---|---|---|---|"
    for found in table.itertuples():
        near = "identical" if np.isinf(found.psnr) else f"{found.psnr:.1f}"
        numbers = " | ".join(f"{value:.2f}" for value in (found.outline, found.overlap, found.worst_overlap, found.likeness))
        yield f"| {found.method} | {found.keys} | {numbers} | {near} |"


def sweep() -> Iterator[str]:
    table = pd.read_csv(DATA / "dit" / "sweep.csv")
    baseline, shown = table.iloc[0], table[table["blocks"].isin([1, 4, 8, 11, 12])]
    yield "\n| blocks | keys | PSNR (dB) | class right | GFLOPs |\n|---|---|---|---|---|"
    yield f"| baseline | 50 | identical | {baseline.classes_right:.0%} | {baseline.gflops:.1f} |"
    for found in shown.itertuples():
        keys = found.schedule if found.schedule.startswith("uniform") else f"the paper's {found.keys}"
        reused = {8: "8 (the paper's share)", 12: "12 (prediction reused)"}.get(found.blocks, found.blocks)
        yield f"| {reused} | {keys} | {found.psnr:.1f} | {found.classes_right:.0%} | {found.gflops:.1f} |"


def lines(built: Mapping[str, list[str]]) -> Iterator[str]:
    yield HEAD.rstrip("\n")
    for group in dict.fromkeys(system.group for system in SYSTEMS):
        yield f"\n## {group}\n"
        yield "| system | pipeline | denoiser | reused | decoding | matters | the paper's keys | ceiling | remarks |"
        yield "|---|---|---|---|---|---|---|---|---|"
        yield from (row(system, built[system.name]) for system in SYSTEMS if system.group == group)
    yield TRAINED.rstrip("\n")
    yield from personalised("dreambooth", "DreamBooth")
    yield from personalised("custom-diffusion", "Custom Diffusion")
    yield DIT.rstrip("\n")
    yield from sweep()
    yield FULL.rstrip("\n")
    yield from (full_size_row(name) for name in dict.fromkeys(system.size for system in SYSTEMS if system.size))
    yield APART.rstrip("\n")
    yield from (f"| {refused.title} | {refused.why} | {refused.names} |" for refused in (*REFUSED, *LATER))


def page(built: Mapping[str, list[str]]) -> str:
    """The page, with the `built_cells` of each system by its name."""
    return "\n".join(lines(built)) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page({system.name: built_cells(system, system.build()) for system in SYSTEMS}))
    print(f"wrote {PAGE}")
