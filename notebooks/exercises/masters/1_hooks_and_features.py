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
# name: 1_hooks_and_features
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
# # Exercises 1: hooks and features
#
# About 40 minutes; builds on notebooks [01](../01_sampling_loop.ipynb) and [02](../02_encoder_and_decoder_features.ipynb).
#
# After this sheet you can measure how a layer's features change over the steps, and collect features from inside a model. You can say which steps could share them.
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
from fastdiff_lab.exercises import check, show

print(f"fastdiff_lab {fl.__version__}, torch {torch.__version__}, {torch.get_num_threads()} CPU threads")

# %% [markdown]
# The next cell is the only one that says which pipeline is used: the embedded one. The checks always use it.

# %%
pipe = fl.load_pipeline()
f"{type(pipe.unet).__name__} with {sum(p.numel() for p in pipe.unet.parameters()) / 1e6:.1f} M parameters"

# %% [markdown]
# ## 1.1 How much do features change?
#
# Difficulty ●○○○○ · importance ●●●●● · 10 minutes · 1 point
#
# **Goal**: compute the change that can be compared between layers.
#
#
# Features $F_0, F_1, \dots$ of one layer, one per step. How much does each change from the step before, *as a share of its size*?
#
# $$\frac{\lVert F_t - F_{t-1} \rVert}{\lVert F_{t-1} \rVert}, \qquad t = 1, 2, \dots$$
#
# `features` is a tensor of shape (steps, channels, height, width), step 0 first. The norm is over channels, height and width together. Return one number for each step but the first.

# %% [raw]
# # BEGIN QUESTION
# name: relative_change
# points: 1
# all_or_nothing: true
# check_cell: false

# %% [markdown]
# <details>
# <summary>Hint</summary>
#
# Flatten everything but the steps: `features.flatten(1)`. Then `features[1:]` and `features[:-1]` stand one step apart, and `.norm(dim=1)` gives a length per step.
#
# </details>

# %% [raw]
# # BEGIN SOLUTION

# %%
def relative_change(features):
    """Features (steps, channels, height, width) -> a number for each step but the first."""
    # BEGIN SOLUTION
    flat = features.flatten(1)
    return (flat[1:] - flat[:-1]).norm(dim=1) / flat[:-1].norm(dim=1)
    # END SOLUTION

# %% [raw]
# # END SOLUTION

# %%
check("relative_change", relative_change)

# %%
show("relative_change", relative_change)

# %% [raw]
# # BEGIN TESTS

# %%
""" # BEGIN TEST CONFIG
hidden: true
points: 1
""" # END TEST CONFIG
def test_relative_change_on_other_inputs(env):
    import sys
    GRADING_SEED = 1
    for module in [module for module in sys.modules if module.split(".")[0] == "fastdiff_lab"]:
        del sys.modules[module]  # whatever the notebook has changed in it
    from fastdiff_lab.exercises import check
    seed, name, answer = GRADING_SEED, "relative_change", env.get("relative_change")
    reports = [check(name, answer), check(name, answer, seed=seed)]
    for report in reports:
        assert report.passed, report

# %% [raw]
# # END TESTS

# %% [raw]
# # END QUESTION

# %% [markdown]
# ## 1.2 The skips of a UNet
#
# Difficulty ●●●○○ · importance ●●●●● · 20 minutes · 2 points
#
# **Goal**: get at what a model computes inside, without changing the model.
#
#
# The decoder gets one *skip* for each of its residual blocks. They are the output of `conv_in` and what the down blocks hand over. Stable Diffusion's UNet has 12, and so has
# the embedded one, which has the same topology. Collect them in **one** call of the UNet, `unet(**arguments)`. Keep the order in which the encoder makes them,
# and leave no hook behind.
#
# A forward hook is called with `(module, args, output)`. `unet.conv_in` gives a tensor. A down block gives two things: the features for the next block, and a tuple of skips.
# Your function must also do for a UNet with other numbers of blocks or layers.

# %% [raw]
# # BEGIN QUESTION
# name: collect_skips
# points: 2
# all_or_nothing: true
# check_cell: false

# %% [markdown]
# <details>
# <summary>Hint</summary>
#
# `handle = unet.conv_in.register_forward_hook(hook)`, and `handle.remove()` afterwards. `unet.down_blocks` can be looped over. One list, to which both kinds of hook add
# (`append` one tensor, `extend` by a tuple), keeps the order.
#
# </details>

# %% [raw]
# # BEGIN SOLUTION

# %%
def collect_skips(unet, arguments):
    """A UNet and the arguments of one call of it -> the list of its skips."""
    # BEGIN SOLUTION
    skips = []
    handles = [unet.conv_in.register_forward_hook(lambda module, args, output: skips.append(output))]
    for block in unet.down_blocks:
        handles.append(block.register_forward_hook(lambda module, args, output: skips.extend(output[1])))
    unet(**arguments)
    for handle in handles:
        handle.remove()
    return skips
    # END SOLUTION

# %% [raw]
# # END SOLUTION

# %%
check("collect_skips", collect_skips)

# %%
show("collect_skips", collect_skips)

# %% [raw]
# # BEGIN TESTS

# %%
""" # BEGIN TEST CONFIG
hidden: true
points: 2
""" # END TEST CONFIG
def test_collect_skips_on_other_inputs(env):
    import sys
    GRADING_SEED = 1
    for module in [module for module in sys.modules if module.split(".")[0] == "fastdiff_lab"]:
        del sys.modules[module]  # whatever the notebook has changed in it
    from fastdiff_lab.exercises import check
    seed, name, answer = GRADING_SEED, "collect_skips", env.get("collect_skips")
    reports = [check(name, answer), check(name, answer, seed=seed)]
    import numpy as np
    from fastdiff_lab.exercises.hooks_and_features import call_of, pipeline
    unet, rng = pipeline().unet, np.random.default_rng(seed)
    other = type(unet).from_config({**unet.config, "layers_per_block": (1, 3)[seed % 2]})  # not 12 skips
    reports.append(check(name, answer, inputs=[call_of(other, rng, 2, 16, 8), call_of(other, rng, 1, 9, 13)]))
    for report in reports:
        assert report.passed, report

# %% [raw]
# # END TESTS

# %% [raw]
# # END QUESTION

# %% [markdown]
# ## 1.3 Which steps look alike?
#
# Difficulty ●●○○○ · importance ●●●○○ · 10 minutes · 2 points
#
# **Goal**: compare directions instead of sizes.
#
#
# Two steps can share features if these point the same way. Compute the cosine of the angle between the features of every two steps,
#
# $$\frac{\langle F_s, F_t \rangle}{\lVert F_s \rVert \, \lVert F_t \rVert},$$
#
# as a matrix (steps, steps). `features` as in 1.1.

# %% [raw]
# # BEGIN QUESTION
# name: step_similarity
# points: 2
# all_or_nothing: true
# check_cell: false

# %% [markdown]
# <details>
# <summary>Hint</summary>
#
# Divide each flattened feature by its length; then all products of two of them are one matrix product.
#
# </details>

# %% [raw]
# # BEGIN SOLUTION

# %%
def step_similarity(features):
    """Features (steps, channels, height, width) -> cosine similarity of every two steps, (steps, steps)."""
    # BEGIN SOLUTION
    flat = features.flatten(1)
    unit = flat / flat.norm(dim=1, keepdim=True)
    return unit @ unit.T
    # END SOLUTION

# %% [raw]
# # END SOLUTION

# %%
check("step_similarity", step_similarity)

# %%
show("step_similarity", step_similarity)

# %% [raw]
# # BEGIN TESTS

# %%
""" # BEGIN TEST CONFIG
hidden: true
points: 2
""" # END TEST CONFIG
def test_step_similarity_on_other_inputs(env):
    import sys
    GRADING_SEED = 1
    for module in [module for module in sys.modules if module.split(".")[0] == "fastdiff_lab"]:
        del sys.modules[module]  # whatever the notebook has changed in it
    from fastdiff_lab.exercises import check
    seed, name, answer = GRADING_SEED, "step_similarity", env.get("step_similarity")
    reports = [check(name, answer), check(name, answer, seed=seed)]
    for report in reports:
        assert report.passed, report

# %% [raw]
# # END TESTS

# %% [raw]
# # END QUESTION

# %% [markdown]
# ## What to remember
#
# - A change that is to be compared between layers is a *share* of the feature's size.
# - Hooks reach into a model from outside; whoever registers one removes it.
# - The bottleneck's features point the same way for many neighbouring steps: encoder propagation lives on that. But look at the decoder's, too (notebook 02), before you leave out the encoder for this reason.
