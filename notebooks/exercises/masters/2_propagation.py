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
# name: 2_propagation
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
# # Exercises 2: propagation
#
# About 60 minutes; builds on notebooks [03](../03_encoder_propagation.ipynb) and [04](../04_parallel_decoding.ipynb).
#
# After this sheet you can write encoder propagation without its two classic bugs. You can compute the most that it can save.
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
# ## 2.1 Whose features?
#
# Difficulty ●○○○○ · importance ●●●●○ · 5 minutes · 1 point
#
# **Goal**: read a key schedule.
#
#
# The encoder runs at the key steps only. At every other step the decoder gets the features of the last key step before it. For `num_steps` steps and
# the list `keys` (ascending, beginning with 0): which key step's features does each step use? Return one key step per step.

# %% [raw]
# # BEGIN QUESTION
# name: key_of_each_step
# points: 1
# all_or_nothing: true
# check_cell: false

# %% [markdown]
# <details>
# <summary>Hint</summary>
#
# A key step uses its own features. For a step, take the largest key that is not larger than it.
#
# </details>

# %% [raw]
# # BEGIN SOLUTION

# %%
def key_of_each_step(num_steps, keys):
    """Number of steps and key steps -> for each step the key step whose features it uses."""
    # BEGIN SOLUTION
    return [max(key for key in keys if key <= step) for step in range(num_steps)]
    # END SOLUTION

# %% [raw]
# # END SOLUTION

# %%
check("key_of_each_step", key_of_each_step)

# %%
show("key_of_each_step", key_of_each_step)

# %% [raw]
# # BEGIN TESTS

# %%
""" # BEGIN TEST CONFIG
hidden: true
points: 1
""" # END TEST CONFIG
def test_key_of_each_step_on_other_inputs(env):
    import sys
    GRADING_SEED = 1
    for module in [module for module in sys.modules if module.split(".")[0] == "fastdiff_lab"]:
        del sys.modules[module]  # whatever the notebook has changed in it
    from fastdiff_lab.exercises import check
    seed, name, answer = GRADING_SEED, "key_of_each_step", env.get("key_of_each_step")
    reports = [check(name, answer), check(name, answer, seed=seed)]
    for report in reports:
        assert report.passed, report

# %% [raw]
# # END TESTS

# %% [raw]
# # END QUESTION

# %% [markdown]
# ### A UNet in two halves
#
# The next exercise needs the UNet's encoder and decoder apart, as in notebook 03. `now` is the time embedding of each row.

# %%
def embed(unet, t, rows):
    """The time embedding of each row, from the scheduler's time-step."""
    return unet.time_embedding(unet.time_proj(t.expand(len(rows))).to(rows.dtype))


def text_for(block, text):
    return {"encoder_hidden_states": text} if getattr(block, "has_cross_attention", False) else {}


def encode(unet, rows, now, text):
    """What the decoder needs: the skips and the bottleneck."""
    hidden = unet.conv_in(rows)
    skips = [hidden]
    for block in unet.down_blocks:
        hidden, more = block(hidden, now, **text_for(block, text))
        skips.extend(more)
    return skips, unet.mid_block(hidden, now, **text_for(unet.mid_block, text))


def decode(unet, skips, hidden, now, text):
    """The prediction of the noise, from an encoder's features."""
    end = len(skips)
    for block in unet.up_blocks:
        begin = end - len(block.resnets)
        hidden = block(hidden, tuple(skips[begin:end]), now, **text_for(block, text))
        end = begin
    return unet.conv_out(unet.conv_act(unet.conv_norm_out(hidden)))

# %% [markdown]
# ## 2.2 Find the bug
#
# Difficulty ●●●○○ · importance ●●●●● · 20 minutes · 3 points
#
# **Goal**: know what the decoder must be told at a step whose encoder does not run.
#
#
# This sampler with encoder propagation runs, and its images look reasonable. But its latents are not those of `fl.encoder_propagation` with the same keys. One line stands in the wrong place.
# Find it and mend it. (It is the same mistake that is easily made inside a UNet's `forward`.)

# %% [raw]
# # BEGIN QUESTION
# name: propagate
# points: 3
# all_or_nothing: true
# check_cell: false

# %% [markdown]
# <details>
# <summary>Hint</summary>
#
# Run `check`: it names what your latents are equal to. In which of the inputs of `decode` does a step between two keys differ from its key step? Everything else may be reused.
#
# </details>

# %% [raw]
# # BEGIN SOLUTION

# %%
# BEGIN SOLUTION NO PROMPT
def propagate(pipe, text, z, keys, num_steps, guidance):
    # text: [empty; prompt], (2 x images, tokens, width). z: the initial noise.
    # Returns the final latents.
    pipe.scheduler.set_timesteps(num_steps)
    for step, t in enumerate(pipe.scheduler.timesteps):
        rows = torch.cat([z, z])
        now = embed(pipe.unet, t, rows)
        if step in keys:
            skips, hidden = encode(pipe.unet, rows, now, text)
        without, with_prompt = decode(pipe.unet, skips, hidden, now, text).chunk(2)
        noise = without + guidance * (with_prompt - without)
        z = pipe.scheduler.step(noise, t, z).prev_sample
    return z
# END SOLUTION
""" # BEGIN PROMPT
def propagate(pipe, text, z, keys, num_steps, guidance):
    # text: [empty; prompt], (2 x images, tokens, width). z: the initial noise.
    # Returns the final latents.
    pipe.scheduler.set_timesteps(num_steps)
    for step, t in enumerate(pipe.scheduler.timesteps):
        rows = torch.cat([z, z])
        if step in keys:
            now = embed(pipe.unet, t, rows)
            skips, hidden = encode(pipe.unet, rows, now, text)
        without, with_prompt = decode(pipe.unet, skips, hidden, now, text).chunk(2)
        noise = without + guidance * (with_prompt - without)
        z = pipe.scheduler.step(noise, t, z).prev_sample
    return z
""" # END PROMPT

# %% [raw]
# # END SOLUTION

# %%
check("propagate", propagate)

# %%
show("propagate", propagate)

# %% [raw]
# # BEGIN TESTS

# %%
""" # BEGIN TEST CONFIG
hidden: true
points: 3
""" # END TEST CONFIG
def test_propagate_on_other_inputs(env):
    import sys
    GRADING_SEED = 1
    for module in [module for module in sys.modules if module.split(".")[0] == "fastdiff_lab"]:
        del sys.modules[module]  # whatever the notebook has changed in it
    from fastdiff_lab.exercises import check
    seed, name, answer = GRADING_SEED, "propagate", env.get("propagate")
    reports = [check(name, answer), check(name, answer, seed=seed)]
    import numpy as np
    from fastdiff_lab.exercises.propagation import run_of
    rng = np.random.default_rng(seed)
    reports.append(check(name, answer, inputs=[run_of(rng, 3, [0, 1, 3], 5, 3.0)]))
    for report in reports:
        assert report.passed, report

# %% [raw]
# # END TESTS

# %% [raw]
# # END QUESTION

# %% [markdown]
# ## 2.3 Parallel decoding under guidance
#
# Difficulty ●●●●○ · importance ●●●●● · 25 minutes · 3 points
#
# **Goal**: put the rows of several steps into one batch, and get them out again.
#
#
# All steps of a group use the same features, so they can be decoded in **one** call. Under guidance each step has two rows per image, the halves `[empty; prompt]`.
#
# - `decode(features, text, time_steps)` gives a prediction for each row of a batch (rows, channels, height, width). All three need as many rows. `features` is a *list* of tensors,
#   `text` a tensor. `time_steps` is a tensor with one number per row.
# - `features` and `text` are those of the key step: 2 x images rows, first all empty, then all prompt.
# - `time_steps` are those of the group's n steps, a tensor of shape (n,).
#
# Call `decode` once. Return the guided predictions `without + guidance * (with_prompt - without)` as a tensor (n, images, channels, height, width). The order of the rows inside the batch is yours to choose, but one for all three. `show` draws whose features, text and time-step each row has.

# %% [raw]
# # BEGIN QUESTION
# name: decode_group
# points: 3
# all_or_nothing: true
# check_cell: false

# %% [markdown]
# <details>
# <summary>Hint</summary>
#
# `tensor.repeat(n, 1, 1, 1)` puts the whole block of rows n times one after the other, `tensor.repeat_interleave(n, 0)` each row n times. If features and text are repeated block by block, each
# time-step has to stand `rows` times in a row. What comes out is `n` blocks: `.unflatten(0, (n, rows))`, and then the halves lie along the second axis.
#
# </details>

# %% [raw]
# # BEGIN SOLUTION

# %%
def decode_group(decode, features, text, time_steps, guidance):
    """A key step's features and text, and n time-steps -> guided predictions (n, images, channels, height, width)."""
    # BEGIN SOLUTION
    n, rows = len(time_steps), len(text)
    batch = [feature.repeat(n, 1, 1, 1) for feature in features]
    predictions = decode(batch, text.repeat(n, 1, 1), time_steps.repeat_interleave(rows))
    without, with_prompt = predictions.unflatten(0, (n, rows)).chunk(2, dim=1)
    return without + guidance * (with_prompt - without)
    # END SOLUTION

# %% [raw]
# # END SOLUTION

# %%
check("decode_group", decode_group)

# %%
show("decode_group", decode_group)

# %% [raw]
# # BEGIN TESTS

# %%
""" # BEGIN TEST CONFIG
hidden: true
points: 3
""" # END TEST CONFIG
def test_decode_group_on_other_inputs(env):
    import sys
    GRADING_SEED = 1
    for module in [module for module in sys.modules if module.split(".")[0] == "fastdiff_lab"]:
        del sys.modules[module]  # whatever the notebook has changed in it
    from fastdiff_lab.exercises import check
    seed, name, answer = GRADING_SEED, "decode_group", env.get("decode_group")
    reports = [check(name, answer), check(name, answer, seed=seed)]
    for report in reports:
        assert report.passed, report

# %% [raw]
# # END TESTS

# %% [raw]
# # END QUESTION

# %% [markdown]
# ## 2.4 The ceiling
#
# Difficulty ●●○○○ · importance ●●●●○ · 10 minutes · 2 points
#
# **Goal**: say what can be gained at most, before measuring anything.
#
#
# One call of a UNet costs `encoder` + `decoder` + `rest` operations; `rest` is the time embedding. With encoder propagation the encoder runs at `num_keys` of `num_steps` steps. The decoder runs at
# every step, and so does the embedding. How many times fewer operations are that than the baseline? (1 means nothing is gained.) Where time goes with arithmetic, this is the highest speed-up.

# %% [raw]
# # BEGIN QUESTION
# name: flop_ceiling
# points: 2
# all_or_nothing: true
# check_cell: false

# %% [markdown]
# <details>
# <summary>Hint</summary>
#
# Write down the operations of the baseline and of the accelerated run, and divide.
#
# </details>

# %% [raw]
# # BEGIN SOLUTION

# %%
def flop_ceiling(encoder, decoder, rest, num_steps, num_keys):
    """Operations of the parts of one call, steps and key steps -> baseline operations / accelerated operations."""
    # BEGIN SOLUTION
    baseline = num_steps * (encoder + decoder + rest)
    accelerated = num_keys * encoder + num_steps * (decoder + rest)
    return baseline / accelerated
    # END SOLUTION

# %% [raw]
# # END SOLUTION

# %%
check("flop_ceiling", flop_ceiling)

# %%
show("flop_ceiling", flop_ceiling)

# %% [raw]
# # BEGIN TESTS

# %%
""" # BEGIN TEST CONFIG
hidden: true
points: 2
""" # END TEST CONFIG
def test_flop_ceiling_on_other_inputs(env):
    import sys
    GRADING_SEED = 1
    for module in [module for module in sys.modules if module.split(".")[0] == "fastdiff_lab"]:
        del sys.modules[module]  # whatever the notebook has changed in it
    from fastdiff_lab.exercises import check
    seed, name, answer = GRADING_SEED, "flop_ceiling", env.get("flop_ceiling")
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
# - The decoder gets the *key's* features and *its own* time-step. Tell it the key's, and all you have is a reused prediction.
# - Rows of a batch carry features, text and time-step: sort all three alike. No shape tells when you did not.
# - Even without any encoder, the decoder's operations remain. A third of the arithmetic saved is a speed-up of 1.5, not more.
