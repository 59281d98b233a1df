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
# # How much of a sampler must change? Encoder propagation by hand
#
# *Faster Diffusion* (Li et al., NeurIPS 2024) runs the encoder at a few **key steps** only. Between them the decoder gets the features of the
# last key step. How many lines does that take, and what must one not get wrong?
#
# **You will** split a real UNet in two, write the sampler, and prove that a rival is an old friend.
#
# New words are in the [glossary](../docs/glossary.md).

# %%
import pandas as pd
import torch

import fastdiff_lab as fl

plot = fl.plot
torch.set_grad_enabled(False)
print(f"fastdiff_lab {fl.__version__}, torch {torch.__version__}, {torch.get_num_threads()} CPU threads")

# %% [markdown]
# The next cell alone says which pipeline is used. The split by hand suits UNets like those of Stable Diffusion 1 and 2; the library's knows
# more of them.

# %%
pipe = fl.load_pipeline()
unet, scheduler = pipe.unet, pipe.scheduler
prompts, seeds = fl.demo(4)
num_steps, scale = 50, 5.0
size = unet.config.sample_size
z_T = torch.randn(1, 4, size, size, generator=torch.Generator().manual_seed(seeds[0])).to(pipe.device)
prompted, empty = pipe.encode_prompt(prompts[0], pipe.device, 1, True)
text = torch.cat([empty, prompted])
print(f"noise {tuple(z_T.shape)}, text {tuple(text.shape)}: [empty; prompt]")

# %% tags=["hide-input"]
plot.show(plot.key_step())

# %% [markdown]
# ## 1. The idea on a toy
#
# A toy model has `encode(z, step)` and `decode(features, step)`. The sampler is `z = z - 0.1 * prediction`. **Your turn**: run the encoder
# at key steps only. One `if` is enough. (The notebook goes on without it.)

# %%
def propagate_toy(model, z, keys, num_steps):
    """The toy, a number to begin with, key steps, number of steps -> the number at the end."""
    # BEGIN SOLUTION
    for step in range(num_steps):
        if step in keys:
            features = model.encode(z, step)
        z = z - 0.1 * model.decode(features, step)
    return z
    # END SOLUTION

# %%
fl.check("propagate_toy", propagate_toy)

# %% [markdown]
# ## 2. The real UNet, in two halves
#
# What must the decoder be given? The bottleneck, and one *skip* for each of its residual blocks. Nothing else of the encoder reaches it.

# %%
def embed(t, rows):
    """The time embedding of each row."""
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
    """The prediction, from an encoder's features and the time-step of *this* step."""
    now, end = embed(t, hidden), len(skips)
    for block in unet.up_blocks:
        begin = end - len(block.resnets)
        hidden = block(hidden, tuple(skips[begin:end]), now, **text_for(block))
        end = begin
    return unet.conv_out(unet.conv_act(unet.conv_norm_out(hidden)))

# %%
scheduler.set_timesteps(num_steps)
rows, t = torch.cat([z_T, z_T]), scheduler.timesteps[0]
skips, bottleneck = encode(rows, t)
apart, whole = decode(skips, bottleneck, t), unet(rows, t, text).sample
print(f"{len(skips)} skips and a bottleneck {tuple(bottleneck.shape)}; largest difference to the whole UNet {(apart - whole).abs().max():.1e}")
torch.testing.assert_close(apart, whole, atol=1e-5, rtol=1e-4)

# %% [markdown]
# ## 3. The sampler
#
# This is DDIM with guidance, from notebook 01. The line with `# NEW` is encoder propagation.

# %%
def sample_by_hand(z, keys):
    encoder_calls, ends = 0, [*scheduler.timesteps[1:], torch.tensor(-1)]
    for step, (t, following) in enumerate(zip(scheduler.timesteps, ends, strict=True)):
        if step in keys:  # NEW
            features, encoder_calls = encode(torch.cat([z, z]), t), encoder_calls + 1
        without, with_prompt = decode(*features, t).chunk(2)
        z = ddim(z, without + scale * (with_prompt - without), alpha_bar(t), alpha_bar(following))
    return z, encoder_calls


def alpha_bar(t):
    return float(scheduler.alphas_cumprod[t] if t >= 0 else scheduler.final_alpha_cumprod)


def ddim(z, noise, a, b):
    """The paper's Eq. 1, from alpha-bar a to b."""
    return (b / a) ** 0.5 * z + b**0.5 * ((1 / b - 1) ** 0.5 - (1 / a - 1) ** 0.5) * noise

# %% [markdown]
# Two proofs. With *every* step a key it must be the baseline. With the paper's nine keys it must be what the library does.

# %%
options = {"num_inference_steps": num_steps, "guidance_scale": scale, "output_type": "latent"}
baseline = pipe(prompts[0], latents=z_T, **options).images
all_keys, _ = sample_by_hand(z_T, range(num_steps))
paper = fl.KeySchedule.paper(num_steps)
ours, calls = sample_by_hand(z_T, paper.keys)
with fl.encoder_propagation(pipe, paper, parallel_decoding=False):
    library = pipe(prompts[0], latents=z_T, **options).images
print(f"every step a key, against the baseline: {(all_keys - baseline).abs().max():.1e}")
print(f"{calls} encoder calls, against the library: {(ours - library).abs().max():.1e}")
torch.testing.assert_close(all_keys, baseline, atol=1e-2, rtol=0)
torch.testing.assert_close(ours, library, atol=1e-2, rtol=0)

# %% [markdown]
# ## 4. The decoder must know its own time-step
#
# A classic bug: between keys, the decoder is told the *key's* time-step. All its inputs are then those of the key step. So it repeats the
# key's prediction. It costs as much as before, and does as little as reusing the prediction whole.

# %%
features = encode(torch.cat([z_T, z_T]), scheduler.timesteps[0])
own, wrong = decode(*features, scheduler.timesteps[3]), decode(*features, scheduler.timesteps[0])
print(f"own time-step: {(own - whole).norm() / whole.norm():.3f} away from the key's prediction; the key's time-step: {(wrong - whole).norm():.1e}")

# %% [markdown]
# ## 5. A rival: reuse the whole prediction
#
# Then nothing runs between keys. Where does such a run go? Divide Eq. 1 by $\sqrt{\bar\alpha}$, and write $\sigma = \sqrt{1/\bar\alpha - 1}$:
#
# $$\frac{z_{t-1}}{\sqrt{\bar\alpha_{t-1}}} = \frac{z_t}{\sqrt{\bar\alpha_t}} + (\sigma_{t-1} - \sigma_t)\,\epsilon$$
#
# Let $\epsilon$ be the same from a key $k$ to the next key $e$. The differences of $\sigma$ add up, and all in between cancel:
#
# $$\frac{z_e}{\sqrt{\bar\alpha_e}} = \frac{z_k}{\sqrt{\bar\alpha_k}} + (\sigma_e - \sigma_k)\,\epsilon$$
#
# That is *one* DDIM step from $k$ to $e$. **A reused prediction is DDIM with fewer, uneven steps.** **Your turn**: write the jump.

# %%
def one_jump(z, noise, alpha_bars):
    """The latent, one prediction, and alpha-bar at each step from a key to the next -> the latent there."""
    # BEGIN SOLUTION
    a, b = alpha_bars[0], alpha_bars[-1]
    return b**0.5 * (z / a**0.5 + ((1 / b - 1) ** 0.5 - (1 / a - 1) ** 0.5) * noise)
    # END SOLUTION

# %%
fl.check("one_jump", one_jump)

# %% [markdown]
# Is it so in the library? Nine jumps from key to key, against `reuse="prediction"`:

# %%
z, ends = z_T, [*scheduler.timesteps[list(paper.keys[1:])], torch.tensor(-1)]
for t, following in zip(scheduler.timesteps[list(paper.keys)], ends, strict=True):
    without, with_prompt = unet(torch.cat([z, z]), t, text).sample.chunk(2)
    z = ddim(z, without + scale * (with_prompt - without), alpha_bar(t), alpha_bar(following))
with fl.encoder_propagation(pipe, paper, reuse="prediction", parallel_decoding=False):
    reused = pipe(prompts[0], latents=z_T, **options).images
print(f"nine jumps against the prediction reused: {(z - reused).abs().max():.1e}")
torch.testing.assert_close(z, reused, atol=1e-2, rtol=0)

# %% [markdown]
# ## 6. Who comes nearer to the baseline?
#
# Two lists of nine keys: the paper's, and one that was measured for this pipeline (notebook 06). Two things to reuse. PSNR in dB says how
# near a picture is to the baseline's. 10 dB more is a tenth of the squared error. **Guess** the best of the four.

# %%
guess = ...

# %%
derived = fl.KeySchedule(num_steps, fl.derive_schedule(fl.embedded_costs(), num_keys=9).keys)
methods = {f"{kind}, {keys} 9, order 0": fl.Method(schedule, reuse=reuse) for keys, schedule in (("paper", paper), ("derived", derived))
           for kind, reuse in (("features", "encoder"), ("predictions", "prediction"))}  # fmt: skip
pictures = {name: fl.sample(pipe, method, prompts, seeds, guidance_scale=scale).images for name, method in ({"baseline": fl.Method()} | methods).items()}
suite = fl.measured("suite/ddim-50/table").set_index("method")["psnr"]
near = {name: fl.mean_psnr(fl.fidelity(pictures[name], pictures["baseline"])["mse"]) for name in methods}
table = pd.DataFrame({"PSNR, dB: these 4 pictures": near, "128 pictures": suite.reindex(methods)})
print(fl.guessed(guess, table["128 pictures"].idxmax()))
print("128 pictures:", fl.measured_with("suite/ddim-50"))
table.style.format(precision=1)

# %% tags=["hide-input"]
columns = {name.replace(", order 0", "").replace(", ", "\n"): found[:2] for name, found in pictures.items()}
plot.show(plot.image_grid(columns, plot.figure(8, 7)), f"Baseline and four methods for: {'; '.join(prompts[:2])}. Below each its difference to the baseline.")

# %% [markdown]
# Four pictures tell a story, 128 tell the truth. Which matters more: where the keys are, or what is reused? Compare down the table.
#
# **The paper** compares with *decoder* propagation instead (its Table 14): FID 21.08 with the encoder reused, 22.97 with the decoder. In a
# UNet the output layers read the last decoder block and nothing else. So if the decoder's features are reused, the prediction is reused.

# %%
with fl.encoder_propagation(pipe, paper, reuse="decoder", parallel_decoding=False):
    decoder = pipe(prompts[0], latents=z_T, **options).images
print(f"decoder reused against prediction reused: {(decoder - reused).abs().max():.1e}")

# %% [markdown]
# ## 7. Step by step
#
# Take the baseline's own latents. At each step between keys, how far from the true prediction is each of the two?

# %%
path = [z_T]
for t, following in zip(scheduler.timesteps, [*scheduler.timesteps[1:], torch.tensor(-1)], strict=True):
    without, with_prompt = unet(torch.cat([path[-1], path[-1]]), t, text).sample.chunk(2)
    path.append(ddim(path[-1], without + scale * (with_prompt - without), alpha_bar(t), alpha_bar(following)))
encoded = [encode(torch.cat([z, z]), t) for z, t in zip(path, scheduler.timesteps, strict=False)]
truth = [decode(*features, t) for features, t in zip(encoded, scheduler.timesteps, strict=True)]
keys = [max(key for key in derived.keys if key <= step) for step in range(num_steps)]
tried = {"features reused": [decode(*encoded[key], t) for key, t in zip(keys, scheduler.timesteps, strict=True)],
         "prediction reused": [truth[key] for key in keys]}  # fmt: skip
errors = {name: [float((one - true).norm() / true.norm()) for one, true in zip(found, truth, strict=True)] for name, found in tried.items()}

# %% tags=["hide-input"]
figure = plot.figure(8, 3)
ax = figure.subplots()
for key in derived.keys:
    ax.axvline(key, color="0.85", linewidth=1, zorder=0)
for place, (name, values) in enumerate(errors.items()):
    ax.plot(values, ("-", "--")[place], color=plot.PETROFF[place], linewidth=2, label=name)
ax.set(xlabel="step (grey lines: derived key steps)", ylabel="relative error of the prediction")
ax.legend()
plot.show(figure, "Error of the prediction over the steps, with features and with the prediction reused: zero at each key, growing after it.")

# %%
means = {name: sum(values) / len(values) for name, values in errors.items()}
print("mean error:", ", ".join(f"{name} {value:.3f}" for name, value in means.items()))

# %% [markdown]
# ## The sentence to remember
#
# **It is one `if`, and the decoder must know its own time-step.**
#
# The rival to beat is the reused prediction, which is plain DDIM with uneven steps.
#
# ## To try
#
# 1. In `sample_by_hand`, give the decoder the key's time-step. Which method of section 5 do you get?
# 2. Set `scale` to 1, then to 8. Does the gap between the two methods grow or shrink?
# 3. [Exercises 2](exercises/2_propagation.ipynb) ask for the same under guidance, with a bug to find.
#
# Next: [decode many steps at once](04_parallel_decoding.ipynb).
