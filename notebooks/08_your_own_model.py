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
# # Your own model: measure, derive, and take the schedule into production
#
# The same cells on Stable Diffusion, SDXL, a ControlNet or a video pipeline: one line says which. What is measured on the embedded pipeline
# does not carry over; what is *done* does.
#
# After this notebook you can
# - tell from the architecture alone, without weights, what encoder propagation can save at most,
# - check on your pipeline that the hooks change nothing when every step is a key,
# - calibrate within a budget, derive a schedule and look at it beside its rivals, and
# - use `schedule.json` in another program, in five lines.
#
# As it stands it runs offline on the embedded pipeline, on a CPU, in under a minute. **On real weights of Stable Diffusion, SDXL, a ControlNet
# or a video model none of this has been measured by us**: they were out of reach. The operations in section 1 are counted, not timed.

# %%
import sys
import tempfile
import warnings
from pathlib import Path

import diffusers
import numpy as np
import pandas as pd
import torch
from IPython.display import HTML

import fastdiff_lab as fl
from fastdiff_lab import plot
from fastdiff_lab.sampling.methods import denoiser_arguments, denoiser_calls
from fastdiff_lab.hooks.flops import count_flops
from fastdiff_lab.comparison.architectures import full_size
from fastdiff_lab.hooks.denoiser import denoiser_of, split_denoiser

print(f"fastdiff_lab {fl.__version__}, diffusers {diffusers.__version__}, torch {torch.__version__}, Python {sys.version.split()[0]}")
print(f"{torch.get_num_threads()} CPU threads, CUDA: {torch.cuda.is_available()}")

# %% [markdown]
# ## 1. Before any weights: what can be saved?
#
# Full-size architectures on torch's meta device have shapes but no memory. Their operations can be counted in seconds: what share of a call is
# the encoder's (with the bottleneck, and with a ControlNet, which is reused with it)? If time were operations, how much faster could the
# paper's keys be?

# %%
rows, operations = [], {}
for name in ("sd-1.5", "sdxl", "sd-1.5 with ControlNet", "text-to-video-1.7b"):
    system, keys = full_size(name), fl.KeySchedule.paper(50)
    count = operations[name] = system.count
    rows.append({
        "architecture": name, "for": system.description, "denoiser's parameters, M": system.parameters / 1e6, "TFLOPs a call": count.total / 1e12,
        "encoder's share": count.encoder / count.total, "ceiling, 9 keys of 50": 50 * count.total / count.of_run(len(keys.keys), 50),
        "no encoder at all": count.total / (count.total - count.encoder),
    })  # fmt: skip
architectures = pd.DataFrame(rows)
architectures.style.hide(axis="index").format({"denoiser's parameters, M": "{:.0f}", "encoder's share": "{:.0%}"}, precision=2)

# %% [markdown]
# More speed than this ceiling can only come from decoding steps in parallel on a device that one image leaves idle, or from an encoder
# that takes more of the time than of the operations (on our small pipeline it does: notebook 05). The paper reports
# 2.42 s down to 1.42 s (1.7x) for Stable Diffusion with DDIM (Table 1): look at the column, and say where the rest must come from.
# `python -m studies.bench --device cuda` times these architectures on your device, with random weights and beside the ceiling by time.

# %%
figure = plot.figure(7, 2.6)
ax = figure.subplots()
keys = np.arange(1, 51)
for dashes, colour, (name, count) in zip(("-", "--", "-.", ":"), plot.PETROFF, operations.items(), strict=False):
    ax.plot(keys, [50 * count.total / count.of_run(int(k), 50) for k in keys], dashes, color=colour, label=name)
ax.set(xlabel="key steps of 50", ylabel="ceiling by operations\n(times faster)")
ax.legend(fontsize="small")
HTML(plot.html_image(figure, "The most that operations allow to be saved, against the number of key steps, for four architectures"))

# %% [markdown]
# ## 2. Your pipeline
#
# The line to change. `MODEL`: None, a folder in diffusers' format (safetensors), or a hub id. `CALL`: what your pipeline wants beside prompt,
# steps, guidance and generator.
#
# | you have | `MODEL` | `CALL` |
# |---|---|---|
# | Stable Diffusion 1.5, 2.1 or SDXL | its folder | `{}` |
# | a ControlNet | a folder saved by `StableDiffusionControlNetPipeline.save_pretrained` | `{"image": edges}` (a PIL image) |
# | text-to-video (UNet3D) | its folder | `{"num_frames": 16}` |
#
# With a GPU also `DEVICE, DTYPE = "cuda", "float16"`; with a large model `STEPS = 50`, `MAX_SPAN = 25` and a `TIME_BUDGET` of an hour (3600) or so.

# %%
MODEL = None

# %%
CALL, DEVICE, DTYPE = {}, "cpu", "float32"
STEPS, GUIDANCE, NUM_KEYS = 20, 5.0, 7
MAX_SPAN, TIME_BUDGET = 8, None  # for calibrating: the longest span in steps, and the most seconds that it may take
PROMPTS = ["a large red star at the left on a white background", "a small white ring on a red background"]

# %% [markdown]
# The next cell is the only one that loads a pipeline.

# %%
pipe = fl.load_pipeline(MODEL, device=DEVICE, dtype=DTYPE)
model = denoiser_of(pipe)
split = split_denoiser(model)
calls = denoiser_calls(pipe, STEPS)
print(f"{type(pipe).__name__}: {type(model).__name__} with {sum(p.numel() for p in model.parameters()) / 1e6:.1f} M parameters")
print(f"encoder: {', '.join(split.encoder)}\ndecoder: {', '.join(split.decoder)}")
print(f"{STEPS} requested steps are {calls} calls of the denoiser")


# %%
def latents_of(prompt, seed=0):
    """The final latents of one prompt and seed, as float32 on the CPU."""
    generator = torch.Generator().manual_seed(seed)
    options = {"num_inference_steps": STEPS, "guidance_scale": GUIDANCE, "generator": generator, "output_type": "latent"}
    output = pipe(prompt, **options, **CALL)
    return output[0].float().cpu()


baseline = {prompt: latents_of(prompt) for prompt in PROMPTS}
{prompt: tuple(latents.shape) for prompt, latents in baseline.items()}

# %% [markdown]
# **First law**: with every step a key, the result is the baseline's, bit for bit. Check it before anything else: if it fails on your
# pipeline, something in it is not what we think.

# %%
every_step = fl.KeySchedule(calls, tuple(range(calls)))
with fl.encoder_propagation(pipe, every_step):
    assert torch.equal(latents_of(PROMPTS[0]), baseline[PROMPTS[0]])
with fl.encoder_propagation(pipe, fl.KeySchedule.of_paper(calls)) as counts:
    latents_of(PROMPTS[0])
counts

# %% [markdown]
# What would the arithmetic allow here?

# %%
schedule = fl.KeySchedule.uniform(calls, NUM_KEYS)
flops = count_flops(model, denoiser_arguments(pipe, PROMPTS[0], GUIDANCE)) if not CALL else None
if flops:
    share, ceiling = flops.encoder / flops.total, calls * flops.total / flops.of_run(NUM_KEYS, calls)
    print(f"encoder {share:.0%} of the operations; {NUM_KEYS} keys of {calls}: at most {ceiling:.2f}x by operations")

# %% [markdown]
# ## 3. Calibrate within a budget
#
# With `time_budget` in seconds, `calibrate` first estimates what it will take, and shortens the spans it looks at until that is kept. More prompts and a
# larger budget give better keys; prompts like those that you will use. `store="costs.part"` makes a calibration that can be stopped and goes on.

# %%
costs = fl.calibrate(pipe, PROMPTS, num_inference_steps=STEPS, guidance_scale=GUIDANCE, max_span=MAX_SPAN, time_budget=TIME_BUDGET, pipe_kwargs=CALL)
print(costs.title(), "| spans of up to", costs.max_span, "steps")

# %%
derived = fl.derive_schedule(costs, max(NUM_KEYS, int(fl.schedule_front(costs)["num_keys"].min())))
count = len(derived.keys)
schedules = {"derived": derived, "uniform": fl.KeySchedule.uniform(calls, count), "the paper's": fl.KeySchedule.of_paper(calls)}
ax = (figure := plot.figure(8, 1.6)).subplots()
plot.key_strips({name: schedule.keys for name, schedule in schedules.items()}, calls, ax)
HTML(plot.html_image(figure, "Key steps: " + "; ".join(f"{name} {schedule}" for name, schedule in schedules.items())))

# %% [markdown]
# ## 4. What it gives, on a prompt that was not calibrated
#
# Beside the rivals: the prediction reused at the same keys needs no decoder between them. The error is the root mean square of the final
# latents' difference to the baseline's; for images, seconds and intervals use `fl.compare`, which draws many.

# %%
held_out, ways = "a green cross at the top on a yellow background", {}
reference = latents_of(held_out)
for name, schedule in schedules.items():
    ways[name] = schedule, {}
    ways[f"{name}, prediction reused"] = schedule, {"reuse": "prediction"}
rows = []
for name, (schedule, options) in ways.items():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a rival on purpose: the derived keys were measured for features
        with fl.encoder_propagation(pipe, schedule, **options) as counts:
            error = float((latents_of(held_out) - reference).square().mean().sqrt())
    rows.append({"method": name, "keys": len(schedule.keys), "denoiser calls": counts.forward_calls, "steps decoded": counts.decoder_calls,
                 "error": error})  # fmt: skip
pd.DataFrame(rows).style.hide(axis="index").format(precision=3)

# %% [markdown]
# Which method is nearest? One prompt decides nothing: `fl.compare(pipe, {"derived": derived}, prompts, seeds=[0, 1])` with twenty prompts of
# yours does. To move keys by hand on your pipeline, with its own costs: `schedule_lab(pipe, costs=costs)` as in
# [notebook 09](09_interactive_lab.ipynb); set `preview_every=0` if decoding an image takes long.

# %% [markdown]
# ## 5. Into production
#
# The schedule is a small JSON file that knows what it was measured on. What another program needs of it are these five lines:

# %%
path = str(Path(tempfile.mkdtemp()) / "schedule.json")
derived.save(path)
print(Path(path).read_text())

# %%
import fastdiff_lab as fl

schedule = fl.KeySchedule.load(path)
with fl.encoder_propagation(pipe, schedule) as counts:
    output = pipe(PROMPTS[0], num_inference_steps=STEPS, guidance_scale=GUIDANCE, **CALL)
print(counts)

# %% [markdown]
# - The block may stay open for the life of a server; each call of the pipeline inside it is a run of its own.
# - Another number of steps raises, another scheduler, model or guidance scale warns: turn the warning into an error in your tests.
# - Memory: a group of n steps is decoded as n images; `max_rows=8` caps that.
# - Compile blocks before entering (`pipe.unet.compile_repeated_blocks()`); a UNet that is compiled as a whole is refused.
# - From a shell: `fastdiff-lab sample "..." --model FOLDER --schedule schedule.json --device cuda --dtype float16`.

# %% [markdown]
# ## Summary

# %%
low, high = architectures["encoder's share"].min(), architectures["encoder's share"].max()
print(f"- The encoder holds {low:.0%} to {high:.0%} of the operations of these architectures; that is all that can be left out.")
nearest = min(rows, key=lambda row: row["error"])
print(f"- Nearest to the baseline latents on the held-out prompt here: {nearest['method']}.")

# %% [markdown]
# - Law first, then calibrate, then compare with the rivals, then ship one JSON file.
# - **Not measured by us**: fidelity and speed on the weights of Stable Diffusion, SDXL, ControlNets and video models, and any GPU.
#   `fastdiff-lab tour --model FOLDER --device cuda --dtype float16` and `python -m studies.suite --model FOLDER --device cuda` do it.
#
# Next: [the interactive lab](09_interactive_lab.ipynb).
