"""Draw what an answer does on the embedded pipeline."""

from __future__ import annotations

import html
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch
from IPython.display import HTML
from matplotlib.figure import Figure
from torch import Tensor

from .. import plot
from ..calibration.derive import optimal_keys
from ..hooks.flops import count_flops
from ..key_schedule import KeySchedule
from ..pipelines import embedded_costs
from ..recording.record import record
from ..sampling.methods import decode, denoiser_arguments, generators
from . import contest
from .answer_values import as_arrays, own_copy
from .hooks_and_features import COLLECT_SKIPS, pipeline
from .hooks_and_features import EXERCISES as FEATURES
from .propagation import EXERCISES as PROPAGATION
from .propagation import group_of, library_run, run_of
from .schedules import EXERCISES as SCHEDULES
from .schedules import cost_of
from .time_fit_and_claims import EXERCISES as JUDGING
from .time_fit_and_claims import Stopwatch, left_out_errors

PROMPT = "a large red star at the left on a blue background"
STEPS = 50
LAYERS = ("down_blocks.1", "mid_block", "up_blocks.2")
YOURS: dict[str, Any] = {"color": plot.PETROFF[0], "label": "yours"}
EXPECTED: dict[str, Any] = {"color": "black", "linestyle": ":", "label": "expected"}
_EXPECTED = {exercise.name: exercise.expected for exercise in (*FEATURES, *PROPAGATION, *SCHEDULES, *JUDGING)}


class NothingToDrawError(Exception):
    """The answer's result cannot be drawn."""


def show(name: str, answer: Any) -> HTML:
    """Draw what an answer does: a curve, the rows of a batch, images with differences, a path through costs.

    >>> show("relative_change", my_function)  # doctest: +SKIP

    Arguments as for `check`. An answer that cannot be drawn gives a sentence that says why. Raises ValueError for an unknown name.
    """
    if name not in DRAWN:
        raise ValueError(f"no exercise is called {name!r}; there are: {', '.join(DRAWN)}")
    try:
        with torch.no_grad():
            figure, alt = DRAWN[name](answer)
    except NothingToDrawError as error:
        return _sentence(str(error))
    except Exception as error:
        return _sentence(f"{type(error).__name__}: {error}")
    return plot.show(figure, alt)


def _sentence(reason: str) -> HTML:
    return HTML(f"<p>Nothing to draw yet: {html.escape(reason)}. <code>check</code> says more.</p>")


def _numbers(value: Any, shape: tuple[int, ...] | None = None) -> np.ndarray:
    found = as_arrays(value)
    if not isinstance(found, np.ndarray) or (shape is not None and found.shape != shape):
        what = f"shape {found.shape}" if isinstance(found, np.ndarray) else "no numbers"
        raise NothingToDrawError(f"your function gave {what}" + (f", expected shape {shape}" if shape else ", expected numbers"))
    return found


@cache
def _recording() -> Any:
    pipe = pipeline()
    with record(pipe, keep=list(LAYERS)) as recording:
        pipe(PROMPT, num_inference_steps=STEPS, guidance_scale=5.0, generator=generators([0]), output_type="latent")
    return recording


def _draw_change(answer: Callable) -> tuple[Figure, str]:
    ax = (figure := plot.figure(6.5, 2.8)).subplots()
    for place, layer in enumerate((LAYERS[0], LAYERS[2])):
        features = _recording()[layer][0]
        mine = _numbers(answer(features.clone()), (STEPS - 1,))
        steps, dash = range(1, STEPS), ("-", "--")[place]
        ax.plot(steps, mine, color=plot.PETROFF[place], linestyle=dash, label=f"yours, {layer}")
        ax.plot(steps, _EXPECTED["relative_change"](features), color="black", linestyle=":")
    ax.set(xlabel="step", ylabel="relative change\n(no unit)", title="your function on a run of 50 steps; dotted: expected")
    ax.legend()
    return figure, "Relative change over the steps of an encoder and a decoder block, by the answer and as expected"


def _draw_skips(answer: Callable) -> tuple[Figure, str]:
    pipe = pipeline()
    arguments = own_copy(denoiser_arguments(pipe, PROMPT))
    with COLLECT_SKIPS.rules(pipe.unet, arguments):  # remove hooks that the answer left
        given = answer(pipe.unet, arguments)
    skips = list(given.values() if isinstance(given, dict) else given or ())
    if not skips or not all(isinstance(skip, Tensor) and skip.dim() == 4 for skip in skips):
        raise NothingToDrawError("expected a list of tensors (rows, channels, height, width)")
    figure = plot.figure(9, 1.5 * -(-len(skips) // 6) + 0.4)
    axes = figure.subplots(-(-len(skips) // 6), 6, squeeze=False).flat
    for place, ax in enumerate(axes):
        ax.set(xticks=[], yticks=[])
        if place < len(skips):
            ax.imshow(skips[place][-1].float().square().mean(0).sqrt(), cmap="cividis", interpolation="nearest")
            ax.set_title(f"skip {place}: {tuple(skips[place].shape)}", fontsize=6)
        else:
            ax.axis("off")
    kib = sum(skip.nbytes for skip in skips) / 1024
    figure.suptitle(f"{len(skips)} skips, {kib:.0f} KiB for one call; root mean square over channels", fontsize="small")
    return figure, f"{len(skips)} skips as maps, each the root mean square over its channels"


def _draw_similarity(answer: Callable) -> tuple[Figure, str]:
    features = _recording()["mid_block"][0]
    mine, right = _numbers(answer(features.clone()), (STEPS, STEPS)), _EXPECTED["step_similarity"](features)
    figure = plot.figure(8, 3.4)
    for ax, matrix, title in zip(figure.subplots(1, 2), (mine, right), ("yours", "expected"), strict=True):
        plot.similarity_matrix(matrix, ax, vmin=float(right.min())).set_title(f"mid_block, {title}")
    return figure, "Cosine similarity of the bottleneck's features at every two steps, by the answer and as expected"


def _draw_keys(answer: Callable) -> tuple[Figure, str]:
    ax = (figure := plot.figure(7, 2.8)).subplots()
    schedule = KeySchedule.paper(STEPS)
    mine = _numbers(answer(STEPS, list(schedule.keys)), (STEPS,))
    ax.step(range(STEPS), mine, where="post", **YOURS)
    ax.step(range(STEPS), _EXPECTED["key_of_each_step"](STEPS, schedule.keys), where="post", **EXPECTED)
    ax.plot(schedule.keys, schedule.keys, "s", color="black", label="key steps")
    ax.set(xlabel="step", ylabel="key step whose\nfeatures it uses", title=f"the paper's keys {schedule}")
    ax.legend()
    return figure, "For each of 50 steps the key step whose features it uses, by the answer and as expected, as stairs"


def _draw_propagation(answer: Callable) -> tuple[Figure, str]:
    keys, steps = [0, 2, 4, 7, 11, 15], 20
    given = run_of(np.random.default_rng(5), 1, keys, steps, 5.0)
    mine = answer(*own_copy(given))
    if not isinstance(mine, Tensor) or mine.shape != given[2].shape:
        raise NothingToDrawError(f"expected final latents, a tensor {tuple(given[2].shape)}")
    pipe, text, z = given[:3]
    columns = {
        "library": library_run(*given),
        "yours": mine,
        "baseline": library_run(pipe, text, z, None, steps, 5.0),
        "prediction reused": library_run(pipe, text, z, keys, steps, 5.0, "prediction"),
    }
    grid = plot.image_grid({name: decode(pipe, latents) for name, latents in columns.items()}, plot.figure(6.5, 3.6))
    apart = float((mine - columns["library"]).abs().max())
    grid.suptitle(
        f"{len(keys)} encoder calls of {steps}; largest difference of the latents to the library's: {apart:.1e}", fontsize="small"
    )
    return grid, "The image of the library, the answer, the baseline and a reused prediction, with differences to the first"


def _draw_rows(answer: Callable) -> tuple[Figure, str]:
    decoder, features, text, time_steps, guidance = group_of(np.random.default_rng(1), 2, 3, 4, 4)
    answer(decoder, own_copy(features), text.clone(), time_steps.clone(), guidance)
    if not decoder.calls:
        raise NothingToDrawError("your function did not call decode")
    ax = (figure := plot.figure(9, 2.6)).subplots()
    names = ["empty 0", "empty 1", "prompt 0", "prompt 1"]
    place = 0
    for call, (given, said, times) in enumerate(decoder.calls):
        for row in range(len(said)):
            feature, words = (_which(value[row], known) for value, known in ((given[0], features[0]), (said, text)))
            step = int((time_steps == times[row]).nonzero()[0])
            ax.bar(place, 1, 0.92, color=plot.PETROFF[step], alpha=0.5, edgecolor="black", hatch="" if feature == words else "xx")
            label = f"features: {names[feature]}\ntext: {names[words]}\nt = {times[row]:.0f}"
            ground = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1}
            ax.text(place, 0.5, label, ha="center", va="center", rotation=90, fontsize="small", bbox=ground)
            place += 1
        ax.axvline(place - 0.5, color="black", linewidth=2 if call < len(decoder.calls) - 1 else 0)
    ax.set(xlabel="row of the batch (colour: step; crossed: text of another row)", xticks=range(place), yticks=[])
    ax.set_title(
        f"{len(decoder.calls)} call of decode, {place} rows" if len(decoder.calls) == 1 else f"{len(decoder.calls)} calls of decode"
    )
    return figure, "The rows of the batch that the answer decodes: whose features, whose text and which time-step each has"


def _which(row: Tensor, known: Tensor) -> int:
    found = [place for place, one in enumerate(known) if torch.equal(row, one)]
    if not found:
        raise NothingToDrawError("a row of the batch has features or text that were not given")
    return found[0]


def _draw_ceiling(answer: Callable) -> tuple[Figure, str]:
    pipe = pipeline()
    count = count_flops(pipe.unet, denoiser_arguments(pipe, PROMPT))
    keys = range(1, STEPS + 1)
    parts = (count.encoder, count.decoder, count.rest)
    mine = _numbers([answer(*parts, STEPS, number) for number in keys], (STEPS,))
    ax = (figure := plot.figure(6, 2.8)).subplots()
    ax.plot(keys, mine, **YOURS)
    ax.plot(keys, [_EXPECTED["flop_ceiling"](*parts, STEPS, number) for number in keys], **EXPECTED)
    ax.axhline(count.total / (count.decoder + count.rest), color="0.6", linewidth=1, label="no encoder at all")
    ax.set(
        xlabel="key steps of 50",
        ylabel="baseline operations /\naccelerated operations",
        title=f"the embedded UNet; 9 keys: {mine[8]:.2f}",
    )
    ax.legend()
    return figure, "By how much the operations of the embedded UNet shrink, against the number of key steps"


@cache
def _spans() -> np.ndarray:
    return embedded_costs().spans()[0]


def _draw_cost(answer: Callable) -> tuple[Figure, str]:
    best = optimal_keys(_spans()[None], 9)[9][0]
    by_hand = KeySchedule(STEPS, (0, 3, 5, 8, 13, 20, 27, 34, 42))
    schedules = {"by hand": by_hand, "uniform 9": KeySchedule.uniform(STEPS, 9), "best 9": KeySchedule(STEPS, best)}
    mine = _numbers([answer(_spans().copy(), list(schedule.keys)) for schedule in schedules.values()], (3,))
    ax = (figure := plot.figure(6, 2.4)).subplots()
    ax.barh(list(schedules), mine, color=plot.PETROFF[0], label="yours")
    ax.plot([cost_of(_spans(), schedule.keys) for schedule in schedules.values()], range(3), "D", color="black", label="expected")
    ax.set(xlabel="cost (squared error of the final latents)")
    ax.legend()
    return figure, "Costs of three schedules with nine keys by the answer, and as expected"


def _draw_best(answer: Callable) -> tuple[Figure, str]:
    keys = [int(key) for key in _numbers(answer(_spans().copy(), 9))]
    mine = KeySchedule(STEPS, tuple(keys))
    best = optimal_keys(_spans()[None], 9)[9][1]
    ax = (figure := plot.figure(5.6, 4.4)).subplots()
    title = f"{mine}\n{len(keys)} keys cost {cost_of(_spans(), keys):.1f}; the best 9 cost {best:.1f}"
    plot.span_costs(np.sqrt(_spans()), ax, keys=keys).set_title(title, fontsize="small")
    return figure, f"The answer's schedule {mine} as stairs through the measured costs of spans"


def _draw_line(answer: Callable) -> tuple[Figure, str]:
    features, keys, until = _recording()["mid_block"][0], (10, 16), 26
    steps = range(keys[1], until)
    mine = [
        _numbers(answer(features[keys[0]].clone(), features[keys[1]].clone(), *keys, s), tuple(features[0].shape)) for s in steps
    ]
    apart = {"yours": mine, "reused": [features[keys[1]].numpy()] * len(mine)}
    ax = (figure := plot.figure(6, 2.8)).subplots()
    for place, (name, some) in enumerate(apart.items()):
        error = [np.linalg.norm(x - features[s].numpy()) / float(features[s].norm()) for x, s in zip(some, steps, strict=True)]
        ax.plot(steps, error, ("-", "--")[place], color=plot.PETROFF[place], label=name)
    right = [_EXPECTED["extrapolate"](features[keys[0]], features[keys[1]], *keys, s).numpy() for s in steps]
    ax.plot(
        steps,
        [np.linalg.norm(x - features[s].numpy()) / float(features[s].norm()) for x, s in zip(right, steps, strict=True)],
        **EXPECTED,
    )
    ax.set(xlabel=f"step (keys {keys[0]} and {keys[1]})", ylabel="distance to the true\nfeatures (share)", title="mid_block")
    ax.legend()
    return figure, "Relative distance of extrapolated and of reused features to the true ones, over the steps after the last key"


def _draw_times(answer: Callable) -> tuple[Figure, str]:
    seconds = [6.0, 1.1, 1.05, 9.0, 1.2, 1.1]
    watch = Stopwatch(seconds)
    mine = float(_numbers(answer(watch.run, watch.clock, 5), ()))
    ax = (figure := plot.figure(6, 2.6)).subplots()
    ax.bar(range(6), seconds, color="0.85", edgecolor="black")
    ax.axhline(mine, **YOURS)
    ax.axhline(float(np.median(seconds[1:])), **EXPECTED)
    ax.set(xlabel="run (the first loads and compiles, another one was disturbed)", ylabel="seconds")
    ax.legend()
    return figure, f"Six runs as bars, the answer's {mine:.2f} seconds and the expected median as lines"


def _draw_ridge(answer: Callable) -> tuple[Figure, str]:
    exercise = next(exercise for exercise in JUDGING if exercise.name == "best_ridge")
    *_, (terms, missed, ridges) = exercise.inputs(np.random.default_rng(1))
    mine = float(_numbers(answer(terms.clone(), missed.clone(), list(ridges)), ()))
    ax = (figure := plot.figure(6, 2.8)).subplots()
    ax.plot(ridges, left_out_errors(terms, missed, ridges), "o-", color="0.4", label="images left out")
    ax.axvline(mine, **YOURS)
    ax.axvline(_EXPECTED["best_ridge"](terms, missed, ridges), **EXPECTED)
    ax.set(xscale="log", xlabel="ridge", ylabel="squared error")
    ax.legend()
    return figure, f"Error of images that were left out over the ridge; the answer's ridge is {mine:g}"


def _draw_claim(answer: Callable) -> tuple[Figure, str]:
    seconds, psnr = np.array([2.4, 0.8, 1.0, 0.7, 1.6, 0.8]), np.array([60.0, 30.0, 33.0, 24.0, 44.0, 31.0])
    names = ["baseline", "the claim", "fewer steps, more of them", "fewer steps", "DeepCache", "prediction reused"]
    mine = {int(place) for place in _numbers(answer(seconds.copy(), psnr.copy(), 1))}
    ax = (figure := plot.figure(6, 3)).subplots()
    for place, name in enumerate(names):
        ax.plot(
            seconds[place], psnr[place], "D" if place == 1 else "o", color=plot.PETROFF[2 if place in mine else 0], markersize=8
        )
        ax.annotate(name, (seconds[place], psnr[place]), textcoords="offset points", xytext=(8, 4), fontsize="small")
    ax.set(xlabel="seconds", ylabel="PSNR to the baseline, dB", title="red: beats the claim, by your answer")
    ax.margins(0.2)
    return figure, "Six methods by seconds and nearness; those that beat the claim by the answer: " + ", ".join(
        names[place] for place in sorted(mine)
    )


def _draw_entry(entry: Any) -> tuple[Figure, str]:
    if not isinstance(entry, contest.ContestEntry):
        raise NothingToDrawError("expected a ContestEntry")
    tasks = contest.drawn_tasks(0, contest.PRACTICE)[:2]
    results = contest.practice(0) | contest.draw(pipeline(), {"yours": entry.method()}, tasks)
    columns = {
        name.replace(", ", ",\n"): [result.image for result in results[name][:2]]
        for name in ("baseline", "yours", *contest.well_known())
    }
    grid = plot.image_grid(columns, plot.figure(8, 6.4))
    grid.suptitle(f"yours: {entry.schedule}, {len(entry.schedule.keys)} encoder calls", fontsize="small")
    captions = "; ".join(caption for caption, _ in tasks)
    return grid, f"Images of {captions}: baseline, the entry and the schedules to beat, with differences to the first"


DRAWN: dict[str, Callable[[Any], tuple[Figure, str]]] = {
    "relative_change": _draw_change,
    "collect_skips": _draw_skips,
    "step_similarity": _draw_similarity,
    "key_of_each_step": _draw_keys,
    "propagate": _draw_propagation,
    "decode_group": _draw_rows,
    "flop_ceiling": _draw_ceiling,
    "schedule_cost": _draw_cost,
    "best_keys": _draw_best,
    "extrapolate": _draw_line,
    "median_time": _draw_times,
    "best_ridge": _draw_ridge,
    "beaten_by": _draw_claim,
    contest.NAME: _draw_entry,
}
