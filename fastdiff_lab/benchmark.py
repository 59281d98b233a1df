"""The timings that the README quotes, as ratios measured in one run: `python -m fastdiff_lab.benchmark`.

- `measure(pipe, ...)`: seconds of untouched and accelerated runs, taking turns, and their ceilings
- `halves(pipe, rows)`: seconds of encoder and decoder of one forward, each alone
"""

from __future__ import annotations

import json
import platform
import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from .conditions import repeat_rows
from .evaluation import Arm, denoiser_arguments, denoiser_calls, sample, synchronize
from .files import write_text
from .flops import count_flops
from .hooks import replaced_call
from .memory import peak_bytes
from .pipelines import load_pipeline
from .recording import record
from .schedule import KeySchedule
from .split import denoiser_of, split_denoiser

PROMPT = "a large red star at the left on a blue background"


def _arms(num_steps: int) -> dict[str, Arm]:
    paper = KeySchedule.of_paper(num_steps)
    return {
        "untouched": Arm(),
        "paper, serial": Arm(paper, parallel_decoding=False),
        "paper, parallel": Arm(paper),
    }


@torch.no_grad()
def halves(pipe: Any, arguments: dict[str, Any], times: int, repeats: int = 15) -> tuple[float, float]:
    """Seconds of encoder and rest of one forward with `times` as many rows as `arguments` have; the fastest of some calls."""
    model = denoiser_of(pipe)
    rows, device = len(arguments["sample"]), arguments["sample"].device
    many = {name: repeat_rows(value, rows, times, name) for name, value in arguments.items()}
    spent: list[float] = []

    def timed(inner: Callable) -> Callable:
        def call(*args, **kwargs):
            synchronize(device)
            started = time.perf_counter()
            output = inner(*args, **kwargs)
            synchronize(device)
            spent[-1] += time.perf_counter() - started
            return output

        return call

    wholes: list[float] = []
    with ExitStack() as stack:
        for child in split_denoiser(model).encoder.values():
            stack.enter_context(replaced_call(child, timed))
        for _ in range(repeats + 1):
            spent.append(0.0)
            synchronize(device)
            started = time.perf_counter()
            model(**many)
            synchronize(device)
            wholes.append(time.perf_counter() - started)
    rest = [whole - encoder for whole, encoder in zip(wholes, spent, strict=True)]
    return min(spent[1:]), min(rest[1:])


def ceilings(pipe: Any, arguments: dict[str, Any], schedule: KeySchedule) -> dict[str, float]:
    """Seconds that a run would take if it did nothing but encode each key step and decode each step or group, each half timed alone."""
    sizes = [len(group) for group in schedule.groups()]
    alone = {size: halves(pipe, arguments, size) for size in {1, *sizes}}
    return {
        "serial": len(sizes) * alone[1][0] + schedule.num_steps * alone[1][1],
        "parallel": sum(alone[1][0] + alone[size][1] for size in sizes),
    }


def memory(pipe: Any, arms: dict[str, Arm], options: dict[str, Any]) -> dict[str, int]:
    """The most bytes that the tensors of one picture hold at one time, per arm; the weights are not counted."""
    found = {}
    for name, arm in arms.items():
        with peak_bytes() as peak:
            sample(pipe, arm, [PROMPT], [0], **options)
        found[name] = peak.bytes
    return found


def overhead(pipe: Any, steps: int = 20, repeats: int = 15) -> dict[str, float]:
    """Seconds with every step a key by seconds of the untouched run: of the fastest runs, and the median of pairs.

    Noise only ever adds time, so the fastest runs are the ones to compare; the two take turns at going first.
    """
    arms = {"untouched": Arm(), "keys": Arm(KeySchedule.uniform(steps, steps))}
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for turn in range(repeats + 1):
        for name in sorted(arms, reverse=bool(turn % 2)):
            spent = sample(pipe, arms[name], [PROMPT], [0], num_inference_steps=steps).seconds
            if turn:
                seconds[name].append(spent)
    pairs = [b / a for a, b in zip(seconds["untouched"], seconds["keys"], strict=True)]
    return {"of_the_fastest": min(seconds["keys"]) / min(seconds["untouched"]), "median_of_pairs": statistics.median(pairs)}


def recording_cost(pipe: Any, options: dict[str, Any], repeats: int) -> float:
    """Seconds with statistics of all blocks recorded by seconds without, the median of runs that take turns."""
    ratios = []
    for turn in range(repeats + 1):
        plain = sample(pipe, Arm(), [PROMPT], [0], **options).seconds
        with record(pipe):
            recorded = sample(pipe, Arm(), [PROMPT], [0], **options).seconds
        if turn:
            ratios.append(recorded / plain)
    return statistics.median(ratios)


def measure(pipe: Any, *, num_inference_steps: int = 50, guidance_scale: float = 5.0, repeats: int = 7) -> dict[str, Any]:
    """Seconds of each arm at one picture, ratios of the fastest runs to untouched, and the ceilings for the paper's keys.

    >>> measure(load_pipeline(), repeats=3)["ratios"]["paper, parallel"]  # doctest: +SKIP
    """
    options: dict[str, Any] = {"num_inference_steps": num_inference_steps, "guidance_scale": guidance_scale}
    calls = denoiser_calls(pipe, num_inference_steps)
    arms = _arms(calls)
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for turn in range(repeats + 1):
        for name, arm in arms.items():
            drawn = sample(pipe, arm, [PROMPT], [0], **options)
            if turn:  # the first turn warms up
                seconds[name].append(drawn.seconds)
    arguments = denoiser_arguments(pipe, PROMPT, guidance_scale)
    schedule = arms["paper, parallel"].schedule
    assert schedule is not None
    flops = count_flops(denoiser_of(pipe), arguments)
    fastest = {name: min(values) for name, values in seconds.items()}
    untouched, at_best = fastest["untouched"], ceilings(pipe, arguments, schedule)
    keys = len(schedule.keys)
    return {
        "machine": {
            "processor": platform.processor() or platform.machine(),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
        },
        "repeats": repeats,
        "seconds_median": {name: statistics.median(values) for name, values in seconds.items()},
        "seconds_fastest": fastest,
        "ratios": {name: untouched / value for name, value in fastest.items()},
        "overhead_every_step_a_key": overhead(pipe),
        "recording_statistics": recording_cost(pipe, options, repeats),
        "peak_bytes": memory(pipe, arms | {"paper, max_rows=10": Arm(schedule, max_rows=10)}, options),
        "flops_encoder_share": flops.encoder / flops.total,
        "flop_ceiling": calls * flops.total / flops.of_run(keys, calls),
        **{f"time_ceiling_{name}": untouched / value for name, value in at_best.items()},
    }


def main(
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 2,
    repeats: Annotated[int, typer.Option(help="Timed runs per arm.")] = 7,
    output: Annotated[Path | None, typer.Option(help="JSON file to write.")] = None,
) -> None:
    """Print what encoder propagation costs and saves on the embedded pipeline."""
    torch.set_num_threads(threads)
    result = json.dumps(measure(load_pipeline(), repeats=repeats), indent=2)
    typer.echo(result)
    if output is not None:
        write_text(output, result + "\n")


if __name__ == "__main__":
    typer.run(main)
