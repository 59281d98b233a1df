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
# # Which half of the UNet is steady?
#
# A UNet has two halves. The **encoder** looks at the latent; the **decoder** turns what it saw into a prediction. *Faster Diffusion*
# (Li et al., NeurIPS 2024) compares their features over the steps. It reports that the encoder's
# hardly change, and the decoder's do. So it reuses the encoder's.
#
# **You will** read features with a hook, and measure how much they change. The answer depends on the measure.
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
# The next cell alone says which pipeline is used. With a GPU, write `fl.load_pipeline(device="cuda")`.

# %%
pipe = fl.load_pipeline()
prompts, seeds = fl.demo(4)
noises = [torch.Generator().manual_seed(seed) for seed in seeds]
options = {"num_inference_steps": 50, "guidance_scale": 5.0}

# %% [markdown]
# ## 1. A hook by hand
#
# How does one see the features inside a model without changing it? PyTorch calls a **forward hook** with whatever a module gives. Four lines
# collect what one block gives at each step.

# %%
collected = []
handle = pipe.unet.down_blocks[1].register_forward_hook(lambda module, args, output: collected.append(output[0][-1].float().cpu()))
pipe(prompts[0], generator=torch.Generator().manual_seed(seeds[0]), **options)
handle.remove()
features = torch.stack(collected)
print("features:", tuple(features.shape), "(steps, channels, height, width)")

# %% [markdown]
# How much do they change from step to step? The paper takes the mean **squared** difference (its Fig. 3a):
#
# $$\Delta_t = \frac{1}{d\,s^2}\,\lVert F_t - F_{t-1}\rVert^2$$
#
# Here $d$ counts channels, and $s^2$ places. **Your turn.**

# %%
def squared_change(features):
    """Features (steps, channels, height, width) -> a number for each step but the first."""
    # BEGIN SOLUTION
    return (features[1:] - features[:-1]).square().mean(dim=(1, 2, 3))
    # END SOLUTION

# %%
fl.check("squared_change", squared_change)

# %% [markdown]
# ## 2. All blocks at once
#
# `fl.record` does the same for every block. It removes its hooks after an error, too, and keeps numbers instead of features. Features are
# kept only where you ask.

# %%
kept = ["down_blocks.1", "up_blocks.2"]
with fl.record(pipe, keep=kept) as recording:
    pipe(prompts, generator=noises, **options)
squared = fl.feature_change(recording)
first = squared.query("layer == 'down_blocks.1' and sample == 0")["value"].to_numpy()
assert np.allclose(first, (features[1:] - features[:-1]).square().mean(dim=(1, 2, 3)), rtol=1e-2, atol=1e-6)
print(f"{recording.num_samples} pictures, {recording.num_steps} steps, {len(recording.layers)} blocks; the first block agrees with our hook")

# %% [markdown]
# The paper names blocks by the size of their input in Stable Diffusion. The bottleneck $B_8$ counts with the encoder, because it is reused
# with it.

# %%
names = ["conv_in", "E_64", "E_32", "E_16", "E_8", "B_8", "D_8", "D_16", "D_32", "D_64"]
pd.DataFrame({"block": recording.layers, "in the paper": names, "part": recording.parts}).T

# %% [markdown]
# ## 3. What the features look like (the paper's Fig. 2)
#
# Three principal components become red, green and blue. Equal colours mean equal features. The paper shows these two blocks at seven
# neighbouring steps. It sees the upper row stay and the lower row change. Do you?

# %% tags=["hide-input"]
neighbours = list(range(33, 40))
maps = {f"{name}\n({names[list(recording.layers).index(name)]})": fl.pca_maps(recording, name, steps=neighbours) for name in kept}
figure = plot.pca_strip(maps, neighbours, plot.figure(8.5, 2.6))
plot.show(figure, "Principal components as colours at seven neighbouring steps: an encoder block above, a decoder block below.")

# %% [markdown]
# ## 4. Squared change (the paper's Fig. 3a)
#
# In the paper the largest squared change is below 0.4 in the encoder. In the decoder it is about 5, twelve times more. **Guess** that ratio
# for this pipeline.

# %%
guess = ...

# %%
of_blocks = squared[squared["layer"] != "conv_in"]  # the paper has no name for it
largest = of_blocks.groupby("part")["value"].max()
print(f"largest squared change: encoder {largest['encoder']:.2f}, decoder {largest['decoder']:.2f}")
print("decoder / encoder:", fl.guessed(guess, largest["decoder"] / largest["encoder"]))

# %% tags=["hide-input"]
figure = plot.figure(8, 3)
left, right = figure.subplots(1, 2, width_ratios=(1, 2))
for place, (name, values) in enumerate({"the paper": {"encoder": 0.4, "decoder": 5.0}, "here": largest}.items()):
    for shift, (part, hatch) in enumerate((("encoder", ""), ("decoder", "//"))):
        left.bar(place + 0.4 * shift, values[part], 0.36, color=plot.PETROFF[shift], hatch=hatch, edgecolor="black", label=part if place == 0 else None)
left.set(xticks=[0.2, 1.2], xticklabels=["the paper", "here"], ylabel="largest squared change")
left.legend()
plot.change_by_part(of_blocks, right, label="squared change").set(yscale="log", title="here, over the steps")
alt = "Left: the paper's decoder changes twelve times as much as its encoder, ours is beside it. Right: our squared change over the steps."
plot.show(figure, alt)

# %% [markdown]
# ## 5. A measure without a trap
#
# Suppose one block's features are ten times as large as another's, and both turn by the same angle. Then its *squared* change is a
# hundred times as large. So a difference in Fig. 3a may come from size alone. Two measures do not care about size:
#
# - the **relative** change, $\lVert F_t - F_{t-1}\rVert \,/\, \lVert F_{t-1}\rVert$,
# - the **cosine** change, $1 - \cos(F_t, F_{t-1})$.
#
# **Your turn** with the second.

# %%
def cosine_change(features):
    """Features (steps, channels, height, width) -> 1 minus the cosine to the step before, for each step but the first."""
    # BEGIN SOLUTION
    flat = features.flatten(1)
    return 1 - torch.cosine_similarity(flat[1:], flat[:-1], dim=1)
    # END SOLUTION

# %%
fl.check("cosine_change", cosine_change)

# %% [markdown]
# Below, thick lines are the means of the halves; thin grey lines are blocks. In which panels does the dashed line run above the solid one?

# %%
kinds = {kind: fl.feature_change(recording, kind=kind).query("layer != 'conv_in'") for kind in ("squared", "relative", "cosine")}

# %% tags=["hide-input"]
figure = plot.figure(10, 3.2)
for ax, (kind, table) in zip(figure.subplots(1, 3), kinds.items(), strict=True):
    plot.change_by_part(table, ax, label="change (no unit)").set(yscale="log", title=kind)
plot.show(figure, "Squared, relative and cosine change over the steps: a thick solid line for the encoder, a thick dashed one for the decoder.")

# %%
means = pd.DataFrame({kind: table.groupby("part")["value"].mean() for kind, table in kinds.items()})
means.loc["decoder / encoder"] = means.loc["decoder"] / means.loc["encoder"]
means.loc[["encoder", "decoder", "decoder / encoder"]].style.format(precision=3)

# %%
relative = means.loc["decoder / encoder", "relative"]
verdict = "both halves are about equally steady" if 0.67 < relative < 1.5 else f"the {'encoder' if relative > 1 else 'decoder'} is steadier"
print(f"by relative change the decoder changes {relative:.2f} times as much: here {verdict}")

# %% [markdown]
# The paper publishes squared changes only. As far as we know, nobody has published relative ones on Stable Diffusion's weights. We have not
# measured them either.
#
# ## 6. Then why reuse the encoder?
#
# Steadiness alone does not choose a half. Something else does. If the encoder is reused, the decoder still runs at every step, and it gets
# that step's **own** time-step. So its prediction can follow the time-step. If the decoder were reused, nothing could follow.

# %% tags=["hide-input"]
plot.show(plot.key_step())

# %% [markdown]
# And when is reuse dangerous? Where features change most. In which third of the run is that?

# %%
change = kinds["relative"].query("part == 'encoder'").groupby("step")["value"].mean()
thirds = change.groupby(pd.cut(change.index, 3, labels=["first third", "second third", "last third"]), observed=True).sum()
(thirds / thirds.sum()).rename("share of the encoder's change").to_frame().style.format("{:.0%}")

# %% [markdown]
# ## The sentence to remember
#
# **The paper saw a steady encoder; measure both halves by the same ruler before you believe it.**
#
# What speaks for the encoder is the decoder: it still runs, and knows its own time-step.
#
# ## To try
#
# 1. Record with `half="unconditional"`. Do features without a prompt change less?
# 2. Set `guidance_scale` to 1. Which curve changes most?
# 3. Norms, single layers, and what it takes to keep all features: [appendix A](appendix_a_features.ipynb).
#
# Next: [write encoder propagation yourself](03_encoder_propagation.ipynb).
