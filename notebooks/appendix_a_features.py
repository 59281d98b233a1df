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
# # Appendix A: how large are features, and how do single layers behave?
#
# Notebook 02 measures change. This appendix redraws the rest of the paper's Figures 2 and 3, and looks at single layers. At its end: what does it
# take to keep all features? New words are in the [glossary](../docs/glossary.md).

# %%
import numpy as np
import pandas as pd
import torch

import fastdiff_lab as fl

plot = fl.plot
print(f"fastdiff_lab {fl.__version__}, torch {torch.__version__}, {torch.get_num_threads()} CPU threads")

# %%
pipe = fl.load_pipeline()
prompts, seeds = fl.demo(4)
kept = ["down_blocks.0", "mid_block", "up_blocks.1", "up_blocks.3"]
with fl.record(pipe, keep=kept) as recording, fl.record(pipe, layers="inner") as layers:
    pipe(prompts, generator=[torch.Generator().manual_seed(seed) for seed in seeds], num_inference_steps=50, guidance_scale=5.0)
names = dict(zip(recording.layers, ["conv_in", "E_64", "E_32", "E_16", "E_8", "B_8", "D_8", "D_16", "D_32", "D_64"], strict=True))
print(f"{recording.num_samples} pictures, {recording.num_steps} steps, {len(recording.layers)} blocks, {len(layers.layers)} layers")

# %% [markdown]
# ## 1. The whole run in colours (Fig. 2)
#
# Nothing stays the same from the first step to the last. How many steps apart must two maps be before a difference is seen?

# %% tags=["hide-input"]
shown = np.linspace(0, recording.num_steps - 1, 8).round().astype(int).tolist()
maps = {f"{name}\n({names[name]})": fl.pca_maps(recording, name, steps=shown) for name in kept}
plot.show(plot.pca_strip(maps, shown, plot.figure(7.5, 3.8)), "Principal components as colours: two encoder and two decoder blocks, eight steps from first to last.")

# %% [markdown]
# ## 2. Norms (Fig. 3b)
#
# The paper averages a block's features over channels and takes the norm of the map that is left. Its numbers are read by eye from the poster, so
# trust their order of magnitude only. The encoder's lie between 8 and 17, drawn here as 12.

# %%
norms = fl.feature_norm(recording)
paper = dict(zip(list(names.values())[1:], [12, 12, 12, 12, 30, 55, 160, 130, 365], strict=True))

# %% tags=["hide-input"]
left, right = (figure := plot.figure(8, 3)).subplots(1, 2)
plot.norm_by_layer(norms, left).set_title("here: all steps and pictures")
for place, (name, value) in enumerate(paper.items()):
    decoder = name.startswith("D")
    right.bar(place, value, color=plot.PETROFF[decoder], hatch="//" if decoder else "", edgecolor="black")
right.set_xticks(range(len(paper)), list(paper), fontsize="x-small")
right.set(title="the paper: medians, by eye", ylabel="norm of the channel mean")
plot.show(figure, "Norms of the blocks' features: ours as boxes on the left, the paper's medians as bars on the right.")

# %% [markdown]
# Larger maps have larger norms even if each place holds the same number. Divide by the side of the map to compare blocks.

# %%
side = dict(zip(recording.layers, [16, 8, 4, 2, 2, 2, 4, 8, 16, 16], strict=True))
median = norms.groupby("layer")["value"].median()
by_side = pd.Series({name: median[name] / side[name] for name in recording.layers}).groupby(dict(zip(recording.layers, recording.parts, strict=True))).mean()
print(f"median norm by side, decoder / encoder: {by_side['decoder'] / by_side['encoder']:.1f}")

# %% [markdown]
# ## 3. The spread of norms (Fig. 3c)
#
# On the left the standard deviation of those norms over the steps, as in the paper. On the right it is divided by the mean norm. By the paper's own numbers
# most of the difference goes: 1.5 against 100, but 0.12 against 0.27 of the norm.

# %% tags=["hide-input"]
left, right = (figure := plot.figure(8, 3)).subplots(1, 2)
plot.norm_spread(norms, left).set_title("as in Fig. 3c")
plot.norm_spread(norms, right, relative=True).set_title("relative to the mean norm")
plot.show(figure, "Standard deviation of each block's norm over the steps; on the right divided by the mean norm.")

# %% [markdown]
# ## 4. Layer by layer
#
# The paper counts 44 layers inside the blocks (its Table 7). The white line parts encoder and decoder. Which steps are lively in *all* layers?

# %%
inside = fl.feature_change(layers, kind="relative")

# %% tags=["hide-input"]
plot.layer_map(inside, (figure := plot.figure(7.5, 7.4)).subplots())
plot.show(figure, "Relative change of 44 layers (rows) over the steps (columns), as colours on a log scale.")

# %%
steady = inside.groupby(["part", "layer"])["value"].mean().reset_index()
steady.groupby("part")["value"].agg(["min", "median", "max"]).style.format(precision=4)

# %% [markdown]
# If the two ranges overlap, *which layer* matters more than *which part*.
#
# ## 5. How far is a reused feature from the true one?
#
# Not one step old, but up to fourteen with the paper's keys. For each kept block: 1 minus the cosine to its key, mean over the reused steps.

# %%
schedules = {"paper": fl.KeySchedule.paper(50), "uniform": fl.KeySchedule.uniform(50, 9), "derived": fl.derive_schedule(fl.embedded_costs(), 9)}
similar = {name: fl.step_similarity(recording, name) for name in kept}
distance = lambda matrix, schedule: np.mean([1 - matrix[group[0], step] for group in schedule.groups() for step in group[1:]])
pd.DataFrame({keys: {name: distance(similar[name], schedule) for name in kept} for keys, schedule in schedules.items()}).style.format(precision=3)

# %% [markdown]
# Near in angle is not near in the picture. What counts is what the decoder makes of it (notebook 05).
#
# ## 6. What would it take to keep everything?

# %%
needed = sum(fl.bytes_to_keep(pipe, list(recording.layers), prompts[0], num_inference_steps=50).values())
print(f"all {len(recording.layers)} blocks of one picture: {needed / 2**20:.0f} MiB; four numbers per block and step: {10 * 50 * 4 * 4 / 1024:.0f} KiB")

# %% [markdown]
# So `record` computes its numbers while the run goes on, and keeps features only where you ask.
#
# Back to [notebook 02](02_encoder_and_decoder_features.ipynb).
