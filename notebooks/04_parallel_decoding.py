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
# # Parallel decoding, and prior noise
#
# Encoder propagation saves the encoder's arithmetic at most steps. The *Faster Diffusion* paper (Li et al., NeurIPS 2024) adds two things:
# all steps between two keys are decoded in **one batch**, and a little of the initial noise is added late in the run, for **texture**.
#
# After this notebook you have
# - seen which latent each prediction depends on, and so why steps that come one after the other can be decoded at once,
# - followed the rows of the batch through the UNet, and learned in which order they must stand,
# - shown that parallel and serial decoding give the same latents, and measured calls and milliseconds, and
# - looked at prior noise injection: in images, in their texture and in their frequency spectra.
#
# Everything runs offline on a CPU in less than a minute.

# %%
import statistics
import sys
import warnings
from contextlib import nullcontext

import diffusers
import numpy as np
import pandas as pd
import torch
from IPython.display import HTML

import fastdiff_lab as fl
from fastdiff_lab import plot
from fastdiff_lab.sampling.methods import sample
from fastdiff_lab.comparison.fidelity import fidelity, mean_psnr

print(f"fastdiff_lab {fl.__version__}, diffusers {diffusers.__version__}, torch {torch.__version__}")
print(f"Python {sys.version.split()[0]}, {torch.get_num_threads()} CPU threads, CUDA: {torch.cuda.is_available()}")

# %% [markdown]
# The next cell is the only one that says which pipeline is used; with a GPU, write `fl.load_pipeline(device="cuda")`.

# %%
pipe = fl.load_pipeline()
unet, scheduler = pipe.unet, pipe.scheduler
f"{type(unet).__name__} with {sum(p.numel() for p in unet.parameters()) / 1e6:.1f} M parameters, {type(scheduler).__name__}"

# %%
prompts = [
    "a large red star at the left on a blue background",
    "a small white ring on a red background",
    "a large purple circle in the center on a white background",
]
paper = fl.KeySchedule.paper(50)
f"{len(prompts)} prompts; keys {paper} ({paper.source}); sizes of the groups {[len(group) for group in paper.groups()]}"

# %% [markdown]
# ## 1. Which latent does a prediction depend on?
#
# Sampling is a chain: each step needs the latent that the step before made. How can steps then be decoded at once? Let us cut the chain.
# We give the UNet ten latents of our own, one per step, and read its ten predictions. Then we replace *one* latent and look which of the
# predictions change.


# %%
@torch.no_grad()
def predictions(latents, schedule=None):
    """The prediction of each step, for latents that are given and not carried on."""
    scheduler.set_timesteps(len(latents))
    block = nullcontext() if schedule is None else fl.encoder_propagation(pipe, schedule, parallel_decoding=False)
    with block:
        return [unet(z, t, text).sample for z, t in zip(latents, scheduler.timesteps, strict=True)]


text = pipe.encode_prompt(prompts[0], pipe.device, 1, False)[0].detach()
noise = torch.Generator().manual_seed(0)
given, others = (torch.randn(10, 1, 4, 16, 16, generator=noise).to(pipe.device) for _ in range(2))
[tuple(prediction.shape) for prediction in predictions(given)][:2]


# %%
def influence(schedule=None):
    """Row: the step whose latent is replaced; column: the relative change of the prediction of that step."""
    before, changes = predictions(given, schedule), np.zeros((10, 10))
    for replaced in range(10):
        latents = given.clone()
        latents[replaced] = others[replaced]
        for step, after in enumerate(predictions(latents, schedule)):
            changes[replaced, step] = (after - before[step]).norm() / before[step].norm()
    return changes


short = fl.KeySchedule.parse("0,1,4,6 of 10")
changes = {"baseline": influence(), f"encoder propagation, keys {short}": influence(short)}
pd.DataFrame(changes[f"encoder propagation, keys {short}"]).style.format(precision=2)

# %%
axes = (figure := plot.figure(9, 4.2)).subplots(1, 2)
for ax, (name, change) in zip(axes, changes.items(), strict=True):
    image = ax.imshow(change, cmap="cividis", vmin=0)
    ax.set(title=name, xlabel="prediction of step", ylabel="latent replaced at step", xticks=range(10), yticks=range(10))
    figure.colorbar(image, ax=ax, label="relative change of the prediction", shrink=0.8)
HTML(plot.html_image(figure, "Change of each step's prediction when one step's latent is replaced: a diagonal, or one row per key"))

# %% [markdown]
# In the baseline, each prediction depends on the latent of its own step. With encoder propagation, only the latents of the *key* steps count,
# and each for its whole group; the rows between are zero. The paper says the same in the caption of its Fig. 4: at $t-1$, predicting
# noise does not require $z_{t-1}$. It is not a finding about trained weights but follows from what is reused: any UNet does it.

# %%
between = [step for step in range(10) if step not in short.keys]
print(f"largest change by a latent between keys: {changes[f'encoder propagation, keys {short}'][between].max():.1e}")
assert changes[f"encoder propagation, keys {short}"][between].max() < 1e-6

# %% [markdown]
# So at a key step everything is known that the predictions of its whole group need: the features, the text and the time-steps. The
# latents between keys are still made, one after the other, by `scheduler.step`; but that is a sum of two small tensors.

# %% [markdown]
# ## 2. The rows of the batch
#
# How do the rows run through the UNet, when five steps of two images are decoded at once? We watch some layers while the pipeline runs.

# %%
seen, times = [], []


def begin(module, args):
    seen.append({})
    times.append(args[0].tolist())


def watch(name):
    return unet.get_submodule(name).register_forward_hook(lambda m, args, output: seen[-1].update({name: len(output)}))


with warnings.catch_warnings(), fl.encoder_propagation(pipe, fl.KeySchedule.parse("0-3,5 of 10")):
    warnings.simplefilter("ignore")  # our lists get the rows of several steps in one call, as is meant here
    hooks = [unet.time_proj.register_forward_pre_hook(begin), *map(watch, ("conv_in", "mid_block", "up_blocks.0", "conv_out"))]
    pipe(prompts[:2], num_inference_steps=10, guidance_scale=5.0, output_type="latent")
    for hook in hooks:
        hook.remove()
# A watched decoder is checked once, by two steps decoded alone: these two forwards have no encoder.
pd.DataFrame([rows for rows in seen if "conv_in" in rows]).rename_axis("forward").style.set_caption("rows that leave each layer")

# %% [markdown]
# Two images with guidance make four rows. The encoder works on four rows in every forward, the decoder on four rows *per step*: the
# fourth forward decodes two steps, the fifth one five.
#
# In which order do they stand? Each row needs its features, its text and its time-step. The last forward, as the UNet saw it:

# %%
labels = [f"{half}\nimage {image}" for half in ("empty text", "prompt") for image in range(2)]
ax = (figure := plot.figure(11, 2.6)).subplots()
for row, t in enumerate(times[-1]):
    step, place = divmod(row, 4)
    ax.bar(row, 1, 0.92, color=plot.PETROFF[step], alpha=0.25 if place < 2 else 0.6, edgecolor="black")
    ax.text(row, 0.5, f"{labels[place]}\nt = {t:.0f}", ha="center", va="center", rotation=90)
ax.set(xlabel="row of the batch", xticks=range(len(times[-1])), yticks=[], xlim=(-0.6, len(times[-1]) - 0.4))
alt = "Twenty rows: for each of five steps the block of four rows, empty text for two images and then prompt for two images"
HTML(plot.html_image(figure, alt))

# %% [markdown]
# *Step-major*: the whole block `[empty text; prompt]` of one step, then that of the next (a colour per step, pale for the
# empty text). The features and the text are the same in each block, only the time-step differs. The paper's code for Stable Diffusion
# sorts its rows in another way: all steps of the empty text first, then all of the prompt. Both are right, as long as *everything* is
# sorted alike. What happens otherwise?

# %%
block = ["empty 0", "empty 1", "prompt 0", "prompt 1"]
table = pd.DataFrame({"features": block * 2, "text, sorted alike": block * 2, "text, each row twice": np.repeat(block, 2)})
wrong = (table["features"] != table["text, each row twice"]).sum()
print(f"{wrong} of {len(table)} rows would get another row's text, and no shape tells: {len(table)} rows both times")
table.transpose()

# %% [markdown]
# `tensor.repeat(n, 1, 1)` makes the first order, `tensor.repeat_interleave(n, 0)` the second: an easy mistake, which no error message
# reports. That is why the next section belongs to every implementation.

# %% [markdown]
# ## 3. Serial = parallel
#
# We draw one image in four ways, three times each: baseline, with serial decoding, with parallel decoding, and with parallel decoding
# of at most ten rows at once (`max_rows`; two rows per step, so at most five steps). Do the accelerated ways give the same latents?

# %%
ways = {"baseline": fl.Method(), "serial": fl.Method(paper, parallel_decoding=False)}
ways |= {"parallel, at most 10 rows": fl.Method(paper, max_rows=10), "parallel": fl.Method(paper)}
runs = {name: [] for name in ways}
for _ in range(3):
    for name, method in ways.items():  # they take turns, so that all of them meet the same disturbances
        runs[name].append(sample(pipe, method, prompts[:1], [0], guidance_scale=5.0))

# %%
for name, taken in runs.items():
    difference = float((taken[0].latents - runs["serial"][0].latents).abs().max())
    print(f"{name}: largest difference of the final latents to serial {difference:.1e}")
    assert name == "baseline" or difference < 1e-3

# %% [markdown]
# Is what is left the method, or the rounding? In float64, with twice as many digits, rounding all but vanishes, and a flaw would stay.

# %%
serial, parallel = (fl.Method(fl.KeySchedule.paper(20), parallel_decoding=at_once) for at_once in (False, True))
for part in (unet, pipe.text_encoder, pipe.vae):
    part.double()
one, other = (sample(pipe, method, prompts[:1], [0], num_inference_steps=20, guidance_scale=5.0).latents for method in (serial, parallel))
for part in (unet, pipe.text_encoder, pipe.vae):
    part.float()
print(f"{one.dtype}, 20 steps: largest difference between serial and parallel {(one - other).abs().max():.1e}")
assert (one - other).abs().max() < 1e-9

# %% [markdown]
# ### Calls and milliseconds
#
# The three accelerated ways do the same arithmetic: nine encodings, fifty decodings. What differs is how many calls of the UNet it is
# packed into. Which is the fastest here, for one image?

# %%
table = []
for name, taken in runs.items():
    counts, ms = taken[0].counts, 1000 * statistics.median(run.seconds for run in taken)
    table.append({"way": name, "encoder calls": counts.encoder_calls, "steps decoded": counts.decoder_calls})
    table[-1] |= {"UNet forwards": counts.forward_calls, "ms": ms}
table = pd.DataFrame(table).assign(speedup=lambda t: t["ms"].iloc[0] / t["ms"])
table.style.hide(axis="index").format({"ms": "{:.0f}", "speedup": "{:.2f}"})

# %%
ax = (figure := plot.figure(8, 2.6)).subplots()
bars = ax.barh(table["way"], table["ms"], color=[plot.PETROFF[i] for i in (0, 1, 2, 2)], edgecolor="black")
ax.bar_label(bars, [f"{calls} forwards" for calls in table["UNet forwards"]], padding=4, fontsize="small")
ax.invert_yaxis()
ax.set(xlabel=f"milliseconds per image (median of 3; CPU threads: {torch.get_num_threads()})", xlim=(0, 1.2 * table["ms"].max()))
HTML(plot.html_image(figure, "Milliseconds per image: baseline, serial, parallel with limited rows, and parallel"))

# %% [markdown]
# **The paper** (one A40, Stable Diffusion 1.5; Fig. 5 and Table 8) goes from 2.42 s for the baseline to 1.82 s serial and 1.42 s parallel. **We**
# see the bars above, on a CPU and with a much smaller UNet. The arithmetic saved is the same in all accelerated ways, at most
# 1.37x. If serial decoding saves more time than that, the encoder takes a larger share of the time than of the operations here. What
# parallel decoding adds is that fewer, larger calls use a device better that one image leaves idle. Where the device is full already (many images at
# once), little of that is left.
#
# **Memory**: the features are kept once, but the decoder's own tensors grow with the rows that are decoded at once, and the longest group
# decides. The paper's Table 8 has 2.62 GB for the baseline, 2.64 GB serial and 3.95 GB parallel; `max_rows` chooses a place between the two.

# %%
longest = max(len(group) for group in paper.groups())
f"longest group: {longest} steps, so {2 * longest} rows at once for one image with guidance; serial: 2"

# %% [markdown]
# ## 4. Prior noise
#
# The paper finds that encoder propagation loses texture, and that a little of the initial noise brings it back: late in the run,
# $z_t \leftarrow z_t + 0.003 \, z_T$. At which steps is that? The paper says $t < 25$ of 50, its code says time-steps below 500 of 1,000,
# which is one step earlier; `fl.prior_noise_injection` follows the code.

# %%
scheduler.set_timesteps(50)
late = [step for step, t in enumerate(scheduler.timesteps) if t < 0.5 * scheduler.config.num_train_timesteps]
f"{len(late)} of 50 steps, from step {late[0]} (time-step {scheduler.timesteps[late[0]]}) to step {late[-1]}"

# %% [markdown]
# `fl.prior_noise_injection` adds it to what `scheduler.step` gets. The predictions between keys do not depend on the latents (section 1),
# so serial and parallel decoding still agree (20 steps):

# %%
with fl.prior_noise_injection(pipe, weight=0.003):
    one, other = (sample(pipe, method, prompts[:1], [0], num_inference_steps=20, guidance_scale=5.0).latents for method in (serial, parallel))
print(f"largest difference between serial and parallel, with prior noise: {(one - other).abs().max():.1e}")
assert (one - other).abs().max() < 1e-3

# %% [markdown]
# How much is too much? The paper gives no series of weights, so here is one: nothing, the paper's 0.003, and more.

# %%
weights = [0, 0.003, 0.01, 0.03]
methods = {"baseline": fl.Method()} | {f"weight {weight}": fl.Method(paper, prior_noise=weight) for weight in weights}
images = {name: sample(pipe, method, prompts, range(len(prompts)), guidance_scale=5.0).images for name, method in methods.items()}
grid = plot.image_grid({name: drawn[:2] for name, drawn in images.items()}, plot.figure(9, 7.6))
alt = "Two prompts: baseline, and the paper's keys with four weights of prior noise; differences to the baseline below"
HTML(plot.html_image(grid, alt))


# %% [markdown]
# Texture is hard to see in flat colours. So what changes slowly is taken out (below about 8 cycles per image), and the rest is drawn
# four times stronger, around grey.


# %%
def frequencies(side):
    """Of each number of a Fourier transform: its spatial frequency in cycles per image, whatever its direction."""
    cycles = np.fft.fftfreq(side, 1 / side)
    return np.hypot(cycles[:, None], cycles[None, :])


def texture(image):
    grey = np.asarray(image.convert("L"), dtype=float) / 255
    fine = np.fft.fft2(grey) * (1 - np.exp(-((frequencies(len(grey)) / 8) ** 2)))
    return np.clip(0.5 + 4 * np.fft.ifft2(fine).real, 0, 1)


# %%
axes = (figure := plot.figure(11, 4.9)).subplots(2, len(images))
for column, (name, drawn) in zip(axes.T, images.items(), strict=True):
    column[0].set_title(name, fontsize="small")
    for ax, image in zip(column, drawn, strict=False):
        ax.imshow(texture(image), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        ax.set(xticks=[], yticks=[])
alt = "Fine texture of two images, drawn four times stronger: baseline and with four weights of prior noise"
HTML(plot.html_image(figure, alt))

# %% [markdown]
# **The paper** sees texture lost without prior noise. **Ours** are flat shapes, so look at the surfaces: is anything missing in the second
# column that the first one has? From which weight on is the texture simply noise?

# %% [markdown]
# ### Spectra
#
# The paper's Fig. 6 plots amplitude over frequency with and without prior noise, and sees texture lost without it *at all frequencies*.
# Ours: the power at each spatial frequency, averaged over directions and images. Grey only, low frequencies on the left.


# %%
def spectrum(images):
    greys = np.stack([np.asarray(image.convert("L"), dtype=float) / 255 for image in images])
    power = (np.abs(np.fft.fft2(greys)) ** 2).mean(0) / greys[0].size
    ring = frequencies(len(power)).round().astype(int).ravel()
    return (np.bincount(ring, power.ravel()) / np.bincount(ring))[1 : len(power) // 2 + 1]


spectra = {name: spectrum(drawn) for name, drawn in images.items()}
cycles = np.arange(1, len(spectra["baseline"]) + 1)
{name: values.shape for name, values in spectra.items()}

# %%
absolute, relative = (figure := plot.figure(11, 3.8)).subplots(1, 2)
for place, (name, power) in enumerate(spectra.items()):
    style = {"color": plot.PETROFF[place], "linestyle": ["-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1))][place], "label": name}
    absolute.loglog(cycles, power, **style)
    relative.semilogx(cycles, 10 * np.log10(power / spectra["baseline"]), **style)
for ax, label in ((absolute, "power"), (relative, "power to the baseline, dB")):
    ax.set(xlabel="spatial frequency, cycles per image", ylabel=label, xticks=(ticks := [1, 2, 4, 8, 16, 32]), xticklabels=ticks)
    ax.minorticks_off()
absolute.legend()
alt = "Power over spatial frequency for the baseline and four weights of prior noise; right: in decibels to the baseline"
HTML(plot.html_image(figure, alt))

# %%
bands = {"1-4 cycles": slice(0, 4), "5-15 cycles": slice(4, 15), "16-32 cycles": slice(15, 32)}
table = {}
for name, power in spectra.items():
    table[name] = {band: 10 * np.log10(power[part].sum() / spectra["baseline"][part].sum()) for band, part in bands.items()}
    table[name]["PSNR"] = mean_psnr(fidelity(images[name], images["baseline"])["mse"])
pd.DataFrame(table).transpose().style.format(precision=1).set_caption("power and PSNR to the baseline, dB")

# %% [markdown]
# **The paper** (Table 6, FID and Clipscore) reports 21.75 and 0.773 for the baseline, 21.71 and 0.779 with encoder propagation, 21.08 and 0.783
# with prior noise as well: lower, thus better, than the baseline. **We** have a few images of flat shapes, and measure power and nearness, not
# FID. Ask the table three things. Does the row of weight 0 lie below 0 dB, so that texture is missing? Does 0.003 bring it nearer to 0 dB?
# And what does it do to the nearness to the baseline?
#
# The next cell answers the first one, and checks the only thing that is sure beforehand: the more noise, the farther from the run
# without.

# %%
fine = table["weight 0"]["16-32 cycles"]
print(f"without prior noise, fine texture has {abs(fine):.1f} dB {'less' if fine < 0 else 'more'} power than the baseline:", end=" ")
print("some is lost, as in the paper" if fine < 0 else "none is lost in this measure, unlike in the paper")
without = images["weight 0"]
near = {weight: mean_psnr(fidelity(images[f"weight {weight}"], without)["mse"]) for weight in weights[1:]}
print("PSNR to the run without prior noise, dB:", {weight: round(value, 1) for weight, value in near.items()})
assert near[0.003] > near[0.03]

# %% [markdown]
# ## What to see
#
# - **Between keys, a prediction does not depend on the latent of its step.** That, not a property of trained weights, is why the steps
#   of a group can be decoded at once.
# - **All rows must be sorted alike**; ours are step-major. Serial and parallel decoding agree up to rounding, with and without prior noise.
# - **Parallel decoding saves calls, not arithmetic**: how much time it saves depends on how idle the device was. It costs memory for the
#   rows decoded at once, which `max_rows` limits.
# - **Prior noise** at the paper's weight changes the images a little; ten times of it ruins them. The paper finds texture lost
#   without it and a better FID with it. On our small pipeline with flat colours the spectra say whether there is anything to bring back;
#   on Stable Diffusion's own weights we have not measured it.
#
# ## What to do next
#
# - Draw section 1 with `short = fl.KeySchedule.parse("0-9 of 10")`, and with `"0 of 10"`: which image do you expect?
# - Put prior noise at other steps: `fl.prior_noise_injection(pipe, weight=0.01, below=0.2)`. Where does it do most, and why?
# - Time section 3 with eight images at once instead of one. What is left of the advantage of parallel decoding?
#
# Next: [derive a schedule](06_derive_a_schedule.ipynb).
