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
# # Can you beat the paper's keys by hand? The interactive lab
#
# A run is a strip of steps. Dark squares are **key steps**; the steps after one reuse its features. Move keys, see at once what that is predicted
# to cost, and press *Run* to see whether it is true.
#
# **You will** beat a published list of keys with the mouse, and check the prediction with a run.
#
# **Run all cells first** (*Run* → *Run All Cells*), then play. New words are in the [glossary](../docs/glossary.md).

# %%
import tempfile
from pathlib import Path

import torch
from IPython.display import HTML

import fastdiff_lab as fl

plot = fl.plot
print(f"fastdiff_lab {fl.__version__}, torch {torch.__version__}, {torch.get_num_threads()} CPU threads")

# %% [markdown]
# The next cell alone says which pipeline is used. One baseline is recorded, so that the lab can also show how much features change.

# %%
pipe = fl.load_pipeline()
prompts, seeds = fl.demo(4)
with fl.record(pipe, keep=["down_blocks.1", "mid_block", "up_blocks.1"]) as recording:
    pipe(prompts[0], num_inference_steps=50, guidance_scale=5.0, generator=torch.Generator().manual_seed(seeds[0]))

# %% [markdown]
# ## 1. The lab
#
# 1. **The strip**: click a step, drag a key, or use the keyboard (Tab to the strip, arrows, Space). A bar is the error that its group is predicted
#    to make. A tall bar asks for a key in its middle.
# 2. **The numbers** follow at once, without a run. The curve shows the best schedule for each number of keys. Your point can come down to it.
# 3. **Run** draws the baseline, the accelerated picture and their difference.
#
# **Your task**: begin with *Paper*. Which group makes most of the error? Drag a key into it, and take the one away that is missed least. How far
# down do you come with nine keys?

# %%
lab = fl.schedule_lab(pipe, recording=recording, prompt=prompts[0])
lab

# %% [markdown]
# More to try:
#
# - Set *Reused between keys* to the whole prediction, and press *Run*. That is the control: it needs no decoder between keys either.
# - Set *How it is reused* to order 1, and run with 9 keys, then with 17. Does extrapolating pay?
# - Change *Scheduler* to `dpm-solver++` and *Steps* to 20. With 30 steps nothing was measured, and the lab says so.
#
# ## 2. The same from code
#
# Whatever the mouse does, a cell can do. **Guess**: how many times larger is the predicted error of the paper's keys than that of uniform ones?

# %%
guess = ...

# %%
predicted = {}
for name, schedule in {"paper": fl.KeySchedule.paper(50), "uniform": fl.KeySchedule.uniform(50, 9)}.items():
    lab.schedule = schedule
    predicted[name] = lab.predict().error
    lab.run()
print(f"predicted error: paper {predicted['paper']:.3f}, uniform {predicted['uniform']:.3f}")
print(fl.guessed(guess, predicted["paper"] / predicted["uniform"]))

# %% [markdown]
# **Your turn**: nine key steps by hand, better than the paper's. Write your list; the next cell says what is predicted.

# %%
# BEGIN SOLUTION NO PROMPT
my_keys = [0, 5, 10, 15, 20, 26, 34, 42, 48]
# END SOLUTION
""" # BEGIN PROMPT
my_keys = ...
""" # END PROMPT

# %%
lab.schedule = fl.KeySchedule.paper(50) if my_keys is ... else fl.KeySchedule(50, tuple(my_keys))
error = lab.predict().error
print(f"{lab.schedule}: predicted error {error:.3f}, {'better than' if error < predicted['paper'] else 'no better than'} the paper's {predicted['paper']:.3f}")

# %%
lab.use_preset("derived")
pair = lab.run()
print("derived:", lab.schedule)

# %% tags=["hide-input"]
figure = plot.image_grid({name: [image] for name, image in pair.images.items()}, plot.figure(4, 4))
plot.show(figure, f"Baseline and accelerated picture with derived keys, and their difference: {prompts[0]}.")

# %% [markdown]
# On a page without a kernel, the widget above shows its beginning only. This is the lab as it is now, as a picture of a page:

# %%
HTML(lab.page())

# %% [markdown]
# ## 3. Was the prediction true?
#
# Is the order of the predicted errors that of the real ones (`latent_error`)? One picture is no proof. It is the place to look for surprises.

# %%
digits = {"predicted_error": "{:.3f}", "latent_error": "{:.3f}", "psnr": "{:.1f}", "ratio": "{:.2f}"}
lab.history[["run", "keys", "schedule", *digits]].style.hide(axis="index").format(digits)

# %%
folder = Path(tempfile.mkdtemp())
lab.save(str(folder / "schedule.json"))
lab.export(str(folder / "runs.csv"))
print("saved, as the buttons do:", *sorted(path.name for path in folder.iterdir()))

# %% [markdown]
# ## 4. The features of the run
#
# Layers and steps of the recording. The lab's key steps are marked in each plot, and follow when you move them above.

# %%
fl.recording_explorer(recording, lab)

# %%
best = lab.history.loc[lab.history["psnr"].idxmax()]
print(f"nearest to the baseline of these {len(lab.history)} runs: {best['schedule']}, {best['psnr']:.1f} dB")

# %% [markdown]
# ## The sentence to remember
#
# **A prediction ranks schedules; only a run measures one.**
#
# Next: [the exercises](exercises/1_hooks_and_features.ipynb).
