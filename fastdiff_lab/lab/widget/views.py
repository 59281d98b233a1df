"""Turn values of the lab into texts and numbers for the page, as JSON."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd
from PIL import Image

from ...calibration.reuse_costs import ReuseCosts
from ...comparison.fidelity import fidelity
from ...key_schedule import KeySchedule
from ...recording.analysis import feature_change
from ...recording.recording import Recording
from ..session.images import data_address, difference, tiled
from ..session.paired_run import ACCELERATED, BASELINE, Pair
from ..session.prediction import Prediction, Predictor
from ..session.race import Finish
from ..session.settings import keys_text

LOWEST, HIGHEST = 1e-3, 3.0  # errors outside are not drawn
IN_ROWS = 256  # pixels of images in the table of runs
FILM_PIXELS = 4096
JUDGED = "does the judge find every attribute of the prompt?"
NO_COSTS = "No reuse costs fit these settings."
NOT_JUDGED = (
    "No prompt accuracy: the judge reads the embedded pipeline's images of captions such as 'a red ring on a white background'."
)
NO_RECORDING = "No recording was given: schedule_lab(pipe, recording=...) shows it here."


def cards(prediction: Prediction) -> dict[str, Any]:
    """The numbers that change with every key, with a summary that is read aloud."""
    keys, steps = prediction.encoder_calls, prediction.steps
    error, gflops = _number(prediction.error, ".3g"), _number(prediction.gflops, ".1f")
    ceiling = prediction.time_ceiling
    timed = "each half timed alone; groups in parallel" if ceiling else "times each half alone, on this machine"
    shown = [
        _card("error", "Predicted error", error, "RMS of the final latents, whose spread is about 1"),
        _card("calls", "UNet calls", str(prediction.forward_calls), f"of {steps} in the baseline; encoder {_times_text(keys)}"),
        _card("gflops", "GFLOPs", gflops, f"of {_number(prediction.baseline_gflops, '.1f')} in the baseline"),
        _card("flop-ceiling", "Ceiling by operations", _times(prediction.flop_ceiling), "the speed-up if time were operations"),
        _card("time-ceiling", "Ceiling by time", _times(ceiling), timed, action="" if ceiling else "Measure"),
    ]
    summary = f"{keys_text(keys)}, predicted error {error}, {prediction.forward_calls} UNet calls, {gflops} GFLOPs"
    return {"cards": shown, "note": prediction.note, "summary": summary}


def _card(name: str, label: str, value: str, detail: str, action: str = "") -> dict[str, str]:
    return {"name": name, "label": label, "value": value, "detail": detail, "action": action}


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def _times_text(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


def _times(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}×"


def front(predictor: Predictor, costs: ReuseCosts | None, schedule: KeySchedule) -> dict[str, Any]:
    """The best schedules for each number of keys, beside uniform ones, the paper's, and the current one."""
    if costs is None:
        return {}
    errors = predictor.front(costs)["error"]
    best = [[int(keys), float(error)] for keys, error in errors.items() if error > 0]
    uniform = predictor.uniform(costs)
    paper, here, keys = _paper_point(predictor, costs), predictor.error(costs, schedule), len(schedule.keys)
    rows = [
        ["here", f"yours, {keys_text(keys)}", _number(here, ".3g")],
        ["best", f"derived, {keys_text(keys)}", _number(float(errors[keys]) if keys in errors else None, ".3g")],
        ["uniform", f"uniform, {keys_text(keys)}", _number(uniform.get(keys), ".3g")],
    ]
    if paper is not None:
        rows.append(["paper", f"paper's {paper[0]} keys", f"{paper[1]:.3g}"])
    drawn = [error for _, error in best] or [LOWEST]
    return {
        "best": best, "uniform": [[k, e] for k, e in uniform.items() if e > 0], "paper": paper,
        "here": [keys, here] if here else None, "rows": rows, "steps": costs.num_steps,
        "low": max(LOWEST, min(drawn)), "high": max(drawn), "summary": "; ".join(f"{label}: {value}" for _, label, value in rows),
    }  # fmt: skip


def _paper_point(predictor: Predictor, costs: ReuseCosts) -> list[Any] | None:
    try:
        paper = KeySchedule.of_paper(costs.num_steps)
    except ValueError:  # more keys than steps
        return None
    error = predictor.error(costs, paper)
    return None if error is None else [len(paper.keys), error]


def profiles(prediction: Prediction, schedule: KeySchedule, recording: Recording | None) -> dict[str, Any]:
    """What is drawn above the strip: the error of each group, and the measured change at each step."""
    spans: list[list[Any]] = [
        [group.start, group.stop, error if math.isfinite(error) else None]
        for group, error in zip(schedule.groups(), prediction.groups, strict=False)
    ]
    worst = max((span for span in spans if span[2]), key=lambda span: span[2], default=None)
    summary = f"Largest: steps {worst[0]} to {worst[1] - 1}, {worst[2]:.2g}" if worst else "All are 0"
    cost = {
        "title": "error of each group", "axis": "error", "unit": "predicted error (RMS of the final latents)", "spans": spans,
        "low": LOWEST, "high": HIGHEST, "note": NO_COSTS, "summary": summary,
    }  # fmt: skip
    return {"cost": cost, "change": change_profile(recording, schedule.num_steps)}


def change_profile(recording: Recording | None, num_steps: int) -> dict[str, Any]:
    """The relative change of the encoder's features at each step, mean over layers and samples."""
    empty = {"title": "measured change", "axis": "change", "unit": "relative change of the encoder's features", "spans": []}
    if recording is None or not recording.num_samples:
        return empty | {"note": NO_RECORDING}
    if recording.num_steps != num_steps:
        return empty | {"note": f"The recording has {recording.num_steps} steps, this run {num_steps}."}
    table = feature_change(recording, "relative")
    change = table[table["part"] == "encoder"].groupby("step")["value"].mean()
    spans = [[int(step), int(step) + 1, float(value)] for step, value in change.items()]
    summary = f"Largest at step {int(change.idxmax())}"
    return empty | {"spans": spans, "low": float(change.min()) / 2, "high": float(change.max()) * 1.2, "summary": summary}


def result(pair: Pair, prediction: Prediction) -> dict[str, Any]:
    """The result as rows of baseline and accelerated run, with sentences on what needs one."""
    counts, right = pair.accelerated.counts, pair.prompt_right or {}
    baseline, accelerated = pair.baseline.seconds, pair.accelerated.seconds
    gflops = _number(prediction.baseline_gflops, ".1f"), _number(prediction.gflops, ".1f")
    rows = [
        ["seconds", f"{baseline:.2f}", f"{accelerated:.2f} ({baseline / accelerated:.2f}×)", "up to the latents, without previews"],
        ["UNet calls", str(pair.baseline.counts.forward_calls), str(counts.forward_calls), "calls of the denoiser's own forward"],
        ["GFLOPs", *gflops, "2 per multiply-add"],
        ["PSNR, dB", "", psnr_text(pair.psnr), "of the image, to the baseline's"],
        ["SSIM", "", f"{pair.ssim:.3f}", "of the image, to the baseline's"],
        ["latent error", "", f"{pair.latent_error:.3g}", "root mean square, of a value of the final latents"],
        ["  predicted", "", _number(prediction.error, ".3g"), "before the run, averaged over other images"],
    ]
    if right:
        rows.append(["prompt right", _yes(right[BASELINE]), _yes(right[ACCELERATED]), JUDGED])
    notes = ["The baseline was made before." if pair.baseline_was_known else "", "" if right else NOT_JUDGED]
    notes.append(_above_ceiling(baseline / accelerated, prediction.flop_ceiling))
    return {"rows": rows, "note": " ".join(filter(None, notes))}


def _above_ceiling(ratio: float, ceiling: float | None) -> str:
    """Why a run may be faster than its operations allow."""
    if ceiling is None or ratio <= ceiling:
        return ""
    return (
        f"{ratio:.2f}× is more than the ceiling by operations, {ceiling:.2f}×: a call that decodes several steps at once uses the processor "
        "better, so time is not operations here."
    )


def psnr_text(psnr: float) -> str:
    return "identical" if math.isinf(psnr) else f"{psnr:.1f}"


def psnr_words(psnr: float) -> str:
    return "identical images" if math.isinf(psnr) else f"PSNR {psnr:.1f} dB"


def _yes(value: bool | None) -> str:
    return {True: "yes", False: "no"}.get(value, "–") if value is not None else "–"


def images(pair: Pair, most: int = 512) -> dict[str, dict[str, str]]:
    """The addresses of both images and of their difference, at most so many pixels a side."""
    shown = pair.images
    apart = difference(shown[ACCELERATED], shown[BASELINE])
    prompt = pair.settings.prompt[:200]
    words = f"their difference, four times as bright; {psnr_words(pair.psnr)}"
    return {
        BASELINE: {"address": data_address(shown[BASELINE], most), "alt": f"baseline: {prompt}"},
        ACCELERATED: {"address": data_address(shown[ACCELERATED], most), "alt": f"accelerated run: {prompt}"},
        "difference": {"address": data_address(apart, most), "alt": words},
    }


def film(pair: Pair) -> dict[str, Any]:
    """The clean images that both runs predicted on their way, as tiles; how near they were to each other and to the end."""
    steps = list(pair.films[BASELINE])
    seen = {side: list(pair.films[side].values()) for side in (BASELINE, ACCELERATED)}
    tiles = {side: tiled(images) for side, images in seen.items()}
    ends = {side: [_psnr(image, images[-1]) for image in images] for side, images in seen.items()}
    apart = [_psnr(*both) for both in zip(*seen.values(), strict=True)]
    said = [
        f"PSNR in dB: baseline to its end {one}, accelerated to its end {other}, to each other {between}"
        for one, other, between in zip(*ends.values(), apart, strict=True)
    ]
    addresses = {side: data_address(tile, FILM_PIXELS) for side, (tile, _) in tiles.items()}
    keys = list(pair.acceleration.schedule.keys)
    return {"steps": steps, "columns": tiles[BASELINE][1], "said": said, "keys": keys, **addresses}


def race(finishes: list[Finish]) -> dict[str, Any]:
    """The lanes of a race, the first of which sets the finish line, and who won."""
    lanes = [
        {"name": one.name, "seconds": one.seconds, "time": f"{one.seconds:.2f} s", "psnr": psnr_words(one.psnr),
         "address": data_address(one.image, IN_ROWS)}
        for one in finishes
    ]  # fmt: skip
    best = max(finishes[:-1], key=lambda one: one.psnr)
    note = f"Nearest to the baseline: {best.name} ({psnr_words(best.psnr)}). One image, and one run each, whose seconds vary: no proof."
    return {"lanes": lanes, "finish": finishes[0].seconds, "note": note}


def _psnr(image: Image.Image, reference: Image.Image) -> str:
    return psnr_text(float(fidelity([image], [reference]).iloc[0]["psnr"]))


COLUMNS = [
    {"name": name, "label": label, "kind": kind, "help": text}
    for name, label, kind, text in [
        ("run", "run", "number", "in the order in which they were made"),
        ("keys", "keys", "number", "number of key steps"),
        ("psnr", "PSNR, dB", "number", "of the image, to the baseline's"),
        ("ssim", "SSIM", "number", "of the image, to the baseline's"),
        ("ratio", "speed-up", "number", "seconds of the baseline by those of the accelerated"),
        ("seconds", "seconds", "number", "of the accelerated run, up to the latents"),
        ("latent_error", "error", "number", "root mean square of a value of the final latents"),
        ("predicted_error", "predicted", "number", "the same, predicted before the run"),
        ("prompt_right", "prompt", "text", JUDGED),
        (
            "reuse",
            "reuse",
            "text",
            "what is reused between keys; with order 0 reused, with 1 extrapolated; and the weight of prior noise",
        ),
        ("schedule", "key steps", "text", "the key steps"),
        ("sampler", "sampler", "text", "scheduler, steps, guidance scale, seed"),
    ]
]
_FORMS = {"seconds": ".2f", "ratio": ".2f", "ssim": ".3f", "latent_error": ".3g", "predicted_error": ".3g"}
_IDENTICAL = 1000.0  # dB, to sort by, because JSON has no infinity


def row(entry: dict[str, Any], pair: Pair) -> dict[str, Any]:
    """A run of the history as the page shows it."""
    noise = f", noise {entry['prior_noise']:g}" if entry["prior_noise"] else ""
    values = {column["name"]: entry.get(column["name"]) for column in COLUMNS}
    values |= {"reuse": f"{entry['reuse']}, order {entry['order']}{noise}", "prompt_right": _yes(entry["prompt_right"])}
    values |= {"sampler": f"{entry['scheduler']} {entry['steps']}, guidance {entry['guidance_scale']:g}, seed {entry['seed']}"}
    values = {name: None if pd.isna(value) else value for name, value in values.items()}
    shown = {name: _number(value, _FORMS[name]) if name in _FORMS else str(value) for name, value in values.items()}
    shown["psnr"] = psnr_text(entry["psnr"])
    values["psnr"] = min(entry["psnr"], _IDENTICAL)
    seen = {name: part["address"] for name, part in images(pair, IN_ROWS).items()}
    title = f"{keys_text(entry['keys'])}, {psnr_words(entry['psnr'])}, {shown['ratio']}×"
    return {
        "run": entry["run"],
        "steps": pair.acceleration.schedule.num_steps,
        "values": values,
        "shown": shown,
        "title": title,
        **seen,
    }


def presets(schedule: KeySchedule, has_costs: bool) -> list[dict[str, Any]]:
    """The preset buttons for so many steps, and what they do."""
    steps, keys = schedule.num_steps, len(schedule.keys)
    try:
        KeySchedule.of_paper(steps)
        paper = f"The paper's keys, for {steps} steps"
    except ValueError:
        paper = ""
    derived = f"The {keys_text(keys)} whose groups cost least, by the measured reuse costs"
    return [
        _button("paper", "Paper", paper or "The paper has no keys for so few steps", bool(paper)),
        _button("uniform", "Uniform", f"{keys_text(keys)}, as evenly spread as whole steps allow", True),
        _button("derived", "Derived", derived if has_costs else NO_COSTS, has_costs),
    ]


def _button(name: str, label: str, title: str, enabled: bool) -> dict[str, Any]:
    return {"name": name, "label": label, "title": title, "enabled": enabled}
