"""An engine on a pipeline: its layers put around the calls of modules, and taken away again.

- `PropagationHandle(engine)`: installs an engine, until it is removed
- `check_not_accelerated(pipe)`: refuses a pipeline that has one
"""

from __future__ import annotations

import warnings
import weakref
from contextlib import ExitStack
from functools import partial

from diffusers import DiffusionPipeline
from torch import nn

from ..hooks.adapters import processors, put_back_processors
from ..hooks.denoiser import controlnet_of, denoiser_of, inner_loop
from ..hooks.exclusive_use import check_free, claiming
from ..hooks.patching import replaced_call, replaced_method
from ..hooks.run_tracking import announced
from .cached_calls import cached_calls
from .engine import PropagationEngine

_accelerated: weakref.WeakSet[nn.Module] = weakref.WeakSet()


def check_not_accelerated(pipe: DiffusionPipeline) -> None:
    """Raises RuntimeError for a pipeline that is accelerated, or one with the same denoiser or ControlNet; or that another thread uses."""
    check_free(pipe)
    taken = next((model for model in (denoiser_of(pipe), controlnet_of(pipe)) if model in _accelerated), None)
    if taken is not None:
        raise RuntimeError(
            f"this pipeline is accelerated already (its {type(taken).__name__}); leave the outer encoder_propagation block first, or remove "
            "the handle of apply_encoder_propagation"
        )


class PropagationHandle:
    """A pipeline that is accelerated, until `remove()`; as a context manager, until the end of the block.

    >>> handle = fl.apply_encoder_propagation(pipe, fl.KeySchedule.paper(50))  # doctest: +SKIP
    >>> handle.remove()  # doctest: +SKIP

    `counts`: what was evaluated since.
    """

    def __init__(self, engine: PropagationEngine) -> None:
        self.counts = engine.counts
        self._engine: PropagationEngine | None = engine
        self._processors = processors(engine.model)
        with ExitStack() as layers:
            _claim(engine, layers)
            _install(engine, layers)
            self._layers = layers.pop_all()

    def remove(self) -> None:
        """Makes the pipeline as it was; called again, does nothing. Warns if nothing was accelerated."""
        if self._engine is None:
            return
        why = self.why_nothing_accelerated()
        self._leave()
        if why is not None:
            warnings.warn(why, stacklevel=2)

    def __enter__(self) -> PropagationHandle:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._leave(is_broken_off=kind is not None)

    def _leave(self, is_broken_off: bool = False) -> None:
        """Text2Video-Zero, PAG and SAG leave their own attention processors behind where a run is broken off, also in mid-block."""
        engine, self._engine = self._engine, None
        if engine is None:
            return
        with self._layers:
            if is_broken_off or engine.run is not None or inner_loop(engine.pipe) is not None:
                put_back_processors(engine.model, self._processors)

    def why_nothing_accelerated(self) -> str | None:
        """Why no step used what another had left, though the schedule has such steps; None if one did."""
        engine = self._engine
        if engine is None:
            return None
        kind, usage = type(engine.pipe).__name__, engine.usage
        if denoiser_of(engine.pipe) is not engine.model:
            why = f"the denoiser of {kind} was replaced inside it; enter the block after the change"
        elif not usage.was_called:
            others = f" ({usage.others_calls} calls of its denoiser came from other pipelines that share it)"
            why = f"{kind} made no denoiser call inside it{others if usage.others_calls else ''}; call this pipeline there"
        elif usage.why_key is not None and not usage.has_reused:
            why = f"every step was evaluated as a key step: at the last of them, {usage.why_key}"
        else:
            return None
        return f"the encoder_propagation block accelerated nothing, or not all: {why}"


def _claim(engine: PropagationEngine, layers: ExitStack) -> None:
    """Refuse a pipeline that is accelerated, in this thread or another; else it is, while `layers` is open."""
    with claiming(engine.pipe):
        check_not_accelerated(engine.pipe)
        for shared in (engine.model, engine.controlnet):
            if shared is not None:
                _accelerated.add(shared)
                layers.callback(_accelerated.discard, shared)


def _install(engine: PropagationEngine, layers: ExitStack) -> None:
    """While `layers` is open, calls of the denoiser, its reused children and its ControlNet go through the engine."""
    layers.callback(engine.close)
    entries = {name: engine.split.decoder[name] for name in engine.reuse.entries(engine.split)}
    layers.enter_context(cached_calls(engine.reuse.children(engine.split), entries, engine.features))
    if engine.controlnet is not None:
        layers.enter_context(replaced_call(engine.controlnet, lambda inner: lambda *a, **k: engine.call_controlnet(inner, a, k)))
    layers.enter_context(replaced_call(engine.model, lambda inner: lambda *a, **k: engine.call_denoiser(inner, a, k)))
    loop = inner_loop(engine.pipe)
    if loop is not None:
        layers.enter_context(replaced_method(engine.pipe, loop, partial(announced, engine.tracker.begin_loop)))
