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
# # Does it pay?
#
# A faster sampler must beat every simpler way to be fast. The simplest are fewer steps, and a prediction that is reused. When do reused
# *features* win?
#
# **You will** average errors rightly, read a front, tell a difference from noise, and judge by one criterion.
#
# All was measured by `python -m studies.suite` on the embedded pipeline: the same 32 captions, 4 seeds and machine for every method. The full
# tables are in [results.md](../docs/results.md). **Nothing here was measured on a GPU, or on Stable Diffusion's weights.** New words are in the
# [glossary](../docs/glossary.md).

# %%
import numpy as np
import pandas as pd

import fastdiff_lab as fl

plot = fl.plot
table, images, paired = (fl.measured(f"suite/ddim-50/{name}") for name in ("table", "images", "paired"))
quiet = table[~table["noise"] & (table["kind"] != "baseline")]  # without prior noise
print(f"fastdiff_lab {fl.__version__}: {len(table)} methods, {table['images'].iloc[0]} pictures each; {fl.measured_with('suite/ddim-50')}")

# %% [markdown]
# ## 1. One number for 128 pictures
#
# How near is a method? Each picture has a squared error to the baseline's. PSNR turns an error into decibels: $-10 \log_{10}$ of it. Shall we
# average the decibels, or the errors? A mean of decibels hides the pictures that go wrong. **Your turn**: average the errors first.

# %%
def pooled_psnr(squared_errors):
    """The mean squared error of each picture, from 0 to 1 -> the PSNR of their average, in dB."""
    # BEGIN SOLUTION
    return -10 * np.log10(np.mean(squared_errors))
    # END SOLUTION

# %%
fl.check("pooled_psnr", pooled_psnr)

# %%
paper = images[images["method"] == "features, paper 9, order 0"]
print(f"the paper's nine keys: {-10 * np.log10(paper['mse'].mean()):.1f} dB; mean of decibels {paper['psnr'].mean():.1f}; worst picture {paper['psnr'].min():.1f}")

# %% [markdown]
# ## 2. The front
#
# Up is nearer to the baseline. Left is fewer calls, one after the other. **Guess**: at nine calls, which is nearest: `"features"`,
# `"prediction"` or `"fewer steps"`?

# %%
guess = ...

# %%
lines = {
    "features reused": ("features", "derived", "-", "o"), "prediction reused, same keys": ("predictions", "derived", "--", "s"),
    "fewer steps": ("fewer steps", "", "-.", "^"), "features reused, fitted": ("features", "fitted", "-", "D"),
    "prediction reused, fitted": ("predictions", "fitted", "--", "P"),
}  # fmt: skip


def line(kind, keys):
    """The methods of one kind, order 0, by number of calls."""
    found = quiet[(quiet["kind"] == kind) & (quiet["keys"] == keys) & (quiet["order"].fillna(0) == 0)]
    return found.set_index("num_keys").sort_index()


at_nine = {"features": line("features", "derived"), "prediction": line("predictions", "derived"), "fewer steps": line("fewer steps", "")}
print(fl.guessed(guess, max(at_nine, key=lambda name: at_nine[name].loc[9, "psnr"])))

# %% tags=["hide-input"]
figure = plot.figure(10, 4)
for ax, (cost, label) in zip(figure.subplots(1, 2, sharey=True), {"forward_calls": "calls in sequence", "gflops": "operations, GFLOPs"}.items(), strict=True):
    ax.plot(quiet[cost], quiet["psnr"], ".", color="0.8", label="all other methods")
    for place, (name, (kind, keys, style, marker)) in enumerate(lines.items()):
        found = line(kind, keys)
        if len(found):
            ax.plot(found[cost], found["psnr"], style, marker=marker, color=plot.PETROFF[place], linewidth=2, label=name)
    ax.set(xlabel=label, xscale="log")
    ax.set_xticks(ticks := [5, 10, 20, 50], ticks)
    ax.minorticks_off()
figure.axes[0].set_ylabel("PSNR to the baseline, dB (128 pictures)")
figure.axes[1].legend(fontsize="small")
plot.show(figure, "PSNR against calls on the left, against operations on the right: features reused, prediction reused, fewer steps, and fits where measured.")

# %% [markdown]
# Read the left panel first: which line is on top? By operations features lie far to the right: the decoder works at every step.
#
# ## 3. Five claims
#
# Is a difference more than chance? Compare on the *same* pictures, and draw 2,000 new samples of them. A claim holds if its whole interval lies
# right of zero.

# %%
claims = {"derived over uniform keys": "derived keys beat uniform ones", "derived over fewer steps": "features beat fewer steps",
          "features over predictions at the same derived keys": "features beat a reused prediction", "fitted over derived keys": "a fit beats none",
          "fitted features over fitted predictions": "fitted features beat fitted predictions"}  # fmt: skip
asked = paired[paired["claim"].isin(claims) & (paired["order"] == 0) & paired["num_keys"].isin([9, 17])]
holds = np.where(asked["low"] > 0, "holds", np.where(asked["high"] < 0, "the other way round", "not told apart"))
for row, verdict in zip(asked.itertuples(), holds, strict=True):
    print(f"{row.num_keys:.0f} keys, {claims[row.claim]}: {row.difference:+.1f} dB ({row.low:.1f} to {row.high:.1f}), {verdict}")

# %% tags=["hide-input"]
ax = (figure := plot.figure(7.5, 3.6)).subplots()
ax.axvline(0, color="0.6", linewidth=1)
for place, row in enumerate(asked.itertuples()):
    ax.plot([row.low, row.high], [place, place], color=plot.PETROFF[0 if row.num_keys == 9 else 1], linewidth=3)
    ax.plot(row.difference, place, "os"[row.num_keys == 17], color="black")
names = [f"{claims[row.claim]}, {row.num_keys:.0f} keys" for row in asked.itertuples()]
ax.set(yticks=range(len(names)), yticklabels=names, ylim=(len(names) - 0.5, -0.5), xlabel="lead in dB, with its 95 % interval")
plot.show(figure, "Leads with their intervals: " + "; ".join(f"{name} {row.difference:+.1f}" for name, row in zip(names, asked.itertuples(), strict=True)))

# %% [markdown]
# ## 4. The cheapest that is good enough
#
# You want 30 dB. What is the cheapest method, by calls, by operations, by seconds? **Your turn.**

# %%
def cheapest(psnr, cost, wanted):
    """PSNR and cost of each method (arrays), and the wanted PSNR -> the index of the cheapest that is near enough."""
    # BEGIN SOLUTION
    return int(np.argmin(np.where(psnr >= wanted, cost, np.inf)))
    # END SOLUTION

# %%
fl.check("cheapest", cheapest)

# %%
found = {}
for cost, label in {"forward_calls": "calls", "gflops": "operations", "seconds": "seconds on 2 CPU threads"}.items():
    able = quiet[quiet["psnr"] >= 30]
    found[label] = able.loc[able[cost].idxmin(), ["method", cost, "psnr"]].rename({cost: "cost"})
pd.DataFrame(found).T.style.format({"cost": "{:.2f}", "psnr": "{:.1f}"})

# %% [markdown]
# ## 5. The worst pictures
#
# A mean hides pictures that flip to something else. In the table, these three were the hardest for all methods with nine keys. Are they still?
# Only the next cell draws; it says which pipeline is used.

# %%
pipe = fl.load_pipeline()
wide = images.pivot(index=["prompt", "seed"], columns="method", values="psnr").replace(np.inf, np.nan)
of_nine = quiet.loc[(quiet["num_keys"] == 9) & quiet["order"].notna(), "method"]
hard = wide[of_nine].median(axis=1).sort_values().index[:3]
derived = fl.derive_schedule(fl.embedded_costs(), num_keys=9)
methods = {"baseline": fl.Method(), "the paper's 9": fl.Method(fl.KeySchedule.paper(50)), "derived 9": fl.Method(derived),
           "fitted 9": fl.Method(derived, fit=fl.embedded_fit(9)), "9 steps": fl.Method(steps=9)}  # fmt: skip
drawn = {name: fl.sample(pipe, method, *map(list, zip(*hard, strict=True)), guidance_scale=5.0).images for name, method in methods.items()}
low = images[images["psnr"] < 20]["method"].value_counts()
print("of 128 pictures below 20 dB:", {name: int(low.get(method, 0)) for name, method in
      {"the paper's 9": "features, paper 9, order 0", "derived 9": "features, derived 9, order 0", "fitted 9": "features, fitted 9, order 0", "9 steps": "fewer steps (9)"}.items()})  # fmt: skip

# %% tags=["hide-input"]
plot.show(plot.image_grid(drawn, plot.figure(8.5, 10)), f"The three hardest pictures: {'; '.join(prompt for prompt, _ in hard)}. Five columns, with differences.")

# %% [markdown]
# ## 6. The criterion
#
# The reused prediction is DDIM with uneven steps. It needs as many calls, no decoder between keys, and no new idea. So:
#
# **Features pay where they come nearer than a reused prediction with as many calls.**
#
# By operations or on a busy device they must come much nearer, because they cost more.

# %%
for count in (9, 17):
    features, prediction, fewer = (found.loc[count, "psnr"] for found in at_nine.values())
    word = "features pay" if features > max(prediction, fewer) else "features do not pay"
    print(f"{count} calls: features {features:.1f} dB, prediction {prediction:.1f} dB, fewer steps {fewer:.1f} dB: {word}")
    fitted = {kind: line(kind, "fitted").loc[count, "psnr"] for kind in ("features", "predictions")}
    print(f"   with a fit: features {fitted['features']:.1f} dB, prediction {fitted['predictions']:.1f} dB: the {max(fitted, key=fitted.get)} win")

# %% [markdown]
# Calls are not time. Give each method the seconds of fitted features with nine keys, on two CPU threads:

# %%
budget = 1.03 * line("features", "fitted").loc[9, "seconds"]
ways = {name: line(kind, keys) for name, (kind, keys, *_) in lines.items()}
nearest = [found[found["seconds"] <= budget].nlargest(1, "psnr").assign(method=name) for name, found in ways.items()]
same_time = pd.concat(nearest)[["method", "forward_calls", "seconds", "psnr"]]
same_time.style.hide(axis="index").format({"forward_calls": "{:.0f}", "seconds": "{:.2f}", "psnr": "{:.1f}"})

# %% [markdown]
# What would change that? The larger the encoder's share, the cheaper reused features are. Count the operations of full-size architectures,
# without weights. **Guess** the encoder's share in SDXL, from 0 to 1.

# %%
guess = ...

# %%
rows = {}
for name in ("sd-1.5", "sdxl", "sd-1.5 with ControlNet"):
    count = fl.full_size(name).count
    rows[name] = (count.encoder / count.total, 50 * count.total / count.of_run(9, 50))
shares = pd.DataFrame(rows, index=["encoder's share", "ceiling by operations, 9 of 50"]).T
print(fl.guessed(guess, shares.loc["sdxl", "encoder's share"]))
shares.style.format({"encoder's share": "{:.0%}", "ceiling by operations, 9 of 50": "{:.2f}"})

# %% [markdown]
# | it pays if | it does not pay if |
# |---|---|
# | the encoder's share is large: SDXL, or a ControlNet, which is reused with it | the decoder is most of the work |
# | one picture leaves the device idle, so that a batch of steps is nearly free | many pictures keep the device busy |
# | your measurement says that features beat a reused prediction with as many calls | a reused prediction or fewer steps come as near |
# | there are many steps to skip | the model was distilled to a few steps |
#
# The first two rows follow from ceilings and from the benchmark of notebook 04. The third is the criterion. Measure it on *your* model.
#
# With another scheduler the answer can change. DPM-Solver++ with 20 steps:

# %%
solver = fl.measured("suite/dpm-solver++-20/table")
solver = solver[~solver["noise"] & (solver["order"].fillna(0) == 0)]
for count in (7, 9, 13):
    for told, keys in (("reused", ["derived", ""]), ("fitted", ["fitted"])):
        of_count = solver[(solver["num_keys"] == count) & solver["keys"].isin(keys)].set_index("kind")["psnr"]
        print(f"{count} calls, {told}: " + ", ".join(f"{kind} {of_count[kind]:.1f} dB" for kind in ("features", "predictions", "fewer steps") if kind in of_count))

# %% [markdown]
# And is nearness the right goal? A picture may differ and be as good. So a thousand pictures per method were compared with drawn scenes, as
# sets. Zero is as good as drawn. A difference within the deviation says nothing.

# %%
fl.measured("suite/scene_distance").set_index("method")[["kernel_distance", "deviation"]].style.format(precision=3)

# %% [markdown]
# ## The sentence to remember
#
# **A reused prediction is plain DDIM with uneven steps: the control that every claim must beat.**
#
# ## To try
#
# 1. Change 30 dB to 40. Which method is the cheapest now?
# 2. [Exercise 4.3](exercises/4_time_fit_and_claims.ipynb): a vendor reports three times the speed. Name the control.
#
# Next: [your own model](08_your_own_model.ipynb).
