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
# # Derive a schedule: measure what reuse costs, then let a dynamic programme choose
#
# Notebook 03 ended with a gap: how much features *change* is not how much the final image suffers when they are *reused*. Here we
# measure the second, for every span of steps, and find the key steps whose spans cost least in all. *Faster Diffusion* (Li et al.,
# NeurIPS 2024) found its keys by hand; what follows is ours.
#
# After this notebook you can
# - say what the **reuse cost** of a span is, and check it with a run of your own,
# - read the matrix of all costs and the **sensitivity** of the final latents, and see a schedule as a path through the matrix,
# - check the dynamic programme against brute force, and pick a number of keys from a front,
# - say why the key *before* matters when features are extrapolated, and
# - judge how far predicted errors can be trusted: with a rank correlation, for reused and for extrapolated features.
#
# Everything runs offline on a CPU in about a minute.

# %%
import itertools
import random
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
from fastdiff_lab.calibration.derive import group_costs
from fastdiff_lab.sampling.methods import generators
from fastdiff_lab.pipelines import embedded_folder
from fastdiff_lab.calibration.refine import final_errors
from fastdiff_lab.calibration.replay import Call, seen

print(f"fastdiff_lab {fl.__version__}, diffusers {diffusers.__version__}, torch {torch.__version__}")
print(f"Python {sys.version.split()[0]}, {torch.get_num_threads()} CPU threads, CUDA: {torch.cuda.is_available()}")

# %% [markdown]
# The next cell is the only one that says which pipeline is used; with a GPU, write `fl.load_pipeline(device="cuda")`.

# %%
pipe = fl.load_pipeline()
f"{type(pipe.unet).__name__}, {type(pipe.scheduler).__name__}"

# %% [markdown]
# ## 1. What does one span cost?
#
# A **span** (i, e): the features of key step i are reused at i+1 ... e-1, and nothing else is touched. Its cost is the error in the
# *final* latents. It is measured in two factors: the **displacement** of the latents at e, times the **sensitivity** at e, the share of a
# displacement there that is left at the end. A run of ten steps shows it in seconds:

# %%
prompt, short = "a large red star at the left on a blue background", 10
tiny = fl.calibrate(pipe, [prompt], seeds=[0], num_inference_steps=short, guidance_scale=5.0, max_span=5)
print(f"displacement {tuple(tiny.displacement.shape)}: images, gaps, key steps, lengths")
pd.DataFrame(tiny.displacement[0, 0, :, 2:].numpy(), columns=[f"length {n}" for n in range(2, 6)]).rename_axis(
    "key step"
).style.format(precision=3, na_rep="-")


# %% [markdown]
# Can we find one of these numbers ourselves? Make every step a key but 4 and 5, so that the features of 3 are reused in the span (3, 6),
# and compare the latents before step 6 with the baseline's.


# %%
def path_of(schedule):
    """The latents after each step, with the keys of a schedule."""
    path = []

    def keep(pipe, step, t, given):
        path.append(given["latents"].clone())
        return given

    with fl.encoder_propagation(pipe, schedule, parallel_decoding=False):
        pipe(prompt, generator=generators([0]), num_inference_steps=short, guidance_scale=5.0, callback_on_step_end=keep)
    return path


# %%
all_keys = path_of(fl.KeySchedule(short, tuple(range(short))))
one_span = path_of(fl.KeySchedule(short, tuple(step for step in range(short) if step not in (4, 5))))
by_hand, measured = (one_span[5] - all_keys[5]).norm().item(), tiny.displacement[0, 0, 3, 3].item()
print(f"displacement at step 6: by hand {by_hand:.4f}, fl.calibrate {measured:.4f}")
assert abs(by_hand - measured) < 0.01 * measured + 1e-4

# %% [markdown]
# And the second factor: the run goes on without reuse from there. Predicted and real error at the end need not be equal, since the
# sensitivity is measured at a few steps and on other displacements of the same kind.

# %%
print(f"error in the final latents: predicted {tiny.errors()[0, 0, 3, 3]:.3f}, real {(one_span[-1] - all_keys[-1]).norm():.3f}")

# %% [markdown]
# ## 2. All spans
#
# The same for 50 steps and spans of up to 25, on 16 captions set apart for it, takes minutes; it was done once and is shipped. Errors are L2 norms over the
# 1,024 numbers of an image's latents: 32 times the root of the mean square that the lab (notebook 09) shows.

# %%
folder = embedded_folder().parent / "calibration" / "ddim-50"
costs = {order: fl.ReuseCosts.load(folder / f"encoder-{order}.safetensors") for order in (0, 1)}
num_steps, num_keys = costs[0].num_steps, 9
for order, found in costs.items():
    assert not found.sensitivity.isnan().any()
    print(f"order {order}: {found.title()}; {found.num_images} images, spans up to {found.max_span} steps, gaps {found.gaps}")

# %% [markdown]
# Rows: the key step whose features are reused. Columns: the next key. A long span lies far from the diagonal. Is a span of ten steps
# equally dear at the start, in the middle and at the end?

# %%
reused = np.sqrt(costs[0].spans()[0])
ax = (figure := plot.figure(5.6, 4.4)).subplots()
plot.span_costs(reused, ax).set_title("features reused: mean of images")
HTML(plot.html_image(figure, "Error in the final latents for every span from a key step to the next, features reused"))

# %%
ten = pd.Series(reused[:, 10]).replace(np.inf, np.nan).dropna()
print(f"spans of 10 steps: dearest from step {ten.idxmax()} ({ten.max():.2f}), cheapest from {ten.idxmin()} ({ten.min():.2f})")

# %% [markdown]
# ### Sensitivity
#
# How much of a displacement at a step is left at the end? Above 1 it grows on its way, below 1 the rest of the run repairs it.

# %%
sensitivity = costs[0].sensitivity.numpy()
ax = (figure := plot.figure(7, 2.8)).subplots()
ax.fill_between(
    range(num_steps + 1), sensitivity.min(0), sensitivity.max(0), color=plot.BANDS[0], label="lowest to highest image"
)
ax.plot(np.median(sensitivity, axis=0), color=plot.PETROFF[0], label="median")
ax.axhline(1, color="0.5", linewidth=1, linestyle="--")
ax.set(yscale="log", xlabel="step", ylabel="share left at the end")
ax.legend()
HTML(plot.html_image(figure, "Sensitivity of the final latents to a displacement at each step, with the spread over images"))

# %%
middle = np.median(sensitivity, axis=0)
print(f"median: largest {middle.max():.2f} at step {middle.argmax()}, smallest {middle.min():.2f} at step {middle.argmin()}; "
      f"images differ by up to {np.max(sensitivity.max(0) / sensitivity.min(0)):.1f} times")  # fmt: skip

# %% [markdown]
# Is that many images, or one?

# %%
loud = sensitivity.max(axis=1).argmax()
of_ten = costs[0].errors()[:, 0, :, 10] ** 2
share = of_ten[loud] / of_ten.sum(axis=0)
print(f"above 1 at some step: {(sensitivity[:, :-1] > 1).any(axis=1).sum()} of {len(sensitivity)} images; image {loud} ({costs[0].about['prompts'][loud]})")
print(f"its share of the squared error of spans of 10: {share[5]:.0%} for those from step 5, {share[20]:.0%} for those from step 20")

# %% [markdown]
# One image, which ends as another one when it is disturbed early, is nearly the whole mean of the early spans, and makes the edge in the map above. Is
# it an outlier to be left out, or the case that must not go wrong? `reduction="median"` leaves it out (section 7 compares).

# %% [markdown]
# ## 3. A schedule is a path
#
# Nine keys are nine spans, each beginning where the one before ended: stairs along the diagonal, from corner to corner. Squared errors
# of the spans are added (as if they were independent); the best stairs with nine steps are found by a **dynamic programme**: the cheapest
# way to reach step e with k spans is the cheapest way to reach some i with k-1, plus the span (i, e).

# %%
derived = fl.derive_schedule(costs[0], num_keys)
ax = (figure := plot.figure(5.6, 4.4)).subplots()
plot.span_costs(reused, ax, keys=derived.keys).set_title(f"{num_keys} keys, features reused")
HTML(plot.html_image(figure, f"The derived schedule {derived} as stairs through the matrix of costs"))

# %% [markdown]
# Does the programme find the best? On the ten steps of section 1 all schedules can be tried.


# %%
def predicted(costs, schedule):
    """The sum of the squared errors of a schedule's spans; with order 1, each depends on the gap to the key before."""
    return sum(group_costs(costs, schedule))


# %%
rows = []
for count in (3, 4, 5):
    every = [fl.KeySchedule(short, (0, *rest)) for rest in itertools.combinations(range(1, short), count - 1)]
    forced = min(every, key=lambda schedule: predicted(tiny, schedule))
    found = fl.derive_schedule(tiny, count)
    rows.append((count, len(every), str(forced), str(found)))
    assert np.isclose(predicted(tiny, forced), predicted(tiny, found))
pd.DataFrame(rows, columns=["keys", "schedules", "brute force", "programme"]).style.hide(axis="index")

# %% [markdown]
# ## 4. First order: the key before matters
#
# With `order=1` features go on along the line through the *last two* key steps. If these lie close together, the line is a good tangent
# but a small error in it is carried far; if they lie far apart, it is a chord. So a span's cost has one more axis: the **gap** to the key
# before. What do you expect for a gap of 1 step?

# %%
length = 5
errors = np.sqrt((costs[1].errors() ** 2).mean(axis=0))[:, :, length]
ax = (figure := plot.figure(7, 3)).subplots()
ax.plot(reused[: num_steps - length + 1, length], color="black", linestyle="--", label="reused")
typical = np.sqrt(costs[0].spans("median")[0])
ax.plot(typical[: num_steps - length + 1, length], color="black", linestyle=":", label="reused, median")
for place, gap in enumerate(costs[1].gaps[1:]):
    ax.plot(errors[1 + place, : num_steps - length + 1], color=plot.PETROFF[place], label=f"gap {gap}")
ax.set(yscale="log", xlabel=f"key step of a span of {length}", ylabel="error in the\nfinal latents")
figure.legend(loc="outside right center")
HTML(
    plot.html_image(
        figure, f"Error of spans of {length} steps: features reused, and extrapolated with several gaps to the key before"
    )
)

# %%
at = slice(costs[1].gaps[-1], num_steps - length + 1)  # where every gap has room
by_gap = pd.Series({f"gap {gap}": errors[1 + place, at].mean() for place, gap in enumerate(costs[1].gaps[1:])})
print(
    f"spans of {length}, mean over key steps {at.start} to {at.stop - 1}: reused {reused[at, length].mean():.3f}; cheapest with {by_gap.idxmin()}"
)
by_gap.to_frame("error in the final latents").style.format(precision=3)

# %% [markdown]
# The programme stays exact: its state is a key *and* the gap before it.

# %%
first = fl.derive_schedule(costs[1], num_keys)
ax = (figure := plot.figure(8, 1.6)).subplots()
strips = {"uniform": fl.KeySchedule.uniform(num_steps, num_keys).keys, "order 0": derived.keys, "order 1": first.keys}
plot.key_strips(strips, num_steps, ax)
HTML(plot.html_image(figure, f"Nine keys as strips: uniform, derived with order 0 ({derived}) and with order 1 ({first})"))

# %% [markdown]
# ## 5. The front
#
# How many keys does one need? One call gives the best schedule for each number.

# %%
fronts = {order: fl.schedule_front(found) for order, found in costs.items()}
ax = (figure := plot.figure(6, 3)).subplots()
for order, front in fronts.items():
    shown = front[(front["cost"] > 0) & (front["num_keys"] <= 30)]
    ax.plot(shown["num_keys"], shown["predicted_error"], ("--", "-")[order], color=plot.PETROFF[order], label=f"order {order}")
ax.set(yscale="log", xlabel="key steps", ylabel="predicted error of the\nfinal latents (L2 norm)")
ax.legend()
HTML(plot.html_image(figure, "Predicted error of the best schedule against its number of keys, features reused and extrapolated"))

# %%
merged = fronts[0].merge(fronts[1], on="num_keys", suffixes=(" order 0", " order 1"))
columns = ["num_keys", "predicted_error order 0", "predicted_error order 1", "schedule order 1"]
merged.loc[merged["num_keys"].isin([7, 9, 13, 17]), columns].style.hide(axis="index").format(precision=2)

# %% [markdown]
# ## 6. Can the predictions be trusted?
#
# A sum of single spans knows nothing about how errors act on one another. So: a dozen random schedules with real runs, on two of the
# images that were calibrated on, with either order.


# %%
def random_schedule(rng):
    """9 to 17 random keys, all of whose spans were measured with both orders."""
    while True:
        keys = (0, *sorted(rng.sample(range(1, num_steps), rng.randint(8, 16))))
        schedule = fl.KeySchedule(num_steps, keys)
        if all(np.isfinite(predicted(found, schedule)) for found in costs.values()):
            return schedule


rng, images = random.Random(0), [0, 1]
schedules = [random_schedule(rng) for _ in range(12)]
str(schedules[0]), str(schedules[-1])

# %%
about = costs[0].about
call = Call(tuple(about["prompts"][i] for i in images), tuple(about["seeds"][i] for i in images),
            {"num_inference_steps": num_steps, "guidance_scale": costs[0].measured_on["guidance_scale"]})  # fmt: skip
trajectory = seen(pipe, call, num_steps)
size = trajectory.samples[-1][0].numel()

# %%
rows = []
for order, place in itertools.product(costs, range(len(schedules))):
    real = (final_errors(pipe, trajectory, schedules[place], order=order) * size).sqrt()
    for row, image in enumerate(images):
        guess = predicted(costs[order].subset([image]), schedules[place]) ** 0.5
        rows.append({"order": order, "schedule": place, "image": image, "predicted": guess, "real": float(real[row])})
trials = pd.DataFrame(rows)
trials["real / predicted"] = trials["real"] / trials["predicted"]

# %%
figure = plot.figure(8, 3.6)
for ax, (order, part) in zip(figure.subplots(1, 2), trials.groupby("order"), strict=True):
    for place, (image, points) in enumerate(part.groupby("image")):
        ax.scatter(points["predicted"], points["real"], marker="os"[place], color=plot.PETROFF[place], label=f"image {image}")
    ends = [part[["predicted", "real"]].min().min(), part[["predicted", "real"]].max().max()]
    ax.plot(ends, ends, color="0.6", linestyle="--", linewidth=1)
    ax.set(xscale="log", yscale="log", title=f"order {order}", xlabel="predicted error of the final latents", ylabel="real error")
    ax.legend(loc="lower right")
HTML(plot.html_image(figure, "Real against predicted error of a dozen random schedules, with order 0 and 1; dashed: equal"))

# %%
of_each = trials.groupby(["order", "image"])[["predicted", "real"]]
ranks = of_each.apply(lambda part: part["predicted"].corr(part["real"], method="spearman"))
ratios = trials.groupby(["order", "image"])["real / predicted"].agg(["median", "max"])
trust = ratios.join(ranks.rename("rank correlation"))
trust.style.format(precision=2)

# %%
for order in costs:
    part = trust.loc[order]
    print(f"order {order}: rank correlation {part['rank correlation'].min():.2f} to {part['rank correlation'].max():.2f} per image; "
          f"the real error is up to {part['max'].max():.1f} times the sum of single spans")  # fmt: skip

# %% [markdown]
# A dozen schedules on two images are few. The same with thirty schedules on four images, made once by `python -m studies.ablation`. Where
# features or predictions are extrapolated, thirteen of them have no prediction (their first keys lie at a gap that was not measured) and are left out:

# %%
tables = embedded_folder().parent / "ablation"
more_trials = pd.read_csv(tables / "predicted_and_real.csv").query("power == 2")  # the sum of squares, as above
more_trials = more_trials[np.isfinite(more_trials["predicted"])]
more_ranks = more_trials.groupby(["costs", "image"])[["predicted", "real"]].corr(method="spearman")["real"].xs("predicted", level=2)
more_ranks = more_ranks.unstack().rename({"encoder-0": "features reused", "encoder-1": "features extrapolated", "prediction-1": "predictions extrapolated"})
more_ranks.style.format(precision=2).set_caption("rank correlation of predicted and real error")

# %% [markdown]
# Why should order 1 be further from the sum than order 0, as it is for image 0 and in the largest ratios of both? Each span is measured from the *true* latents. In a real run the features at
# the second key have seen latents that the span before displaced, those at the first key others; the line through both *multiplies* that
# difference by (steps ahead) / (gap), and the next span builds on it. Reused features are not multiplied. So order 1 wants short groups:
# is the real error nearer to the sum where the longest group is short?

# %%
trials["longest group"] = [max(map(len, schedules[place].groups())) for place in trials["schedule"]]
of_each = trials.groupby("order")[["longest group", "real / predicted"]]
excess = of_each.apply(lambda part: part["longest group"].corr(part["real / predicted"], method="spearman"))
excess.to_frame("rank correlation of longest group and real / predicted").style.format(precision=2)

# %% [markdown]
# ## 7. On what, and how, should one calibrate?
#
# Three questions that take longer than this notebook may; `python -m studies.ablation` answers them, its tables lie in `data/ablation`.
# How many captions does it take? Keys derived from disjoint parts of sixteen images, judged by the costs of all sixteen (`encoder-0`:
# features reused, `encoder-1`: extrapolated, and so for predictions). `moved`: mean distance of a key from where all sixteen images put it,
# in steps; `excess`: by how much the predicted error is larger. All sixteen are the yardstick, so their row says nothing.

# %%
stability = pd.read_csv(tables / "stability.csv").assign(excess=lambda table: table["predicted_error"] / table["best"] - 1)
by_part = stability.groupby(["costs", "images"])[["moved", "excess"]].agg(["mean", "max"])
by_part.style.format("{:.2f}", subset=["moved"]).format("{:.0%}", subset=["excess"])

# %% [markdown]
# With reused features, four captions are no better than one: the predicted error doubles, because the loud image is in one part only. With
# extrapolated ones four are much better. Do keys derived at one guidance scale serve at another?

# %%
guidance = pd.read_csv(tables / "guidance.csv").assign(excess=lambda table: table["predicted_error"] / table["best"] - 1)
guidance.pivot(index=["num_keys", "derived_at"], columns="used_at", values="excess").style.format("{:.0%}")

# %% [markdown]
# Keys from guidance 5 or 7.5 serve at each other's scale; those from guidance 2 do not serve at higher ones.

# %% [markdown]
# Last: which average over the calibrated images? A few of them flip to something else when they are disturbed, and dominate the mean; the median
# ignores them, the worst looks at nothing else. Reused features, on captions that were not calibrated on; `pooled` is the PSNR of the averaged error, which the worst
# images decide, `typical` the mean of the images' PSNR:

# %%
averages = pd.read_csv(tables / "averages.csv")
shown = averages.rename(columns={"worst": "worst image"})
shown.pivot(index="num_keys", columns="reduction", values=["pooled", "typical", "worst image"]).style.format(precision=1).set_caption("PSNR, dB")

# %%
for judged in ("pooled", "typical"):
    best = averages.loc[averages.groupby("num_keys")[judged].idxmax()]
    print(f"best by {judged} PSNR: " + ", ".join(f"{row.num_keys} keys: {row.reduction}" for row in best.itertuples()))

# %% [markdown]
# ## 8. Searching with real runs
#
# Where the sum cannot be trusted, try: `fl.refine_schedule` begins at a derived schedule and moves one key at a time as long as real runs
# come nearer to the baseline's. More runs find more; here only eight, on the same two images.

# %%
begun = fl.derive_schedule(costs[1], 13)
refined = fl.refine_schedule(pipe, begun, call.prompts, seeds=call.seeds, guidance_scale=5.0, order=1, runs=8)
before, after = (float(final_errors(pipe, trajectory, s, order=1).mean()) ** 0.5 for s in (begun, refined))
print(f"{begun}: {before:.4f} (root of the mean squared difference of the final latents)\n{refined}: {after:.4f}; {refined.source}")
assert after <= before * 1.001

# %% [markdown]
# These two images were searched on, so the gain is flattered: measure it on held-out captions before you believe it (notebook 07).
#
# ## 9. Saving and using it
#
# A schedule is small readable JSON, and carries what it was measured on.

# %%
path = Path(tempfile.mkdtemp()) / "schedule.json"
refined.save(path)
loaded = fl.KeySchedule.load(path)
assert loaded == refined
print(path.read_text()[:200], "...")

# %%
with fl.encoder_propagation(pipe, loaded, order=1) as counts:
    image = pipe(prompt, num_inference_steps=num_steps, guidance_scale=5.0, generator=generators([0])).images[0]
ax = (figure := plot.figure(2, 2)).subplots()
ax.imshow(image)
ax.set(xticks=[], yticks=[], title=f"{counts.encoder_calls} encoder calls")
HTML(plot.html_image(figure, f"{prompt}, with encoder propagation at the refined keys"))

# %% [markdown]
# With another order, or another scheduler or model, it still runs, but you are told:

# %%
scheduler = pipe.scheduler
pipe.scheduler = diffusers.EulerDiscreteScheduler.from_config(scheduler.config)
with warnings.catch_warnings(record=True) as caught, fl.encoder_propagation(pipe, loaded, order=0):
    warnings.simplefilter("always")
pipe.scheduler = scheduler
print(*(warning.message for warning in caught), sep="\n")

# %% [markdown]
# ## Summary

# %%
crossing = merged[merged["predicted_error order 1"] < merged["predicted_error order 0"]]["num_keys"].min()
print(
    f"- Predicted: extrapolating beats reusing from {crossing:.0f} keys on."
    if crossing == crossing
    else "- Predicted: reusing is never beaten."
)
suite = pd.read_csv(embedded_folder().parent / "suite" / "ddim-50" / "table.csv").query("kind == 'features' and keys == 'derived' and not noise")
real = suite.pivot(index="num_keys", columns="order", values="psnr")
print(f"- Real runs on held-out captions (notebook 07): of {', '.join(f'{keys:.0f}' for keys in real.index)} keys, extrapolating is ahead with "
      f"{', '.join(f'{keys:.0f}' for keys in real.index[real[1] > real[0]]) or 'none'}.")
for name, row in more_ranks.iterrows():
    print(f"- {name}: single spans rank real schedules with {row.min():.2f} to {row.max():.2f} (four images).")
more = trust.loc[1, "max"].max() / trust.loc[0, "max"].max()
print(f"- Largest real / predicted of order 1 is {more:.1f} times that of order 0.")

# %% [markdown]
# - The cost of a span is measured: displacement times sensitivity. A dynamic programme chooses spans, exactly.
# - It is exact for the *sum*. With extrapolated features the sum can be too small; use enough keys, and `fl.refine_schedule`.
# - Whether it is worth it, beside rivals that need no encoder at all: [notebook 07](07_is_it_worth_it.ipynb).
#
# ## To try
#
# 1. `fl.derive_schedule(costs[1], 9, reduction="worst")`: which keys move?
# 2. `costs[0].subset([0])` against `costs[0].subset([1])`: how far do the keys depend on the image?
# 3. Calibrate your own pipeline: `fl.calibrate(pipe, prompts, order=1, time_budget=300)` says before it starts what it will take.
