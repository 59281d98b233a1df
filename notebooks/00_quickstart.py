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
# # Quickstart: what encoder propagation does, in three minutes
#
# *Faster Diffusion* (Li et al., NeurIPS 2024) found that over the denoising steps the features of a diffusion UNet's **encoder** hardly
# change, while the **decoder**'s do. So its sampler runs the encoder at a few *key steps* only, and decodes the steps between two keys
# in one batch.
#
# After this notebook you have
# - seen the features of a real trained text-to-image pipeline change over 50 steps (the paper's Figures 2 and 3),
# - run the accelerated sampler on it, and
# - measured what it costs and what it gives, beside sampling with fewer steps.
#
# Everything runs offline on a CPU, with a small pipeline that was trained on drawn shapes.

# %%
import sys
from pathlib import Path

import diffusers
import torch
from IPython.display import HTML

import fastdiff_lab as fl
from fastdiff_lab import plot

print(f"fastdiff_lab {fl.__version__}, diffusers {diffusers.__version__}, torch {torch.__version__}, Python {sys.version.split()[0]}")
print(f"{torch.get_num_threads()} CPU threads, CUDA: {torch.cuda.is_available()}")

# %% tags=["parameters"]
source = None  # None: the embedded pipeline; else a folder or hub id of a diffusers pipeline
device = "cpu"
dtype = "float32"
seed = 0
num_inference_steps = 50
guidance_scale = 5.0  # None: the pipeline's own
scheduler = None
output = "../runs/notebook"

# %% [markdown]
# The next cell is the only one that says which pipeline is used. With a GPU and local weights, change `source` and `device` above.

# %%
pipe = fl.load_pipeline(source, device=device, dtype=dtype, scheduler=scheduler)
output = Path(output)
output.mkdir(parents=True, exist_ok=True)
prompt = "a large red star at the left on a blue background"
options = {"num_inference_steps": num_inference_steps} | ({} if guidance_scale is None else {"guidance_scale": guidance_scale})
parameters = sum(p.numel() for p in pipe.unet.parameters())
f"{type(pipe).__name__} with {parameters / 1e6:.1f} M parameters in the {type(pipe.unet).__name__}"

# %% [markdown]
# ## 1. A prompt to an image

# %%
image = pipe(prompt, generator=torch.Generator().manual_seed(seed), **options).images[0]
image.resize((256, 256), 0)

# %% [markdown]
# Orange and green in a star that was to be red are faults of the embedded pipeline itself (with `source = None`). What follows asks how near an
# accelerated run comes to *this* image, faults and all.

# %% [markdown]
# ## 2. What the features do
#
# `record` puts a hook on every block and measures its features at each step. Which do you expect to change more: those of the encoder
# (`conv_in`, `down_blocks`, `mid_block`) or those of the decoder (`up_blocks`)?

# %%
kept = ["down_blocks.0", "down_blocks.1", "up_blocks.2", "up_blocks.3"]
prompts = [prompt, "a small white ring on a red background", "a green cross at the top on a yellow background",
           "a large purple circle in the center on a white background"]
with fl.record(pipe, keep=kept) as recording:
    pipe(prompts, generator=[torch.Generator().manual_seed(seed + i) for i in range(len(prompts))], **options)
recording.save(output / "recording.safetensors")
f"{recording.num_samples} samples, {recording.num_steps} steps, {len(recording.layers)} layers"

# %% [markdown]
# **Change from step to step** (Fig. 3a). Above as the paper measures it: the mean squared difference. Below relative to the length of the
# feature itself, so that layers with large and small features can be compared. A line per block; bands go from the lowest to the highest of
# the four prompts.

# %%
squared, relative = fl.feature_change(recording), fl.feature_change(recording, kind="relative")
figure = plot.figure(9, 6.4)
for row, (change, label) in zip(figure.subplots(2, 2, sharey="row"), ((squared, "mean squared change"), (relative, "relative change")), strict=True):
    for ax, part in zip(row, ("encoder", "decoder"), strict=True):
        plot.change_over_steps(change[change["part"] == part], ax, label=label).set(yscale="log", title=part)
alt = "Change of each block's features over the steps, encoder on the left, decoder on the right; above squared, below relative to the feature's length"
HTML(plot.html_image(figure, alt))

# %%
means = {kind: fl.feature_change(recording, kind=kind).groupby("part")["value"].mean() for kind in ("squared", "relative")}
for kind, mean in means.items():
    ratio = mean["decoder"] / mean["encoder"]
    print(f"{kind:>8} change: encoder {mean['encoder']:.4f}, decoder {mean['decoder']:.4f}, decoder / encoder {ratio:.1f}")

# %% [markdown]
# The paper (Stable Diffusion 1.5) reports squared changes below 0.4 in the encoder and up to about 5 in the decoder. Look at both
# ratios: the squared change of a layer grows with the size of its features, so a layer with large features changes more in that
# measure even if it turns by the same angle. Only the relative change says whether a reused feature is nearly the right one. A ratio near 1
# means that encoder and decoder change alike: then the paper's observation does not hold for this pipeline (notebook 02 looks closer).

# %% [markdown]
# **Norms** (Fig. 3b and 3c): the Frobenius norm of each block's features, averaged over channels, over all steps.

# %%
norms = fl.feature_norm(recording)
figure = plot.figure(11, 3.6)
boxes, spread, relative_spread = figure.subplots(1, 3)
plot.norm_by_layer(norms, boxes)
plot.norm_spread(norms, spread)
plot.norm_spread(norms, relative_spread, relative=True)
alt = "Norm of each block's features: boxes over all steps, its standard deviation, and that by the mean norm"
HTML(plot.html_image(figure, alt))

# %% [markdown]
# **What the features look like** (Fig. 2): three principal components as colours, one PCA per layer over all the steps shown, so that
# equal colours mean equal features.

# %%
shown = sorted({round(i * (recording.num_steps - 1) / 7) for i in range(8)})
maps = {layer: fl.pca_maps(recording, layer, steps=shown) for layer in kept}
figure = plot.pca_strip(maps, shown, plot.figure(11, 5.5))
HTML(plot.html_image(figure, "Principal components of two encoder and two decoder blocks over the steps"))

# %% [markdown]
# ## 3. The accelerated sampler
#
# The encoder runs at nine key steps only, the other steps are decoded from the features of the last key. All steps of a group are
# decoded in one batch, so 50 steps need nine calls of the UNet (`forward_calls`; `decoder_calls` are the steps that were decoded).

# %%
calls = recording.num_steps
paper = fl.KeySchedule.of_paper(calls)
with fl.encoder_propagation(pipe, paper) as counts:
    accelerated = pipe(prompt, generator=torch.Generator().manual_seed(seed), **options).images[0]
print(paper, "|", paper.source)
counts

# %% [markdown]
# **Key steps that were measured.** The paper found its keys by hand. `calibrate` measures what it costs to reuse the features of each
# step for a while, and `derive_schedule` finds the keys whose groups cost least. For the embedded pipeline the costs come with the
# package; for another one, or other options, they are measured now, within five minutes. Where do you expect the keys?

# %%
shipped = source is None and scheduler is None and (calls, guidance_scale) == (50, 5.0)
costs = fl.embedded_costs() if shipped else fl.calibrate(pipe, prompts[:2], time_budget=300, max_rows=60, **options)
derived = fl.derive_schedule(costs, num_keys=len(paper.keys))
derived.save(output / "schedule.json")
print("derived:  ", derived, "|", derived.source)
print("the paper:", paper)

# %% [markdown]
# Side by side: the baseline, uniform keys, the paper's without and with *prior noise* (a little of the initial noise, added late in the
# run), the derived ones, and the sampler with as many steps. Below each image its difference to the baseline.

# %%
from fastdiff_lab.sampling.methods import Method, sample

keys = len(paper.keys)
methods = {
    "paper's keys": Method(paper),
    "paper's keys + noise": Method(paper, prior_noise=0.003),
    "derived keys": Method(derived),
}
uniform = fl.KeySchedule.uniform(calls, keys)
columns = {"baseline": Method(), f"uniform {keys}": Method(uniform), **methods, f"fewer steps ({keys})": Method(steps=keys)}
seeds = [seed, seed + 1, seed + 2]
images = {name: sample(pipe, method, prompts[:3], seeds, **options).images for name, method in columns.items()}
figure = plot.image_grid(images, plot.figure(10, 10))
figure.savefig(output / "images.png", dpi=100)
HTML(plot.html_image(figure, "Images of six methods for three prompts, and their differences to the baseline"))

# %% [markdown]
# ## 4. What it costs and what it gives
#
# `compare` runs each *method*, one way of sampling, on held-out captions, that is on texts that the pipeline was not trained on. One row per
# method: its calls of the encoder and of the whole UNet, operations and seconds of one image, and `ratio`, how many times faster it is than
# the baseline. PSNR (in dB, of the squared error averaged over all images; 10 dB more is a tenth of it) and SSIM (1: equal) tell how near the images are to the
# baseline's, `psnr_worst` how near the worst one is. `prompt_accuracy` is the share of images in which a small classifier finds every
# attribute that the prompt asks for. *Prediction reused*: between keys nothing is computed, the UNet's last prediction is used again.

# %%
from fastdiff_lab.comparison.compare import brief
from fastdiff_lab.shapes.data import held_out_scenes

captions = [scene.caption() for scene in held_out_scenes(12, objects=1)]
table = fl.compare(pipe, methods, captions, seeds=[seed], repeats=2, **options)
table.to_csv(output / "table.csv", index=False)
digits = {"gflops": "{:.1f}", "seconds": "{:.2f}", "ratio": "{:.2f}", "ssim": "{:.3f}", "prompt_accuracy": "{:.2f}"}
brief(table).style.hide(axis="index").format(digits)

# %% [markdown]
# ## What to see
#
# - **Nine forwards instead of fifty, but not a fifth of the arithmetic**: the decoder still works at every step. The seconds lie between.
# - **Fidelity**: compare the row of the paper's keys with *derived* and with *uniform* keys, with a run with as many steps, and with the
#   *prediction* reused at the same keys: which comes nearest to the baseline, and at which price? These honest rivals stand in every table.
# - **Prior noise** changes texture, so it costs PSNR; whether it helps prompts is in the last column.
#
# ## What to do next
#
# - Change `prompt`, `guidance_scale` or `scheduler` above and run again.
# - Try keys of your own: `fl.KeySchedule.parse("0-3,6,12,20,30,40 of 50")`.
# - `fastdiff-lab sample "a small white ring on a red background" --schedule schedule.json` draws one image from the command line.
# - [Notebook 06](06_derive_a_schedule.ipynb) shows how keys are measured, and what extrapolating the features adds.
# - The [glossary](../docs/glossary.md) says what the words mean.
#
# Next: [the sampling loop by hand](01_sampling_loop.ipynb).
