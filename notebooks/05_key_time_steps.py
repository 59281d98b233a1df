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
# # Which steps should be keys?
#
# Nine of fifty steps may run the encoder. Which? *Faster Diffusion* (Li et al., NeurIPS 2024) looks at how much the encoder's features
# change. It says: put keys where they change much. Its list was then found by hand, on Stable Diffusion. Does it serve here?
#
# **You will** turn a curve of change into keys, and compare five lists of nine. Then you see what the curve cannot know.
#
# New words are in the [glossary](../docs/glossary.md).

# %%
import numpy as np
import pandas as pd
import torch

import fastdiff_lab as fl

plot = fl.plot
print(f"fastdiff_lab {fl.__version__}, torch {torch.__version__}, {torch.get_num_threads()} CPU threads")

# %% [markdown]
# The next cell alone says which pipeline is used. Keys must not be chosen on the pictures that judge them. So two sets of captions are kept
# apart: those measured on, and the *held-out* ones. The model has seen neither.

# %%
pipe = fl.load_pipeline()
num_steps, num_keys = 50, 9
options = {"num_inference_steps": num_steps, "guidance_scale": 5.0}
costs = fl.embedded_costs()  # measured once, on 16 captions
captions, noises = costs.about["prompts"][:4], [torch.Generator().manual_seed(seed) for seed in costs.about["seeds"][:4]]
prompts, seeds = fl.demo(4)  # held out

# %% [markdown]
# ## 1. The curve
#
# The relative change of the encoder's features, mean over its blocks and over four pictures. **Guess** the share of all change that falls into
# the first ten steps, from 0 to 1.

# %%
guess = ...

# %%
blocks = ["conv_in", "down_blocks.0", "down_blocks.1", "down_blocks.2", "down_blocks.3", "mid_block"]
with fl.record(pipe, keep=blocks) as recording:
    pipe(captions, generator=noises, **options)
change = fl.feature_change(recording, kind="relative").query("part == 'encoder'").groupby("step")["value"].mean()
change = change.reindex(range(num_steps), fill_value=0.0).to_numpy()
print("share of the first ten steps:", fl.guessed(guess, change[:10].sum() / change.sum()))

# %% [markdown]
# ## 2. From the curve to keys
#
# Let features drift by the same amount in each group. Then keys lie at **equal shares** of the accumulated change:
#
# $$\sum_{s \le k_j} \delta_s \;\ge\; \frac{j}{n} \sum_s \delta_s, \qquad j = 0, 1, \dots, n-1$$
#
# Each $k_j$ is the first step that fulfils it. **Your turn.**

# %%
def equal_shares(change, num_keys):
    """The change of each step (0 at the first), and the number of keys -> the key steps."""
    # BEGIN SOLUTION
    accumulated = np.cumsum(change)
    return [int(np.argmax(accumulated >= j / num_keys * accumulated[-1])) for j in range(num_keys)]
    # END SOLUTION

# %%
fl.check("equal_shares", equal_shares)

# %%
accumulated = fl.accumulated_change(recording, num_keys)
print(f"{accumulated} ({accumulated.source})")

# %% tags=["hide-input"]
left, right = (figure := plot.figure(9, 2.8)).subplots(1, 2)
left.plot(range(1, num_steps), change[1:], color=plot.PETROFF[0], linewidth=2)
left.set(xlabel="step", ylabel="relative change of the\nencoder's features (no unit)")
right.plot(change.cumsum() / change.sum(), color=plot.PETROFF[0], linewidth=2)
right.set(xlabel="step (crosses: keys)", ylabel="share of all change")
for key, share in zip(accumulated.keys, np.arange(num_keys) / num_keys, strict=True):
    right.plot([0, key, key], [share, share, 0], color="0.75", linewidth=0.8, zorder=0)
    right.plot(key, share, "x", color="black", markersize=6)
plot.show(figure, "Left: relative change over the steps. Right: the same accumulated, cut into nine equal shares, with a key at each.")

# %% [markdown]
# ## 3. Which steps look alike?
#
# The curve compares neighbours. A reused feature may be many steps old. So compare every step with every other, and join neighbours that are
# alike: `fl.step_clusters`.

# %%
similar = np.mean([fl.step_similarity(recording, block) for block in blocks], axis=0)
clusters = fl.step_clusters(similar, num_keys)
clustered = fl.KeySchedule(num_steps, np.flatnonzero(np.diff(clusters, prepend=-1)).tolist())
print(clustered)

# %% tags=["hide-input"]
ax = (figure := plot.figure(4.4, 3.4)).subplots()
plot.similarity_matrix(similar, ax, keys=clustered.keys).set_title("mean over the encoder's blocks")
plot.show(figure, f"Cosine similarity of every two steps. Squares are the nine clusters, with key steps {clustered}.")

# %% [markdown]
# ## 4. Five lists with nine keys
#
# A third way looks at no features. It *tries* each span of steps, and measures what the final picture loses. Then it chooses the cheapest
# spans: **derived** keys. [Notebook 06](06_derive_a_schedule.ipynb) takes that apart.

# %%
schedules = {
    "uniform": fl.KeySchedule.uniform(num_steps, num_keys),
    "paper": fl.KeySchedule.paper(num_steps),
    "accumulated change": accumulated,
    "step clusters": clustered,
    "derived": fl.derive_schedule(costs, num_keys),
}

# %% tags=["hide-input"]
ax = (figure := plot.figure(9, 2.4)).subplots()
plot.key_strips({name: schedule.keys for name, schedule in schedules.items()}, num_steps, ax)
plot.show(figure, "Five lists as strips: " + "; ".join(f"{name} {schedule}" for name, schedule in schedules.items()))

# %% [markdown]
# All five make nine encoder calls, and cost the same. **Guess** the best, then the worst.

# %%
guess_best, guess_worst = ..., ...

# %%
methods = {"baseline": fl.Method()} | {name: fl.Method(schedule) for name, schedule in schedules.items()}
pictures = {name: fl.sample(pipe, method, prompts, seeds, guidance_scale=5.0).images for name, method in methods.items()}
live = {name: fl.mean_psnr(fl.fidelity(pictures[name], pictures["baseline"])["mse"]) for name in schedules}
rules = fl.measured("ablation/rules").query("num_keys == 9 and order == 0").set_index("rule")["psnr"]
paper = fl.measured("suite/ddim-50/table").set_index("method")["psnr"]["features, paper 9, order 0"]
measured = pd.Series({name: paper if name == "paper" else rules[name] for name in schedules})
print(f"best: {fl.guessed(guess_best, measured.idxmax())}; worst: {fl.guessed(guess_worst, measured.idxmin())}")
print("128 pictures:", fl.measured_with("suite/ddim-50"))
pd.DataFrame({"PSNR, dB: these 4 pictures": live, "128 pictures": measured}).style.format(precision=1)

# %% tags=["hide-input"]
columns = {name.replace(" ", "\n"): found[:2] for name, found in pictures.items()}
plot.show(plot.image_grid(columns, plot.figure(9, 7)), f"Baseline and five lists of keys for: {'; '.join(prompts[:2])}. Below each its difference.")

# %% [markdown]
# The paper judges by FID on Stable Diffusion, where lower is better. It has 21.54 with nine uniform keys (Table 5), 21.71 with its list (Table 6).
# We judge by nearness to the baseline, on another model. So the numbers cannot be compared. The lesson can: **a list of keys is not a law.**
#
# ## 5. What the curve cannot know
#
# How much does drift explain? **Your turn**: the mean distance of a reused feature from the true one.

# %%
def drift(similar, keys):
    """Cosine similarity of every two steps, and key steps -> 1 - similarity of each step to its key, mean over all steps."""
    # BEGIN SOLUTION
    key_of = [max(key for key in keys if key <= step) for step in range(len(similar))]
    return np.mean([1 - similar[key, step] for step, key in enumerate(key_of)])
    # END SOLUTION

# %%
fl.check("drift", drift)

# %% [markdown]
# Now single groups. Take each group of six steps. How far do features drift in it? And what does reuse there cost at the *end* of the run, as
# measured on 16 pictures? If drift were all, their ranks would agree: a rank correlation of 1.

# %%
length = 6
starts = np.arange(num_steps - length + 1)
drifts = pd.Series([np.mean([1 - similar[start, start + ahead] for ahead in range(1, length)]) for start in starts])
squared = costs.errors()[:, 0, starts, length] ** 2  # pictures, starts
loud = int(squared.sum(axis=1).argmax())
averages = {"mean of all pictures": squared.mean(axis=0), f"mean without picture {loud}": np.delete(squared, loud, axis=0).mean(axis=0),
            "median picture": np.median(squared, axis=0)}  # fmt: skip
ranks = {name: drifts.corr(pd.Series(values), method="spearman") for name, values in averages.items()}
pd.Series(ranks, name="rank correlation of drift and cost").to_frame().style.format(precision=2)

# %% tags=["hide-input"]
ax = (figure := plot.figure(7, 3)).subplots()
ax.plot(starts, drifts / drifts.mean(), "--", color=plot.PETROFF[1], linewidth=2, label="drift of the encoder's features")
for (name, values), style, width in zip(averages.items(), ("-", "-.", ":"), (2.2, 1.5, 1.5), strict=True):
    error = np.sqrt(values)
    ax.plot(starts, error / error.mean(), style, color=plot.PETROFF[0], linewidth=width, label=f"error at the end, {name}")
ax.set(xlabel=f"step at which a group of {length} begins", ylabel="relative to its mean", ylim=(0, None))
ax.legend(fontsize="small")
plot.show(figure, "Drift of features in groups of six steps, and the error that reuse there causes at the end: mean, mean without one picture, median.")

# %% [markdown]
# Read the three numbers. Where they differ much, one picture decides the mean: it flips to another picture when it is disturbed early. Then
# drift tells *which picture flips*, not what a typical one loses. Three things stand between a changed feature and a changed picture:
#
# 1. the **decoder** may hardly use what has changed,
# 2. the **scheduler** moves the latent more at some steps than at others,
# 3. the **rest of the run** repairs some errors and magnifies others.
#
# ## The sentence to remember
#
# **Keys belong to a model: measure them, do not copy them.**
#
# ## To try
#
# 1. `fl.accumulated_change(recording, 9, part="decoder")`: do the keys move? Do the pictures get better?
# 2. Put a list of your own into `schedules`: `fl.KeySchedule.parse("0,2,5,9,14,20,27,35,43 of 50")`.
#
# Next: [measure the cost of reuse, and repair what is left](06_derive_a_schedule.ipynb).
