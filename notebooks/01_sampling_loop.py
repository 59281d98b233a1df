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
# # The sampling loop by hand
#
# `pipe(prompt)` hides a loop of about ten lines. *Faster Diffusion* (Li et al., NeurIPS 2024) changes what happens inside one turn of that
# loop, so we write it out first: from the prompt to the image, with nothing left inside the box but the denoiser itself.
#
# After this notebook you can
# - follow a prompt to token ids and text embeddings, and say why the empty text comes along,
# - tell a **step** from its **time-step**, and read the noise level $\bar\alpha$ at each,
# - write down guidance and the DDIM update (the paper's Eq. 1), and show that both are what the library does,
# - look at the latents on the way, and at the clean image that the denoiser predicts at each step, and
# - say why ten requested steps may be ten, eleven or nineteen calls of the denoiser.
#
# Everything runs offline on a CPU in less than a minute.

# %%
import sys
import time

import diffusers
import pandas as pd
import torch
from IPython.display import HTML

import fastdiff_lab as fl
from fastdiff_lab import plot
from fastdiff_lab.sampling.methods import decode, denoiser_calls
from fastdiff_lab.pipelines import SCHEDULERS

print(f"fastdiff_lab {fl.__version__}, diffusers {diffusers.__version__}, torch {torch.__version__}")
print(f"Python {sys.version.split()[0]}, {torch.get_num_threads()} CPU threads, CUDA: {torch.cuda.is_available()}")

# %% [markdown]
# The next cell is the only one that says which pipeline is used; with a GPU, write `fl.load_pipeline(device="cuda")`. What we do by hand
# below holds for pipelines like Stable Diffusion 1: one text encoder, and a scheduler that does not rescale the sample.

# %%
pipe = fl.load_pipeline()
unet, scheduler, device = pipe.unet, pipe.scheduler, pipe.device
torch.set_grad_enabled(False)  # we only sample, nothing is trained here
parts = {"text_encoder": pipe.text_encoder, "unet": unet, "vae": pipe.vae}
rows = [(name, type(part).__name__, sum(p.numel() for p in part.parameters()) / 1e6) for name, part in parts.items()]
pd.DataFrame(rows, columns=["part", "class", "million parameters"]).round(2).style.hide(axis="index").format(precision=2)

# %%
prompt = "a large red star at the left on a blue background"
seed, num_inference_steps, guidance_scale = 0, 50, 5.0

# %% [markdown]
# ## 1. From the prompt to text embeddings
#
# What does the denoiser get of our sentence? First the tokenizer turns it into ids. Every text becomes equally long: the rest is filled
# with the token that ends a text. (This pipeline's vocabulary is small, so here each word is one token.)

# %%
tokens = pipe.tokenizer(["", prompt], padding="max_length", truncation=True, return_tensors="pt")
ids = tokens.input_ids
words = pipe.tokenizer.convert_ids_to_tokens(ids[1])
pd.DataFrame({"token": words, "id": ids[1]}).T.iloc[:, : len(prompt.split()) + 3]

# %% [markdown]
# Then the text encoder turns each id into a vector that knows its neighbours. We encode two texts, the **empty** one and the prompt. What
# the empty text is for, section 5 tells.

# %%
text = pipe.text_encoder(ids.to(device))[0]
print("ids", tuple(ids.shape), "-> text embeddings", tuple(text.shape), ": texts, tokens, channels")

# %% [markdown]
# Is that what the pipeline does? `encode_prompt` is its own method; it gives the prompt's embeddings first, then those of the empty text.

# %%
of_prompt, of_nothing = pipe.encode_prompt(prompt, device, num_images_per_prompt=1, do_classifier_free_guidance=True)
assert torch.allclose(text, torch.cat([of_nothing, of_prompt]), atol=1e-5)
f"largest difference: {(text - torch.cat([of_nothing, of_prompt])).abs().max():.1e}"

# %% [markdown]
# ## 2. The noise to begin with
#
# The loop works on **latents**, a small code of the image that the autoencoder can decode. It begins with pure noise, $z_T$. Whoever
# has the same seed has the same noise, so we draw it on the CPU also if the pipeline is on a GPU.

# %%
size = unet.config.sample_size
noise = torch.randn(1, unet.config.in_channels, size, size, generator=torch.Generator().manual_seed(seed))
z_T = noise.to(device, text.dtype) * scheduler.init_noise_sigma
print("z_T", tuple(z_T.shape), f": mean {z_T.mean():.3f}, standard deviation {z_T.std():.3f}")

# %% [markdown]
# Its four channels, and what the decoder of the autoencoder makes of them:

# %%
figure = plot.figure(8.5, 1.9)
axes = figure.subplots(1, 5)
for channel, ax in enumerate(axes[:4]):
    ax.imshow(z_T[0, channel].cpu(), cmap="cividis")
    ax.set(title=f"channel {channel}", xticks=[], yticks=[])
axes[4].imshow(decode(pipe, z_T)[0], interpolation="nearest")
axes[4].set(title="decoded", xticks=[], yticks=[])
HTML(plot.html_image(figure, "The four channels of the initial noise, and its decoding: no image in it"))

# %% [markdown]
# ## 3. Steps and time-steps
#
# In training the noise level was one of 1000 **time-steps**: at 0 hardly any noise, at 999 hardly anything else. Sampling visits only
# some of them, from noisy to clean. The index of the visit is the **step**. Which time-steps are visited in 50 steps?

# %%
scheduler.set_timesteps(num_inference_steps)
time_steps = scheduler.timesteps.tolist()
print(f"{len(time_steps)} steps, of {scheduler.config.num_train_timesteps} time-steps in training")
print("time-steps:", *time_steps[:4], "...", *time_steps[-4:])

# %% [markdown]
# How much noise is there at a time-step? The noised latent is $z_t = \sqrt{\bar\alpha_t}\, z_0 + \sqrt{1-\bar\alpha_t}\,\epsilon$, a mix
# of image and noise; $\bar\alpha_t$ says how much of the image's *power* is left.

# %%
alpha_bar = scheduler.alphas_cumprod
figure = plot.figure(10, 3.4)
left, right = figure.subplots(1, 2)
left.plot(time_steps, "o", markersize=3, color=plot.PETROFF[0])
left.set(xlabel="step (index of the call)", ylabel="time-step (of training)", title="step against time-step")
right.plot(alpha_bar, color="0.6", label="all time-steps")
right.plot(time_steps, alpha_bar[time_steps], "o", markersize=3, color=plot.PETROFF[0], label="those visited")
right.set(xlabel="time-step (sampling goes from right to left)", ylabel="alpha-bar (no unit)", title="how much image is left")
right.legend()
HTML(plot.html_image(figure, "Left: time-step of each step, falling evenly. Right: alpha-bar, from one at 0 to almost zero at 999"))

# %% [markdown]
# Is anything of the image left at the very first step? A little, and the model was trained with that little: weights of image and
# noise in $z_t$ at some steps.

# %%
shown = torch.linspace(0, len(time_steps) - 1, 8).round().int().tolist()
levels = alpha_bar[[time_steps[step] for step in shown]]
table = {"step": shown, "time_step": [time_steps[step] for step in shown], "alpha_bar": levels}
table |= {"image": levels.sqrt(), "noise": (1 - levels).sqrt()}
pd.DataFrame(table).style.hide(axis="index").format(precision=3)

# %% [markdown]
# ## 4. One call of the denoiser
#
# What does the UNet see at one step? The latent **twice**, the time-step, and both texts: row 0 is without a prompt (*unconditional*),
# row 1 with it (*conditional*). It gives the noise that it believes to be in the latent, once per row.

# %%
t = scheduler.timesteps[0]
call = {"sample": torch.cat([z_T, z_T]), "timestep": t, "encoder_hidden_states": text}
predicted = unet(**call).sample
rows = [(name, tuple(value.shape)) for name, value in (call | {"-> predicted noise": predicted}).items()]
pd.DataFrame(rows, columns=["argument", "shape"]).style.hide(axis="index")

# %% [markdown]
# The shape `()` is a single number: all rows have the same time-step. That need not be so, and parallel decoding in the paper lives on it:
# rows with *different* time-steps in one call give what two calls give.

# %%
times = torch.stack([scheduler.timesteps[0], scheduler.timesteps[25]]).to(device)
together = unet(call["sample"], times, encoder_hidden_states=text).sample
apart = torch.cat([unet(z_T, time, encoder_hidden_states=row[None]).sample for time, row in zip(times, text, strict=True)])
assert torch.allclose(together, apart, atol=1e-3)
f"largest difference: {(together - apart).abs().max():.1e}"

# %% [markdown]
# What difference do the words make? At the first step $z_T$ is nearly all noise, so both rows should predict nearly $z_T$ itself. The
# image that is to come hides in the small difference.

# %%
without, with_prompt = predicted.chunk(2)
maps = {"z_T": z_T, "without prompt": without, "with prompt": with_prompt, "with - without": with_prompt - without}
figure = plot.figure(10, 2.4)
for ax, (name, value) in zip(figure.subplots(1, 4), maps.items(), strict=True):
    limit = float(value[0, 0].abs().max())
    image = ax.imshow(value[0, 0].cpu(), cmap="PuOr", vmin=-limit, vmax=limit)
    ax.set(title=name, xticks=[], yticks=[])
    figure.colorbar(image, ax=ax, shrink=0.8)
HTML(plot.html_image(figure, "First channel of the noise, of both predictions, which look alike, and of their difference"))

# %% [markdown]
# ## 5. Guidance
#
# To make the prompt count, the difference is taken several times: with guidance scale $w$
#
# $$\epsilon = \epsilon_\text{without} + w\,(\epsilon_\text{with} - \epsilon_\text{without})$$
#
# So $w=0$ forgets the prompt, $w=1$ is the conditional prediction as it is, and more exaggerates. That is why each step costs two rows.

# %%
guided = without + guidance_scale * (with_prompt - without)
lengths = {"without": without.norm(), "with": with_prompt.norm(), "their difference": (with_prompt - without).norm()}
lengths |= {f"guided, w = {guidance_scale:g}": guided.norm(), "z_T": z_T.norm()}
pd.DataFrame({"length of the prediction": {name: float(value) for name, value in lengths.items()}}).round(2)

# %% [markdown]
# ## 6. The DDIM update
#
# How does a prediction of noise become a cleaner latent? In two thoughts:
#
# 1. *If* the noise is $\epsilon$, the clean latent is $\hat z_0 = (z_t - \sqrt{1-\bar\alpha_t}\,\epsilon)\,/\sqrt{\bar\alpha_t}$.
# 2. Do not go there at once: mix it again with **the same** noise, but at the next, lower level:
#    $z_{t-1} = \sqrt{\bar\alpha_{t-1}}\,\hat z_0 + \sqrt{1-\bar\alpha_{t-1}}\,\epsilon$.
#
# Here $t-1$ is the *next visited* time-step, not the number minus one. After the last one comes the scheduler's final level.

# %%
following = [alpha_bar[t] for t in time_steps[1:]] + [scheduler.final_alpha_cumprod]
a, b = alpha_bar[time_steps[0]], following[0]
clean = (z_T - (1 - a).sqrt() * guided) / a.sqrt()
by_hand = b.sqrt() * clean + (1 - b).sqrt() * guided
print(f"alpha-bar now {a:.5f}, next {b:.5f}: a step of {float(by_hand.sub(z_T).norm() / z_T.norm()):.3f} of the length of z_T")

# %% [markdown]
# The paper writes both in one (Eq. 1). In words: scale the latent by the ratio of the image's weights, and add the prediction times the
# image's new weight times the change of the noise-to-image ratio:
#
# $$z_{t-1} = \sqrt{\frac{\bar\alpha_{t-1}}{\bar\alpha_t}}\; z_t
#   + \sqrt{\bar\alpha_{t-1}}\left(\sqrt{\frac{1}{\bar\alpha_{t-1}}-1} - \sqrt{\frac{1}{\bar\alpha_t}-1}\right)\epsilon$$
#
# Are the two ways, and the library's `scheduler.step`, the same?

# %%
equation_1 = (b / a).sqrt() * z_T + b.sqrt() * ((1 / b - 1).sqrt() - (1 / a - 1).sqrt()) * guided
of_library = scheduler.step(guided, t, z_T)
assert torch.allclose(by_hand, of_library.prev_sample, atol=1e-4) and torch.allclose(equation_1, of_library.prev_sample, atol=1e-4)
assert torch.allclose(clean, of_library.pred_original_sample, rtol=1e-3, atol=1e-3)
for name, value in {"two thoughts": by_hand, "Eq. 1": equation_1}.items():
    print(f"{name:>12} against scheduler.step: largest difference {(value - of_library.prev_sample).abs().max():.1e}")

# %% [markdown]
# Note what the update needs of the denoiser: the prediction $\epsilon$, nothing else. If $\epsilon$ comes from reused features, the update
# does not know.
#
# ## 7. The whole loop
#
# Now the ten lines. They also keep the latent and the predicted clean latent of every step, for looking at.


# %%
def sample(z, text, guidance, num_steps, history=None):
    """DDIM from the noise z; `text` has the rows without prompt, then those with it."""
    scheduler.set_timesteps(num_steps)
    levels = [*alpha_bar[scheduler.timesteps], scheduler.final_alpha_cumprod]
    for t, a, b in zip(scheduler.timesteps, levels, levels[1:], strict=False):
        without, with_prompt = unet(torch.cat([z, z]), t, encoder_hidden_states=text).sample.chunk(2)
        noise = without + guidance * (with_prompt - without)
        clean = (z - (1 - a).sqrt() * noise) / a.sqrt()
        if history is not None:
            history.append((z, clean))
        z = b.sqrt() * clean + (1 - b).sqrt() * noise
    return z


# %%
history = []
z_0 = sample(z_T, text, guidance_scale, num_inference_steps, history)
ours = decode(pipe, z_0)[0]
print("z_0", tuple(z_0.shape), "->", ours.size, "pixels")
ours.resize((192, 192), 0)

# %% [markdown]
# Is it the pipeline's image? Same prompt, same seed, one call:

# %%
options = {"num_inference_steps": num_inference_steps, "guidance_scale": guidance_scale}
latents = pipe(prompt, generator=torch.Generator().manual_seed(seed), output_type="latent", **options).images
assert torch.allclose(z_0, latents, atol=1e-2)
f"largest difference between the latents: {(z_0 - latents).abs().max():.1e}; the latents go from {latents.min():.1f} to {latents.max():.1f}"

# %% [markdown]
# ## 8. On the way
#
# When does the image come into being? Above, the latent $z_t$ decoded at eight steps. Below, at the same steps, the clean image
# $\hat z_0$ that the denoiser predicts. Guess first: which row shows the final colours earlier?

# %%
noisy, predicted_clean = (torch.cat([history[step][which] for step in shown]) for which in (0, 1))
figure = plot.figure(8.5, 2.6)
axes = figure.subplots(2, len(shown))
for row, name, value in zip(axes, ("latent", "predicted\nclean"), (noisy, predicted_clean), strict=True):
    for ax, step, image in zip(row, shown, decode(pipe, value), strict=True):
        ax.imshow(image, interpolation="nearest")
        ax.set(xticks=[], yticks=[])
        ax.set_title(f"step {step}\nt = {time_steps[step]}" if name == "latent" else "", fontsize="small")
    row[0].set_ylabel(name)
HTML(plot.html_image(figure, "Eight steps from noise to image: above the decoded latents, below the predicted clean images"))

# %% [markdown]
# The same in numbers: how far are both from the final latent, relative to its length?

# %%
far = [[float((value - z_0).norm() / z_0.norm()) for value in pair] for pair in history]
figure = plot.figure(7, 3.2)
ax = figure.subplots()
for values, style, name in zip(zip(*far, strict=True), ("-", "--"), ("latent", "predicted clean latent"), strict=True):
    ax.plot(values, style, color=plot.PETROFF[style == "--"], label=name)
ax.set(xlabel="step", ylabel="distance to the final latent\n/ its length (no unit)", yscale="log")
ax.legend()
HTML(plot.html_image(figure, "Distance of the latent and of the predicted clean latent to the final one, on a log axis"))

# %%
half = [next(step for step, distance in enumerate(values) if distance < 0.5) for values in zip(*far, strict=True)]
print(f"nearer than half its length: the latent from step {half[0]}, the predicted clean latent from step {half[1]}")

# %% [markdown]
# With guidance the first predictions are often far off; then the layout comes, and later steps refine it. So the image is decided long
# before one can see it in the latent. Keep that in mind for the paper's key steps (0, 1, 2, 3, 5, 10, 15, 25, 35 of 50), which lie close
# together early.
#
# Our own loop can do what `pipe(...)` cannot: a different guidance scale in each row. The same noise with five scales, in one run of 20
# steps:

# %%
scales = torch.tensor([0.0, 1.0, 3.0, 5.0, 9.0], device=device)
count = len(scales)
many = sample(z_T.repeat(count, 1, 1, 1), text.repeat_interleave(count, 0), scales.view(-1, 1, 1, 1), 20)
figure = plot.figure(8, 2)
for ax, scale, image in zip(figure.subplots(1, count), scales, decode(pipe, many), strict=True):
    ax.imshow(image, interpolation="nearest")
    ax.set(xticks=[], yticks=[], title=f"w = {float(scale):g}")
HTML(plot.html_image(figure, f"Five images from the same noise, for guidance scales 0 to 9, for the prompt: {prompt}"))

# %% [markdown]
# Where do the seconds go? Once each: the text encoder, one denoiser call, one update, the decoding; times how often a run needs them.

# %%
work = {
    "text encoder": (1, lambda: pipe.text_encoder(ids.to(device))), "denoiser": (num_inference_steps, lambda: unet(**call)),
    "update": (num_inference_steps, lambda: scheduler.step(guided, t, z_T)), "decoding": (1, lambda: decode(pipe, z_0)),
}  # fmt: skip
seconds = {}
for name, (times_per_run, one) in work.items():
    started = time.perf_counter()
    one()
    seconds[name] = times_per_run * (time.perf_counter() - started)
pd.DataFrame({"seconds per run": seconds, "share": pd.Series(seconds) / sum(seconds.values())}).round(3)

# %% [markdown]
# Nearly all of it is the denoiser. That is the box which the next notebook opens.
#
# ## 9. Steps are not what you asked for
#
# Other schedulers walk another way from noise to image. Does `num_inference_steps=10` always mean ten calls of the denoiser?

# %%
kinds = {name: getattr(diffusers, kind) for name, kind in SCHEDULERS.items()}
variants = {name: kind.from_config(scheduler.config) for name, kind in kinds.items()}
variants["pndm, as SD 1.5 sets it"] = kinds["pndm"].from_config(scheduler.config, skip_prk_steps=True)
rows = []
for name, variant in variants.items():
    pipe.scheduler = variant
    pipe.scheduler.set_timesteps(10)
    rows.append((name, 10, denoiser_calls(pipe, 10), len(set(pipe.scheduler.timesteps.tolist()))))
pipe.scheduler = scheduler
calls = pd.DataFrame(rows, columns=["scheduler", "num_inference_steps", "denoiser calls", "different time-steps"])
calls.style.hide(axis="index")

# %% [markdown]
# That was read off the schedulers' plans. Does a run really make so many calls? A counting hook on the UNet says so for Heun, which
# evaluates most steps twice.

# %%
made = []
pipe.scheduler = variants["heun"]
handle = unet.register_forward_hook(lambda model, args, output: made.append(1))
pipe(prompt, num_inference_steps=10, output_type="latent")
handle.remove()
assert len(made) == denoiser_calls(pipe, 10) > 10
pipe.scheduler = scheduler
f"{len(made)} calls"

# %%
figure = plot.figure(8, 3.4)
ax = figure.subplots()
for place, (name, marker) in enumerate({"ddim": "o", "pndm, as SD 1.5 sets it": "s", "heun": "^"}.items()):
    ax.plot(variants[name].timesteps.cpu(), marker=marker, linewidth=0.8, markersize=5, color=plot.PETROFF[place], label=name)
ax.set(xlabel="step (index of the denoiser call)", ylabel="time-step", title="num_inference_steps=10", xticks=range(0, 19, 2))
ax.legend()
HTML(plot.html_image(figure, "Time-step of each call of DDIM, PNDM, which repeats one, and Heun, which repeats nearly all"))

# %% [markdown]
# So in this project a **step** is the index of one denoiser call, a schedule of key steps is made for a number of *calls*, and tables over
# the steps carry step and time-step.

# %%
print("DDIM, 50 requested:", fl.KeySchedule.of_paper(denoiser_calls(pipe, 50)))
print("10 requested from Heun:", fl.KeySchedule.uniform(int(calls.set_index("scheduler").loc["heun", "denoiser calls"]), 4))

# %% [markdown]
# ## Summary
#
# - A run: text embeddings once, then per step one call of the denoiser with two rows (without and with the prompt), guidance, and an
#   update; at the end one decoding. By hand and by the library the latents agree to rounding.
# - A **step** counts calls of the denoiser, its **time-step** is the noise level in training's count. For DDIM and most others calls and
#   requested steps are equally many, for PNDM, Heun and KDPM2 not.
# - DDIM's update uses the prediction only. It jumps to the predicted clean latent and back to the next noise level, with the same noise.
# - The time is spent in the denoiser. Whatever makes its calls cheaper makes sampling faster.
#
# ## To try
#
# 1. Give `sample` 10 steps instead of 50, and 5. At which number does the image break?
# 2. In `sample`, keep the prediction of one step for the next (call the denoiser at even steps only). Which steps can do without?
# 3. Put another text in place of the empty one, such as "a red circle on a blue background". What does guidance push away from?
#
# Next: [what encoder and decoder features do over these steps](02_encoder_and_decoder_features.ipynb).
