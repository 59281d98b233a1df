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
# # Encoder propagation by hand, and what happens if something else is reused
#
# A diffusion UNet has an **encoder** (first convolution, down blocks, bottleneck) and a **decoder** (up blocks, output layers). The
# *Faster Diffusion* paper (Li et al., NeurIPS 2024) runs the encoder at a few *key steps* only and lets the decoder work at every step,
# from the features of the last key step.
#
# After this notebook you have
# - split a real UNet into encoder and decoder, with its public sub-modules and nothing else,
# - written the sampler with encoder propagation in about thirty lines, and shown that it equals `fl.encoder_propagation`,
# - reused the *decoder's* features and the *prediction* instead, and seen why these two are one and the same, and
# - measured, step by step, which of the things that one can reuse is nearer to the truth.
#
# Everything runs offline on a CPU in less than a minute.

# %%
import sys
from contextlib import nullcontext

import diffusers
import pandas as pd
import torch
from IPython.display import HTML

import fastdiff_lab as fl
from fastdiff_lab import plot
from fastdiff_lab.sampling.methods import decode as images_of
from fastdiff_lab.sampling.methods import generators
from fastdiff_lab.comparison.fidelity import fidelity, mean_psnr

print(f"fastdiff_lab {fl.__version__}, diffusers {diffusers.__version__}, torch {torch.__version__}")
print(f"Python {sys.version.split()[0]}, {torch.get_num_threads()} CPU threads, CUDA: {torch.cuda.is_available()}")

# %% [markdown]
# The next cell is the only one that says which pipeline is used; with a GPU, write `fl.load_pipeline(device="cuda")`. The split by hand
# below is for UNets like Stable Diffusion's 1 and 2, without further conditions; the library's knows more of them.

# %%
pipe = fl.load_pipeline()
unet, scheduler = pipe.unet, pipe.scheduler
f"{type(unet).__name__} with {sum(p.numel() for p in unet.parameters()) / 1e6:.1f} M parameters, {type(scheduler).__name__}"

# %% [markdown]
# What goes into the denoiser: the noise $z_T$, and the text twice, for classifier-free guidance: first the empty text, then the prompt.

# %%
prompt, num_steps, guidance = "a large red star at the left on a blue background", 50, 5.0
z_T = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0)).to(pipe.device)
prompted, empty = pipe.encode_prompt(prompt, pipe.device, 1, True)
text = torch.cat([empty, prompted]).detach()
print(f"noise z_T {tuple(z_T.shape)}, text {tuple(text.shape)}: [empty; prompt]")

# %% [markdown]
# ## 1. Encoder and decoder
#
# What must the decoder be given, if the encoder is to be left out at a step? Everything that the up blocks read: the output of the
# bottleneck, and one *skip* for each of their residual blocks. Nothing else of the encoder reaches them.


# %%
def embed(t, rows):
    """The time embedding of each row, from the scheduler's time-step."""
    return unet.time_embedding(unet.time_proj(t.to(rows.device).expand(len(rows))).to(rows.dtype))


def text_for(block):
    return {"encoder_hidden_states": text} if getattr(block, "has_cross_attention", False) else {}


def encode(rows, t):
    """What the decoder needs: the skips and the bottleneck."""
    now, hidden = embed(t, rows), unet.conv_in(rows)
    skips = [hidden]
    for block in unet.down_blocks:
        hidden, more = block(hidden, now, **text_for(block))
        skips.extend(more)
    return skips, unet.mid_block(hidden, now, **text_for(unet.mid_block))


def decode(skips, hidden, t):
    """The prediction, from an encoder's features and the time embedding of *this* step."""
    now, end = embed(t, hidden), len(skips)
    for block in unet.up_blocks:
        begin = end - len(block.resnets)
        hidden = block(hidden, tuple(skips[begin:end]), now, **text_for(block))
        end = begin
    return unet.conv_out(unet.conv_act(unet.conv_norm_out(hidden)))


# %% [markdown]
# The features of one step, in the order in which the encoder makes them; the decoder takes the skips from the end.

# %%
scheduler.set_timesteps(num_steps)
rows, t = torch.cat([z_T, z_T]), scheduler.timesteps[0]
with torch.no_grad():
    skips, bottleneck = encode(rows, t)
    by_hand, whole = decode(skips, bottleneck, t), unet(rows, t, text).sample
features = {**{f"skip {i}": skip for i, skip in enumerate(skips)}, "bottleneck": bottleneck}
pd.DataFrame([{"feature": n, "rows, channels, height, width": tuple(f.shape), "numbers": f.numel()} for n, f in features.items()])

# %%
print(f"largest difference between decode(encode(z)) and the UNet's own forward: {(by_hand - whole).abs().max():.1e}")
torch.testing.assert_close(by_hand, whole, atol=1e-5, rtol=1e-4)

# %% [markdown]
# ## 2. The sampler
#
# The loop below is DDIM (the paper's equation 1) with guidance. How many lines have to change for encoder propagation? One: the `if`.


# %%
stride = scheduler.config.num_train_timesteps // num_steps  # from one time-step to the next


@torch.no_grad()
def sample_by_hand(z, keys):
    scheduler.set_timesteps(num_steps)
    features, encoder_calls = None, 0
    for step, t in enumerate(scheduler.timesteps):
        if step in keys:
            features, encoder_calls = encode(torch.cat([z, z]), t), encoder_calls + 1
        without, with_prompt = decode(*features, t).chunk(2)
        z = ddim(z, without + guidance * (with_prompt - without), t, t - stride)
    return z, encoder_calls


def ddim(z, noise, t, t_next):
    """From time-step t to an earlier one, along the predicted noise."""
    a, a_next = (scheduler.alphas_cumprod[max(0, int(time))].double() for time in (t, t_next))
    return (a_next / a).sqrt() * z + a_next.sqrt() * ((1 / a_next - 1).sqrt() - (1 / a - 1).sqrt()) * noise


# %% [markdown]
# First the check that it is a sampler at all: with *every* step a key it must be the baseline.

# %%
options = {"num_inference_steps": num_steps, "guidance_scale": guidance, "output_type": "latent"}
baseline = pipe(prompt, latents=z_T, **options).images
by_hand, calls = sample_by_hand(z_T, range(num_steps))
print(f"{calls} encoder calls, largest difference of the final latents: {(by_hand - baseline).abs().max():.1e}")
torch.testing.assert_close(by_hand, baseline, atol=1e-3, rtol=0)

# %% [markdown]
# Now the paper's nine key steps. They lie close together at the start, where the paper sees the encoder's features change most.

# %%
paper, uniform = fl.KeySchedule.paper(num_steps), fl.KeySchedule.uniform(num_steps, 9)
ax = (figure := plot.figure(9, 1.6)).subplots()
for line, schedule in enumerate((paper, uniform)):
    ax.scatter(range(num_steps), [line] * num_steps, s=26, facecolor="white", edgecolor="0.6")
    ax.scatter(schedule.keys, [line] * len(schedule.keys), s=60, color=plot.PETROFF[line], marker="s")
ax.set(yticks=[0, 1], yticklabels=["paper's keys", "uniform keys"], ylim=(1.6, -0.6))
ax.set_xlabel("step (square: encoder and decoder run; circle: decoder only)")
HTML(plot.html_image(figure, f"Nine key steps of fifty: the paper's {paper}, and uniform {uniform}"))

# %%
ours, calls = sample_by_hand(z_T, paper.keys)
with fl.encoder_propagation(pipe, paper, parallel_decoding=False) as counts:
    library = pipe(prompt, latents=z_T, **options).images
print(f"by hand: {calls} encoder calls; library: {counts.encoder_calls} encoder calls, {counts.decoder_calls} steps decoded")
print(f"largest difference of the final latents: {(ours - library).abs().max():.1e}")
torch.testing.assert_close(ours, library, atol=1e-3, rtol=0)

# %% [markdown]
# **By hand, library, baseline.** The lower row shows the difference to the first image: black between hand and library, not black to
# the baseline. The paper judges its images by FID (many images against real ones, lower is better) and Clipscore (an image against its
# text, higher is better), not by their nearness to the baseline's; we look at nearness.

# %%
columns = {"by hand": ours, "library": library, "baseline": baseline}
grid = plot.image_grid({name: images_of(pipe, z) for name, z in columns.items()}, plot.figure(5.4, 3.8))
HTML(plot.html_image(grid, "The same image by hand and from the library, and the baseline's, with differences to the first"))

# %% [markdown]
# ## 3. What if something else is reused?
#
# The paper reuses the encoder's features because they change less than the decoder's. What if we do it the other way round: the encoder
# runs at every step, and the *decoder's* features are reused? And what if *nothing* runs between keys, and the whole *prediction* is reused?
# Guess the order of the three before you run the next cells.
#
# | reused | runs at a step between keys | the prediction there depends on |
# |---|---|---|
# | encoder | decoder, with its own time embedding | features of the key, *this* step's time |
# | decoder | encoder (for nothing) | features of the key |
# | prediction | nothing | prediction of the key |

# %%
prompts = [
    prompt,
    "a small white ring on a red background",
    "a green cross at the top on a yellow background",
    "a large purple circle in the center on a white background",
]


def run(schedule=None, reuse="encoder"):
    """The latents after each step, and what was evaluated."""
    path = []

    def keep(pipe, step, t, given):
        path.append(given["latents"].clone())
        return given

    block = nullcontext() if schedule is None else fl.encoder_propagation(pipe, schedule, reuse=reuse, parallel_decoding=False)
    with block as counts:
        pipe(prompts, generator=generators(range(len(prompts))), callback_on_step_end=keep, **options)
    return path, counts


# %%
schedules = {"paper's keys": paper, "uniform keys": uniform}
base, _ = run()
methods = {(keys, reuse): run(schedule, reuse) for keys, schedule in schedules.items() for reuse in ("encoder", "decoder", "prediction")}
f"{len(methods) + 1} runs of {len(prompts)} prompts"

# %%
images = {method: images_of(pipe, path[-1]) for method, (path, counts) in methods.items()}
base_images = images_of(pipe, base[-1])
columns = {"baseline": base_images} | {f"{reuse} reused\n{keys}": drawn for (keys, reuse), drawn in images.items()}
grid = plot.image_grid({name: drawn[:3] for name, drawn in columns.items()}, plot.figure(10, 9.6))
alt = "Three prompts: baseline; encoder, decoder and prediction reused at the paper's and at uniform keys; differences below"
HTML(plot.html_image(grid, alt))

# %% [markdown]
# The paper (its Fig. 4) sees objects get lost when the decoder is reused, such as the glasses of a bearded man. Look for lost,
# changed or recoloured shapes in our columns, and then at the numbers.

# %%
table = []
for (keys, reuse), (_, counts) in methods.items():
    row = {"keys": keys, "reused": reuse, "encoder calls": counts.encoder_calls, "decoder calls": counts.decoder_calls}
    near = fidelity(images[keys, reuse], base_images)
    row |= {"PSNR, dB": mean_psnr(near["mse"]), "worst, dB": near["psnr"].min(), "best, dB": near["psnr"].max()}
    table.append(row)
table = pd.DataFrame(table)
table.style.hide(axis="index").format(precision=1)

# %%
ax = (figure := plot.figure(8, 3.2)).subplots()
for place, (keys, part) in enumerate(table.groupby("keys", sort=False)):
    x = [bar + 0.4 * place - 0.2 for bar in range(len(part))]
    ax.bar(x, part["PSNR, dB"], 0.36, color=plot.PETROFF[place], hatch=["", "//"][place], edgecolor="black", label=keys)
    ax.vlines(x, part["worst, dB"], part["best, dB"], color="black", linewidth=3)
ax.set(xticks=range(len(part)), xticklabels=part["reused"], xlabel="reused between keys", ylabel="PSNR to the baseline, dB")
ax.legend(loc="upper left", bbox_to_anchor=(1, 1), title="line: from the worst\nto the best prompt")
alt = "PSNR with encoder, decoder or prediction reused, at the paper's and at uniform keys; lines from worst to best prompt"
HTML(plot.html_image(figure, alt))

# %% [markdown]
# **The paper** (Table 14, FID and Clipscore of 10,000 images of Stable Diffusion 1.5, lower FID is better) reports encoder propagation
# 21.08 and 0.783, decoder propagation 22.97 and 0.758, encoder *and* decoder propagation 23.69 and 0.742. **Ours** is another measure,
# the nearness to the baseline of a much smaller pipeline, so the digits cannot be compared; the order can. In
# the paper, reusing the encoder wins. Here?

# %%
psnr = table.set_index(["keys", "reused"])["PSNR, dB"]
for keys in schedules:
    gain = psnr[keys, "encoder"] - psnr[keys, "prediction"]
    verdict = "nearer to" if gain > 0 else "farther from"
    print(f"{keys}: reusing the encoder is {abs(gain):.1f} dB {verdict} the baseline than reusing the prediction")

# %% [markdown]
# ### Why decoder reused and prediction reused are one method
#
# The rows of `decoder` and `prediction` are equal, and must be: the output layers read the last up block and nothing else. If all up
# blocks give what they gave at the key step, whatever the encoder computes goes nowhere. So the paper's "decoder propagation" and its
# "encoder and decoder propagation" (22.97 and 23.69 above) are one method here. In the paper they are two with slightly different values;
# what exactly each of them holds, we do not know.

# %%
for keys in schedules:
    difference = (methods[keys, "decoder"][0][-1] - methods[keys, "prediction"][0][-1]).abs().max()
    print(f"{keys}: largest difference between decoder reused and prediction reused {difference:.1e}")
    assert difference < 1e-3

# %% [markdown]
# ### A reused prediction is a sampler with fewer steps
#
# With the prediction reused, DDIM's steps of one group go along one straight line (in the right coordinates), so they could be made in one
# jump. Does nine-step DDIM, at the key time-steps, give the same latents?


# %%
@torch.no_grad()
def jump_from_key_to_key(z, keys):
    times = [*scheduler.timesteps.tolist(), scheduler.timesteps[-1].item() - stride]
    for t, t_next in zip((times[key] for key in keys), (times[key] for key in [*keys[1:], num_steps]), strict=True):
        without, with_prompt = unet(torch.cat([z, z]), t, text).sample.chunk(2)
        z = ddim(z, without + guidance * (with_prompt - without), t, t_next)
    return z


# %%
with fl.encoder_propagation(pipe, paper, reuse="prediction", parallel_decoding=False):
    reused = pipe(prompt, latents=z_T, **options).images
jumped = jump_from_key_to_key(z_T, paper.keys)
print(f"largest difference of the final latents: {(reused - jumped).abs().max():.1e}")
torch.testing.assert_close(reused, jumped, atol=1e-3, rtol=0)

# %% [markdown]
# So whoever compares encoder propagation with a reused prediction compares it with *DDIM with nine uneven steps*, which needs
# neither encoder nor decoder between the keys. That is the rival that encoder propagation has to beat.

# %% [markdown]
# ## 4. Which is nearer to the truth, step by step?
#
# Take the baseline's own latents, so that no error is carried on. At each step between keys: how far from the true prediction is
# (a) the decoder's, from the features of the key and with its own time embedding, and (b) the key's prediction, unchanged?


# %%
@torch.no_grad()
def guided_decode(features, t):
    without, with_prompt = decode(*features, t).chunk(2)
    return without + guidance * (with_prompt - without)


times = scheduler.timesteps
path = [z_T, *(z[:1] for z in base)]  # of the first prompt, which began at z_T as well
with torch.no_grad():
    encoded = [encode(torch.cat([z, z]), t) for z, t in zip(path, times, strict=False)]
truth = [guided_decode(features, t) for features, t in zip(encoded, times, strict=True)]
f"{len(truth)} true predictions of shape {tuple(truth[0].shape)}"

# %%
errors = []
for keys, schedule in schedules.items():
    for key, step in ((group.start, step) for group in schedule.groups() for step in group):
        for reused, tried in {"encoder": guided_decode(encoded[key], times[step]), "prediction": truth[key]}.items():
            error = (tried - truth[step]).norm() / truth[step].norm()
            errors.append({"keys": keys, "reused": reused, "step": step, "error": float(error)})
errors = pd.DataFrame(errors)
means = errors.pivot_table("error", "reused", "keys", sort=False)
means.style.format(precision=3).set_caption("relative error of the prediction, mean over the steps")


# %%
def over_steps(curves, label, alt):
    """One panel per list of keys; `curves`: {keys: {what is reused: values}}."""
    axes = (figure := plot.figure(10, 3.4)).subplots(1, 2, sharey=True)
    for ax, (keys, schedule) in zip(axes, schedules.items(), strict=True):
        for key in schedule.keys:
            ax.axvline(key, color="0.85", linewidth=1, zorder=0)
        for place, (reused, values) in enumerate(curves[keys].items()):
            ax.plot(values, ("-", "--")[place], color=plot.PETROFF[place], label=f"{reused} reused")
        ax.set(title=keys, xlabel="step (grey lines: key steps)")
    axes[0].set_ylabel(label)
    axes[0].legend()
    return HTML(plot.html_image(figure, alt))


# %%
curves = {keys: {reused: part["error"].tolist() for reused, part in frame.groupby("reused")} for keys, frame in errors.groupby("keys")}
alt = "Error of the guided prediction over the steps, features reused and prediction reused, for the paper's and uniform keys"
over_steps(curves, "relative error of the prediction", alt)

# %% [markdown]
# At a key step both are exact, and both grow with the distance from the key. **The paper** shows small changes of the encoder's features
# (Fig. 3) and the images that come out at the end (Fig. 4), not this. **We** see the curves above: where does the solid line lie
# below the dashed one, where above?
#
# If the reused prediction wins, here is one explanation, which we have not proved. DDIM's path from noise to image is nearly straight, and
# on a straight path the prediction does not change at all. The decoder, on the other hand, gets a time embedding that says *this step* and
# features that saw the noise of *another* latent, a combination it never met in training.
#
# An error is not equally harmful at each step, and it is carried on. So here is the distance of the *latents* to the baseline's, for
# the runs of section 3.


# %%
def distances(path):
    return [float((z - true).norm() / true.norm()) for z, true in zip(path, base, strict=True)]


curves = {keys: {reused: distances(methods[keys, reused][0]) for reused in ("encoder", "prediction")} for keys in schedules}
alt = "Distance of the latents to the baseline's over the steps, with features and with the prediction reused"
over_steps(curves, "relative distance of the latents", alt)

# %%
last = [
    {"keys": k, "reused": h, "distance at the end": values[-1], "PSNR, dB": psnr[k, h]}
    for k in curves
    for h, values in curves[k].items()
]
pd.DataFrame(last).style.hide(axis="index").format(precision=2)

# %% [markdown]
# The paper has no such figure. In ours, an early rise may be repaired by the rest of the run (uniform keys, about step 5); what rises
# after step 40 stays (the paper's list has no key there). The last table ranks the lists alike by latents and by images, but not in
# proportion: a distance of 0.13 is 27 dB in one row and 32 in another.

# %% [markdown]
# ## What to see
#
# - **Encoder propagation is one `if`** in a sampler whose UNet is split in two; the decoder keeps its own time embedding. The library does
#   the same with hooks, without a second forward or loop, and gives the same latents.
# - **Decoder reused = prediction reused = DDIM at the key time-steps.** The paper's decoder propagation is worse than its encoder
#   propagation in FID on Stable Diffusion. On our small pipeline, look at the table: reusing the prediction may well beat reusing the
#   features, and it costs a fraction of the arithmetic. Whether that is so on Stable Diffusion's own weights, we have not measured.
# - **The place of the keys matters as much as what is reused**: compare the two lists.
#
# ## What to do next
#
# - In `sample_by_hand`, give the decoder the *key's* time embedding instead of its own. Which method of section 3 do you get, and why?
# - Change guidance to 1 or to 8 at the top: does the gap between reusing features and reusing the prediction grow or shrink?
# - Find nine keys that beat both lists: `fl.KeySchedule.parse("0,2,5,9,14,20,27,35,43 of 50")` in `schedules`.
#
# Next: [parallel decoding, and prior noise](05_parallel_decoding_and_prior_noise.ipynb).
