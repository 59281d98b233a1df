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
# name: 3_schedules
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
# # Exercises 3: schedules
#
# About 75 minutes; builds on notebooks [05](../05_key_time_steps.ipynb), [06](../06_derive_a_schedule.ipynb) and [07](../07_is_it_worth_it.ipynb).
#
# After this sheet you can compute what a schedule costs, and find the best one exactly. You can extrapolate features, and compete with your own schedule.
#
# Each exercise has a cell with a gap (`...`). Fill it, run it, and run the two cells after it. `check` says what is wrong and what was expected;
# `show` draws what your answer does. Try for the minutes that are named before you open a hint. Try twice as long before you open the answer.
#
# `check` knows no single right way: tensors, arrays and lists are all welcome, and so are other names of arguments. Only the library may not answer
# for you: functions of `fastdiff_lab` that do what is asked are noticed.

# %%
import numpy as np
import torch

import fastdiff_lab as fl
from fastdiff_lab.exercises import ContestEntry, check, show

print(f"fastdiff_lab {fl.__version__}, torch {torch.__version__}, {torch.get_num_threads()} CPU threads")

# %% [markdown]
# The next cell is the only one that says which pipeline is used: the embedded one. The checks always use it.

# %%
pipe = fl.load_pipeline()
f"{type(pipe.unet).__name__} with {sum(p.numel() for p in pipe.unet.parameters()) / 1e6:.1f} M parameters"

# %% [markdown]
# ### Costs of spans
#
# Let the features of step `key` serve `length` steps: the key step itself and the `length - 1` steps after it. `costs[key, length]` says what that costs, as squared error of the final latents. A step alone costs nothing. Groups
# that would go beyond the last step cost `inf`. Groups longer than the table is wide were not measured; you will not be asked for them. These are the measured costs of the embedded pipeline:

# %%
costs = fl.embedded_costs().spans()[0]
print("costs[key, length]:", costs.shape)
costs[10, 1:6].round(4)

# %% [markdown]
# ## 3.1 What does a schedule cost?
#
# Difficulty ●○○○○ · importance ●●●●○ · 5 minutes · 1 point
#
# **Goal**: see a schedule as a chain of groups.
#
#
# `keys` are the key steps (ascending, beginning with 0). Each group goes from its key to the next. The last one goes to the end of the run, `len(costs)`. Return the sum of the costs of all groups.

# %% [raw]
# # BEGIN QUESTION
# name: schedule_cost
# points: 1
# all_or_nothing: true
# check_cell: false

# %% [markdown]
# <details>
# <summary>Hint</summary>
#
# Append the end of the run to the keys; then each group is a pair of neighbours.
#
# </details>

# %% [raw]
# # BEGIN SOLUTION

# %%
def schedule_cost(costs, keys):
    """Costs of spans (steps, max_span + 1) and key steps -> the sum over the groups."""
    # BEGIN SOLUTION
    ends = [*keys[1:], len(costs)]
    return sum(costs[key, end - key] for key, end in zip(keys, ends, strict=True))
    # END SOLUTION

# %% [raw]
# # END SOLUTION

# %%
check("schedule_cost", schedule_cost)

# %%
show("schedule_cost", schedule_cost)

# %% [raw]
# # BEGIN TESTS

# %%
""" # BEGIN TEST CONFIG
hidden: true
points: 1
""" # END TEST CONFIG
def test_schedule_cost_on_other_inputs(env):
    import sys
    GRADING_SEED = 1
    for module in [module for module in sys.modules if module.split(".")[0] == "fastdiff_lab"]:
        del sys.modules[module]  # whatever the notebook has changed in it
    from fastdiff_lab.exercises import check
    seed, name, answer = GRADING_SEED, "schedule_cost", env.get("schedule_cost")
    reports = [check(name, answer), check(name, answer, seed=seed)]
    for report in reports:
        assert report.passed, report

# %% [raw]
# # END TESTS

# %% [raw]
# # END QUESTION

# %% [markdown]
# ## 3.2 The dynamic programme
#
# Difficulty ●●●●● · importance ●●●●● · 30 minutes · 4 points
#
# **Goal**: find the best of millions of schedules exactly.
#
#
# Which `num_keys` key steps are cheapest? There are 450 million ways of choosing 9 of 50 (step 0 is always one). Nobody tries them all. Take the cheapest way to reach step $e$ with $k$ groups.
# It goes the cheapest way to some step $i$ with $k - 1$ groups, and then takes the group $(i, e)$:
#
# $$C_k(e) = \min_i \; C_{k-1}(i) + \text{costs}[i, e - i], \qquad C_0(0) = 0.$$
#
# Return the list of keys of the cheapest schedule, by this recursion. If several are equally cheap, any will do. Groups longer than the table (`costs.shape[1] - 1` steps) are not allowed, so look at none of them. (If a cell takes too long, stop it with the square button: `check` then tells you for which input.)

# %% [raw]
# # BEGIN QUESTION
# name: best_keys
# points: 4
# all_or_nothing: true
# check_cell: false

# %% [markdown]
# <details>
# <summary>Hint</summary>
#
# Keep two tables for each number of groups k and step e. One has the cheapest cost, the other the i with which it was reached. At the end start from e = number of steps and k = num_keys. Follow the i's back to 0. Every i on the way is a key.
#
# </details>

# %% [raw]
# # BEGIN SOLUTION

# %%
def best_keys(costs, num_keys):
    """Costs of spans (steps, max_span + 1) and the number of keys -> the list of the cheapest key steps."""
    # BEGIN SOLUTION
    steps, max_span = len(costs), costs.shape[1] - 1
    cheapest = np.full((num_keys + 1, steps + 1), np.inf)
    came_from = np.zeros((num_keys + 1, steps + 1), dtype=int)
    cheapest[0, 0] = 0
    for k in range(1, num_keys + 1):
        for end in range(1, steps + 1):
            for begin in range(max(0, end - max_span), end):
                cost = cheapest[k - 1, begin] + costs[begin, end - begin]
                if cost < cheapest[k, end]:
                    cheapest[k, end], came_from[k, end] = cost, begin
    keys, end = [], steps
    for k in range(num_keys, 0, -1):
        end = int(came_from[k, end])
        keys.insert(0, end)
    return keys
    # END SOLUTION

# %% [raw]
# # END SOLUTION

# %%
check("best_keys", best_keys)

# %%
show("best_keys", best_keys)

# %% [raw]
# # BEGIN TESTS

# %%
""" # BEGIN TEST CONFIG
hidden: true
points: 4
""" # END TEST CONFIG
def test_best_keys_on_other_inputs(env):
    import sys
    GRADING_SEED = 1
    for module in [module for module in sys.modules if module.split(".")[0] == "fastdiff_lab"]:
        del sys.modules[module]  # whatever the notebook has changed in it
    from fastdiff_lab.exercises import check
    seed, name, answer = GRADING_SEED, "best_keys", env.get("best_keys")
    reports = [check(name, answer), check(name, answer, seed=seed)]
    import numpy as np
    from fastdiff_lab.exercises.schedules import random_costs
    rng = np.random.default_rng(seed)
    reports.append(check(name, answer, inputs=[(random_costs(rng, 30, 12), count) for count in (3, 8, 29)]))
    for report in reports:
        assert report.passed, report

# %% [raw]
# # END TESTS

# %% [raw]
# # END QUESTION

# %% [markdown]
# ## 3.3 First-order extrapolation
#
# Difficulty ●●○○○ · importance ●●●●○ · 10 minutes · 2 points
#
# **Goal**: continue features instead of reusing them.
#
#
# Reusing features is order 0. Order 1 goes on along the straight line through the features of the last *two* key steps. They are `before` at step `key_before` and `last` at step `key_last`. Which features
# does the line give at `step`, which comes after `key_last`? The shape is that of `last`.

# %% [raw]
# # BEGIN QUESTION
# name: extrapolate
# points: 2
# all_or_nothing: true
# check_cell: false

# %% [markdown]
# <details>
# <summary>Hint</summary>
#
# The slope is the difference of the features by the difference of the steps. Begin at `last` and go `step - key_last` steps.
#
# </details>

# %% [raw]
# # BEGIN SOLUTION

# %%
def extrapolate(before, last, key_before, key_last, step):
    """Features at two key steps -> features at a later step, on the line through both."""
    # BEGIN SOLUTION
    return last + (last - before) * (step - key_last) / (key_last - key_before)
    # END SOLUTION

# %% [raw]
# # END SOLUTION

# %%
check("extrapolate", extrapolate)

# %%
show("extrapolate", extrapolate)

# %% [raw]
# # BEGIN TESTS

# %%
""" # BEGIN TEST CONFIG
hidden: true
points: 2
""" # END TEST CONFIG
def test_extrapolate_on_other_inputs(env):
    import sys
    GRADING_SEED = 1
    for module in [module for module in sys.modules if module.split(".")[0] == "fastdiff_lab"]:
        del sys.modules[module]  # whatever the notebook has changed in it
    from fastdiff_lab.exercises import check
    seed, name, answer = GRADING_SEED, "extrapolate", env.get("extrapolate")
    reports = [check(name, answer), check(name, answer, seed=seed)]
    for report in reports:
        assert report.passed, report

# %% [raw]
# # END TESTS

# %% [raw]
# # END QUESTION

# %% [markdown]
# ## 3.4 The contest: seven encoder calls
#
# Difficulty ●●●○○ · importance ●●●○○ · 30 minutes · 3 points
#
# **Goal**: use all of it where nobody knows the best answer.
#
#
# A run of DDIM with 50 steps may call the encoder **seven times**. Whose images come nearest to those of the baseline? What is handed in is a `ContestEntry`: a schedule, and if you like
#
# - `order` (0, 1, 2), as in `fl.Extrapolation`; so are the next three,
# - `damping` (0 to 1: the share of the way that is gone along the line),
# - `axis` ("step" or "log_snr") and `parts` ("all", "skips", "bottleneck"),
# - `prior_noise` (0 to 1; the paper's is 0.003).
#
# The score is the mean of the images' PSNR to the baseline's, in dB. Your teacher draws the captions and the noise from a seed that is named when all entries are in. So practise with several: `check("contest", entry, seed=3)`. Four images are few, and scores of one
# seed scatter by several dB. Look at more than one before you believe a difference. `check` passes what is no worse than the weakest of three well-known schedules; the contest begins there. `entry.save("name.json")` writes the file to hand in.

# %% [raw]
# # BEGIN QUESTION
# name: contest
# points: 3
# all_or_nothing: true
# check_cell: false

# %% [markdown]
# <details>
# <summary>Hint</summary>
#
# `fl.derive_schedule(fl.embedded_costs(), 7)` is a good beginning (also with `reduction="median"`). `fl.refine_schedule` moves keys by real runs. What does a small damping do to a derived schedule (`order=1, damping=0.2`)?
#
# </details>

# %% [raw]
# # BEGIN SOLUTION

# %%
# BEGIN SOLUTION NO PROMPT
entry = ContestEntry(fl.derive_schedule(fl.embedded_costs(), 7))
# END SOLUTION
""" # BEGIN PROMPT
entry = ContestEntry(fl.KeySchedule(50, [0, 1, 2, 3, 4, 5, 6]))
""" # END PROMPT

# %% [raw]
# # END SOLUTION

# %%
check("contest", entry)

# %%
show("contest", entry)

# %% [raw]
# # BEGIN TESTS

# %%
""" # BEGIN TEST CONFIG
hidden: true
points: 3
""" # END TEST CONFIG
def test_contest_on_other_inputs(env):
    import sys
    GRADING_SEED = 1
    for module in [module for module in sys.modules if module.split(".")[0] == "fastdiff_lab"]:
        del sys.modules[module]  # whatever the notebook has changed in it
    from fastdiff_lab.exercises import check
    seed, name, answer = GRADING_SEED, "contest", env.get("entry")
    from fastdiff_lab.exercises import ContestEntry
    answer = ContestEntry.from_json(answer.to_json())
    reports = [check(name, answer, seed=seed)]
    for report in reports:
        assert report.passed, report

# %% [raw]
# # END TESTS

# %% [raw]
# # END QUESTION

# %% [markdown]
# ## What to remember
#
# - A schedule is a path through the costs of its groups. The best path is found exactly, in an instant.
# - What is exact for the *sum* of costs need not be the best in a real run. That is why there is a contest.
# - Extrapolation can be nearer group by group and lose in a real run with few keys. It multiplies the errors of earlier groups.
# - Scores of few images scatter. Compare on the same captions and seeds, and on more than a handful.
