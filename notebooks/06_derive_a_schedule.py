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
# # Who chooses the keys, and who repairs what is left?
#
# Change of features is not loss of pictures (notebook 05). So measure the loss itself, for each span of steps. Then two small algorithms follow.
# A **dynamic programme** chooses the cheapest keys. A **fit** of a few scalars takes out much of the error that is left. Both are ours.
#
# **You will** check a measured cost, do the programme by hand on four steps, and derive the fit on paper.
#
# New words are in the [glossary](../docs/glossary.md).

# %%
from itertools import combinations

import numpy as np
import pandas as pd
import torch

import fastdiff_lab as fl

plot = fl.plot
torch.set_grad_enabled(False)
print(f"fastdiff_lab {fl.__version__}, torch {torch.__version__}, {torch.get_num_threads()} CPU threads")

# %% [markdown]
# The next cell alone says which pipeline is used. With a GPU, write `fl.load_pipeline(device="cuda")`.

# %%
pipe = fl.load_pipeline()
unet, scheduler = pipe.unet, pipe.scheduler
prompts, seeds = fl.demo(4)  # held out: only judged on
costs = fl.embedded_costs()  # measured once
captions, noises = costs.about["prompts"][:8], costs.about["seeds"][:8]  # others, to measure and fit on
print(costs.title(), "|", costs.num_images, "pictures, spans up to", costs.max_span, "steps")

# %% [markdown]
# ## 1. What does one span cost?
#
# A **span** $(i, e)$ reuses the features of key step $i$ up to step $e$, and changes nothing else. Its **reuse cost** is the error of the
# *final* latents. It is measured in two factors:
#
# $$\text{cost}(i, e) = \big(\underbrace{\lVert z'_e - z_e\rVert}_{\text{displacement at } e} \times
#   \underbrace{s_e}_{\text{share left at the end}}\big)^2$$
#
# Let us check one number. In a run of ten steps, reuse the features of step 3 at steps 4 and 5.

# %%
short, prompt = 10, prompts[0]
tiny = fl.calibrate(pipe, [prompt], seeds=[0], num_inference_steps=short, guidance_scale=5.0, max_span=10)


def path_of(keys):
    """The latents after each step, with these key steps."""
    path = []
    with fl.encoder_propagation(pipe, fl.KeySchedule(short, keys), parallel_decoding=False):
        pipe(prompt, generator=torch.Generator().manual_seed(0), num_inference_steps=short, guidance_scale=5.0,
             callback_on_step_end=lambda pipe, step, t, given: path.append(given["latents"].clone()) or given)  # fmt: skip
    return path


true, reused = path_of(tuple(range(short))), path_of((0, 1, 2, 3, 6, 7, 8, 9))
by_hand, measured = float((reused[5] - true[5]).norm()), float(tiny.displacement[0, 0, 3, 3])
print(f"displacement at step 6: by hand {by_hand:.4f}, fl.calibrate {measured:.4f}")
print(f"error at the end: predicted {tiny.errors()[0, 0, 3, 3]:.3f}, real {(reused[-1] - true[-1]).norm():.3f}")
assert abs(by_hand - measured) < 0.01 * measured + 1e-4

# %% [markdown]
# ## 2. The programme, by hand
#
# Costs of spans are added, as if they were independent. Let $C_n(e)$ be the least cost up to step $e$ with $n$ keys. The last of these keys is
# some $i$. Before it lies a best way with one key less:
#
# $$C_n(e) = \min_{i < e}\; C_{n-1}(i) + \text{cost}(i, e)$$
#
# Here are made-up costs of a run of four steps. A span of one step reuses nothing and costs nothing. **Guess** the best three keys: which two
# besides 0?

# %%
guess = ...

# %%
span = {(0, 1): 0, (1, 2): 0, (2, 3): 0, (3, 4): 0, (0, 2): 4, (1, 3): 1, (2, 4): 3, (0, 3): 9, (1, 4): 8, (0, 4): 16}
matrix = np.full((4, 5), np.inf)
for place, cost in span.items():
    matrix[place] = cost
pd.DataFrame(matrix, index=[f"key {i}" for i in range(4)], columns=["", "to 1", "to 2", "to 3", "the end"]).iloc[:, 1:].style.format(
    lambda cost: "" if np.isinf(cost) else f"{cost:g}")  # fmt: skip

# %% [markdown]
# With one key, $C_1(e)$ is the first row. **Your turn**: from one row of the table, make the next.

# %%
def next_row(best, costs):
    """C_{n-1}(e) for e = 0 .. end, and costs[i, e], infinite where there is no span -> C_n(e)."""
    # BEGIN SOLUTION
    return np.min(best[:-1, None] + costs, axis=0)
    # END SOLUTION

# %%
fl.check("next_row", next_row)

# %% tags=["hide-input"]
rows = [np.where(np.arange(5) > 0, matrix[0], np.inf)]
for _ in range(2):
    rows.append((rows[-1][:-1, None] + matrix).min(axis=0))
best = {(n + 1, e): row[e] for n, row in enumerate(rows) for e in range(1, 5) if np.isfinite(row[e])}
total = {keys: sum(span[pair] for pair in zip((0, *keys), (*keys, 4), strict=True)) for keys in combinations((1, 2, 3), 2)}
winner = min(total, key=total.get)
plot.show(plot.programme(span, best, (0, *winner)))

# %%
print("besides 0:", fl.guessed(guess, winner), "| all three ways:", total)
print("the best two keys are 0 and", min((1, 2, 3), key=lambda key: span[0, key] + span[key, 4]), "- and that key is not among the best three")

# %% [markdown]
# Whoever adds one key at a time (greedy) keeps the best key of two, and misses the best three. The programme does not.
#
# Does the library's programme find the best? On ten steps all schedules can be tried.

# %%
cost = tiny.spans()[0]
every = [(0, *rest) for rest in combinations(range(1, short), 3)]
forced = min(every, key=lambda keys: sum(cost[key, after - key] for key, after in zip(keys, (*keys[1:], short), strict=True)))
found = fl.derive_schedule(tiny, 4)
print(f"{len(every)} schedules tried: {forced}; the programme: {found.keys}")
assert tuple(found.keys) == forced

# %% [markdown]
# ## 3. Fifty steps
#
# The same for 50 steps. A schedule is a staircase from corner to corner. Each step of the stairs is a span.

# %%
derived = fl.derive_schedule(costs, num_keys=9)
print("derived:  ", derived, "\nthe paper:", fl.KeySchedule.paper(50))

# %% tags=["hide-input"]
ax = (figure := plot.figure(5.6, 4.4)).subplots()
plot.span_costs(np.sqrt(costs.spans()[0]), ax, keys=derived.keys).set_title("reuse cost (root), and the nine derived keys")
plot.show(figure, f"Error in the final latents for each span from a key to the next. The derived schedule {derived} is a staircase through it.")

# %% [markdown]
# ## 4. How far may one trust the sum?
#
# Each span was measured from the *true* latents. In a real run, earlier groups have displaced them. So thirty random schedules were run, on four
# pictures. **Guess** the rank correlation of predicted and real error, mean over the pictures.

# %%
guess = ...

# %%
trials = fl.measured("ablation/predicted_and_real").query("power == 2 and costs == 'encoder-0'")
trials = trials[np.isfinite(trials["predicted"])]
ranks = trials.groupby("image")[["predicted", "real"]].apply(lambda part: part["predicted"].corr(part["real"], method="spearman"))
print("These runs were", fl.measured_with("suite/ddim-50"))
print(fl.guessed(guess, ranks.mean()), "| per picture:", *(f"{rank:.2f}" for rank in ranks))

# %% tags=["hide-input"]
ax = (figure := plot.figure(4.6, 3.4)).subplots()
for place, (image, points) in enumerate(trials.groupby("image")):
    ax.scatter(points["predicted"], points["real"], 18, marker="os^D"[place % 4], color=plot.PETROFF[place], label=f"picture {image}")
ends = [trials[["predicted", "real"]].min().min(), trials[["predicted", "real"]].max().max()]
ax.plot(ends, ends, color="0.6", linestyle="--", linewidth=1)
ax.set(xscale="log", yscale="log", xlabel="predicted error", ylabel="real error")
ax.legend(fontsize="small")
plot.show(figure, "Real against predicted error of thirty random schedules on four pictures. Dashed: equal.")

# %% [markdown]
# Look how far points lie from the dashed line. A prediction may rank schedules; it does not measure them. Measure the winner with real runs, on
# pictures that it has not seen.
#
# ## 5. The fit: landing where the baseline lands
#
# The best keys still leave an error. What is known at a key step? The latent $x$, its prediction $p$, and the predictions $p'$, $p''$ of the two
# keys before. Add a small offset, made of these, to each prediction of the group.

# %% tags=["hide-input"]
plot.show(plot.landing())

# %% [markdown]
# On paper, with the prediction reused and DDIM (notebook 03). The group from $k$ to $e$ lands at
#
# $$z'_e = \sqrt{\bar\alpha_e}\,\Big(\frac{x}{\sqrt{\bar\alpha_k}} + (\sigma_e - \sigma_k)\,\big(p + \textstyle\sum_j c_j r_j\big)\Big)$$
#
# with $r = (x,\; p,\; p'-p,\; p''-p)$. What should the sum be, to land on the baseline's $z_e$? Solve for it, and call it $m$, what was missed:
#
# $$m = \frac{z_e/\sqrt{\bar\alpha_e} - x/\sqrt{\bar\alpha_k}}{\sigma_e - \sigma_k} - p$$
#
# Least squares over some pictures, with a row of $R$ for each $r_j$: $\;\min_c \lVert m - R^\top c\rVert^2\;$ gives
# $\;R R^\top c = R\,m$. **Your turn.**

# %%
def landing_scalars(terms, missed):
    """The known tensors (terms, numbers), and what was missed (numbers) -> a scalar for each term."""
    # BEGIN SOLUTION
    return torch.linalg.solve(terms @ terms.T, terms @ missed)
    # END SOLUTION

# %%
fl.check("landing_scalars", landing_scalars)

# %% [markdown]
# Now with real numbers, in twenty lines. We fit the longest group on eight pictures, and judge on the four of the demo.

# %%
def baseline(captions, seeds):
    """The latents and the guided predictions at each step of untouched runs: two lists."""
    prompted, empty = pipe.encode_prompt(captions, pipe.device, 1, True)
    size = unet.config.sample_size
    z = torch.cat([torch.randn(1, 4, size, size, generator=torch.Generator().manual_seed(seed)) for seed in seeds]).to(pipe.device)
    scheduler.set_timesteps(50)
    latents, predictions = [z], []
    for t in scheduler.timesteps:
        without, with_prompt = unet(torch.cat([z, z]), t, torch.cat([empty, prompted])).sample.chunk(2)
        predictions.append(without + 5.0 * (with_prompt - without))
        z = scheduler.step(predictions[-1], t, z).prev_sample
        latents.append(z)
    return latents, predictions


def terms_and_missed(latents, predictions, before, last, k, e):
    """Rows of known tensors, and what the group from k to e missed; `last` and `before` are the two keys before k."""
    a, b = (float(scheduler.alphas_cumprod[scheduler.timesteps[step]]) if step < 50 else float(scheduler.final_alpha_cumprod) for step in (k, e))
    x, p = latents[k], predictions[k]
    missed = (latents[e] / b**0.5 - x / a**0.5) / ((1 / b - 1) ** 0.5 - (1 / a - 1) ** 0.5) - p
    terms = torch.stack([x, p, predictions[last] - p, predictions[before] - p]).flatten(1)
    return terms.double(), missed.flatten().double()

# %%
stops = [*derived.keys, 50]
place = max(range(2, len(derived.keys)), key=lambda number: stops[number + 1] - stops[number])
group = stops[place - 2 : place + 2]  # two keys before, the key, the next one
terms, missed = terms_and_missed(*baseline(captions, noises), *group)
scalars = torch.linalg.solve(terms @ terms.T, terms @ missed)
unseen, missed_there = terms_and_missed(*baseline(prompts, seeds), *group)
left = [float(m.norm()) for m in (missed_there, missed_there - scalars @ unseen)]
print(f"steps {group[2]} to {group[3]}; scalars", *(f"{scalar:.3f}" for scalar in scalars))
print(f"missed on unseen pictures: {left[0]:.2f} with the prediction reused, {left[1]:.2f} with the fit ({left[1] / left[0]:.0%})")

# %% [markdown]
# Under 100 %, four scalars found on eight pictures serve pictures that they never saw.
#
# ## 6. The fit in the library
#
# `fl.fit_propagation` does this for all groups, one after the other, *along the accelerated run*. So each group also repairs what earlier ones
# left. With features reused there are two terms more: $q - p$, what the last group missed, and $p - \bar p$, what decoding ahead added. It works
# with any linear scheduler, chooses a ridge, and bounds the offset ([how](../docs/fitting.md)).

# %%
fit = fl.fit_propagation(pipe, derived, captions, seeds=noises, guidance_scale=5.0)
print(f"{sum(map(len, fit.coefficients))} scalars for {len(fit.coefficients)} groups, fitted on {len(captions)} pictures")

# %%
methods = {"baseline": fl.Method(), "features, derived 9, order 0": fl.Method(derived), "features, fitted 9, order 0": fl.Method(derived, fit=fit)}
pictures = {name: fl.sample(pipe, method, prompts, seeds, guidance_scale=5.0).images for name, method in methods.items()}
near = {name: fl.mean_psnr(fl.fidelity(pictures[name], pictures["baseline"])["mse"]) for name in list(methods)[1:]}
suite = fl.measured("suite/ddim-50/table").set_index("method")["psnr"]
pd.DataFrame({"PSNR, dB: these 4 pictures": near, "128 pictures": suite.reindex(near)}).style.format(precision=1, na_rep="not measured yet")

# %% tags=["hide-input"]
columns = {name.replace(", order 0", "").replace(", ", "\n"): found[:2] for name, found in pictures.items()}
plot.show(plot.image_grid(columns, plot.figure(6, 7)), f"Baseline, derived keys without and with fit, for: {'; '.join(prompts[:2])}.")

# %% [markdown]
# A fit costs next to nothing when sampling. But the rival gets one, too: a reused prediction can be fitted just as well. Notebook 07 compares.
#
# ## The sentence to remember
#
# **Measure what reuse costs; let a programme choose the keys, and least squares repair the landing.**
#
# ## To try
#
# 1. `fl.derive_schedule(costs, 9, reduction="median")`: which keys move? Why?
# 2. Fit on two pictures instead of eight. How much is lost? [Exercise 4.2](exercises/4_time_fit_and_claims.ipynb) asks how strong a ridge to take.
# 3. Calibrate your own pipeline: `fl.calibrate(pipe, prompts, time_budget=300)` says first what it will take.
#
# Next: [does it pay?](07_is_it_worth_it.ipynb)
