"""Generate the images that are not in the result store yet.

- `Task`: an image to generate
- `drawn(pipe, methods, tasks, ...)`: what each method gives for each task
- `draw_missing(pipe, methods, tasks, ...)`: generate what is missing, and return how to read it
"""

from __future__ import annotations

import copy
import hashlib
import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from tqdm import tqdm

from ..hooks.denoiser import denoiser_of
from ..hooks.device import device_of
from ..hooks.fingerprint import in_words, pipeline_digest, scheduler_config, steering
from ..sampling.batches import in_halves
from ..sampling.finite_values import check_latents, finite_decoder
from ..sampling.methods import Method, Sampled, first_arguments, run_method
from ..sampling.rivals.rival import OwnRival
from ..sampling.run_settings import RunSettings
from .estimate import announce
from .result_store import Result, Store
from .workers import WorkerLostError, count_workers, in_workers

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from distributed import Client

LOST_WORKERS = 3  # times in a row that workers may die before any has finished something


class Task(NamedTuple):
    """An image to generate: prompt (or class label, or image), seed, and the arguments of this prompt alone."""

    prompt: Any
    seed: int
    own: Mapping[str, Any] | None = None

    def in_words(self) -> list[Any]:
        """As JSON holds it. Without own arguments it stays as it was before there were any, for older stores."""
        return in_words([self.prompt, self.seed, *([self.own] if self.own else [])])


def drawn(
    pipe: DiffusionPipeline,
    methods: Mapping[str, Method],
    tasks: Sequence[tuple],
    run: RunSettings,
    *,
    batch_size: int = 16,
    n_jobs: int | Client | None = None,
    store: str | Path | None = None,
) -> dict[str, list[Result]]:
    """What each method gives for each task, from the store where it is there.

    >>> drawn(pipe, {"baseline": Method()}, [("a red ring on a blue background", 0)], RunSettings(5))  # doctest: +SKIP

    Other arguments as for `compare`.
    """
    wanted = [Task(*task) for task in tasks]
    with Store(store) as kept:
        read = draw_missing(pipe, methods, wanted, run, kept, batch_size=batch_size, n_jobs=n_jobs)
        return {name: read(method, wanted) for name, method in methods.items()}


def _settings(pipe: DiffusionPipeline, run: RunSettings) -> str:
    """What a result depends on beside method, prompt and seed: fingerprints of the weights and adapters, and the scheduler's config."""
    device = device_of(pipe).type
    options: dict[str, Any] = {"num_inference_steps": run.num_inference_steps, "guidance_scale": run.guidance_scale}
    options |= {"pipe_kwargs": run.words} if run.words else {}  # a store finds images from before there were any
    about = [type(pipe).__name__, type(pipe.scheduler).__name__, scheduler_config(pipe), options, device]
    return pipeline_digest(pipe) + steering(pipe) + json.dumps(about, sort_keys=True, default=str)


def _key(settings: str, method: Method, task: Task) -> str:
    text = json.dumps([settings, method.about(), task.in_words()], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def draw_missing(
    pipe: DiffusionPipeline,
    ways: Mapping[str, Method],
    tasks: Sequence[Task],
    run: RunSettings,
    store: Store,
    *,
    batch_size: int = 16,
    n_jobs: int | Client | None = None,
) -> Callable[[Method, Sequence[Task]], list[Result]]:
    """Generate what the store does not hold, and write each batch as it comes. Workers that die are replaced.

    >>> read = draw_missing(pipe, {"baseline": Method()}, [("a red ring on a blue background", 0)], RunSettings(), Store())  # doctest: +SKIP

    Returns a function that reads a method's results for some tasks. Keys are taken before the run, which may change its scheduler.
    Raises ValueError for a schedule or steps that do not fit the run, before anything is drawn.
    """
    _check_rivals(ways, store)
    of, lost = _settings(pipe, run), 0
    coming = list(_pending(ways, tasks, of, batch_size, store))
    announce(pipe, _check_runs(pipe, coming, run), coming, run.num_inference_steps, count_workers(n_jobs))
    with tqdm(desc="images", total=len(ways) * len(tasks), leave=False) as bar:
        while pending := list(_pending(ways, tasks, of, batch_size, store)):
            bar.update(bar.total - bar.n - sum(len(part) for _, part in pending))
            jobs = ((method, part, [_key(of, method, task) for task in part], run) for method, part in pending)
            try:
                for results in in_workers(_run, pipe, jobs, n_jobs):
                    store.add(results)
                    bar.update(len(results))
                    lost = 0
            except WorkerLostError as loss:
                lost += 1
                if lost >= LOST_WORKERS:
                    raise WorkerLostError(
                        f"workers were killed {lost} times in a row before one had finished a batch of {batch_size}; perhaps "
                        "memory is short: "
                        "give a smaller batch, or use fewer workers"
                    ) from loss
                warnings.warn("a worker process was killed; its images are drawn again", stacklevel=3)
    return lambda method, tasks: store.read(_key(of, method, task) for task in tasks)


def _check_rivals(methods: Mapping[str, Method], store: Store) -> None:
    """Raise ModuleNotFoundError for a package that is not installed, ValueError for what cannot be stored, before hours have passed."""
    for name, method in methods.items():
        for rival in method.rivals:
            rival.needs()
            if store.path is not None and isinstance(rival, OwnRival) and rival.name is None:
                raise ValueError(
                    f"method {name!r} is a function without a name, under which {store.name} could keep its images; accepted: "
                    "Method(around=..., name=...), or no store"
                )


def _check_runs(pipe: DiffusionPipeline, pending: Sequence[tuple[Method, list[Task]]], run: RunSettings) -> dict[str, Any]:
    """Begin a run of each number of steps and rival, to refuse early what does not fit.

    Only its first denoiser call tells the number of calls, because image-to-image begins later.
    Returns the arguments of the baseline's call for one image.
    """
    found: dict[str, Any] = {}
    runs = {
        (method.steps, method.schedule and method.schedule.num_steps, method.rivals): (method, part[0])
        for method, part in reversed(pending)
    }
    own = pipe.scheduler
    try:
        baseline = [(Method(), task) for _, task in list(runs.values())[:1]]
        for method, task in [*reversed(runs.values()), *baseline]:
            pipe.scheduler = copy.deepcopy(own)  # a run may change the scheduler's settings
            with torch.no_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the run itself repeats these warnings
                found = first_arguments(denoiser_of(pipe), partial(_sampled, pipe, method, [task], run))
    finally:
        pipe.scheduler = own
    return found


def _pending(
    ways: Mapping[str, Method], tasks: Sequence[Task], of: str, batch_size: int, store: Store
) -> Iterator[tuple[Method, list[Task]]]:
    done = store.keys()
    for method in dict.fromkeys(ways.values()):  # equal methods under two names run once
        left = [task for key, task in {_key(of, method, task): task for task in tasks}.items() if key not in done]
        yield from ((method, left[start : start + batch_size]) for start in range(0, len(left), batch_size))


def _run(pipe: DiffusionPipeline, method: Method, tasks: list[Task], keys: list[str], run: RunSettings) -> dict[str, Result]:
    drawn = in_halves(pipe, [slice(0, len(tasks))], partial(_drawn, pipe, method, tasks, run))
    return dict(zip(keys, (result for _, part in drawn for result in part), strict=True))


def _drawn(pipe: DiffusionPipeline, method: Method, tasks: list[Task], run: RunSettings, part: slice) -> list[Result]:
    of = _in_words(method)
    with torch.no_grad(), finite_decoder(pipe, of):
        drawn = _sampled(pipe, method, tasks[part], run)
    counts, latents = asdict(drawn.counts), drawn.latents.cpu()
    check_latents(latents, tasks[part], of)
    return [Result(latent.clone(), image, counts) for latent, image in zip(latents, drawn.images, strict=True)]


def _sampled(pipe: DiffusionPipeline, method: Method, tasks: Sequence[Task], run: RunSettings) -> Sampled:
    """Sample some tasks in one batch, each with its own arguments."""
    batch = replace(run, own=tuple(task.own or {} for task in tasks)).of(range(len(tasks)))
    return run_method(pipe, method, [task.prompt for task in tasks], [task.seed for task in tasks], batch)


def _in_words(method: Method) -> str:
    """The fields by which a method differs from the baseline."""
    plain = Method().about()
    return ", ".join(f"{name}={value}" for name, value in method.about().items() if value != plain.get(name)) or "baseline"
