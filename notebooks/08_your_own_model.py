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
# # What would it give on your model?
#
# What was *measured* on our small pipeline does not carry over. What was *done* does: four things, in this order. First the ceiling, which needs
# no weights. Second the law, which needs one picture. Third calibration and fit. Last, one small file.
#
# **You will** do all four, on the embedded pipeline or on yours. One line says which.
#
# **On weights of Stable Diffusion, SDXL, a ControlNet or a video model we have measured nothing of this.**
#
# New words are in the [glossary](../docs/glossary.md).

# %%
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import torch

import fastdiff_lab as fl

plot = fl.plot
print(f"fastdiff_lab {fl.__version__}, torch {torch.__version__}, {torch.get_num_threads()} CPU threads, CUDA: {torch.cuda.is_available()}")

# %% [markdown]
# ## 1. The ceiling, before any weights
#
# The decoder runs at every step. Let the encoder have a share $s$ of the operations, and let $k$ of $n$ steps be keys. Then at most
#
# $$\frac{1}{1 - s + s\,k/n}$$
#
# times less is computed. First **guess** the ceiling of Stable Diffusion 1.5 with the paper's 9 keys of 50. Then write it: **your turn**.

# %%
guess = ...

# %%
def ceiling(share, num_steps, num_keys):
    """The encoder's share of the operations, steps and keys -> how many times less is computed."""
    # BEGIN SOLUTION
    return 1 / (1 - share + share * num_keys / num_steps)
    # END SOLUTION

# %%
fl.check("ceiling", ceiling)

# %%
names = ("sd-1.5", "sdxl", "sd-1.5 with ControlNet", "text-to-video-1.7b")
counts = {name: fl.full_size(name).count for name in names}
rows = {name: (count.total / 1e12, count.encoder / count.total, 50 * count.total / count.of_run(9, 50)) for name, count in counts.items()}
architectures = pd.DataFrame(rows, index=["TFLOPs a call", "encoder's share", "ceiling, 9 of 50"]).T
print(fl.guessed(guess, architectures.loc["sd-1.5", "ceiling, 9 of 50"]))
architectures.style.format({"TFLOPs a call": "{:.2f}", "encoder's share": "{:.0%}", "ceiling, 9 of 50": "{:.2f}"})

# %% tags=["hide-input"]
ax = (figure := plot.figure(7, 2.8)).subplots()
keys = np.arange(1, 51)
for place, (name, count) in enumerate(counts.items()):
    ax.plot(keys, [50 * count.total / count.of_run(int(k), 50) for k in keys], ("-", "--", "-.", ":")[place], color=plot.PETROFF[place], linewidth=2, label=name)
ax.set(xlabel="key steps of 50", ylabel="ceiling by operations")
ax.legend(fontsize="small")
plot.show(figure, "The most that operations allow to be saved against the number of key steps, for four architectures.")

# %% [markdown]
# The paper reports 1.7 times for Stable Diffusion. So the rest must come from one batch per group (notebook 04). On your device,
# `python -m studies.bench --device cuda` times these architectures with random weights.
#
# ## 2. Your pipeline
#
# `MODEL` is the line to change: None, a folder in diffusers' format (safetensors), or a hub id. `CALL` is what your pipeline wants beside prompt,
# steps, guidance and generator.
#
# | you have | `MODEL` | `CALL` |
# |---|---|---|
# | Stable Diffusion 1.5, 2.1 or SDXL | its folder | `{}` |
# | a ControlNet | a folder saved by `StableDiffusionControlNetPipeline.save_pretrained` | `{"image": edges}` |
# | text-to-video (UNet3D) | its folder | `{"num_frames": 16}` |
#
# With a GPU also `DEVICE, DTYPE = "cuda", "float16"`. With a large model `STEPS = 50`, `MAX_SPAN = 25` and an hour for `TIME_BUDGET` (3600).

# %%
MODEL = None

# %%
CALL, DEVICE, DTYPE = {}, "cpu", "float32"
STEPS, GUIDANCE, NUM_KEYS = 20, 5.0, 7
MAX_SPAN, TIME_BUDGET = 8, None  # for calibrating: the longest span in steps, the most seconds
held_out, seeds = fl.demo(4)  # to judge on
PROMPTS = fl.embedded_costs().about["prompts"][:4]  # others, to calibrate and fit on; take some like those that you will use

# %%
pipe = fl.load_pipeline(MODEL, device=DEVICE, dtype=DTYPE)
options = {"num_inference_steps": STEPS, "guidance_scale": GUIDANCE}


def latents_of(prompt, seed=0):
    """The final latents of one prompt and seed."""
    return pipe(prompt, generator=torch.Generator().manual_seed(seed), output_type="latent", **options, **CALL)[0].float().cpu()

# %% [markdown]
# **The law**: with every step a key, the result is the baseline's, bit for bit. If it fails, something in your pipeline is not what we think.

# %%
calls = fl.sample(pipe, fl.Method(), held_out[:1], [0], pipe_kwargs=CALL, **options).counts.forward_calls
with fl.encoder_propagation(pipe, fl.KeySchedule(calls, tuple(range(calls)))):
    every_step = latents_of(held_out[0])
assert torch.equal(every_step, latents_of(held_out[0]))
print(f"{STEPS} steps are {calls} calls of the denoiser; with every one a key, the same bits come out")

# %% [markdown]
# ## 3. Calibrate and fit
#
# With `time_budget`, `calibrate` estimates first what it will take, and shortens its spans until that is kept. `store="costs.part"` makes a
# calibration that can be stopped and goes on later.

# %%
costs = fl.calibrate(pipe, PROMPTS, max_span=MAX_SPAN, time_budget=TIME_BUDGET, pipe_kwargs=CALL, **options)
derived = fl.derive_schedule(costs, max(NUM_KEYS, int(fl.schedule_front(costs)["num_keys"].min())))
fit = fl.fit_propagation(pipe, derived, PROMPTS, pipe_kwargs=CALL, **options)
print(derived, "|", derived.source)

# %% tags=["hide-input"]
strips = {"derived": derived, "uniform": fl.KeySchedule.uniform(calls, len(derived.keys)), "the paper's": fl.KeySchedule.of_paper(calls)}
ax = (figure := plot.figure(8, 1.6)).subplots()
plot.key_strips({name: schedule.keys for name, schedule in strips.items()}, calls, ax)
plot.show(figure, "Key steps: " + "; ".join(f"{name} {schedule}" for name, schedule in strips.items()))

# %% [markdown]
# Now beside the controls, on captions that were not calibrated on. `compare` adds them by itself. **Guess** the nearest: `"derived"`,
# `"fitted"`, `"derived, prediction reused"` or `"fewer steps (7)"`?

# %%
guess = ...

# %%
table = fl.compare(pipe, {"derived": derived, "fitted": fit}, held_out, seeds=[0], repeats=1, pipe_kwargs=[CALL] * 4 if CALL else None, **options)
shown = table[table["method"] != "baseline"].sort_values("psnr", ascending=False)
print(fl.guessed(guess, shown["method"].iloc[0]))
columns = {"forward_calls": "{:.0f}", "gflops": "{:.1f}", "ratio": "{:.2f}", "psnr": "{:.1f}", "psnr_worst": "{:.1f}"}
shown[["method", *columns]].style.hide(axis="index").format(columns)

# %% [markdown]
# Four pictures decide nothing. Take twenty of your prompts and two seeds. To move keys by hand: `fl.schedule_lab(pipe, costs=costs)`, as in
# [notebook 09](09_interactive_lab.ipynb).
#
# Calibrating takes time. After how many pictures has it paid back? **Your turn.**

# %%
def images_to_pay_back(calibration, seconds, speedup):
    """Seconds of calibrating, seconds of one untouched picture, times faster -> pictures until the time is won back."""
    # BEGIN SOLUTION
    return calibration / (seconds * (1 - 1 / speedup))
    # END SOLUTION

# %%
fl.check("images_to_pay_back", images_to_pay_back)

# %% [markdown]
# ## 4. Ship one file
#
# The fit holds its schedule, and knows what it was measured on. Another program needs these lines:

# %%
path = Path(tempfile.mkdtemp()) / "fit.json"
fit.save(path)
loaded = fl.PropagationFit.load(path)
with fl.encoder_propagation(pipe, loaded.schedule, fit=loaded) as counts:
    image = pipe(held_out[0], **options, **CALL)[0][0]
print(f"{path.stat().st_size} bytes; {counts}")

# %% [markdown]
# - The block may stay open for the life of a server. Each call of the pipeline inside it is a run of its own.
# - Another number of steps raises. Another scheduler, model or guidance scale warns: make that an error in your tests.
# - A group of $n$ steps is decoded as $n$ pictures. `max_rows=8` caps that.
# - Compile blocks before entering (`pipe.unet.compile_repeated_blocks()`). A UNet that is compiled whole is refused.
# - From a shell: `fastdiff-lab sample "..." --model FOLDER --fit fit.json --device cuda --dtype float16`.

# %%
low, high = architectures["encoder's share"].min(), architectures["encoder's share"].max()
print(f"the encoder holds {low:.0%} to {high:.0%} of the operations of these architectures: no more can be left out")
print(f"nearest here: {shown['method'].iloc[0]} ({shown['psnr'].iloc[0]:.1f} dB on {len(held_out)} pictures)")

# %% [markdown]
# ## The sentence to remember
#
# **Ceiling first, law second, calibrate and fit third, ship one JSON.**
#
# ## To try
#
# 1. Your own folder in `MODEL`. Does the law hold?
# 2. `fl.fit_propagation(..., reuse="prediction")`: the control gets a fit, too. Is it nearer?
# 3. `python -m studies.suite --model FOLDER --device cuda` makes the tables of notebook 07 for your model. We would like to see them.
#
# Next: [move keys with the mouse](09_interactive_lab.ipynb).
