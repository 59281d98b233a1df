"""Answers to the exercises: the masters' own, right ones written another way, and what a hidden test says of them."""

from __future__ import annotations

import re
import sys
from contextlib import contextmanager
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

import fastdiff_lab as fl
from fastdiff_lab.exercises import contest
from fastdiff_lab.exercises.checking import EXERCISES
from teaching.sheets import questions, read_master, solution, student

FOLDER = Path(__file__).parent.parent / "notebooks" / "exercises"
MASTERS = sorted((FOLDER / "masters").glob("*.py"))
DEAR = ("collect_skips", "propagate")  # their inputs are calls and runs of a UNet


def some_inputs(name: str, seed: int, latter: bool = False) -> list[tuple] | None:
    """All inputs of an exercise, and the first or latter half of those of a dear one."""
    given = list(EXERCISES[name].inputs(np.random.default_rng(seed)))
    half = len(given) // 2
    return given if name not in DEAR else given[half:] if latter else given[:half]


@cache
def names_of(path: Path, solved: bool) -> dict:
    """What a sheet's cells define, solved or as students get it, without its checks, images and timed runs."""
    notebook = (solution if solved else student)(read_master(path))
    space: dict = {}
    for cell in notebook.cells:
        if cell.cell_type == "code" and not cell.source.startswith(("check(", "show(")) and "fl.sample(" not in cell.source:
            exec(cell.source, space)
    return space


def answer(name: str, solved: bool = True):
    """The answer to an exercise: the solution's, or what students begin with."""
    path = next(path for path in MASTERS for question in questions(read_master(path)) if question.name == name)
    return names_of(path, solved)["entry" if name == contest.NAME else name]


def hidden_test(name: str):
    """The hidden test of an exercise, as a function of an answer, with a seed of its own."""
    (source,) = [test for path in MASTERS for q in questions(read_master(path)) if q.name == name for test in q.tests]
    seeded, count = re.subn(r"GRADING_SEED = \d+", "GRADING_SEED = 4711", source)
    space: dict = {}
    exec(seeded, space)
    assert count == 1
    run = next(value for key, value in space.items() if key.startswith("test_"))
    return lambda given: run({"entry" if name == contest.NAME else name: given})


@contextmanager
def modules_kept():
    """Hidden tests import the library anew; the other tests go on with theirs."""
    ours = {name: module for name, module in sys.modules.items() if name.split(".")[0] == "fastdiff_lab"}
    try:
        yield
    finally:
        for name in [name for name in sys.modules if name.split(".")[0] == "fastdiff_lab"]:
            del sys.modules[name]
        sys.modules.update(ours)


def skips_by_handles(unet, arguments):
    """A dictionary by block instead of a list, and hooks taken away in `finally`."""
    found = {}
    handles = [unet.conv_in.register_forward_hook(lambda m, a, out: found.__setitem__("conv_in", out))]
    for i, block in enumerate(unet.down_blocks):
        handles.append(block.register_forward_hook(lambda m, a, out, i=i: found.update({(i, k): s for k, s in enumerate(out[1])})))
    try:
        unet(**arguments)
    finally:
        for handle in handles:
            handle.remove()
    return found


def skips_by_layers(unet, arguments):
    """The last layer of each turn inside the down blocks instead of the blocks."""
    found, handles = [], []
    layers = [unet.conv_in]
    for block in unet.down_blocks:
        layers += list(getattr(block, "attentions", block.resnets)) + list(block.downsamplers or [])
    for layer in layers:
        handles.append(layer.register_forward_hook(lambda m, a, out: found.append(out[0] if isinstance(out, tuple) else out)))
    unet(**arguments)
    for handle in handles:
        handle.remove()
    return tuple(found)


def skips_from_the_decoder(unet, arguments):
    """What the up blocks are given, turned round."""
    found, handles = [], []
    for block in unet.up_blocks:
        hook = lambda m, a, kw: found.extend(reversed(kw["res_hidden_states_tuple"])) or None
        handles.append(block.register_forward_pre_hook(hook, with_kwargs=True))
    unet(**arguments)
    for handle in handles:
        handle.remove()
    return [skip.numpy() for skip in reversed(found)]


def propagate_in_two_calls(pipe, text, z, keys, num_steps, guidance):
    """Each half of guidance in a call of its own."""
    space = names_of(MASTERS[1], True)
    embed, encode, decode = space["embed"], space["encode"], space["decode"]
    pipe.scheduler.set_timesteps(num_steps)
    half, reused = len(text) // 2, {}
    for step, t in enumerate(pipe.scheduler.timesteps):
        noise = []
        for part in (text[:half], text[half:]):
            now = embed(pipe.unet, t, z)
            if step in set(keys):
                reused[len(noise)] = encode(pipe.unet, z, now, part)
            noise.append(decode(pipe.unet, *reused[len(noise)], now, part))
        z = pipe.scheduler.step(noise[0] + guidance * (noise[1] - noise[0]), t, z, return_dict=False)[0]
    return z


def propagate_by_groups(pipe, text, z, keys, num_steps, guidance):
    """A loop over groups, then over their steps."""
    space = names_of(MASTERS[1], True)
    pipe.scheduler.set_timesteps(num_steps)
    times = pipe.scheduler.timesteps
    for begin, end in zip(keys, [*keys[1:], num_steps], strict=True):
        rows = z.repeat(2, 1, 1, 1)
        skips, hidden = space["encode"](pipe.unet, rows, space["embed"](pipe.unet, times[begin], rows), text)
        for t in times[begin:end]:
            empty, prompted = space["decode"](pipe.unet, skips, hidden, space["embed"](pipe.unet, t, rows), text).chunk(2)
            z = pipe.scheduler.step(torch.lerp(empty, prompted, guidance), t, z).prev_sample
    return z


def propagate_in_numbers(*given):
    """The same latents as a nested list."""
    return propagate_by_groups(*given).tolist()


def rows_each_repeated(decode, features, text, time_steps, guidance):
    """Each row n times, instead of the block of rows n times."""
    n, rows = len(time_steps), len(text)
    batch = [feature.repeat_interleave(n, 0) for feature in features]
    out = decode(batch, text.repeat_interleave(n, 0), time_steps.repeat(rows)).unflatten(0, (rows, n)).transpose(0, 1)
    return out[:, : rows // 2] + guidance * (out[:, rows // 2 :] - out[:, : rows // 2])


def rows_by_halves(decode, features, text, time_steps, guidance):
    """All steps of the empty half first, as the paper's code sorts them."""
    n, half = len(time_steps), len(text) // 2
    tile = lambda x: torch.cat([torch.cat([part] * n) for part in (x[:half], x[half:])])
    out = decode([tile(feature) for feature in features], tile(text), time_steps.repeat_interleave(half).repeat(2))
    unguided, guided = (part.reshape(n, half, *part.shape[1:]) for part in out.split(n * half))
    return ((1 - guidance) * unguided + guidance * guided).numpy()


def rows_in_a_list(decode, features, text, time_steps, guidance):
    """Stacked by hand, given as a list of steps; time-steps as a column."""
    n = len(time_steps)
    out = decode([torch.cat([f] * n) for f in features], torch.cat([text] * n), torch.stack([time_steps] * len(text), 1).flatten())
    parts = [block.chunk(2) for block in out.chunk(n)]
    return [empty + guidance * (prompted - empty) for empty, prompted in parts]


def best_by_recursion(costs, num_keys):
    """From the end, with memory."""
    steps, lengths = costs.shape

    @cache
    def rest(begin, groups):
        if groups == 0:
            return (0.0, ()) if begin == steps else (np.inf, ())
        tails = [
            (costs[begin, n] + (later := rest(begin + n, groups - 1))[0], later[1]) for n in range(1, lengths) if begin + n <= steps
        ]
        cost, keys = min(tails, default=(np.inf, ()))
        return cost, (begin, *keys)

    return rest(0, num_keys)[1]


def best_by_matrices(c, k):
    """Min-plus products, and the way back."""
    steps = len(c)
    full = np.full((steps + 1, steps + 1), np.inf)
    for i in range(steps):
        for length in range(1, c.shape[1]):
            if i + length <= steps:
                full[i, i + length] = c[i, length]
    reach = [np.where(np.arange(steps + 1) == 0, 0.0, np.inf)]
    for _ in range(k):
        reach.append((reach[-1][:, None] + full).min(axis=0))
    end, keys = steps, []
    for before in reversed(reach[:-1]):
        end = int((before + full[:, end]).argmin())
        keys.append(end)
    return torch.tensor(keys[::-1])


class BestByPaths:
    """A callable object; all cheapest paths are carried along."""

    def __call__(self, costs, count):
        paths = {0: (0.0, [])}
        for _ in range(count):
            longer = {}
            for at, (cost, keys) in paths.items():
                for n in range(1, min(costs.shape[1], len(costs) - at + 1)):
                    candidate = (cost + costs[at, n], [*keys, at])
                    if candidate[0] < longer.get(at + n, (np.inf,))[0]:
                        longer[at + n] = candidate
            paths = longer
        return np.array(paths[len(costs)][1])


def changes_in_a_loop(f):
    return [float(torch.linalg.vector_norm(b - a) / torch.linalg.vector_norm(a)) for a, b in pairwise(f)]


def changes_in_numpy(x):
    x = x.numpy().reshape(len(x), -1).astype(float)
    return np.sqrt(((x[1:] - x[:-1]) ** 2).sum(1) / (x[:-1] ** 2).sum(1))


def time_in_numpy(run, clock, repeats):
    """All readings in one list, the first run among them."""
    readings = [clock()]
    for _ in range(repeats + 1):
        run()
        readings.append(clock())
    return np.median(np.diff(readings)[1:])


def time_sorted(f, now, n):
    """The middle of a sorted list."""
    f()
    taken = sorted(-now() + (f(), now())[1] for _ in range(n))
    return torch.tensor((taken[(n - 1) // 2] + taken[n // 2]) / 2, dtype=torch.float64)


def time_by_statistics(run, clock, repeats):
    import statistics

    seconds = [(clock(), run(), clock()) for _ in range(1 + repeats)]
    return statistics.median(after - before for before, _, after in seconds[1:])


def ridge_in_numpy(terms, missed, ridges):
    """Long rows instead of sums of products, and a pseudo-row per scalar for the ridge."""
    terms, missed = terms.numpy().astype(float), missed.numpy().astype(float)
    errors = np.zeros(len(ridges))
    for image in range(len(terms)):
        kept = np.arange(len(terms)) != image
        rows = terms[kept].transpose(0, 2, 1).reshape(-1, terms.shape[1])
        for place, ridge in enumerate(ridges):
            padded = np.vstack([rows, np.sqrt(ridge) * np.eye(terms.shape[1])])
            wanted = np.concatenate([missed[kept].ravel(), np.zeros(terms.shape[1])])
            scalars = np.linalg.lstsq(padded, wanted, rcond=None)[0]
            errors[place] += ((missed[image] - scalars @ terms[image]) ** 2).sum()
    return ridges[int(errors.argmin())]


def ridge_by_inverse(t, m, ridges):
    """Products of all images, less those of the one that is left out."""
    products, sides = t @ t.transpose(1, 2), (t @ m[..., None])[..., 0]
    best = {}
    for ridge in ridges:
        left = products.sum(0) - products + ridge * torch.eye(t.shape[1])
        scalars = torch.linalg.inv(left) @ (sides.sum(0) - sides)[..., None]
        best[ridge] = float((m - (t.transpose(1, 2) @ scalars)[..., 0]).pow(2).sum())
    return np.float64(min(best, key=best.get))


VARIANTS = {
    "relative_change": [changes_in_a_loop, changes_in_numpy, lambda f: f.diff(dim=0).flatten(1).norm(dim=1) / f[:-1].flatten(1).norm(dim=1)],
    "collect_skips": [skips_by_handles, skips_by_layers, skips_from_the_decoder],
    "step_similarity": [
        lambda f: torch.cosine_similarity(f.flatten(1)[:, None], f.flatten(1)[None], dim=-1),
        lambda x: [[float((a * b).sum() / (a.norm() * b.norm())) for b in x] for a in x],
        lambda f: (lambda u: np.einsum("id,jd->ij", u, u))(f.flatten(1).double().div(f.flatten(1).double().norm(dim=1)[:, None]).numpy()),
    ],
    "key_of_each_step": [
        lambda n, k: [x for a, b in zip(k, [*k[1:], n], strict=True) for x in [a] * (b - a)],
        lambda steps, keys: np.asarray(keys)[np.searchsorted(keys, np.arange(steps), side="right") - 1],
        lambda a, b: torch.tensor([group.start for group in fl.KeySchedule(a, tuple(b)).groups() for _ in group]),
    ],
    "propagate": [propagate_in_two_calls, propagate_by_groups, propagate_in_numbers],
    "decode_group": [rows_each_repeated, rows_by_halves, rows_in_a_list],
    "flop_ceiling": [
        lambda e, d, r, n, k: 1 / (1 - (n - k) * e / (n * (e + d + r))),
        lambda encoder, decoder, rest, steps, keys: np.float64(encoder + decoder + rest) / (encoder * keys / steps + decoder + rest),
        lambda *x: torch.tensor(x[3] * sum(x[:3]), dtype=torch.float64) / (x[3] * sum(x[:3]) - (x[3] - x[4]) * x[0]),
    ],
    "schedule_cost": [
        lambda c, k: sum(c[a, b - a] for a, b in zip(k, [*k, len(c)][1:], strict=True)),
        lambda costs, keys: costs[keys, np.diff([*keys, len(costs)])].sum(),
        lambda c, k: torch.tensor([float(c[a][n]) for a, n in zip(k, np.diff(np.append(k, len(c))), strict=True)], dtype=torch.float64).sum(),
    ],
    "best_keys": [best_by_recursion, best_by_matrices, BestByPaths()],
    "extrapolate": [
        lambda a, b, s, t, x: torch.lerp(a, b, (x - s) / (t - s)),
        lambda before, last, i, j, k: before * ((j - k) / (j - i)) + last * ((k - i) / (j - i)),
        lambda p, q, i, j, k: (p.numpy() + (q.numpy() - p.numpy()) / (j - i) * (k - i)).tolist(),
    ],
    "median_time": [time_in_numpy, time_sorted, time_by_statistics],
    "best_ridge": [ridge_in_numpy, ridge_by_inverse, lambda t, m, r: torch.tensor(ridge_in_numpy(t, m, r))],
    "beaten_by": [
        lambda s, p, c: [i for i, (a, b) in enumerate(zip(s, p, strict=True)) if i != c and a <= s[c] and b >= p[c]],
        lambda seconds, psnr, claim: np.setdiff1d(np.nonzero((seconds <= seconds[claim]) * (psnr >= psnr[claim]))[0], [claim]),
        lambda a, b, c: torch.tensor(sorted(set(np.argwhere(a <= a[c]).ravel()) & set(np.argwhere(b >= b[c]).ravel()) - {c})),
    ],
}  # fmt: skip
