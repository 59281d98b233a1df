"""Record encoder and decoder features over the steps of a run.

- `record(pipe, ...)`: record every run inside a `with` block
- `bytes_to_keep(pipe, keep, ...)`: the memory for keeping features of a run, known before it
- `output_bytes(model, arguments, layers)`: the same of one call of the denoiser
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from ..hooks.adapters import processors_kept
from ..hooks.callers import is_called_by
from ..hooks.denoiser import denoiser_of, inner_loop, split_denoiser
from ..hooks.denoiser_call import arguments_of
from ..hooks.denoiser_classes import frames_of, sample_argument
from ..hooks.denoiser_output import sample_of
from ..hooks.exclusive_use import kept_to_this_thread
from ..hooks.flops import on_meta
from ..hooks.guided_rows import guided_rows
from ..hooks.patching import is_replaced, replaced_method
from ..hooks.run_tracking import RunTracker, announced
from ..inputs.plain_values import choice
from .layer_choice import Layers, chosen_layers, default_layers, in_order_of_calls
from .recording import STATISTICS, Recording

_BASELINE = "record baselines: leave the block that accelerates the pipeline first"
HALVES = ("conditional", "unconditional", "all")


class _Recorder:
    """Fill a recording from forward hooks. An unfinished run stays here."""

    def __init__(self, pipe: DiffusionPipeline, recording: Recording, keep: tuple[str, ...], max_bytes: int, half: str) -> None:
        self.pipe, self.recording, self.keep, self.max_bytes = pipe, recording, keep, max_bytes
        self.half: str = choice("half", half, HALVES)
        self.tracker = RunTracker(pipe)
        self.model = denoiser_of(pipe)
        self.blocks_of_model = list(split_denoiser(self.model).blocks.values())
        self.is_ours = True  # the current call; other pipelines may share the denoiser
        self.is_last_loop = True  # Text2Video-Zero makes three in one call
        self.begin_run()

    def begin_run(self) -> None:
        self.step, self.all_rows, self.rows, self.blocks, self.dims = -1, 0, slice(None), 1, 0
        self.values: dict[tuple[str, int, str], Tensor] = {}
        self.before: dict[str, Tensor] = {}
        self.kept: dict[str, list[Tensor]] = {name: [] for name in self.keep}

    def before_step(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        self.is_ours = self.is_last_loop and is_called_by(self.pipe)
        if not self.is_ours:
            return
        arguments = arguments_of(module, args, kwargs)
        run, step, is_new = self.tracker.advance(arguments["timestep"])
        if is_new:
            self.begin_run()
            if any(map(is_replaced, self.blocks_of_model)):
                raise ValueError(f"a block of {type(self.model).__name__} is reused; {_BASELINE}")
            self.start(run.planned)
        self.choose_rows(step, arguments)
        if step == 0:
            self.check_size(arguments)
        self.step = step

    def begin_loop(self, planned: Tensor) -> None:
        """Record only the last loop, which all frames go through; the others prepare the first frame."""
        self.is_last_loop = bool(planned[-1] == self.pipe.scheduler.timesteps[-1])
        self.tracker.begin_loop(planned)

    def choose_rows(self, step: int, arguments: dict) -> None:
        """Keep the same images at each step, also if guidance ends and only the prompt's rows remain."""
        sample = arguments[sample_argument(self.model)]
        if step and len(sample) == self.all_rows:
            return
        rows, frames = guided_rows(self.pipe, arguments, self.half), frames_of(self.model, sample)
        if step and (self.half != "conditional" or (rows.stop - rows.start) * frames != self.rows.stop - self.rows.start):
            raise ValueError(
                f"the denoiser gets {len(sample)} rows at step {step} and got {self.all_rows} before, so half={self.half!r} is no longer "
                "the same images; accepted: half='conditional' where guidance ends in mid-run"
            )
        self.dims, self.all_rows, self.rows = sample.dim(), len(sample), slice(rows.start * frames, rows.stop * frames)
        self.blocks = 1 if len(sample) == rows.stop - rows.start else len(sample) // (rows.stop - rows.start)

    def check_blocks(self, sample: Tensor) -> None:
        """Refuse rows of unknown meaning, at the scheduler's first step of a run.

        Only there the number of images is known, and so the blocks of rows. Guidance by several texts has more than two.
        """
        if self.half == "all" or self.step != 0 or not sample.dim() == self.dims == 4 or not self.is_ours:
            return
        found = self.all_rows // len(sample)
        if found not in (1, self.blocks):
            raise ValueError(
                f"half={self.half!r} asked of {type(self.pipe).__name__}, whose denoiser gets {found} blocks of rows for each image; "
                "nothing tells which belongs to the prompt; accepted: half='all'"
            )

    def start(self, timesteps: Tensor) -> None:
        time_steps = tuple(timesteps.tolist())
        if self.recording.num_samples and time_steps != self.recording.time_steps:
            raise ValueError(
                f"this recording holds runs of {self.recording.num_steps} steps, now one of {len(time_steps)} steps or other time-steps "
                "begins; record it in a block of its own"
            )
        self.recording.time_steps = time_steps

    def check_size(self, arguments: dict) -> None:
        """Refuse what would not fit, before anything is evaluated."""
        if not self.keep:
            return
        sizes = self.run_bytes(arguments)
        held = sum(feature.nbytes for feature in self.recording.features.values())
        needed = held + sum(sizes.values())
        if needed > self.max_bytes:
            largest = max(sizes, key=sizes.__getitem__)
            raise ValueError(
                f"keeping the features of {len(self.keep)} layers needs {needed} bytes, max_bytes is {self.max_bytes}; the largest is "
                f"{largest} with {sizes[largest]} per run. Keep fewer layers, or give a larger max_bytes"
            )

    def run_bytes(self, arguments: dict) -> dict[str, int]:
        """Bytes that each kept layer's features of this run will need."""
        sizes = output_bytes(self.model, arguments, self.keep, self.rows)
        return {name: size * self.recording.num_steps for name, size in sizes.items()}

    def after_layer(self, name: str, output: Any) -> None:
        if not self.is_ours:
            return
        feature = sample_of(output).detach()[self.rows]
        for statistic, value in statistics_of(feature, self.before.get(name)).items():
            self.values[statistic, self.step, name] = value
        # FreeU and T2I-Adapter write into a layer's output, so keep a copy.
        self.before[name] = feature.clone()
        if name in self.kept:
            self.kept[name].append(feature.to("cpu", copy=True))

    def after_step(self, module: nn.Module, args: tuple, output: Any) -> None:
        if self.is_ours and self.step == self.recording.num_steps - 1:
            self.finish_run()

    def finish_run(self) -> None:
        layers, steps = self.recording.layers, range(self.recording.num_steps)
        missing = [(name, step) for name in layers for step in steps if ("norm", step, name) not in self.values]
        if missing:
            raise ValueError("layer {!r} was not evaluated at step {}; {}".format(*missing[0], _BASELINE))
        run = {}
        for statistic in STATISTICS:
            rows = [torch.stack([self.values[statistic, step, name] for name in layers], -1) for step in steps]
            run[statistic] = torch.stack(rows, dim=1).cpu()
        self.check_finite(run["mean_square"])
        self.recording.statistics = _together(self.recording.statistics, run)
        self.recording.features = _together(self.recording.features, {n: torch.stack(k, dim=1) for n, k in self.kept.items()})
        self.before, self.values, self.kept = {}, {}, {name: [] for name in self.keep}

    def check_finite(self, mean_square: Tensor) -> None:
        """Raise for NaN or infinite features, naming the first such step."""
        astray = (~mean_square.isfinite()).any(0).nonzero()  # (step, layer) by step
        if len(astray):
            step, place = astray[0].tolist()
            raise ValueError(
                f"the features of {self.recording.layers[place]!r} at step {step} (time-step {self.recording.time_steps[step]:g}) hold NaN "
                "or infinite values; this run is not recorded"
            )


class _Told(Exception):
    """End a run when what it was for is known."""


class _Asking(_Recorder):
    def check_size(self, arguments: dict) -> None:
        self.told = self.run_bytes(arguments)
        raise _Told


def bytes_to_keep(pipe: DiffusionPipeline, keep: Layers, *args: Any, half: str = "conditional", **kwargs: Any) -> dict[str, int]:
    """Compute the bytes that `record(pipe, keep=keep)` needs for the features of `pipe(*args, **kwargs)`, by layer.

    >>> bytes_to_keep(pipe, "up_blocks.?", "a red ring on a blue background", num_inference_steps=50)  # doctest: +SKIP
    {'up_blocks.0': 358400, 'up_blocks.1': 1228800, 'up_blocks.2': 3276800, 'up_blocks.3': 1638400}

    The run stops before the denoiser is evaluated; shapes come from the meta device. `keep`, `half` and errors as in `record`.
    """
    model = denoiser_of(pipe)
    recorder = _Asking(pipe, Recording(), chosen_layers(keep, [name for name, _ in model.named_modules() if name]), 0, half)
    handle = model.register_forward_pre_hook(recorder.before_step, with_kwargs=True)
    try:
        with processors_kept(model):
            pipe(*args, **kwargs)
    except _Told:
        return recorder.told
    finally:
        handle.remove()
    raise ValueError("the pipeline ran without calling its denoiser; accepted: arguments for a run of at least one step")


def _together(before: dict[str, Tensor], run: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: torch.cat([before[name], tensor]) if name in before else tensor for name, tensor in run.items()}


def output_bytes(model: nn.Module, arguments: dict[str, Any], layers: Iterable[str], rows: slice = slice(None)) -> dict[str, int]:
    """Bytes of each layer's output in one call of the denoiser, found on the meta device.

    >>> output_bytes(pipe.unet, {"sample": latents, "timestep": 1, "encoder_hidden_states": text}, ["mid_block"])  # doctest: +SKIP
    {'mid_block': 3584}
    """
    stand_in, shapes = on_meta(model, arguments)
    modules, sizes = dict(stand_in.named_modules()), {}

    def measure(name: str) -> Any:
        def hook(module: nn.Module, args: tuple, output: Any) -> None:
            sizes[name] = sample_of(output)[rows].nbytes

        return hook

    for name in layers:
        modules[name].register_forward_hook(measure(name))
    with torch.no_grad():
        stand_in(**shapes)
    return sizes


def statistics_of(feature: Tensor, before: Tensor | None) -> dict[str, Tensor]:
    """The statistics of a feature of shape (rows, channels, ...), one number per row, float32."""
    flat = feature.flatten(1).float()
    nothing = flat.new_full((len(flat),), torch.nan)
    earlier = None if before is None else before.flatten(1).float()
    return {
        "mean_square": flat.square().mean(1),
        "change": nothing if earlier is None else (flat - earlier).square().mean(1),
        "product": nothing if earlier is None else (flat * earlier).mean(1),
        "norm": feature.float().mean(1 if feature.dim() == 4 else -1, keepdim=True).flatten(1).norm(dim=1),
    }


@contextmanager
def record(
    pipe: DiffusionPipeline, *, layers: Layers | None = None, keep: Layers = (), half: str = "conditional", max_bytes: int = 2**30
) -> Iterator[Recording]:
    """Record the denoiser's features over the steps of every run inside the block.

    >>> import fastdiff_lab as fl
    >>> pipe = fl.load_pipeline()
    >>> with fl.record(pipe, keep=["down_blocks.1"]) as recording:
    ...     image = pipe("a small red circle on a blue background", num_inference_steps=2)
    >>> recording["down_blocks.1"].shape
    torch.Size([1, 2, 64, 4, 4])

    Runs add up as samples, and so do frames of a video; all must have the same time-steps. An interrupted run is left out.
    Of Text2Video-Zero's three loops the last is recorded, which all frames go through.

    Args:
        layers: Names as in `pipe.unet.named_modules()`, a pattern, or a function of a name. None takes the blocks: `conv_in`,
            `down_blocks.*`, `mid_block`, `up_blocks.*`. "inner" takes all layers inside them (the paper's Table 7).
            A block's feature is the sample that it passes on, after its down- or upsampler.
        keep: Layers whose features are kept too, in the run's dtype on the CPU.
        max_bytes: Memory for kept features; see `bytes_to_keep`. A further run needs that of the others once more for a moment.
        half: Under guidance the "conditional" rows, the "unconditional", or "all". Guidance by several texts needs "all".

    Raises:
        KeyError: An unknown layer. The message says which are close.
        ValueError: Another `half`, or rows that end in mid-run; features that need more than `max_bytes`, before the run;
            features that hold NaN, after it.
        RuntimeError: Another thread uses the pipeline.
    """
    model = denoiser_of(pipe)
    split = split_denoiser(model)
    known = {name: module for name, module in model.named_modules() if name}
    kept = chosen_layers(keep, list(known)) if callable(keep) or len(keep) else ()
    asked = chosen_layers(default_layers(split, layers), list(known))
    names = tuple(name for name in in_order_of_calls(split, known) if name in {*asked, *kept})
    recording = Recording(names, tuple(split.part(name) for name in names), about=_about(pipe, model))
    recorder = _Recorder(pipe, recording, kept, max_bytes, half)
    with ExitStack() as stack:
        stack.enter_context(kept_to_this_thread(pipe, "a record block"))
        stack.enter_context(processors_kept(model, after_errors_only=True))
        handles = [model.register_forward_pre_hook(recorder.before_step, with_kwargs=True)]
        for name in names:
            after = lambda module, args, output, name=name: recorder.after_layer(name, output)
            handles.append(known[name].register_forward_hook(after))
        handles.append(model.register_forward_hook(recorder.after_step))
        for handle in handles:
            stack.callback(handle.remove)
        if (loop := inner_loop(pipe)) is not None:  # Text2Video-Zero replaces its scheduler in mid-run
            stack.enter_context(replaced_method(pipe, loop, partial(announced, recorder.begin_loop)))
        else:
            stack.enter_context(replaced_method(pipe.scheduler, "step", partial(_looking_at_samples, recorder)))
        yield recording
        if not recording.num_samples:
            warnings.warn(
                f"nothing was recorded: {type(pipe).__name__} finished no run inside the record block, or its denoiser was replaced there",
                stacklevel=3,
            )


def _looking_at_samples(recorder: _Recorder, inner: Callable) -> Callable:
    signature = inspect.signature(inner)

    def step(*args: Any, **kwargs: Any) -> Any:
        recorder.check_blocks(signature.bind(*args, **kwargs).arguments["sample"])
        return inner(*args, **kwargs)

    return step


def _about(pipe: DiffusionPipeline, model: nn.Module) -> dict[str, str]:
    import diffusers

    from .. import __version__

    return {
        "pipeline": type(pipe).__name__,
        "model": type(model).__name__,
        "scheduler": type(pipe.scheduler).__name__,
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "fastdiff_lab": __version__,
    }
