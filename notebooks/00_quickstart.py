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
# # Must a UNet compute everything, fifty times?
#
# A diffusion model draws one picture by fifty calls of a UNet. *Faster Diffusion* (Li et al., NeurIPS 2024) saves half of the UNet, its
# **encoder**, at most of these calls. Here you see it work in six lines, and then the control that it must beat.
#
# Everything runs offline on a CPU, with a small trained pipeline that draws shapes. New words are in the [glossary](../docs/glossary.md).

# %%
from pathlib import Path

import torch

import fastdiff_lab as fl

plot = fl.plot
print(f"fastdiff_lab {fl.__version__}, torch {torch.__version__}, {torch.get_num_threads()} CPU threads, CUDA: {torch.cuda.is_available()}")

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
# The next cell alone loads the pipeline. With a GPU and local weights, change `source` and `device` above.

# %%
pipe = fl.load_pipeline(source, device=device, dtype=dtype, scheduler=scheduler)
output = Path(output)
output.mkdir(parents=True, exist_ok=True)
prompts, seeds = fl.demo(4)
seeds = [seed + number for number in seeds]
options = {"num_inference_steps": num_inference_steps} | ({} if guidance_scale is None else {"guidance_scale": guidance_scale})

# %% [markdown]
# ## 1. A picture
#
# `record` only looks on. It measures the features of each block at each step, for later.

# %%
with fl.record(pipe) as recording:
    image = pipe(prompts[0], generator=torch.Generator().manual_seed(seeds[0]), **options).images[0]
recording.save(output / "recording.safetensors")
calls = recording.num_steps
print(f"{prompts[0]}: {calls} calls of the {type(pipe.unet).__name__}")

# %% tags=["hide-input"]
plot.show(plot.image_row({"": image}, plot.figure(2.4, 2.4)), prompts[0])

# %% [markdown]
# The picture may have faults: the pipeline is small. What follows asks how near an accelerated run comes to *this* picture, faults and all.
#
# ## 2. The idea
#
# The encoder runs at a few **key steps**. Between them the decoder gets the features of the last key step, and its own time-step.

# %% tags=["hide-input"]
plot.show(plot.key_step())

# %% [markdown]
# ## 3. Six lines
#
# The keys were measured for this pipeline (notebook 06). For another pipeline or other options they are measured now, within five minutes.
# **Guess**: how many times faster will it be?

# %%
guess = ...

# %%
shipped = source is None and scheduler is None and (calls, guidance_scale) == (50, 5.0)
costs = fl.embedded_costs() if shipped else fl.calibrate(pipe, prompts[:2], time_budget=300, max_rows=60, **options)
schedule = fl.derive_schedule(costs, num_keys=len(fl.KeySchedule.of_paper(calls).keys))
schedule.save(output / "schedule.json")
with fl.encoder_propagation(pipe, schedule) as counts:
    faster = pipe(prompts[0], generator=torch.Generator().manual_seed(seeds[0]), **options).images[0]
print(schedule, "|", counts)

# %% tags=["hide-input"]
figure = plot.image_grid({"baseline": [image], f"{counts.encoder_calls} encoder calls": [faster]}, plot.figure(4, 4))
plot.show(figure, f"Baseline and accelerated picture with their difference: {prompts[0]}")

# %% [markdown]
# ## 4. The control
#
# A saved call counts only if no simpler method saves as much. Three controls stand beside it: *fewer steps*, *uniform* keys, and the
# **prediction reused**, in which nothing runs between keys. And the paper's own keys, which were found by hand on Stable Diffusion.
#
# A **fit** corrects what is reused, with a few scalars per group (notebook 06). The shipped one saw sixteen other pictures. The control gets one, too.

# %%
keys = len(schedule.keys)
asked = {"derived keys": schedule, "the paper's keys": fl.KeySchedule.of_paper(calls)}
if shipped:
    asked |= {"derived keys, fitted": fl.embedded_fit(keys), "prediction reused, fitted": fl.embedded_fit(keys, "prediction")}
table = fl.compare(pipe, asked, prompts, seeds=seeds[:1], repeats=1, **options)
table.to_csv(output / "table.csv", index=False)
shown = table[~table["method"].str.contains("paper's keys, ")]
print(fl.guessed(guess, table.set_index("method").loc["derived keys", "ratio"]))

# %%
suite = fl.measured("suite/ddim-50/table").set_index("method")["psnr"]
names = {"derived keys": f"features, derived {keys}, order 0", "the paper's keys": f"features, paper {keys}, order 0", f"uniform {keys}": f"features, uniform {keys}, order 0",
         "derived keys, fitted": f"features, fitted {keys}, order 0", "prediction reused, fitted": f"predictions, fitted {keys}, order 0",
         "derived keys, prediction reused": f"predictions, derived {keys}, order 0", f"fewer steps ({keys})": f"fewer steps ({keys})"}  # fmt: skip
columns = {"encoder_calls": "{:.0f}", "forward_calls": "{:.0f}", "gflops": "{:.1f}", "seconds": "{:.2f}", "ratio": "{:.2f}", "psnr": "{:.1f}", "128 pictures": "{:.1f}"}
shown = shown.assign(**{"128 pictures": [suite.get(names.get(name), float("nan")) if shipped else float("nan") for name in shown["method"]]})
print("128 pictures:", fl.measured_with("suite/ddim-50") if shipped else "measured on the embedded pipeline only")
shown[["method", *columns]].style.hide(axis="index").format(columns, na_rep="-")

# %% [markdown]
# `ratio` is times faster than the baseline, one run each. `psnr` in dB says how near the pictures are to the baseline's. 10 dB more is a tenth
# of the squared error. The last column is the same on 128 pictures of the embedded pipeline.

# %% tags=["hide-input"]
methods = {"baseline": fl.Method(), "derived keys": fl.Method(schedule), "the paper's keys": fl.Method(fl.KeySchedule.of_paper(calls)), f"{keys} steps": fl.Method(steps=keys)}
if shipped:
    methods |= {"derived, fitted": fl.Method(schedule, fit=asked["derived keys, fitted"])}
drawn = {name: fl.sample(pipe, method, prompts[:3], seeds[:1] * 3, **options).images for name, method in methods.items()}
figure = plot.image_grid(drawn, plot.figure(2 * len(drawn), 11))
figure.savefig(output / "images.png", dpi=100)
plot.show(figure, f"{len(drawn)} methods for: {'; '.join(prompts[:3])}. Below each its difference to the baseline.")

# %% [markdown]
# ## 5. The verdict

# %% tags=["verdict"]
measured = table.set_index("method").drop(index=["baseline", "the paper's keys", "the paper's keys, prediction reused"], errors="ignore")
features = measured.loc[[name for name in ("derived keys", "derived keys, fitted") if name in measured.index]]
controls = measured.drop(index=features.index)
for name, rows in {"Features": features, "Controls": controls}.items():
    best = rows.loc[rows["psnr"].idxmax()]
    print(f"{name}: {best.name} comes nearest, {best['ratio']:.1f} times faster, {best['psnr']:.1f} dB from the baseline, {best['forward_calls']:.0f} calls instead of {calls}.")
print(f"So on these {len(prompts)} pictures features {'beat' if features['psnr'].max() > controls['psnr'].max() else 'do not beat'} their controls.")

# %% [markdown]
# ## What to do next
#
# - Change `prompts`, `guidance_scale` or `scheduler` above, and run again.
# - Try keys of your own: `fl.KeySchedule.parse("0-3,6,12,20,30,40 of 50")`.
# - From a shell: `fastdiff-lab sample "a small white ring on a red background" --schedule schedule.json`.
# - [Notebook 08](08_your_own_model.ipynb) does all this on your own model.
#
# ## The story in seven sentences
#
# 1. The picture is decided long before you can see it ([01](01_sampling_loop.ipynb)).
# 2. The paper saw a steady encoder; measure both halves by the same ruler ([02](02_encoder_and_decoder_features.ipynb)).
# 3. It is one `if`, and the decoder must know its own time-step ([03](03_encoder_propagation.ipynb)).
# 4. A prediction between keys does not need its latent: that is where the speed comes from ([04](04_parallel_decoding.ipynb)).
# 5. Keys belong to a model: measure them, do not copy them ([05](05_key_time_steps.ipynb), [06](06_derive_a_schedule.ipynb)).
# 6. A reused prediction is plain DDIM with uneven steps: the control that every claim must beat ([07](07_is_it_worth_it.ipynb)).
# 7. Ceiling first, law second, calibrate and fit third, ship one JSON ([08](08_your_own_model.ipynb)).
#
# Next: [when is the picture decided?](01_sampling_loop.ipynb)
