# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Sampling is a chain. How can many steps be decoded at once?
#
# Each step needs the latent that the step before made. So fifty steps are fifty calls of the UNet, one after the other. *Faster Diffusion*
# (Li et al., NeurIPS 2024) makes nine calls instead. Where does the chain break?
#
# **You will** find the broken link by experiment, and follow the rows of a batch. Then you see what the speed-up is made of.
#
# New words are in the [glossary](../docs/glossary.md).

# %%
import statistics
import warnings
from contextlib import nullcontext

import numpy as np
import pandas as pd
import torch

import fastdiff_lab as fl

plot = fl.plot
torch.set_grad_enabled(False)
print(f"fastdiff_lab {fl.__version__}, torch {torch.__version__}, {torch.get_num_threads()} CPU threads")

# %% [markdown]
# The next cell alone says which pipeline is used. With a GPU, write `fl.load_pipeline(device="cuda")`.

# %%
pipe = fl.load_pipeline()
unet, scheduler = pipe.unet, pipe.scheduler
prompts, seeds = fl.demo(4)
paper = fl.KeySchedule.paper(50)
print(f"key steps {paper}; sizes of their groups: {[len(group) for group in paper.groups()]}")

# %% tags=["hide-input"]
plot.show(plot.timeline(paper.keys, paper.num_steps))

# %% [markdown]
# ## 1. Which latent does a prediction depend on?
#
# Cut the chain. Give the UNet ten latents of our own, one per step, and read ten predictions. Then replace *one* latent. Which
# predictions change? **Guess**: with keys 0, 1, 4 and 6, how many of the ten latents matter at all?

# %%
guess = ...

# %%
text = pipe.encode_prompt(prompts[0], pipe.device, 1, False)[0]
generator, size = torch.Generator().manual_seed(0), unet.config.sample_size
given, others = (torch.randn(10, 1, 4, size, size, generator=generator).to(pipe.device) for _ in range(2))
short = fl.KeySchedule.parse("0,1,4,6 of 10")


def predictions(latents, schedule=None):
    """The prediction of each step, for latents that are given and not carried on."""
    scheduler.set_timesteps(len(latents))
    block = nullcontext() if schedule is None else fl.encoder_propagation(pipe, schedule, parallel_decoding=False)
    with block:
        return [unet(z, t, text).sample for z, t in zip(latents, scheduler.timesteps, strict=True)]


def influence(schedule=None):
    """Row: the step whose latent is replaced. Column: the relative change of that step's prediction."""
    before, changes = predictions(given, schedule), np.zeros((10, 10))
    for replaced in range(10):
        latents = given.clone()
        latents[replaced] = others[replaced]
        for step, after in enumerate(predictions(latents, schedule)):
            changes[replaced, step] = (after - before[step]).norm() / before[step].norm()
    return changes

# %%
changes = {"baseline": influence(), f"encoder propagation, keys {short}": influence(short)}
matter = int((changes[f"encoder propagation, keys {short}"].max(axis=1) > 1e-6).sum())
print("latents that matter:", fl.guessed(guess, matter))

# %% tags=["hide-input"]
figure = plot.figure(9, 4)
for ax, (name, change) in zip(figure.subplots(1, 2), changes.items(), strict=True):
    image = ax.imshow(change, cmap="cividis", vmin=0)
    ax.set(title=name, xlabel="prediction of step", ylabel="latent replaced at step", xticks=range(10), yticks=range(10))
    figure.colorbar(image, ax=ax, label="relative change", shrink=0.8)
plot.show(figure, "Change of each prediction when one latent is replaced. Baseline: a diagonal. Encoder propagation: one row per key, over its group.")

# %% [markdown]
# On the left every latent matters for its own step. On the right only the four *key* latents matter, each for its whole group. The paper says
# so in the caption of its Fig. 4: predicting noise at $t-1$ does not require $z_{t-1}$. It follows from what is reused; any UNet does it.
#
# So at a key step everything is known that its group needs: features, text, time-steps. The group can be decoded in **one batch**. The
# latents in between are still made one by one, but that is a sum of two small tensors.
#
# ## 2. How large is the batch?
#
# Guidance needs two rows per image, at each step. **Your turn**: how many calls of the UNet does a run make, and how many rows has its
# largest batch?

# %%
def calls_and_rows(keys, num_steps, images):
    """Key steps, number of steps, images -> [calls of the UNet, rows of the largest batch]."""
    # BEGIN SOLUTION
    sizes = [following - key for key, following in zip(keys, [*keys[1:], num_steps], strict=True)]
    return [len(keys), 2 * images * max(sizes)]
    # END SOLUTION

# %%
fl.check("calls_and_rows", calls_and_rows)

# %% [markdown]
# In which order do the rows stand? Ours are **step-major**: the whole block `[empty; prompt]` of one step, then that of the next. Features
# and text repeat with each block. The time-steps must follow the same order. **Your turn.**

# %%
def row_times(time_steps, rows):
    """The time-steps of a group, and the rows of one step's block -> the time-step of each row of the batch."""
    # BEGIN SOLUTION
    return [t for t in time_steps for _ in range(rows)]
    # END SOLUTION

# %%
fl.check("row_times", row_times)

# %% [markdown]
# Let us watch. Two images make blocks of four rows. These are the time-steps of the last batch, as the UNet got them:

# %%
seen = []
with warnings.catch_warnings(), fl.encoder_propagation(pipe, fl.KeySchedule.parse("0-3,5 of 10")):
    warnings.simplefilter("ignore")  # our list gets the rows of several steps in one call, as is meant here
    hook = unet.time_proj.register_forward_pre_hook(lambda module, args: seen.append(args[0].tolist()))
    pipe(prompts[:2], num_inference_steps=10, guidance_scale=5.0, output_type="latent")
    hook.remove()
print(len(max(seen, key=len)), "rows:", *map(int, max(seen, key=len)))

# %% [markdown]
# The classic bug sorts features by `repeat` and text by `repeat_interleave`. Then rows get another row's text, and no shape tells.
# [Exercise 2.3](exercises/2_propagation.ipynb) has it.

# %% tags=["hide-input"]
block, labels = max(seen, key=len), ["empty\n0", "empty\n1", "prompt\n0", "prompt\n1"]
ax = (figure := plot.figure(10, 1.8)).subplots()
for row, t in enumerate(block):
    step, place = divmod(row, 4)
    ax.bar(row, 1, 0.92, color=plot.PETROFF[step], alpha=0.3 if place < 2 else 0.7, edgecolor="black")
    ax.text(row, 0.5, f"{labels[place]}\n{t:.0f}", ha="center", va="center", fontsize="x-small")
ax.set(xlabel="row of the batch (colour: step; below: its time-step)", xticks=[], yticks=[], xlim=(-0.6, len(block) - 0.4))
plot.show(figure, "Twenty rows in five blocks of four: for each step the empty text of both images, then their prompts.")

# %% [markdown]
# ## 3. Serial = parallel
#
# The same latents must come out. In float64, with twice the digits, rounding all but vanishes and a flaw would stay.

# %%
twenty = fl.KeySchedule.paper(20)
for part in (unet, pipe.text_encoder, pipe.vae):
    part.double()
serial, parallel = (fl.sample(pipe, fl.Method(twenty, parallel_decoding=at_once), prompts[:1], [0], num_inference_steps=20, guidance_scale=5.0).latents
                    for at_once in (False, True))  # fmt: skip
for part in (unet, pipe.text_encoder, pipe.vae):
    part.float()
print(f"{serial.dtype}: largest difference between serial and parallel {(serial - parallel).abs().max():.1e}")
assert (serial - parallel).abs().max() < 1e-9

# %% [markdown]
# ## 4. What is the speed-up made of?
#
# Serial and parallel do the same arithmetic: nine encodings and fifty decodings. They differ in the number of calls. **Guess** how many times
# faster parallel is than the baseline on this machine, for one image.

# %%
guess = ...

# %%
ways = {"baseline": fl.Method(), "serial": fl.Method(paper, parallel_decoding=False), "parallel": fl.Method(paper),
        "parallel, at most 10 rows": fl.Method(paper, max_rows=10)}  # fmt: skip
runs = {name: [] for name in ways}
for _ in range(3):
    for name, method in ways.items():  # they take turns, to meet the same disturbances
        runs[name].append(fl.sample(pipe, method, prompts[:1], seeds[:1], guidance_scale=5.0))
seconds = {name: statistics.median(run.seconds for run in taken) for name, taken in runs.items()}
rows = [(name, taken[0].counts.encoder_calls, taken[0].counts.decoder_calls, taken[0].counts.forward_calls, seconds[name],
         seconds["baseline"] / seconds[name]) for name, taken in runs.items()]  # fmt: skip
print(fl.guessed(guess, seconds["baseline"] / seconds["parallel"]))
table = pd.DataFrame(rows, columns=["way", "encodings", "steps decoded", "calls", "seconds", "times faster"])
table.style.hide(axis="index").format({"seconds": "{:.2f}", "times faster": "{:.2f}"})

# %% [markdown]
# The arithmetic saved is the same for all three: the **ceiling by operations**. Whatever lies above it comes from elsewhere. Here is the
# split, from benchmarks, beside the paper's (one A40, its Table 8). On the H200 the weights are random: seconds do not
# depend on them.

# %%
sources, ceilings = {"The paper: Stable Diffusion 1.5, A40": (2.42, 1.82, 1.42)}, [37050 / 27350]  # multiply-adds of its Table 1
machines = {"nvidia-h200": ("sd-1.5", "Stable Diffusion 1.5, H200"), "intel-r-xeon-r-processor-2-threads": ("embedded", "embedded pipeline, CPU")}
for machine, (system, title) in machines.items():
    bench = fl.measured(f"bench/{machine}/bench").query("system == @system and batch_size == 1").set_index("method")
    ours = bench.loc[["baseline", "paper, serial", "paper, parallel"]]
    sources[f"Here: {title}"] = tuple(ours["seconds"])
    ceilings.append(ours["flop_ceiling"].iloc[-1])

# %% tags=["hide-input"]
plot.show(plot.speedup(sources, ceilings))

# %% [markdown]
# Blue is the paper's idea, orange its trick. The trick saves no arithmetic. It packs small calls into large ones, which use an idle device
# better. On the H200, five steps of Stable Diffusion 1.5 in one batch take little longer than one. So ask of each reported speed-up: at which batch size? A device that eight images keep busy has less to gain.
# [Exercise 4.1](exercises/4_time_fit_and_claims.ipynb) measures that.
#
# ## 5. The price: memory
#
# Features are kept once. But the decoder's own tensors grow with the rows decoded at once, and the longest group decides. The paper's Table 8
# has 2.62 GB for the baseline, 2.64 serial and 3.95 parallel. `max_rows` chooses a place between the two.

# %%
longest = max(len(group) for group in paper.groups())
print(f"longest group: {longest} steps, so {2 * longest} rows at once for one image with guidance; serial: 2")

# %% [markdown]
# ## The sentence to remember
#
# **A prediction between keys does not need its latent: that is where the speed comes from.**
#
# ## To try
#
# 1. Draw section 1 with keys `"0-9 of 10"`, and with `"0 of 10"`. Which image do you expect?
# 2. Time section 4 with `prompts` and `seeds` instead of one image. What is left of the orange part?
# 3. The paper also adds a little of the initial noise, for texture: [appendix B](appendix_b_prior_noise.ipynb).
#
# Next: [which steps should be keys?](05_key_time_steps.ipynb)
