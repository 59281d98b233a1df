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

# %% [raw]
# # ASSIGNMENT CONFIG
# name: 4_time_fit_and_claims
# init_cell: false
# export_cell: false
# check_all_cell: false
# tests:
#     ok_format: false
#     files: false
# generate:
#     pdf: false
#     show_stdout: false

# %% [markdown]
# # Exercises 4: time, fit and claims
#
# About 45 minutes; builds on notebooks [04](../04_parallel_decoding.ipynb), [06](../06_derive_a_schedule.ipynb) and [07](../07_is_it_worth_it.ipynb).
#
# After this sheet you can time a sampler, and say how strong a fit may be. You can name the control that a claim has left out.
#
# Each exercise has a cell with a gap (`...`). Fill it, run it, and run the two cells after it. `check` says what is wrong and what was expected;
# `show` draws what your answer does. Try for the minutes that are named before you open a hint.

# %%
import time

import numpy as np
import pandas as pd
import torch

import fastdiff_lab as fl
from fastdiff_lab.exercises import check, show

print(f"fastdiff_lab {fl.__version__}, torch {torch.__version__}, {torch.get_num_threads()} CPU threads")

# %% [markdown]
# The next cell is the only one that says which pipeline is used: the embedded one. The checks always use it.

# %%
pipe = fl.load_pipeline()
f"{type(pipe.unet).__name__} with {sum(p.numel() for p in pipe.unet.parameters()) / 1e6:.1f} M parameters"

# %% [markdown]
# ## 4.1 Time it, at batch 1 and 8
#
# Difficulty ●●○○○ · importance ●●●●● · 15 minutes · 2 points
#
# **Goal**: measure seconds that one may believe.
#
#
# `run()` does one run, `clock()` tells the seconds. The first run loads and compiles, and does not count. Now and then something else uses the
# machine. So run once without counting, then `repeats` times, and return the **median** of the seconds.

# %% [raw]
# # BEGIN QUESTION
# name: median_time
# points: 2
# all_or_nothing: true
# check_cell: false

# %% [markdown]
# <details>
# <summary>Hint</summary>
#
# Read the clock before and after each run. `np.median` does not care about one disturbed run.
#
# </details>

# %% [raw]
# # BEGIN SOLUTION

# %%
def median_time(run, clock, repeats):
    """A run, a clock, the number of runs that count -> the median of their seconds."""
    # BEGIN SOLUTION
    run()
    seconds = []
    for _ in range(repeats):
        started = clock()
        run()
        seconds.append(clock() - started)
    return float(np.median(seconds))
    # END SOLUTION

# %% [raw]
# # END SOLUTION

# %%
check("median_time", median_time)

# %%
show("median_time", median_time)

# %% [raw]
# # BEGIN TESTS

# %%
""" # BEGIN TEST CONFIG
hidden: true
points: 2
""" # END TEST CONFIG
def test_median_time_on_other_inputs(env):
    import sys
    GRADING_SEED = 1
    for module in [module for module in sys.modules if module.split(".")[0] == "fastdiff_lab"]:
        del sys.modules[module]  # whatever the notebook has changed in it
    from fastdiff_lab.exercises import check
    seed, name, answer = GRADING_SEED, "median_time", env.get("median_time")
    reports = [check(name, answer), check(name, answer, seed=seed)]
    for report in reports:
        assert report.passed, report

# %% [raw]
# # END TESTS

# %% [raw]
# # END QUESTION

# %% [markdown]
# Now for real: serial and parallel, one image and eight at once, in 20 steps. Before you run it: at which batch size does parallel decoding gain
# more? Explain to your neighbour what you see. (A device that one image leaves idle; a device that eight keep busy.)

# %%
prompts, seeds = fl.demo(8)
keys = fl.KeySchedule.paper(20)
seconds = {}
for name, method in {"baseline": fl.Method(), "serial": fl.Method(keys, parallel_decoding=False), "parallel": fl.Method(keys)}.items():
    for count in (1, 8):
        run = lambda: fl.sample(pipe, method, prompts[:count], seeds[:count], num_inference_steps=20, guidance_scale=5.0)
        seconds[name, count] = median_time(run, time.perf_counter, 2) or float("nan")
table = pd.Series(seconds).unstack()
table.columns = [f"{count} at once, seconds" for count in table.columns]
table.loc[["baseline", "serial", "parallel"]].style.format(precision=2)

# %% [markdown]
# ## 4.2 How strong a ridge?
#
# Difficulty ●●●○○ · importance ●●●○○ · 15 minutes · 3 points
#
# **Goal**: let images that are left out judge a fit.
#
#
# A fit finds scalars $c$ with $\min_c \sum_i \lVert m_i - R_i^\top c\rVert^2 + \lambda \lVert c\rVert^2$. The *ridge* $\lambda$ keeps scalars small. On the images
# that were fitted, none at all is always best. So for each ridge, leave one image out and fit on the others. Measure the squared error of the one left
# out. Do that for each image and add. Return the ridge with the least sum.
#
# `terms` has shape (images, terms, numbers), `missed` (images, numbers). The scalars: $(\sum_i R_i R_i^\top + \lambda I)\, c = \sum_i R_i m_i$.

# %% [raw]
# # BEGIN QUESTION
# name: best_ridge
# points: 3
# all_or_nothing: true
# check_cell: false

# %% [markdown]
# <details>
# <summary>Hint</summary>
#
# `torch.einsum("itn,iun->tu", terms, terms)` is the sum of all products. Write a function of the scalars first, then two loops.
#
# </details>

# %% [raw]
# # BEGIN SOLUTION

# %%
def best_ridge(terms, missed, ridges):
    """Known tensors, what was missed, ridges to try -> the ridge that serves left-out images best."""
    # BEGIN SOLUTION
    def scalars(terms, missed, ridge):
        products = torch.einsum("itn,iun->tu", terms, terms)
        return torch.linalg.solve(products + ridge * torch.eye(len(products)), torch.einsum("itn,in->t", terms, missed))

    def left_out(ridge, image):
        others = [other for other in range(len(terms)) if other != image]
        return (missed[image] - scalars(terms[others], missed[others], ridge) @ terms[image]).square().sum()

    return min(ridges, key=lambda ridge: sum(left_out(ridge, image) for image in range(len(terms))))
    # END SOLUTION

# %% [raw]
# # END SOLUTION

# %%
check("best_ridge", best_ridge)

# %%
show("best_ridge", best_ridge)

# %% [raw]
# # BEGIN TESTS

# %%
""" # BEGIN TEST CONFIG
hidden: true
points: 3
""" # END TEST CONFIG
def test_best_ridge_on_other_inputs(env):
    import sys
    GRADING_SEED = 1
    for module in [module for module in sys.modules if module.split(".")[0] == "fastdiff_lab"]:
        del sys.modules[module]  # whatever the notebook has changed in it
    from fastdiff_lab.exercises import check
    seed, name, answer = GRADING_SEED, "best_ridge", env.get("best_ridge")
    reports = [check(name, answer), check(name, answer, seed=seed)]
    for report in reports:
        assert report.passed, report

# %% [raw]
# # END TESTS

# %% [raw]
# # END QUESTION

# %% [markdown]
# ## 4.3 A vendor reports three times the speed
#
# Difficulty ●●○○○ · importance ●●●●● · 15 minutes · 2 points
#
# **Goal**: name the control.
#
#
# A vendor's table has seconds and PSNR of its method, and says "3x faster". What is missing is every simpler method. You measured them: fewer steps,
# the reused prediction, DeepCache. Which of them **beat** the claim? They are at least as fast *and* at least as near to the baseline. Return their
# places, ascending, without the claim itself. An empty list means that the claim stands, so far.

# %% [raw]
# # BEGIN QUESTION
# name: beaten_by
# points: 2
# all_or_nothing: true
# check_cell: false

# %% [markdown]
# <details>
# <summary>Hint</summary>
#
# Two conditions, joined by *and*. `np.flatnonzero` gives the places at which both hold.
#
# </details>

# %% [raw]
# # BEGIN SOLUTION

# %%
def beaten_by(seconds, psnr, claim):
    """Seconds and PSNR of each method, the place of the claim -> the places of the methods that beat it."""
    # BEGIN SOLUTION
    able = (seconds <= seconds[claim]) & (psnr >= psnr[claim])
    return [int(place) for place in np.flatnonzero(able) if place != claim]
    # END SOLUTION

# %% [raw]
# # END SOLUTION

# %%
check("beaten_by", beaten_by)

# %%
show("beaten_by", beaten_by)

# %% [raw]
# # BEGIN TESTS

# %%
""" # BEGIN TEST CONFIG
hidden: true
points: 2
""" # END TEST CONFIG
def test_beaten_by_on_other_inputs(env):
    import sys
    GRADING_SEED = 1
    for module in [module for module in sys.modules if module.split(".")[0] == "fastdiff_lab"]:
        del sys.modules[module]  # whatever the notebook has changed in it
    from fastdiff_lab.exercises import check
    seed, name, answer = GRADING_SEED, "beaten_by", env.get("beaten_by")
    reports = [check(name, answer), check(name, answer, seed=seed)]
    for report in reports:
        assert report.passed, report

# %% [raw]
# # END TESTS

# %% [raw]
# # END QUESTION

# %% [markdown]
# Now judge ours. "Encoder propagation with nine derived keys is three times faster." Who beats it, on 128 pictures?

# %%
suite = fl.measured("suite/ddim-50/table")
claim = int(suite.index[suite["method"] == "features, derived 9, order 0"][0])
beaten = beaten_by(suite["seconds"].to_numpy(), suite["psnr"].to_numpy(), claim) or []
print("128 pictures:", fl.measured_with("suite/ddim-50"))
suite.loc[[claim, *beaten], ["method", "seconds", "psnr"]].style.hide(axis="index").format({"seconds": "{:.2f}", "psnr": "{:.1f}"})

# %% [markdown]
# ## What to remember
#
# - A time without its batch size and its warm-up says little.
# - A fit is judged by images that it has not seen.
# - A speed-up is a claim about a *control*. Ask: against fewer steps? Against a reused prediction? At which batch size, on how many pictures?
