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
# # The interactive lab: tune a schedule with the mouse
#
# A run is a strip of steps. At **key steps** the encoder runs; the steps after one reuse its features. Which steps should be keys? Move
# them, see at once what that is predicted to cost and to give, and press *Run* to see whether it is true.
#
# After this notebook you can
# - read the strip, the error of each group and the front of the best schedules,
# - tune key steps by mouse, keyboard or code, and run them beside the baseline,
# - compare your runs, export them, and save a schedule for other programs, and
# - look around in a recording with your key steps marked in every plot.
#
# **Run All first** (*Run* → *Run All Cells*; under a minute), then play. On a page without a kernel you see images of the state in which the
# cell was run; with *Settings* → *Save Widget State Automatically*, JupyterLab keeps the lab as you left it in the notebook's file.

# %%
import sys

import diffusers
import torch
from IPython.display import HTML

import fastdiff_lab as fl
from fastdiff_lab import plot
from fastdiff_lab.lab.widget import recording_explorer, schedule_lab

print(f"fastdiff_lab {fl.__version__}, diffusers {diffusers.__version__}, torch {torch.__version__}, Python {sys.version.split()[0]}")
print(f"{torch.get_num_threads()} CPU threads, CUDA: {torch.cuda.is_available()}")

# %% [markdown]
# The next cell is the only one that says which pipeline is used; with a GPU and local weights, write
# `fl.load_pipeline("folder", device="cuda", dtype="float16")`, and see notebook 08 for what else changes.

# %%
pipe = fl.load_pipeline()
f"{type(pipe.unet).__name__}, {type(pipe.scheduler).__name__}"

# %% [markdown]
# One baseline is recorded, so that the lab can show the measured change of the features above the strip, instead of the predicted error
# (choose it there).

# %%
prompt = "a large red star at the left on a white background"
with fl.record(pipe, keep=["down_blocks.1", "mid_block", "up_blocks.1"]) as recording:
    pipe(prompt, num_inference_steps=50, guidance_scale=5.0, generator=torch.Generator().manual_seed(0))
f"{recording.num_steps} steps, {len(recording.layers)} layers"

# %% [markdown]
# ## 1. The lab
#
# 1. **The strip**: dark squares are key steps, the bands are their groups. Click a step, drag a key, or use the keyboard (Tab to the strip,
#    arrows, Space). The bars above show the error that each group is predicted to make, on a logarithmic axis: a tall bar asks for a key in its middle.
# 2. **The numbers** follow at once; nothing is run. The curve on the right shows the best schedule for every number of keys: your point can
#    come down to it, never below it. The slider moves along it. The ceiling by time has to be measured first, by its button.
# 3. **Run** draws the baseline and the accelerated image, and their difference. Then change one thing and run again.

# %%
lab = schedule_lab(pipe, recording=recording, prompt=prompt)
lab

# %% [markdown]
# Some things to try:
# - Press *Paper*: nine keys that were found by hand on Stable Diffusion. Which group makes most of the error? Drag a key into it.
# - Set *How it is reused* to order 1 and move the slider from 9 to 17 keys. Where does extrapolating begin to pay?
# - Set *Reused between keys* to the whole prediction: the rival that needs no decoder between keys either.
# - Change *Scheduler* to `dpm-solver++` and *Steps* to 20. With 30 steps nothing was measured: the lab says so, and predicts nothing.

# %% [markdown]
# ## 2. The same from code
#
# Everything that the mouse does can be done in a cell; the widget above follows. `lab.run()` waits for the run's end.

# %%
for name, schedule in {"the paper's": fl.KeySchedule.paper(50), "uniform": fl.KeySchedule.uniform(50, 9)}.items():
    lab.schedule = schedule
    print(f"{name}: predicted error {lab.predict().error:.3f}, ceiling by operations {lab.predict().flop_ceiling:.2f}x")
    lab.run()

# %%
lab.use_preset("derived")
pair = lab.run()
print(lab.schedule, "|", lab.schedule.source)
figure = plot.image_grid({name: [image] for name, image in pair.images.items()}, plot.figure(4, 4))
HTML(plot.html_image(figure, "Baseline and accelerated image, and their difference"))

# %% [markdown]
# The lab as it is now, as a page that needs neither kernel nor widgets (on a page without a kernel the widget above shows its beginning):

# %%
HTML(lab.page())

# %% [markdown]
# ## 3. The history
#
# Is the order of the predicted errors that of the real ones (`latent_error`)? Both are root mean squares of a value of the final latents; `psnr`
# in dB is of the image, `ratio` is how many times faster than the baseline (one run each; notebook 00 has medians).
# One image is no proof; it is the place to look for surprises.

# %%
digits = {"predicted_error": "{:.3f}", "latent_error": "{:.3f}", "psnr": "{:.1f}", "seconds": "{:.2f}", "ratio": "{:.2f}"}
lab.history[["run", "keys", "schedule", *digits]].style.hide(axis="index").format(digits)

# %% [markdown]
# `lab.export("runs.csv")` and `lab.save("schedule.json")` write files beside the notebook, as the buttons do. A saved schedule knows what it
# was measured on; `fl.encoder_propagation` warns where that differs.

# %%
import tempfile
from pathlib import Path

folder = Path(tempfile.mkdtemp())
lab.save(str(folder / "schedule.json"))
lab.export(str(folder / "runs.csv"))
print((folder / "schedule.json").read_text()[:160], "...")

# %% [markdown]
# ## 4. Looking around in the recording
#
# Layers and steps of the run that was recorded. The key steps of the lab are marked in every plot, and follow when you move them above.

# %%
explorer = recording_explorer(recording, lab)
explorer

# %% [markdown]
# ## Summary

# %%
best = lab.history.loc[lab.history["psnr"].idxmax()]
print(f"- Nearest to the baseline image of these {len(lab.history)} runs: {best['schedule']} ({best['source']}), {best['psnr']:.1f} dB.")
print(f"- Calls of the UNet: {', '.join(map(str, lab.history['forward_calls']))} instead of {lab.num_steps}.")

# %% [markdown]
# - A schedule is a set of key steps; its predicted error is the sum of what its groups cost, and it ranks schedules rather than measuring them.
# - What a prediction is worth, a run shows: *predicted* and *error* stand side by side in the lab's table of runs.
# - Your own pipeline, and a schedule in production: [notebook 08](08_your_own_model.ipynb). Whether it is worth it:
#   [notebook 07](07_is_it_worth_it.ipynb).
#
# Next: [the exercises](exercises/1_hooks_and_features.ipynb).
