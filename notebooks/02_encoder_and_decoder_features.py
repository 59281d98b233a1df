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
# # What encoder and decoder features do over the steps
#
# *Faster Diffusion* (Li et al., NeurIPS 2024) rests on an observation (its section 3.2): over the denoising steps the features of a
# diffusion UNet's **encoder** hardly change, those of its **decoder** change a lot. So the encoder can be left out at most steps. Here we
# look ourselves, on a pipeline that is much smaller than the paper's Stable Diffusion 1.5, and ask where the observation holds.
#
# After this notebook you can
# - collect features with a forward hook in five lines, and say what `fl.record` does beyond that,
# - name the blocks and the 44 layers that the paper counts, and compute what keeping their features would need,
# - draw the paper's Figures 2 and 3 and read them beside the paper's numbers,
# - tell a **squared** change from a **relative** one, and say why it matters when layers with features of different size are compared, and
# - see which steps look alike, and compare that with the paper's key steps.
#
# Everything runs offline on a CPU in less than a minute. Texts here say what the paper saw; what *we* see is always computed by a cell.

# %%
import sys

import diffusers
import numpy as np
import pandas as pd
import torch
from IPython.display import HTML

import fastdiff_lab as fl
from fastdiff_lab import plot
from fastdiff_lab.sampling.methods import denoiser_arguments, generators
from fastdiff_lab.recording.record import output_bytes
from fastdiff_lab.shapes.data import held_out_scenes
from fastdiff_lab.hooks.denoiser import inner_layers, split_denoiser

print(f"fastdiff_lab {fl.__version__}, diffusers {diffusers.__version__}, torch {torch.__version__}")
print(f"Python {sys.version.split()[0]}, {torch.get_num_threads()} CPU threads, CUDA: {torch.cuda.is_available()}")

# %% [markdown]
# The next cell is the only one that says which pipeline is used; with a GPU, write `fl.load_pipeline(device="cuda")`.

# %%
pipe = fl.load_pipeline()
f"{type(pipe.unet).__name__} with {sum(p.numel() for p in pipe.unet.parameters()) / 1e6:.1f} M parameters, {type(pipe.scheduler).__name__}"

# %%
prompt = "a large red star at the left on a blue background"
options = {"num_inference_steps": 50, "guidance_scale": 5.0}

# %% [markdown]
# ## 1. A hook by hand
#
# How does one get at the features inside a model without changing it? A PyTorch module calls its **forward hooks** with what it gives. So
# five lines collect what one block gives, over all steps:

# %%
collected = []
block = pipe.unet.down_blocks[1]
handle = block.register_forward_hook(lambda module, args, output: collected.append(output[0].to("cpu", copy=True)))
pipe(prompt, generator=generators([0]), **options)
handle.remove()
print(len(collected), "times", tuple(collected[0].shape))

# %% [markdown]
# One tensor per step. A down block gives two things, the features for the next block and a tuple for the decoder (the skips); we took the
# first. The shape is rows, channels, height, width, and the two rows are guidance's: without the prompt, with the prompt. How much do the
# features of the row *with* the prompt change from step to step?

# %%
features = torch.stack(collected)[:, -1].float()
change = (features[1:] - features[:-1]).square().mean(dim=(1, 2, 3))
print("change: mean", f"{change.mean():.4f}, largest {change.max():.4f} at step", int(change.argmax()) + 1)

# %%
figure = plot.figure(5.5, 2.3)
ax = figure.subplots()
ax.plot(range(1, len(features)), change, color=plot.PETROFF[0])
ax.set(xlabel="step", ylabel="mean squared change\nfrom the step before", title="down_blocks.1, one prompt")
HTML(plot.html_image(figure, "Mean squared change of the features of down_blocks.1 from step to step, for one prompt"))

# %% [markdown]
# ## 2. The same with `fl.record`
#
# `record` hooks every block at once. Does it find the same numbers?

# %%
with fl.record(pipe, keep=["down_blocks.1"]) as recording:
    pipe(prompt, generator=generators([0]), **options)
table = fl.feature_change(recording).query("layer == 'down_blocks.1'")
assert torch.allclose(recording["down_blocks.1"][0].float(), features, atol=1e-4)
assert np.allclose(table["value"], change, rtol=1e-3, atol=1e-6)
table.head(3).style.hide(axis="index")

# %% [markdown]
# It does. Our five lines lack what `record` adds:
#
# - It removes its hooks after an exception, too.
# - It knows where a run begins and ends, so several runs become several samples.
# - It picks the rows that belong to the prompt.
# - It refuses an accelerated run, in which features that were not evaluated would count as unchanged.
# - It keeps four numbers instead of a feature, unless you ask.

# %% [markdown]
# ## 3. Blocks, layers, and what keeping them would need
#
# The paper names blocks by the size of their *input* in Stable Diffusion: $E_{64}$ to $E_8$, the bottleneck $B_8$, $D_8$ to $D_{64}$.
# It counts 44 layers inside them (its Table 7: 17 in the encoder, 3 in the bottleneck, 24 in the decoder). Which are they here? We
# count the bottleneck with the encoder, because it is reused with the encoder.

# %%
split = split_denoiser(pipe.unet)
blocks, inner = list(split.blocks), inner_layers(split)
per_row = {"rows": slice(1, 2)}  # only the row with the prompt
sizes = output_bytes(pipe.unet, denoiser_arguments(pipe, prompt), blocks, **per_row)
names = dict(zip(blocks, ["", "E_64", "E_32", "E_16", "E_8", "B_8", "D_8", "D_16", "D_32", "D_64"], strict=True))
count = {name: sum(layer.startswith(f"{name}.") for layer in inner) for name in blocks}
rows = [(name, names[name], split.part(name), count[name], sizes[name] / 1024) for name in blocks]
overview = pd.DataFrame(rows, columns=["block", "in the paper", "part", "layers inside", "output, KiB per step"])
overview.style.hide(axis="index").format(precision=1)

# %%
part_of = {name: "bottleneck" if name == "mid_block" else split.part(name) for name in blocks}
print(len(inner), "layers:", pd.Series(count).groupby(part_of).sum().loc[["encoder", "bottleneck", "decoder"]].to_dict())
print("for example", *inner[:3], "...", inner[-1])

# %% [markdown]
# Could one simply keep everything? Here yes. In Stable Diffusion 1.5, with the paper's 100 prompts and 50 steps? Its UNet can be built
# *without memory*, on PyTorch's meta device, to ask for the shapes. It has the same 44 names.

# %%
with torch.device("meta"):
    large = diffusers.UNet2DConditionModel(cross_attention_dim=768).half()
    arguments = {"sample": torch.empty(1, 4, 64, 64), "timestep": torch.tensor(1), "encoder_hidden_states": torch.empty(1, 77, 768)}
    arguments = {name: value.half() if value.dim() else value for name, value in arguments.items()}
assert inner_layers(split_denoiser(large)) == inner and len(inner) == 44
needed = {(kind, layers): sum(output_bytes(model, given, chosen, **rows).values()) * 50 / 2**20
          for kind, model, given, rows in (("ours, float32", pipe.unet, denoiser_arguments(pipe, prompt), per_row),
                                           ("SD 1.5, float16", large, arguments, {}))
          for layers, chosen in (("10 blocks", blocks), ("44 layers", inner))}  # fmt: skip
memory = pd.Series(needed).unstack().rename_axis("MiB per prompt, 50 steps")
memory.style.format("{:,.0f}")

# %%
gigabytes = memory.loc["SD 1.5, float16"] * 100 * 2**20 / 1e9
print(f"100 prompts of SD 1.5: {gigabytes['10 blocks']:.0f} GB for the blocks, {gigabytes['44 layers']:.0f} GB for the layers")
print(f"four numbers per layer and step instead: {44 * 50 * 100 * 4 * 4 / 1e6:.1f} MB")

# %% [markdown]
# So `record` computes its statistics while the run goes on and keeps features only of the layers in `keep`. What would not fit is refused
# before anything is evaluated:

# %%
try:
    with fl.record(pipe, keep=blocks, max_bytes=10**6):
        pipe(prompt, **options)
except ValueError as error:
    print(error)

# %% [markdown]
# ## 4. Several prompts
#
# One prompt proves little. So now several captions that the pipeline was not trained on, each with its own noise, recorded twice in one
# run: by blocks, with their features, and by the 44 layers.

# %%
prompts = [scene.caption() for scene in held_out_scenes(6, objects=1)]
with fl.record(pipe, keep=blocks) as recording, fl.record(pipe, layers="inner") as layers:
    images = pipe(prompts, generator=generators(range(len(prompts))), **options).images
f"{recording.num_samples} samples, {recording.num_steps} steps, {len(recording.layers)} blocks and {len(layers.layers)} layers"

# %%
figure = plot.figure(10, 2.4)
for ax, image, text in zip(figure.subplots(1, len(prompts)), images, prompts, strict=True):
    ax.imshow(image, interpolation="nearest")
    ax.set(xticks=[], yticks=[])
    ax.set_xlabel(text.replace(" on ", "\non ").replace(" in ", "\nin ").replace(" at ", "\nat "), fontsize=8)
HTML(plot.html_image(figure, "Images of: " + "; ".join(prompts)))

# %% [markdown]
# In what follows each figure ends in a *finding*: what the paper saw, our number (a ratio), and whether we agree. One rule for all: we
# agree if the ratio is at least 2. Where the paper gives nothing of the kind, nobody can agree.

# %%
findings = []


def finding(figure, paper, ours, ratio, comparable=True):
    """Notes and shows one finding."""
    agree = ("yes" if ratio >= 2 else "no") if comparable else "not comparable"
    findings.append({"figure": figure, "the paper saw": paper, "we see": f"{ours}: {ratio:.2f}", "agree": agree})
    return pd.DataFrame(findings[-1:]).style.hide(axis="index")


def ratio_of(table, kind="mean"):
    """Decoder by encoder, of what a table says of the blocks (the paper has no `conv_in`)."""
    parts = fl.summarize_by_part(table[table["layer"] != "conv_in"])[kind]
    return float(parts["decoder"] / parts["encoder"])


# %% [markdown]
# ## 5. What the features look like (Fig. 2)
#
# Three principal components of a block's features become red, green and blue, with one PCA for all steps of a row: equal colours mean
# equal features. In which rows do the colours stay?

# The paper shows $E_{32}$ and $D_{32}$ at seven *neighbouring* steps, t = 17 to 11 of 50 in its count: our steps 33 to 39. It sees the
# encoder's maps stay and the decoder's change.

# %%
pair = ["down_blocks.1", "up_blocks.2"]
neighbours = list(range(33, 40))
maps = {f"{name} ({names[name]})": fl.pca_maps(recording, name, steps=neighbours) for name in pair}
figure = plot.pca_strip(maps, neighbours, plot.figure(8.5, 2.6))
figure.suptitle(f"steps {neighbours[0]} to {neighbours[-1]}: {prompts[0]}", fontsize="small")
HTML(plot.html_image(figure, "Principal components as colours, of an encoder and a decoder block, at seven neighbouring steps"))

# %% [markdown]
# Colours can deceive: each row has a scale of its own. In numbers: how alike are the features some steps apart, over all steps and
# prompts, and between the first and the last step of the figure?

# %%
similar = {name: fl.step_similarity(recording, name) for name in blocks}
means = {name: [np.diag(similar[name], k=apart).mean() for apart in (1, 7, 15)] for name in pair}
rows = [(name, names[name], *means[name], similar[name][33, 39]) for name in pair]
columns = ["block", "in the paper", "1 step apart", "7 apart", "15 apart", "steps 33 and 39"]
pd.DataFrame(rows, columns=columns).style.hide(axis="index").format(precision=4).set_caption("mean cosine similarity")

# %%
unlike = [1 - similar[name][33, 39] for name in pair]
finding("2", "E_32 stays, D_32 changes (steps 33 to 39)", "1 - cosine, steps 33 and 39, D_32 / E_32", unlike[1] / unlike[0])

# %% [markdown]
# And over the whole run, in more blocks? Nothing stays the same from the first step to the last; the question is how many steps apart
# two maps must be before a difference is seen.

# %%
shown = np.linspace(0, recording.num_steps - 1, 8).round().astype(int).tolist()
looked_at = ["down_blocks.0", "mid_block", "up_blocks.1", "up_blocks.3"]
maps = {name: fl.pca_maps(recording, name, steps=shown) for name in looked_at}
figure = plot.pca_strip(maps, shown, plot.figure(7.5, 3.8))
figure.suptitle(f"steps {', '.join(map(str, shown))}: {prompts[0]}", fontsize="small")
HTML(plot.html_image(figure, "Principal components as colours: two encoder and two decoder blocks, eight steps from first to last"))

# %% [markdown]
# ## 6. Change from step to step (Fig. 3a)
#
# The paper's measure is the mean **squared** difference between neighbouring steps: $\Delta = \frac{1}{d s^2}\lVert F_t -
# F_{t-1}\rVert^2$ with
# $d$ channels and $s\times s$ places. Solid lines are encoder blocks, dashed lines decoder blocks; bands go from the lowest to the highest
# prompt.

# %%
squared = fl.feature_change(recording)
figure = plot.figure(8, 3.8)
left, right = figure.subplots(1, 2, sharey=True)
for ax, part in ((left, "encoder"), (right, "decoder")):
    plot.change_over_steps(squared[squared["part"] == part], ax, label="mean squared change (no unit)").set_title(part)
left.set_yscale("log")
right.set_ylabel("")
HTML(plot.html_image(figure, "Squared change over the steps, log axis: encoder blocks on the left, decoder blocks on the right"))

# %%
ours = fl.summarize_by_part(squared[squared["layer"] != "conv_in"])
paper = {"max": {"encoder": "< 0.4", "decoder": "about 5"}, "variance": {"encoder": "< 0.05", "decoder": "about 30"}}
columns = {("the paper", "max"): paper["max"], ("the paper", "variance"): paper["variance"]}
columns |= {("ours", "max"): ours["max"], ("ours", "variance"): ours["std"] ** 2, ("ours", "mean"): ours["mean"]}
pd.DataFrame(columns).loc[["encoder", "decoder"]].style.format(precision=4)

# %%
finding("3a", "largest squared change: decoder 12 times the encoder's or more", "max, decoder / encoder", ratio_of(squared, "max"))

# %%
finding("3a", "squared change on the whole: decoder far above encoder", "mean, decoder / encoder", ratio_of(squared))

# %% [markdown]
# And **when**? The paper describes the curve as rise, plateau, fall, and a rise at the end, and puts its key steps where the encoder
# changes most: early. The mean change in three parts of our run:

# %%
phase = pd.cut(squared["step"], [0, 10, 40, 49], labels=["steps 1-10", "steps 11-40", "steps 41-49"])
phases = squared[squared["layer"] != "conv_in"].groupby(["part", phase], observed=True)["value"].mean().unstack()
phases = phases.loc[["encoder", "decoder"]]
phases.style.format(precision=4)

# %%
early = phases.loc["encoder", "steps 1-10"] / phases.loc["encoder", "steps 11-40"]
finding("3a", "the encoder changes most early, so keys lie early", "encoder, steps 1-10 / steps 11-40", early)

# %% [markdown]
# ## 7. Norms (Fig. 3b) and their spread (Fig. 3c)
#
# The paper averages a block's features over channels and takes the Frobenius norm of the map that is left. Its numbers are read by eye
# from the poster's plot, so trust their order of magnitude only; the encoder's blocks lie between 8 and 17, drawn here as 12.

# %%
norms = fl.feature_norm(recording)
paper_norm = dict.fromkeys(blocks[1:5], 12) | dict(zip(blocks[5:], [30, 55, 160, 130, 365], strict=True))
figure = plot.figure(8, 3)
left, right = figure.subplots(1, 2)
plot.norm_by_layer(norms, left).set_title("ours: all steps and prompts")
places = range(len(paper_norm))
right.bar(places, paper_norm.values(), color=[plot.PETROFF[split.part(name) == "decoder"] for name in paper_norm])
right.set_xticks(places, [names[name] for name in paper_norm], fontsize="x-small")
right.set(title="the paper: medians, by eye", ylabel="norm of the channel mean")
HTML(plot.html_image(figure, "Norms of the blocks' features: ours as boxes on the left, the paper's medians as bars on the right"))

# %% [markdown]
# Larger maps have larger norms even if every place holds the same number. Divided by the side of the map, the norm is the typical size
# of a place, comparable between blocks (for the paper we take the sides of the blocks' outputs, which it does not say). And this is the
# size of the **channels' mean**, in which channels of different sign cancel. How large the features themselves are says their root mean
# square, in the last column:

# %%
side = {name: recording[name].shape[-1] for name in paper_norm}
side_large = dict(zip(paper_norm, [32, 16, 8, 8, 8, 16, 32, 64, 64], strict=True))
medians = norms.groupby("layer")["value"].median()
rms = {name: float(recording[name].float().square().mean().sqrt()) for name in paper_norm}
rows = [
    (name, names[name], paper_norm[name], medians[name], paper_norm[name] / side_large[name], medians[name] / side[name], rms[name])
    for name in paper_norm
]
columns = ["block", "in the paper", "paper, norm", "ours, norm", "paper, by side", "ours, by side", "ours, RMS"]
sizes_table = pd.DataFrame(rows, columns=columns)
sizes_table.style.hide(axis="index").format(precision=2)

# %%
is_decoder = sizes_table["block"].map(split.part) == "decoder"
larger = sizes_table[is_decoder].iloc[:, 2:].mean() / sizes_table[~is_decoder].iloc[:, 2:].mean()
print("decoder / encoder, mean over blocks:", ", ".join(f"{name} {value:.1f}" for name, value in larger.items()))
finding("3b", "norms: decoder 5 to 30 times the encoder's", "median norm by side, decoder / encoder", larger["ours, by side"])

# %% [markdown]
# Figure 3c is the standard deviation of those norms over the steps. Next to it the same **divided by the mean norm**: by how many per
# cent does the size of a block's features vary?

# %%
figure = plot.figure(8, 3)
left, right = figure.subplots(1, 2)
plot.norm_spread(norms, left).set_title("as in Fig. 3c")
plot.norm_spread(norms, right, relative=True).set_title("relative to the mean norm")
HTML(plot.html_image(figure, "Standard deviation of each block's norm over the steps; on the right divided by the mean norm"))

# %%
by_step = norms[norms["layer"] != "conv_in"].groupby(["part", "layer", "step"])["value"].mean().groupby(["part", "layer"])
spread, relative_spread = by_step.std().groupby("part").mean(), (by_step.std() / by_step.mean()).groupby("part").mean()
print(f"the paper, by eye: E about 1.5, D_64 over 100 ({100 / 1.5:.0f} times); by the norm {1.5 / 12:.2f} and {100 / 365:.2f} "
      f"({100 / 365 / (1.5 / 12):.1f} times)")  # fmt: skip
print(f"ours: decoder / encoder {spread['decoder'] / spread['encoder']:.1f}; by the norm "
      f"{relative_spread['decoder'] / relative_spread['encoder']:.1f}")  # fmt: skip
finding("3c", "spread of the norm: decoder far above encoder", "std, decoder / encoder", spread["decoder"] / spread["encoder"])

# %% [markdown]
# Note the paper's own numbers: most of its difference between encoder and decoder in Figure 3c goes when the spread is divided by the
# norm. That leads to the question of the next section.

# %% [markdown]
# ## 8. Does the conclusion survive normalisation?
#
# If one layer's features are 10 times as large as another's, and both turn by the same angle, its *squared* change is 100 times as
# large. So wherever the features' size (RMS) differs, a difference in Figure 3a must appear, whether or not the encoder is steadier. The
# norms of Figure 3b do not tell, because in them channels cancel: here they differ, but the RMS (printed under the table of section 7)
# differs as little as the squared change. For Stable Diffusion it was not published. Two measures without that flaw: the **relative** change $\lVert F_t - F_{t-1}\rVert / \lVert F_{t-1}\rVert$, and the **cosine** change, 1
# minus the cosine of the angle.

# %%
kinds = {kind: fl.feature_change(recording, kind=kind) for kind in ("squared", "relative", "cosine")}
summary = {kind: fl.summarize_by_part(table[table["layer"] != "conv_in"])[["mean", "std"]] for kind, table in kinds.items()}
summary = pd.concat(summary, axis=1)
summary.loc[["encoder", "decoder"]].style.format(precision=4)

# %% [markdown]
# And the ratio, prompt by prompt: does it hold for each of them? (One `conv_in` more or less matters too: it has no name in the paper,
# but it is reused with the encoder.)


# %%
def by_prompt(table):
    means = table.groupby(["sample", "part"])["value"].mean().unstack()
    return (means["decoder"] / means["encoder"]).agg(["mean", "min", "max"])


rows = {(kind, "blocks"): by_prompt(table[table["layer"] != "conv_in"]) for kind, table in kinds.items()}
rows |= {(kind, "with conv_in"): by_prompt(table) for kind, table in kinds.items()}
ratios = pd.DataFrame(rows).T.rename_axis(["change", "of"]).sort_index()
ratios.style.format(precision=2).set_caption("decoder / encoder of each prompt: mean, lowest and highest")

# %% [markdown]
# (The findings divide the means over all prompts, in which prompts that change more count more: another ratio than the mean of ratios.)

# %% [markdown]
# Encoder against decoder over the steps in the three measures, mean over the blocks of each part, with a band over the prompts. On which
# panels does the dashed line (decoder) run above the solid one?

# %%
figure = plot.figure(10, 3.2)
for ax, (kind, table) in zip(figure.subplots(1, 3), kinds.items(), strict=True):
    means = table[table["layer"] != "conv_in"].groupby(["sample", "step", "part"])["value"].mean().reset_index()
    means = means.assign(layer=means["part"]).sort_values("part", ascending=False)
    plot.change_over_steps(means, ax, label="change (no unit)").set(yscale="log", title=kind)
    ax.tick_params(axis="y", which="minor", labelsize=6)
HTML(plot.html_image(figure, "Squared, relative and cosine change over the steps, with a line for encoder and one for decoder"))

# %%
finding("(3a)", "not measured", "relative change, decoder / encoder", ratio_of(kinds["relative"]), comparable=False)

# %%
finding("(3a)", "not measured", "cosine change, decoder / encoder", ratio_of(kinds["cosine"]), comparable=False)

# %% [markdown]
# How to read this. A ratio near 1 for relative and cosine change means: the decoder is *not* less steady than the encoder. Then this observation alone does not say why the encoder, of all parts, should be left out. There is another
# reason: with reused encoder features the decoder still works at every step and gets that step's own time embedding, so the prediction
# can follow the time-step (notebook 04 reuses other things for comparison). What relative change is on Stable Diffusion's weights, we
# have not measured.

# %% [markdown]
# ## 9. Layer by layer
#
# Blocks hide what happens inside. All 44 layers, relative change; the white line parts encoder and decoder. Which steps are lively in
# *all* layers, and which layers at all steps?

# %%
inside = fl.feature_change(layers, kind="relative")
figure = plot.figure(7.5, 7.4)
plot.layer_map(inside, figure.subplots()).set_title("mean over prompts")
HTML(plot.html_image(figure, "Relative change of 44 layers (rows) over the steps (columns), as colours on a log scale"))

# %%
steadiness = inside.groupby(["part", "layer"])["value"].agg(["mean", "max"]).reset_index().sort_values("mean")
pd.concat({"steadiest": steadiness.head(5), "liveliest": steadiness.tail(5)}).droplevel(1).style.format(precision=4)

# %%
spread_of = steadiness.groupby("part")["mean"].agg(["min", "median", "max"]).loc[["encoder", "decoder"]]
spread_of.style.format(precision=4).set_caption("mean relative change of a layer: range over the layers of a part")

# %% [markdown]
# Compare the two ranges: if they overlap, then *which layer* matters more than *which part*.

# %% [markdown]
# ## 10. Which steps look alike?
#
# Reused features are not one step old but up to 14 (the paper's last group). So compare every step with every other: the cosine
# similarity of one encoder and one decoder block. White squares are the groups of the paper's key steps: within a square, the features
# of its first step stand for all others.

# %%
paper = fl.KeySchedule.paper(50)
figure = plot.figure(7.6, 3.1)
lowest = min(similar[name].min() for name in pair)
for ax, name in zip(figure.subplots(1, 2), pair, strict=True):
    plot.similarity_matrix(similar[name], ax, keys=paper.keys).set_title(f"{name} ({names[name]})")
    ax.images[0].set_clim(lowest, 1)
HTML(plot.html_image(figure, "Cosine similarity of every two steps, encoder and decoder block, with the paper's groups as squares"))

# %% [markdown]
# If one *asked the features* for nine groups of neighbouring steps that look alike, would the paper's groups come out? `step_clusters`
# joins neighbours as long as they are alike.


# %%
def first_steps(similarity, count=9):
    """The first step of each group, as a schedule of key steps."""
    groups = fl.step_clusters(similarity, count)
    return fl.KeySchedule(len(groups), tuple(int(step) for step in np.flatnonzero(np.diff(groups, prepend=-1))))


encoder = np.mean([similar[name] for name in blocks if split.part(name) == "encoder"], axis=0)
decoder = np.mean([similar[name] for name in blocks if split.part(name) == "decoder"], axis=0)
schedules = {"the paper's": paper, "uniform": fl.KeySchedule.uniform(50, 9)}
schedules |= {"from encoder features": first_steps(encoder), "from decoder features": first_steps(decoder)}
rows = [(name, str(schedule), max(map(len, schedule.groups()))) for name, schedule in schedules.items()]
pd.DataFrame(rows, columns=["groups", "key steps", "longest group"]).style.hide(axis="index")

# %%
early = {name: sum(key < 10 for key in schedule.keys) for name, schedule in schedules.items()}
print("keys in the first ten steps:", early)
finding("keys", "keys lie early: 5 of 9 in the first ten steps", "first ten steps, clusters of encoder features / uniform",
        early["from encoder features"] / early["uniform"], comparable=False)  # fmt: skip

# %% [markdown]
# They come early, but look at the longest group: these are no usable keys, which is why the finding does not count. Clustering puts
# steps apart that are unlike *each other*, and what remains can be one long group; it
# does not ask how far a group's last step is from its first, which is what reuse needs.

# %% [markdown]
# So the direct question: **how far is a reused feature from the one it stands for?** For each block, over all steps that are not keys: 1
# minus the cosine similarity to the last key step.


# %%
def reused(similarity, schedule):
    """How unlike its key step each reused step is."""
    return [1 - similarity[group[0], step] for group in schedule.groups() for step in group[1:]]


rows = [(title, name, np.mean(reused(similar[name], schedule))) for title, schedule in schedules.items() for name in blocks]
distances = pd.DataFrame(rows, columns=["keys", "block", "distance"]).pivot(index="block", columns="keys", values="distance")
distances = distances.loc[blocks, list(schedules)]
distances.style.format(precision=3).set_caption("1 - cosine to the last key step, mean over reused steps")

# %%
figure = plot.figure(7.5, 3)
ax = figure.subplots()
for place, (title, marker) in enumerate(zip(schedules, "os^v", strict=True)):
    ax.plot(range(len(blocks)), distances[title], marker=marker, linestyle="", markersize=7, color=plot.PETROFF[place], label=title)
ax.axvline(len(split.encoder) - 0.5, color="0.7")
ax.set_xticks(range(len(blocks)), blocks, rotation=30, ha="right", fontsize="small")
ax.set(ylabel="1 - cosine to the key step\n(no unit)", title="encoder to the left of the line, decoder to the right", yscale="log")
figure.legend(fontsize="small", loc="outside right center")
HTML(plot.html_image(figure, "How unlike reused features are to the true ones, for each block and four schedules of nine keys"))

# %%
by_part = distances.groupby(split.part).mean().loc[["encoder", "decoder"]]
print("nearest to the true encoder features:", by_part.loc["encoder"].idxmin())
by_part.style.format(precision=3).set_caption("the same, mean over the blocks of a part")

# %%
ratio = by_part.loc["decoder", "the paper's"] / by_part.loc["encoder", "the paper's"]
finding("(Tab. 14)", "images suffer more if the decoder is reused: FID 22.97 against 21.08",
        "1 - cosine while reused, decoder / encoder", ratio, comparable=False)  # fmt: skip

# %% [markdown]
# (FID is the distance of many images from real ones, by the features of a network: lower is better.)
#
# Two warnings. Near in angle is not near in the image: what counts is what the decoder makes of a reused feature, and how much that
# step matters for the final image. Groups found by similarity are groups of alike features and no more; whether they are good key
# steps must be measured on images.

# %% [markdown]
# ## Summary
#
# All findings of this notebook, as computed above (*agree*: the ratio is at least 2):

# %%
pd.DataFrame(findings).style.hide(axis="index").set_properties(**{"text-align": "left", "white-space": "normal"})

# %% [markdown]
# - A forward hook sees what a module gives; `fl.record` does it for all blocks or the 44 layers, and keeps numbers rather than features.
# - The paper's squared change compares layers with features of different size. Relative and cosine change do not have that flaw; read
#   them first.
# - What is reused is not one step old. The similarity of a step to its last key step says how far it is from the truth, per block and schedule.
# - This is a small pipeline, trained on drawn shapes, and these are few prompts. Where it disagrees with the paper, it says that the
#   observation is not a law for every diffusion UNet; it says nothing certain about Stable Diffusion's weights.
#
# ## To try
#
# 1. Record with `half="unconditional"`: do the features without prompt change less?
# 2. Set `guidance_scale` to 1. Which curve of section 6 changes most?
# 3. Are there steps in the map of section 9 at which *all* layers change more, for all prompts alike? That cannot come from the image. What
#    else differs from step to step? (`pipe.unet.time_embedding(pipe.unet.time_proj(t))`)
#
# Next: [from such curves to key steps](03_key_time_steps.ipynb).
