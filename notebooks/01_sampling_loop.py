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
# # When is the picture decided? The sampling loop by hand
#
# `pipe(prompt)` hides a loop of ten lines. *Faster Diffusion* (Li et al., NeurIPS 2024) changes one turn of that loop. So we write the loop
# ourselves, and watch the picture come into being.
#
# **You will** follow a prompt through the loop, and write guidance and the DDIM update yourself. Then you find the step that decides the picture.
#
# New words are in the [glossary](../docs/glossary.md). Everything runs offline on a CPU.

# %%
import time

import diffusers
import pandas as pd
import torch

import fastdiff_lab as fl

plot = fl.plot
torch.set_grad_enabled(False)  # we only sample, nothing is trained here
print(f"fastdiff_lab {fl.__version__}, diffusers {diffusers.__version__}, torch {torch.__version__}, {torch.get_num_threads()} CPU threads")

# %% [markdown]
# The next cell alone says which pipeline is used. With a GPU, write `fl.load_pipeline(device="cuda")`. What we do by hand suits pipelines
# like Stable Diffusion 1, with one text encoder.

# %%
pipe = fl.load_pipeline()
unet, scheduler, device = pipe.unet, pipe.scheduler, pipe.device
prompts, seeds = fl.demo(4)
prompt, seed, num_steps, scale = prompts[0], seeds[0], 50, 5.0
print(f"{type(unet).__name__} with {sum(p.numel() for p in unet.parameters()) / 1e6:.1f} M parameters\nprompt: {prompt}")

# %% [markdown]
# ## 1. From the prompt to numbers
#
# The tokenizer turns words into ids. The text encoder turns each id into a vector that knows its neighbours. We encode two texts: the
# **empty** one and the prompt. Section 4 explains the empty one.

# %%
tokens = pipe.tokenizer(["", prompt], padding="max_length", truncation=True, return_tensors="pt")
text = pipe.text_encoder(tokens.input_ids.to(device))[0]
print("words:", *pipe.tokenizer.convert_ids_to_tokens(tokens.input_ids[1])[: len(prompt.split()) + 2])
print("text embeddings:", tuple(text.shape), "(texts, tokens, channels)")

# %% [markdown]
# The loop works on **latents**, a small code of the picture. It begins with pure noise $z_T$. Same seed, same noise.

# %%
size = unet.config.sample_size
z_T = torch.randn(1, unet.config.in_channels, size, size, generator=torch.Generator().manual_seed(seed)).to(device)
print("z_T:", tuple(z_T.shape), f"mean {z_T.mean():.2f}, standard deviation {z_T.std():.2f}")

# %% [markdown]
# ## 2. Steps and time-steps
#
# In training there were 1,000 **time-steps**. At time-step 0 there is hardly any noise, at 999 hardly anything else:
#
# $$z_t = \sqrt{\bar\alpha_t}\; z_0 + \sqrt{1-\bar\alpha_t}\;\epsilon$$
#
# Sampling visits 50 of them, from noisy to clean. A **step** counts these visits.

# %%
scheduler.set_timesteps(num_steps)
time_steps, alpha_bar = scheduler.timesteps.tolist(), scheduler.alphas_cumprod
print("time-steps:", *time_steps[:4], "...", *time_steps[-4:])

# %% tags=["hide-input"]
figure = plot.figure(9, 2.8)
left, right = figure.subplots(1, 2)
left.plot(time_steps, "o", markersize=3, color=plot.PETROFF[0])
left.set(xlabel="step", ylabel="time-step")
right.plot(time_steps, alpha_bar[time_steps], "o", markersize=3, color=plot.PETROFF[0])
right.set(xlabel="time-step (sampling goes from right to left)", ylabel="alpha-bar: share of the\npicture's power (no unit)")
plot.show(figure, "Left: the time-step of each step falls evenly. Right: alpha-bar falls from one at time-step 0 to almost zero at 999.")

# %% [markdown]
# ## 3. One call of the UNet
#
# The UNet gets the latent **twice**, the time-step and both texts. It answers with the noise that it sees, once without the prompt and
# once with it.

# %%
t = scheduler.timesteps[0]
call = {"sample": torch.cat([z_T, z_T]), "timestep": t, "encoder_hidden_states": text}
predicted = unet(**call).sample
rows = [(name, tuple(value.shape)) for name, value in (call | {"answer: noise": predicted}).items()]
pd.DataFrame(rows, columns=["argument", "shape"]).style.hide(axis="index")

# %% [markdown]
# The time-step is a single number here. Each row may also have its own. Remember that: notebook 04 lives on it.

# %%
both = scheduler.timesteps[[0, 25]].to(device)
together = unet(call["sample"], both, encoder_hidden_states=text).sample
apart = torch.cat([unet(z_T, time_step, encoder_hidden_states=row[None]).sample for time_step, row in zip(both, text, strict=True)])
assert torch.allclose(together, apart, atol=1e-3)
print(f"two time-steps in one call or in two: largest difference {(together - apart).abs().max():.1e}")

# %% [markdown]
# ## 4. Guidance
#
# The two predictions differ little. To make the prompt count, the difference is taken $w$ times:
#
# $$\epsilon = \epsilon_\text{without} + w\,(\epsilon_\text{with} - \epsilon_\text{without})$$
#
# **Your turn**: one line. (The notebook goes on without it.)

# %%
def guidance(without, with_prompt, scale):
    """Both predictions and the scale -> the guided prediction."""
    # BEGIN SOLUTION
    return without + scale * (with_prompt - without)
    # END SOLUTION

# %%
fl.check("guidance", guidance)

# %% tags=["hide-input"]
without, with_prompt = predicted.chunk(2)
maps = {"z_T": z_T, "without prompt": without, "with prompt": with_prompt, "with - without": with_prompt - without}
figure = plot.figure(9, 2.3)
for ax, (name, value) in zip(figure.subplots(1, 4), maps.items(), strict=True):
    limit = float(value[0, 0].abs().max())
    image = ax.imshow(value[0, 0].cpu(), cmap="PuOr", vmin=-limit, vmax=limit)
    ax.set(title=name, xticks=[], yticks=[])
    figure.colorbar(image, ax=ax, shrink=0.8)
plot.show(figure, "First channel of the noise, of both predictions, which look like it, and of their small difference, in which a shape hides.")

# %% [markdown]
# Look at the last panel. At the very first step the picture already hides in that difference.
#
# ## 5. The DDIM update
#
# How does a prediction become a cleaner latent? In two thoughts:
#
# 1. If the noise is $\epsilon$, the clean latent is $\hat z_0 = (z_t - \sqrt{1-\bar\alpha_t}\,\epsilon)\,/\sqrt{\bar\alpha_t}$.
# 2. Do not jump there. Mix it with the same noise again, at the next, lower level:
#    $z_{t-1} = \sqrt{\bar\alpha_{t-1}}\,\hat z_0 + \sqrt{1-\bar\alpha_{t-1}}\,\epsilon$.
#
# **Your turn**: two lines.

# %%
def ddim_step(z, noise, alpha_bar, next_alpha_bar):
    """The latent, its predicted noise, alpha-bar now and at the next step -> the next latent."""
    # BEGIN SOLUTION
    clean = (z - (1 - alpha_bar) ** 0.5 * noise) / alpha_bar**0.5
    return next_alpha_bar**0.5 * clean + (1 - next_alpha_bar) ** 0.5 * noise
    # END SOLUTION

# %%
fl.check("ddim_step", ddim_step)

# %% [markdown]
# The paper writes both thoughts as one (Eq. 1):
#
# $$z_{t-1} = \sqrt{\frac{\bar\alpha_{t-1}}{\bar\alpha_t}}\; z_t
#   + \sqrt{\bar\alpha_{t-1}}\left(\sqrt{\frac{1}{\bar\alpha_{t-1}}-1} - \sqrt{\frac{1}{\bar\alpha_t}-1}\right)\epsilon$$
#
# The update needs the prediction and nothing else. Where the prediction comes from, it does not know. Is this the library's `scheduler.step`?

# %%
noise, a, b = without + scale * (with_prompt - without), alpha_bar[time_steps[0]], alpha_bar[time_steps[1]]
equation_1 = (b / a).sqrt() * z_T + b.sqrt() * ((1 / b - 1).sqrt() - (1 / a - 1).sqrt()) * noise
of_library = scheduler.step(noise, t, z_T).prev_sample
assert torch.allclose(equation_1, of_library, atol=1e-4)
print(f"Eq. 1 against scheduler.step: largest difference {(equation_1 - of_library).abs().max():.1e}")

# %% [markdown]
# ## 6. The whole loop
#
# Now the ten lines. They also keep each latent, and each clean latent that the UNet predicts.

# %%
def sample(z, text, scale, num_steps, history=None):
    """DDIM from the noise z; `text` has the rows without prompt, then those with it."""
    scheduler.set_timesteps(num_steps)
    levels = [*alpha_bar[scheduler.timesteps], scheduler.final_alpha_cumprod]
    for t, a, b in zip(scheduler.timesteps, levels, levels[1:], strict=False):
        without, with_prompt = unet(torch.cat([z, z]), t, encoder_hidden_states=text).sample.chunk(2)
        noise = without + scale * (with_prompt - without)
        clean = (z - (1 - a).sqrt() * noise) / a.sqrt()
        if history is not None:
            history.append((z, clean))
        z = b.sqrt() * clean + (1 - b).sqrt() * noise
    return z

# %%
history = []
z_0 = sample(z_T, text, scale, num_steps, history)
latents = pipe(prompt, latents=z_T, num_inference_steps=num_steps, guidance_scale=scale, output_type="latent").images
assert torch.allclose(z_0, latents, atol=1e-2)
print(f"ours against pipe(prompt): largest difference {(z_0 - latents).abs().max():.1e}")

# %% [markdown]
# ## 7. When is the picture decided?
#
# The UNet predicts a clean latent at every step. From which step on is that prediction nearer to the final latent than half its length?
# **Guess** a step from 0 to 49.

# %%
guess = ...

# %% tags=["hide-input"]
shown = torch.linspace(0, num_steps - 1, 8).round().int().tolist()
figure = plot.figure(9, 2.6)
for row, name, which in zip(figure.subplots(2, 8), ("latent", "predicted\nclean"), (0, 1), strict=True):
    for ax, step, image in zip(row, shown, fl.decode(pipe, torch.cat([history[step][which] for step in shown])), strict=True):
        ax.imshow(image, interpolation="nearest")
        ax.set(xticks=[], yticks=[])
        ax.set_title("" if which else f"step {step}", fontsize="small")
    row[0].set_ylabel(name)
plot.show(figure, "Eight steps from noise to picture. Above, the decoded latents stay noisy for long. Below, the predicted clean pictures show it early.")

# %%
far = [[float((value - z_0).norm() / z_0.norm()) for value in pair] for pair in history]
seen, decided = (next(step for step, distance in enumerate(distances) if distance < 0.5) for distances in zip(*far, strict=True))
print(f"half way there: the latent from step {seen}, the predicted clean latent from step {decided}")
print(fl.guessed(guess, decided))

# %% tags=["hide-input"]
figure = plot.figure(7, 2.8)
ax = figure.subplots()
for values, style, name in zip(zip(*far, strict=True), ("-", "--"), ("latent", "predicted clean latent"), strict=True):
    ax.plot(values, style, color=plot.PETROFF[style == "--"], linewidth=2, label=name)
ax.axhline(0.5, color="0.6", linewidth=1)
ax.set(xlabel="step", ylabel="distance to the final latent\n/ its length (no unit)", yscale="log")
ax.legend()
plot.show(figure, "Distance to the final latent over the steps. The predicted clean latent comes near it long before the latent itself does.")

# %% [markdown]
# The paper's key steps are 0, 1, 2, 3, 5, 10, 15, 25 and 35. Five of nine lie in the first ten steps. Now you can guess why.
#
# ## 8. Where do the seconds go?

# %%
work = {
    "text encoder": (1, lambda: pipe.text_encoder(tokens.input_ids.to(device))), "UNet": (num_steps, lambda: unet(**call)),
    "update": (num_steps, lambda: scheduler.step(noise, t, z_T)), "decoding": (1, lambda: fl.decode(pipe, z_0)),
}  # fmt: skip
seconds = {}
for name, (times, one) in work.items():
    started = time.perf_counter()
    one()
    seconds[name] = times * (time.perf_counter() - started)
table = pd.DataFrame({"seconds per run": seconds, "share": pd.Series(seconds) / sum(seconds.values())})
table.style.format({"seconds per run": "{:.3f}", "share": "{:.0%}"})

# %% [markdown]
# The UNet takes nearly all of it. Whoever makes its calls cheaper makes sampling faster.
#
# One trap: you ask for ten steps, and some schedulers make more calls.

# %%
kinds = ("DDIMScheduler", "PNDMScheduler", "EulerDiscreteScheduler", "DPMSolverMultistepScheduler", "HeunDiscreteScheduler")
calls = {}
for kind in kinds:
    variant = getattr(diffusers, kind).from_config(scheduler.config)
    variant.set_timesteps(10)
    calls[kind] = len(variant.timesteps)
pd.Series(calls, name="calls of the UNet for 10 steps").to_frame()

# %% [markdown]
# So in this project a **step** is one call of the UNet, and key steps are chosen among calls.
#
# ## The sentence to remember
#
# **The picture is decided long before you can see it.**
#
# Its layout stands in the predicted clean latent while the latent still looks like noise.
#
# ## To try
#
# 1. Give `sample` 10 steps, then 5. When does the picture break?
# 2. In `sample`, call the UNet at even steps only, and use its answer twice. Which steps can do without?
# 3. Put another text in place of the empty one. What does guidance push away from?
#
# Next: [what the two halves of the UNet do over these steps](02_encoder_and_decoder_features.ipynb).
