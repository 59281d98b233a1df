# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # From curves to key time-steps: the same budget, five ways
#
# Encoder propagation runs the encoder at a few **key steps** only. Which? *Faster Diffusion* (Li et al., NeurIPS 2024) looks at how much
# the encoder's features change from step to step and says: put keys where they change much. The paper's list was then found by hand.
#
# After this notebook you can
# - turn a curve of recorded change into a list of key steps, with a rule that fits on one line,
# - get another list from *which steps look alike*, and a third from what reuse was measured to cost,
# - draw five schedules of nine keys as strips, and compare them by the images that come out, and
# - say how much of it the drift of features explains, with a number.
#
# The features are *reused* between keys here, as in the paper. Everything runs offline on a CPU in less than a minute.

# %%
import sys

import diffusers
import numpy as np
import pandas as pd
import torch
from IPython.display import HTML

import fastdiff_lab as fl
from fastdiff_lab import plot
from fastdiff_lab.comparison.compare import BASELINE
from fastdiff_lab.comparison.render import drawn
from fastdiff_lab.sampling.methods import Method, generators
from fastdiff_lab.sampling.run_settings import RunSettings
from fastdiff_lab.comparison.fidelity import fidelity, mean_psnr
from fastdiff_lab.pipelines import embedded_folder
from fastdiff_lab.shapes.data import calibration_scenes
from fastdiff_lab.hooks.denoiser import split_denoiser
from fastdiff_lab.shapes.data import held_out_prompts

print(f"fastdiff_lab {fl.__version__}, diffusers {diffusers.__version__}, torch {torch.__version__}")
print(f"Python {sys.version.split()[0]}, {torch.get_num_threads()} CPU threads, CUDA: {torch.cuda.is_available()}")

# %% [markdown]
# The next cell is the only one that says which pipeline is used; with a GPU, write `fl.load_pipeline(device="cuda")`.

# %%
pipe = fl.load_pipeline()
num_steps, num_keys = 50, 9
options = {"num_inference_steps": num_steps, "guidance_scale": 5.0}
f"{type(pipe.unet).__name__}, {type(pipe.scheduler).__name__}, {num_steps} steps, {num_keys} keys"

# %% [markdown]
# ## 1. The curve
#
# Keys must not be chosen on the images on which they are judged. So the project sets two kinds of captions apart: those on which one may
# measure, and the *held-out* ones, on which one reports. The model has been trained on neither.

# %%
captions = [scene.caption() for scene in calibration_scenes(4)]
blocks = list(split_denoiser(pipe.unet).encoder)
with fl.record(pipe, keep=blocks) as recording:
    pipe(captions, generator=generators(range(len(captions))), **options)
print(f"recorded {recording.num_steps} steps of {len(captions)} images; encoder: {', '.join(blocks)}")

# %% [markdown]
# The relative change (notebook 02 says why not the squared one), mean over the encoder's blocks and over the images. Before you look:
# in which third of the run do you expect most of it?

# %%
change = fl.feature_change(recording, kind="relative").query("part == 'encoder'")
change = change.groupby("step")["value"].mean().reindex(range(num_steps), fill_value=0.0)
thirds = change.groupby(pd.cut(change.index, 3, labels=["first third", "second third", "last third"]), observed=True).sum()
(thirds / thirds.sum()).rename("share of all change").to_frame().style.format("{:.0%}")

# %% [markdown]
# ### From the curve to keys
#
# If features may drift by the same amount in each group, keys lie at **equal shares of the accumulated change**: cut the axis on the right
# into nine equal parts and read off the steps. `fl.accumulated_change` does that.

# %%
accumulated = fl.accumulated_change(recording, num_keys)
print(f"{accumulated}\n({accumulated.source})")

# %%
left, right = (figure := plot.figure(9, 3)).subplots(1, 2)
left.plot(change.index[1:], change[1:], color=plot.PETROFF[0])
left.set(xlabel="step", ylabel="relative change of the\nencoder's features (no unit)", title="from the step before")
right.plot(change.cumsum() / change.sum(), color=plot.PETROFF[0])
right.set(xlabel="step", ylabel="share of all change", title="accumulated (crosses: keys)")
for key, share in zip(accumulated.keys, np.arange(num_keys) / num_keys, strict=True):
    right.plot([0, key, key], [share, share, 0], color="0.75", linewidth=0.8, zorder=0)
    right.plot(key, share, "x", color="black", markersize=6)
alt = "Left: the encoder's relative change over the steps. Right: the same accumulated, cut into nine equal shares, with the keys"
HTML(plot.html_image(figure, alt))

# %% [markdown]
# ## 2. Which steps look alike?
#
# The curve compares neighbours; a reused feature may be many steps old. So ask every step against every other, and join neighbours as long
# as they are alike (`fl.step_clusters`). The first step of each cluster is its key.

# %%
similar = np.mean([fl.step_similarity(recording, block) for block in blocks], axis=0)
clusters = fl.step_clusters(similar, num_keys)
clustered = fl.KeySchedule(num_steps, np.flatnonzero(np.diff(clusters, prepend=-1)).tolist(), "first steps of clusters")
str(clustered)

# %%
ax = (figure := plot.figure(4.4, 3.4)).subplots()
plot.similarity_matrix(similar, ax, keys=clustered.keys).set_title("mean over the encoder's blocks")
HTML(plot.html_image(figure, f"Cosine similarity of every two steps; squares: the nine clusters, with key steps {clustered}"))

# %% [markdown]
# ## 3. What was measured
#
# The third way does not look at features at all: for each span of steps it *tries* what the final image loses if features are reused
# there, and then chooses the spans that cost least in all. [Notebook 06](06_derive_a_schedule.ipynb) takes that apart; here we only
# read what was measured once, on 16 captions, and is shipped with the project.

# %%
calibrated = embedded_folder().parent / "calibration" / "ddim-50" / "encoder-0.safetensors"
costs = fl.ReuseCosts.load(calibrated)
derived = fl.derive_schedule(costs, num_keys)
print(f"{derived}\n({derived.source}; measured on {costs.title()})")

# %% [markdown]
# ## 4. Five schedules with the same number of keys

# %%
schedules = {
    "uniform": fl.KeySchedule.uniform(num_steps, num_keys),
    "the paper's": fl.KeySchedule.paper(num_steps),
    "accumulated change": accumulated,
    "step clusters": clustered,
    "derived": derived,
}

# %%
ax = (figure := plot.figure(9, 2.4)).subplots()
plot.key_strips({name: schedule.keys for name, schedule in schedules.items()}, num_steps, ax)
HTML(plot.html_image(figure, "Five schedules as strips: " + "; ".join(f"{name} {s}" for name, s in schedules.items())))

# %% [markdown]
# Which of them are denser at the start, which at the end? And which has the longest group? A long group is where old features are used.

# %%
rows = []
for name, schedule in schedules.items():
    early, late = sum(key < 10 for key in schedule.keys), sum(key >= 40 for key in schedule.keys)
    rows.append((name, str(schedule), early, late, max(map(len, schedule.groups()))))
columns = ["schedule", "key steps", "in the first ten", "in the last ten", "longest group"]
pd.DataFrame(rows, columns=columns).style.hide(axis="index")

# %% [markdown]
# ## 5. Images
#
# Six held-out captions, three with one object and three with two (which the pipeline was not taught: there it is only asked to draw the same).
# Each schedule makes 9 encoder calls and 50 decoder calls, so the cost is the same; guess the order before you look.

# %%
prompts = held_out_prompts(6)
methods = {BASELINE: Method(), **{name: Method(schedule) for name, schedule in schedules.items()}}
results = drawn(pipe, methods, [(prompt, 0) for prompt in prompts], RunSettings(**options))
images = {name: [result.image for result in found] for name, found in results.items()}
{name: found[0].counts["encoder_calls"] for name, found in results.items()}

# %%
shown = [0, 2, 4]
columns = {name.replace(" ", "\n"): [found[i] for i in shown] for name, found in images.items()}
grid = plot.image_grid(columns, plot.figure(7.6, 8.2))
alt = (
    f"Baseline and five schedules for: {'; '.join(prompts[i] for i in shown)}. Below each the difference to the baseline image"
)
print("rows:", "; ".join(prompts[i] for i in shown))
HTML(plot.html_image(grid, alt))

# %% [markdown]
# How near are they, over all six? PSNR in dB, higher is nearer: 10 dB more is a tenth of the squared error.

# %%
near = {name: fidelity(images[name], images[BASELINE]) for name in schedules}
psnr = pd.Series({name: mean_psnr(table["mse"]) for name, table in near.items()}, name="PSNR, dB")
worst = pd.Series({name: table["psnr"].min() for name, table in near.items()}, name="worst, dB")
best = pd.Series({name: table["psnr"].max() for name, table in near.items()}, name="best, dB")
pd.concat([psnr, worst, best], axis=1).style.format(precision=1)

# %%
ax = (figure := plot.figure(7, 2.7)).subplots()
ax.barh(range(len(psnr)), psnr, 0.6, color=plot.PETROFF[0], edgecolor="black")
ax.hlines(range(len(psnr)), worst, best, color="black", linewidth=3)
ax.set(yticks=range(len(psnr)), yticklabels=psnr.index, ylim=(len(psnr) - 0.5, -0.5))
ax.set_xlabel("PSNR to the baseline, dB (line: worst to best image)")
HTML(plot.html_image(figure, "PSNR of five schedules with nine keys, with lines from the worst to the best image"))

# %%
order = psnr.sort_values(ascending=False)
print(" > ".join(f"{name} ({value:.1f} dB)" for name, value in order.items()))
gain = psnr["the paper's"] - psnr["uniform"]
print(f"the paper's keys are {abs(gain):.1f} dB {'above' if gain > 0 else 'below'} uniform ones")

# %% [markdown]
# The paper has another measure and another model: its Tables 5 and 6 report FID on Stable Diffusion (lower is better): 21.54 with nine
# uniform keys, 21.71 with its own list, 21.08 with its list and prior noise. We report nearness to the baseline on a small pipeline. Six
# images show an order of magnitude; notebook 07 has intervals.

# %% [markdown]
# ## 6. How much does the drift of features explain?
#
# For each schedule: how far is a reused feature from the one it stands for, on average over the steps? If that were all that matters,
# the schedule with the smallest distance would give the best images.


# %%
def distance(schedule):
    """1 - cosine similarity of each step's encoder features to those of its key step, mean over the steps."""
    return np.mean([1 - similar[group.start, step] for group in schedule.groups() for step in group])


drift = pd.Series({name: distance(schedule) for name, schedule in schedules.items()}, name="distance of reused features")
against = pd.concat([drift, psnr], axis=1).sort_values("distance of reused features")
against.style.format({"distance of reused features": "{:.4f}", "PSNR, dB": "{:.1f}"})

# %%
nearest, best_images = drift.idxmin(), psnr.idxmax()
print(f"features nearest to the true ones: {nearest}; images nearest to the baseline's: {best_images}")
agreement = drift.corr(psnr, method="spearman")
print(f"rank correlation of distance and PSNR over the five (-1: the distance alone ranks the schedules): {agreement:.2f}")

# %% [markdown]
# A correlation near -1 says that the drift of features tells bad keys from good ones. Schedules that are about as good it may rank wrongly:
# compare the neighbours in the table. Now the same for single groups. Take every group of six steps, wherever it begins: how far do features
# drift in it, and what did reusing them there cost at the *end* of the run, as measured on sixteen images?

# %%
length = 6
starts = np.arange(num_steps - length + 1)
drifts = np.array([np.mean([1 - similar[i, step] for step in range(i + 1, i + length)]) for i in starts])
errors = np.sqrt(costs.spans()[0, starts, length])
rank = pd.Series(drifts).corr(pd.Series(errors), method="spearman")
f"rank correlation over {len(starts)} groups of {length} steps: {rank:.2f}"

# %%
ax = (figure := plot.figure(7, 3)).subplots()
ax.plot(starts, drifts / drifts.mean(), "--", color=plot.PETROFF[1], label="drift of the encoder's features")
ax.plot(starts, errors / errors.mean(), color=plot.PETROFF[0], label="error in the final latents, mean of images")
middle = np.sqrt(costs.spans("median")[0, starts, length])
ax.plot(starts, middle / middle.mean(), ":", color=plot.PETROFF[0], label="the same, median image")
ax.set(xlabel=f"step at which a group of {length} begins", ylabel="relative to the mean", ylim=(0, None))
ax.legend()
HTML(
    plot.html_image(
        figure, "Drift of features in groups of six steps, and the error that reusing them causes at the end, over the steps"
    )
)

# %%
apart = np.abs(drifts / drifts.mean() - errors / errors.mean())
print(f"where the two disagree most: a group that begins at step {starts[apart.argmax()]}")

# %% [markdown]
# Drift explains most of it, then. (The plateau up to step 13 is one image that ends as another one: see the median, and notebook 06.) Where
# the two disagree, three things stand between a changed feature and a changed image that the drift does not see:
#
# 1. the **decoder**: it may hardly use what has changed, or use it much;
# 2. the **scheduler**: how far the latents move at a step differs from step to step;
# 3. the **rest of the run**: an early error may grow or be repaired later, and a late one stays.

# %% [markdown]
# ## Summary

# %%
ahead = psnr["derived"] - psnr.drop("derived").max()
print(f"- Nearest to the baseline: {best_images} ({psnr.max():.1f} dB); farthest: {psnr.idxmin()} ({psnr.min():.1f} dB).")
print(f"- Measured keys are {abs(ahead):.1f} dB {'above' if ahead > 0 else 'below'} the best of the other four.")
print(
    f"- Rank correlation of feature change and cost, groups of {length} steps: {rank:.2f}; of distance and PSNR: {agreement:.2f}."
)

# %% [markdown]
# - A curve of change gives a list of keys in one line of code; so do clusters of similar steps. Both ask about features.
# - What one wants to know is the error that reaches the *end*. It has to be measured, which is what
#   [notebook 06](06_derive_a_schedule.ipynb) does. On six images measured keys need not win; see the line above.
# - On 128 images ([table](../docs/results.md#rules-that-need-no-calibration)) measured keys are 2 dB ahead of accumulated change
#   with nine keys, and 1 dB behind it with seventeen.
#
# ## To try
#
# 1. `fl.accumulated_change(recording, 9, kind="squared")`, or `part="decoder"`: do the keys move, and do the images get better?
# 2. Write a schedule of your own, `fl.KeySchedule.parse("0,2,5,9,14,20,27,35,43 of 50")`, and put it into `schedules`.
# 3. Which schedules change their place with `Method(schedule, order=1)` (features extrapolated instead of reused)?
#
# Next: [encoder propagation by hand](04_encoder_propagation.ipynb).
