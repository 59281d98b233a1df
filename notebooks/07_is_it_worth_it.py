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
# every rival had the same captions, seeds and machine, and asks when holding or extrapolating encoder features is the best thing to do.
#
# After this notebook you can
# - read a front of fidelity against cost, for three costs: calls, seconds and operations,
# - tell a difference from noise by its paired interval,
# - say when not to use encoder propagation.
#
# The comparison is `fastdiff-lab compare --suite` on the embedded pipeline; its tables lie in `data/suite`. Every table and printed line below is
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
from fastdiff_lab.comparison.suite.figure import plot_suite

folder = embedded_folder().parent / "suite" / "ddim-50"
table, pictures, paired = (pd.read_csv(folder / f"{name}.csv", keep_default_na=True) for name in ("table", "pictures", "paired"))
about = json.loads((folder / "about.json").read_text())
table["keys"] = table["keys"].fillna("")
print(f"fastdiff_lab {fl.__version__}: {len(table)} arms, {len(pictures) // len(table)} pictures each, {len(about['asked']['prompts'])} captions")

# %% [markdown]
# ## 1. The fronts
#
# Up is nearer to the untouched run, left is cheaper. Before you look: in which of the three panels should encoder propagation do best, and in which
# worst?

# %%
HTML(plot.html_image(plot_suite(table, plot.figure(12, 10)), "PSNR to the untouched run against calls, seconds and operations, a line per family of arms"))

# %% [markdown]
# The dash-dotted line is the untouched run's own distance to the converged one (the same seed with 1,000 steps): what lies above it differs less from the
# untouched run than that does from the exact solution.
#
# In numbers, the three nearest for each number of sequential calls. An arm's name says what is reused (features or predictions), at which keys and how
# many, and how: order 0 holds, order 1 extrapolates. *derived* keys come from what reusing features costs, those *derived for predictions* from what
# reusing predictions costs; *refined* ones were moved one by one, as real runs got better (notebook 06). DeepCache evaluates the outermost layers of
# the UNet at every step, and all of it at every second, third or fifth. `ratio`: times faster than untouched. `psnr` in dB is that of the error averaged over all
# pictures, `psnr_typical` the mean of the pictures' own, `psnr_worst` the worst. `prompt_accuracy` counts all captions; half of them have two
# objects, which the pipeline was never taught, so the untouched run does not reach 50 %, either.

# %%
shown = {
    "forward_calls": "{}", "gflops": "{:.1f}", "seconds": "{:.2f}", "ratio": "{:.2f}", "psnr": "{:.1f}", "psnr_typical": "{:.1f}",
    "psnr_worst": "{:.1f}", "ssim": "{:.2f}", "prompt_accuracy": "{:.0%}",
}  # fmt: skip


def best_of(table: pd.DataFrame):
    """The three arms with as many calls that come nearest."""
    rivals = table[~table["noise"] & (table["what"] != "untouched")].sort_values("psnr", ascending=False)
    best = rivals.groupby("forward_calls").head(3).sort_values(["forward_calls", "psnr"])
    return best[["arm", *shown]].style.hide(axis="index").format(shown)


best_of(table)

# %% [markdown]
# ## 2. Where the fronts cross
#
# For each cost, the arm that comes nearest at every price: walk from the cheapest arm to the dearest and keep what is better than all before.


# %%
def front(cost: str) -> pd.DataFrame:
    ordered = table[~table["noise"] & (table["what"] != "untouched")].sort_values([cost, "psnr"], ascending=[True, False])
    return ordered[ordered["psnr"] > ordered["psnr"].cummax().shift(fill_value=-np.inf)][[cost, "psnr", "arm", "what"]]


fronts = {cost: front(cost) for cost in ("forward_calls", "seconds", "gflops")}
for cost, rows in fronts.items():
    shares = rows["what"].value_counts()
    print(f"{cost}: " + ", ".join(f"{name} {count}" for name, count in shares.items()))

# %%
fronts["forward_calls"].style.hide(axis="index").format(precision=1)

# %%
fronts["seconds"].style.hide(axis="index").format(precision=2)

# %% [markdown]
# Features are on none of the three fronts: at each price predictions or plain steps are nearer. They come nearest to the front by calls (held, with 9 keys
# or more, within 2 dB) and are farthest from it by operations, because the decoder works at every step.

# %% [markdown]
# ## 3. Call-bound or arithmetic-bound?
#
# A GPU that one image leaves idle pays per call: a decoder batch of fifteen steps costs about what a batch of one does. A busy CPU, or a GPU with a large
# batch, pays per operation. Between the two lies a machine of which a share *s* of the time goes with operations and the rest with calls. Which
# family is cheapest at a wanted fidelity, for every *s*? This is a model of a machine, not a measurement of one.

# %%
untouched = table[table["what"] == "untouched"].iloc[0]
calls, work = table["forward_calls"] / untouched["forward_calls"], table["gflops"] / untouched["gflops"]


def cheapest(wanted: float, share: float) -> str:
    time = (1 - share) * calls + share * work
    able = table[(table["psnr"] >= wanted) & ~table["noise"] & (table["what"] != "untouched")].sort_values("psnr", ascending=False)
    return "none" if able.empty else f"{able.loc[time[able.index].idxmin(), 'arm']} ({1 / time[able.index].min():.1f}x)"


shares = [0.0, 0.25, 0.5, 0.75, 1.0]
pd.DataFrame({f"{wanted} dB": [cheapest(wanted, share) for share in shares] for wanted in (25, 30, 35, 40, 45)}, index=pd.Index(shares, name="s")).style.format_index("{:.2f}")

# %% [markdown]
# The rows are equal: held predictions, and from 40 dB on plain steps, are the cheapest whatever the machine, because they save calls and operations
# alike. It would depend on the machine if features came nearer with as many calls; they would then win where *s* is small.

# %% [markdown]
# ## 4. Tell a difference from noise
#
# Differences in dB of PSNR between two arms on the same pictures, with 95 % bootstrap intervals; above zero, the one named first is nearer. A claim
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
noise[["claim", "arm", "difference", "low", "high", "verdict"]].style.hide(axis="index").format(precision=2)

# %%
keys = noise[noise["claim"].str.startswith("the paper's") & (noise["order"] == 0) & noise["claim"].str.contains("without")].iloc[0]
added = noise[noise["claim"].str.startswith("with over") & noise["arm"].str.contains("paper") & (noise["order"] == 0)].iloc[0]
print(f"On this pipeline the paper's keys change the PSNR by {keys['difference']:+.1f} dB against as many uniform ones, the noise by {added['difference']:+.1f} dB.")

# %% [markdown]
# ## 5. The worst cases
#
# Means hide the pictures that flip to something else. How far is the worst picture below a typical one, and how many end below 20 dB?

# %%
nine_keys = table[(table["num_keys"] == 9) & ~table["noise"]].sort_values("psnr_worst", ascending=False)
below = pictures[pictures["psnr"] < 20].groupby("arm").size().reindex(nine_keys["arm"], fill_value=0).to_numpy()
spread = nine_keys.assign(gap=nine_keys["psnr_typical"] - nine_keys["psnr_worst"], **{"below 20 dB": below})
spread[["arm", "psnr", "psnr_typical", "psnr_worst", "gap", "below 20 dB"]].style.hide(axis="index").format(precision=1)

# %%
wide = pictures.pivot(index=["prompt", "seed"], columns="arm", values="psnr").replace(np.inf, np.nan)
hard = wide[nine_keys["arm"]].median(axis=1).sort_values()
print("hardest, by the median over all arms with nine keys:")
print(hard.head(5).round(1).to_string())
objects = pictures.assign(two=pictures["prompt"].str.contains(" above | below | to the left of | to the right of "))
accuracy = objects[objects["arm"] == "untouched"].groupby("two")["prompt_accuracy"].agg(["mean", "count"])
accuracy.rename({False: "one object", True: "two objects"}).rename_axis("untouched").style.format({"mean": "{:.0%}"}).set_caption("prompts right")

# %% [markdown]
# What do those pictures look like? The next cell is the only one that draws; it says which pipeline is used.

# %%
from fastdiff_lab.sampling.methods import Arm, sample

pipe = fl.load_pipeline()
derived = fl.derive_schedule(fl.embedded_costs(), num_keys=9)
columns = {"untouched": Arm(), "the paper's 9": Arm(fl.KeySchedule.paper(50)), "derived 9": Arm(derived), "plain 9 steps": Arm(steps=9)}
worst_prompts, worst_seeds = zip(*hard.index[:3])
drawn = {name: sample(pipe, arm, worst_prompts, worst_seeds, guidance_scale=5.0).images for name, arm in columns.items()}
HTML(plot.html_image(plot.picture_grid(drawn, plot.figure(8, 11)), "The three hardest captions: untouched, the paper's keys, derived keys, plain steps"))

# %% [markdown]
# The embedded pipeline was trained on one object; captions with two are outside what it can draw, and are here because a schedule must not make
# them worse either.

# %% [markdown]
# ## 6. Another scheduler: DPM-Solver++ with 20 steps
#
# Fewer steps lie further apart: is there anything left to hold?

# %%
solver = pd.read_csv(folder.parent / "dpm-solver++-20" / "table.csv").assign(keys=lambda found: found["keys"].fillna(""))
HTML(plot.html_image(plot_suite(solver, plot.figure(12, 10)), "DPM-Solver++ with 20 steps: PSNR to the untouched run against calls, seconds and operations"))

# %%
best_of(solver)

# %%
solver_paired = pd.read_csv(folder.parent / "dpm-solver++-20" / "paired.csv")
held = solver_paired[(solver_paired["order"] == 0) & solver_paired["claim"].str.match("features over predictions at keys|derived over as many")]
held[["claim", "num_keys", "difference", "low", "high"]].style.hide(axis="index").format(precision=1)

# %% [markdown]
# There is: held at derived keys, features are nearer than as many plain steps from 7 keys on. But predictions held at keys of their own are nearer or
# level, up to 13 keys; with 17 of the 20 steps, features are ahead, at a gain in time of 1.2.

# %% [markdown]
# ## 7. As good, if not the same?
#
# A picture may differ from the untouched run's and be as good. So a thousand pictures per arm are compared with drawn scenes, as sets: the *kernel distance* (as in KID,
# but on features of our own judge of scenes, not Inception's) is 0 on average for sets alike. `drawn scenes` is what other drawn scenes get; `deviation` is the kernel distance's
# standard deviation over random subsets of the pictures, `frechet_distance` as in FID, on the same features.

# %%
pd.read_csv(folder.parent / "scene_distance.csv").style.hide(axis="index").format(precision=3)

# %% [markdown]
# By this measure derived keys and the untouched run are not told apart (they differ by less than the deviations); the paper's nine are farther away. All are
# far from drawn scenes: the pipeline's own faults weigh more than the acceleration.

# %% [markdown]
# ## When not to use it
#
# The next cell says it from the table.

# %%
at = lambda what, keys, order, count: table[(table["what"] == what) & (table["keys"] == keys) & (table["order"] == order) & (table["num_keys"] == count) & ~table["noise"]]["psnr"].iloc[0]
plain = table[table["what"] == "plain"].set_index("num_keys")["psnr"]
for count in (9, 17):
    held, line = at("features", "derived", 0, count), at("features", "derived", 1, count)
    rivals = {"plain steps": plain[count], "predictions held at the same keys": at("predictions", "derived", 0, count)}
    rivals |= {f"predictions {way} at keys derived for that": at("predictions", "derived for predictions", order, count) for order, way in enumerate(("held", "extrapolated"))}
    name = max(rivals, key=rivals.get)
    word = "above" if max(held, line) > rivals[name] else "below"
    print(f"{count} calls: features held {held:.1f} dB, extrapolated {line:.1f} dB, {word} the best rival: {name}, {rivals[name]:.1f} dB")

# %% [markdown]
# ## Summary
#
# - What a method costs depends on the machine: compare at equal calls *and* at equal operations.
# - Predictions held or extrapolated, and simply fewer steps, are the rivals to beat; they need none of the decoder's work between keys. Held, they are
#   as near or nearer at keys derived for features as at their own (with DDIM).
# - Extrapolated features need short groups. With few keys hold them, or take fewer plain steps.
# - Means over few pictures hang on the few that flip: when this table was drawn with four seeds instead of two, features and predictions
#   extrapolated at 17 derived keys fell by 7 and 10 dB, far below their intervals. Look at the typical picture, too.
# - At 17 keys a rule that needs no calibration (accumulated change) is 1 dB ahead of derived keys, at 9 another one is level:
#   [table](../docs/results.md#rules-that-need-no-calibration).
# - Models that were distilled to a few steps (LCM, Turbo: 1 to 8) leave nothing to skip.
# - On Stable Diffusion's weights and on a GPU this has not been measured by us; `fastdiff-lab compare --suite --model FOLDER --device cuda` does it.
#
# Next: [your own model](08_your_own_model.ipynb).
