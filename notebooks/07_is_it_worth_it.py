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
# # Is it worth it?
#
# Encoder propagation saves work, and so does everything else that makes a sampler faster. This notebook reads one large comparison, in which
# every rival had the same captions, seeds and machine, and asks when reusing or extrapolating encoder features is the best thing to do.
#
# After this notebook you can
# - read a front of fidelity against cost, for three costs: calls, seconds and operations,
# - tell a difference from noise by its paired interval,
# - say when not to use encoder propagation.
#
# The comparison is `python -m studies.suite` on the embedded pipeline; its tables lie in `data/suite`. Every table and printed line below is
# computed from them; the summary is not. It was drawn on a CPU: **nothing here was measured on a GPU, or on Stable Diffusion's weights.**

# %%
import json
from pathlib import Path

import numpy as np
import pandas as pd
from IPython.display import HTML

import fastdiff_lab as fl
from fastdiff_lab import plot
from fastdiff_lab.pipelines import embedded_folder

folder = embedded_folder().parent / "suite" / "ddim-50"
table, images, paired = (pd.read_csv(folder / f"{name}.csv", keep_default_na=True) for name in ("table", "images", "paired"))
about = json.loads((folder / "about.json").read_text())
table["keys"] = table["keys"].fillna("")
print(f"fastdiff_lab {fl.__version__}: {len(table)} methods, {len(images) // len(table)} images each, {len(about['asked']['prompts'])} captions")

# %% [markdown]
# ## 1. The fronts
#
# Up is nearer to the baseline, left is cheaper. Before you look: in which of the three panels should encoder propagation do best, and in which
# worst?

# %%
HTML(plot.html_image(folder / "suite.png", "PSNR to the baseline against calls, seconds and operations, a line per family of methods"))

# %% [markdown]
# The dash-dotted line is the baseline's own distance to the converged one (the same seed with 1,000 steps): what lies above it differs less from the
# baseline than that does from the exact solution.
#
# In numbers, the three nearest for each number of sequential calls. A method's name says what is reused (features or predictions), at which keys and how
# many, and how: order 0 reuses, order 1 extrapolates. *derived* keys come from what reusing features costs, those *derived for predictions* from what
# reusing predictions costs; *refined* ones were moved one by one, as real runs got better (notebook 06). DeepCache evaluates the outermost layers of
# the UNet at every step, and all of it at every second, third or fifth. `ratio`: times faster than the baseline. `psnr` in dB is that of the error averaged over all
# images, `psnr_typical` the mean of the images' own, `psnr_worst` the worst. `prompt_accuracy` counts all captions; half of them have two
# objects, which the pipeline was never taught, so the baseline does not reach 50 %, either.

# %%
shown = {
    "forward_calls": "{}", "gflops": "{:.1f}", "seconds": "{:.2f}", "ratio": "{:.2f}", "psnr": "{:.1f}", "psnr_typical": "{:.1f}",
    "psnr_worst": "{:.1f}", "ssim": "{:.2f}", "prompt_accuracy": "{:.0%}",
}  # fmt: skip


def best_of(table: pd.DataFrame):
    """The three methods with as many calls that come nearest."""
    rivals = table[~table["noise"] & (table["kind"] != "baseline")].sort_values("psnr", ascending=False)
    best = rivals.groupby("forward_calls").head(3).sort_values(["forward_calls", "psnr"])
    return best[["method", *shown]].style.hide(axis="index").format(shown)


best_of(table)

# %% [markdown]
# ## 2. Where the fronts cross
#
# For each cost, the method that comes nearest at every price: walk from the cheapest method to the dearest and keep what is better than all before.


# %%
def front(cost: str) -> pd.DataFrame:
    ordered = table[~table["noise"] & (table["kind"] != "baseline")].sort_values([cost, "psnr"], ascending=[True, False])
    return ordered[ordered["psnr"] > ordered["psnr"].cummax().shift(fill_value=-np.inf)][[cost, "psnr", "method", "kind"]]


fronts = {cost: front(cost) for cost in ("forward_calls", "seconds", "gflops")}
for cost, rows in fronts.items():
    shares = rows["kind"].value_counts()
    print(f"{cost}: " + ", ".join(f"{name} {count}" for name, count in shares.items()))

# %%
fronts["forward_calls"].style.hide(axis="index").format(precision=1)

# %%
fronts["seconds"].style.hide(axis="index").format(precision=2)

# %% [markdown]
# Features are on none of the three fronts: at each price predictions or fewer steps are nearer. They come nearest to the front by calls (reused, with 9 keys
# or more, within 2 dB) and are farthest from it by operations, because the decoder works at every step.

# %% [markdown]
# ## 3. Call-bound or arithmetic-bound?
#
# A GPU that one image leaves idle pays per call: a decoder batch of fifteen steps costs about what a batch of one does. A busy CPU, or a GPU with a large
# batch, pays per operation. Between the two lies a machine of which a share *s* of the time goes with operations and the rest with calls. Which
# family is cheapest at a wanted fidelity, for every *s*? This is a model of a machine, not a measurement of one.

# %%
baseline = table[table["kind"] == "baseline"].iloc[0]
calls, work = table["forward_calls"] / baseline["forward_calls"], table["gflops"] / baseline["gflops"]


def cheapest(wanted: float, share: float) -> str:
    time = (1 - share) * calls + share * work
    able = table[(table["psnr"] >= wanted) & ~table["noise"] & (table["kind"] != "baseline")].sort_values("psnr", ascending=False)
    return "none" if able.empty else f"{able.loc[time[able.index].idxmin(), 'method']} ({1 / time[able.index].min():.1f}x)"


shares = [0.0, 0.25, 0.5, 0.75, 1.0]
pd.DataFrame({f"{wanted} dB": [cheapest(wanted, share) for share in shares] for wanted in (25, 30, 35, 40, 45)}, index=pd.Index(shares, name="s")).style.format_index("{:.2f}")

# %% [markdown]
# The rows are equal: reused predictions, and from 40 dB on fewer steps, are the cheapest whatever the machine, because they save calls and operations
# alike. It would depend on the machine if features came nearer with as many calls; they would then win where *s* is small.

# %% [markdown]
# ## 4. Tell a difference from noise
#
# Differences in dB of PSNR between two methods on the same images, with 95 % bootstrap intervals; above zero, the one named first is nearer. A claim
# holds if its interval lies above zero. With nine keys:

# %%
paired["verdict"] = np.select([paired["low"] > 0, paired["high"] < 0], ["yes", "no, the other way"], "not told apart")
nine = paired[(paired["num_keys"] == 9) & ~paired["claim"].str.contains("noise|the paper's over")]
columns = ["claim", "order", "difference", "low", "high", "verdict"]
nine[columns].style.hide(axis="index").format(precision=1)

# %% [markdown]
# With seventeen:

# %%
seventeen = paired[(paired["num_keys"] == 17) & ~paired["claim"].str.contains("noise")]
seventeen[columns].style.hide(axis="index").format(precision=1)

# %% [markdown]
# **Does the paper's gain over uniform keys come from its keys or from the prior noise?** (Its Table 5 and 6 suggest the noise: 9 uniform keys FID 21.54,
# its keys 21.71 without and 21.08 with noise.)

# %%
noise = paired[paired["claim"].str.contains("noise")]
noise[["claim", "method", "difference", "low", "high", "verdict"]].style.hide(axis="index").format(precision=2)

# %%
keys = noise[noise["claim"].str.startswith("the paper's") & (noise["order"] == 0) & noise["claim"].str.contains("without")].iloc[0]
added = noise[noise["claim"].str.startswith("with over") & noise["method"].str.contains("paper") & (noise["order"] == 0)].iloc[0]
print(f"On this pipeline the paper's keys change the PSNR by {keys['difference']:+.1f} dB against as many uniform ones, the noise by {added['difference']:+.1f} dB.")

# %% [markdown]
# ## 5. The worst cases
#
# Means hide the images that flip to something else. How far is the worst image below a typical one, and how many end below 20 dB?

# %%
nine_keys = table[(table["num_keys"] == 9) & ~table["noise"]].sort_values("psnr_worst", ascending=False)
below = images[images["psnr"] < 20].groupby("method").size().reindex(nine_keys["method"], fill_value=0).to_numpy()
spread = nine_keys.assign(gap=nine_keys["psnr_typical"] - nine_keys["psnr_worst"], **{"below 20 dB": below})
spread[["method", "psnr", "psnr_typical", "psnr_worst", "gap", "below 20 dB"]].style.hide(axis="index").format(precision=1)

# %%
wide = images.pivot(index=["prompt", "seed"], columns="method", values="psnr").replace(np.inf, np.nan)
hard = wide[nine_keys["method"]].median(axis=1).sort_values()
print("hardest, by the median over all methods with nine keys:")
print(hard.head(5).round(1).to_string())
objects = images.assign(two=images["prompt"].str.contains(" above | below | to the left of | to the right of "))
accuracy = objects[objects["method"] == "baseline"].groupby("two")["prompt_accuracy"].agg(["mean", "count"])
accuracy.rename({False: "one object", True: "two objects"}).rename_axis("baseline").style.format({"mean": "{:.0%}"}).set_caption("prompts right")

# %% [markdown]
# What do those images look like? The next cell is the only one that draws; it says which pipeline is used.

# %%
from fastdiff_lab.sampling.methods import Method, sample

pipe = fl.load_pipeline()
derived = fl.derive_schedule(fl.embedded_costs(), num_keys=9)
columns = {"baseline": Method(), "the paper's 9": Method(fl.KeySchedule.paper(50)), "derived 9": Method(derived), "fewer steps (9)": Method(steps=9)}
worst_prompts, worst_seeds = zip(*hard.index[:3])
drawn = {name: sample(pipe, method, worst_prompts, worst_seeds, guidance_scale=5.0).images for name, method in columns.items()}
HTML(plot.html_image(plot.image_grid(drawn, plot.figure(8, 11)), "The three hardest captions: baseline, the paper's keys, derived keys, fewer steps"))

# %% [markdown]
# The embedded pipeline was trained on one object; captions with two are outside what it can draw, and are here because a schedule must not make
# them worse either.

# %% [markdown]
# ## 6. Another scheduler: DPM-Solver++ with 20 steps
#
# Fewer steps lie further apart: is there anything left to reuse?

# %%
solver = pd.read_csv(folder.parent / "dpm-solver++-20" / "table.csv").assign(keys=lambda found: found["keys"].fillna(""))
HTML(plot.html_image(folder.parent / "dpm-solver++-20" / "suite.png", "DPM-Solver++ with 20 steps: PSNR to the baseline against calls, seconds and operations"))

# %%
best_of(solver)

# %%
solver_paired = pd.read_csv(folder.parent / "dpm-solver++-20" / "paired.csv")
reused = solver_paired[(solver_paired["order"] == 0) & solver_paired["claim"].str.match("features over predictions at keys|derived over fewer steps")]
reused[["claim", "num_keys", "difference", "low", "high"]].style.hide(axis="index").format(precision=1)

# %% [markdown]
# There is: reused at derived keys, features are nearer than a run with as many steps from 7 keys on. But predictions reused at keys of their own are nearer or
# level, up to 13 keys; with 17 of the 20 steps, features are ahead, at a gain in time of 1.2.

# %% [markdown]
# ## 7. As good, if not the same?
#
# An image may differ from the baseline's and be as good. So a thousand images per method are compared with drawn scenes, as sets: the *kernel distance* (as in KID,
# but on features of our own judge of scenes, not Inception's) is 0 on average for sets alike. `drawn scenes` is what other drawn scenes get; `deviation` is the kernel distance's
# standard deviation over random subsets of the images, `frechet_distance` as in FID, on the same features.

# %%
pd.read_csv(folder.parent / "scene_distance.csv").style.hide(axis="index").format(precision=3)

# %% [markdown]
# By this measure derived keys and the baseline are not told apart (they differ by less than the deviations); the paper's nine are farther away. All are
# far from drawn scenes: the pipeline's own faults weigh more than the acceleration.

# %% [markdown]
# ## When not to use it
#
# The next cell says it from the table.

# %%
at = lambda kind, keys, order, count: table[(table["kind"] == kind) & (table["keys"] == keys) & (table["order"] == order) & (table["num_keys"] == count) & ~table["noise"]]["psnr"].iloc[0]
fewer = table[table["kind"] == "fewer steps"].set_index("num_keys")["psnr"]
for count in (9, 17):
    reused, line = at("features", "derived", 0, count), at("features", "derived", 1, count)
    rivals = {"fewer steps": fewer[count], "predictions reused at the same keys": at("predictions", "derived", 0, count)}
    rivals |= {f"predictions {way} at keys derived for that": at("predictions", "derived for predictions", order, count) for order, way in enumerate(("reused", "extrapolated"))}
    name = max(rivals, key=rivals.get)
    word = "above" if max(reused, line) > rivals[name] else "below"
    print(f"{count} calls: features reused {reused:.1f} dB, extrapolated {line:.1f} dB, {word} the best rival: {name}, {rivals[name]:.1f} dB")

# %% [markdown]
# ## Summary
#
# - What a method costs depends on the machine: compare at equal calls *and* at equal operations.
# - Predictions reused or extrapolated, and simply fewer steps, are the rivals to beat; they need none of the decoder's work between keys. Reused, they are
#   as near or nearer at keys derived for features as at their own (with DDIM).
# - Extrapolated features need short groups. With few keys reuse them, or take fewer steps.
# - Means over few images hang on the few that flip: when this table was drawn with four seeds instead of two, features and predictions
#   extrapolated at 17 derived keys fell by 7 and 10 dB, far below their intervals. Look at the typical image, too.
# - At 17 keys a rule that needs no calibration (accumulated change) is 1 dB ahead of derived keys, at 9 another one is level:
#   [table](../docs/results.md#rules-that-need-no-calibration).
# - Models that were distilled to a few steps (LCM, Turbo: 1 to 8) leave nothing to skip.
# - On Stable Diffusion's weights and on a GPU this has not been measured by us; `python -m studies.suite --model FOLDER --device cuda` does it.
#
# Next: [your own model](08_your_own_model.ipynb).
