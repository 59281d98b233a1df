"""A device that is none: it computes on the CPU, refuses to mix with it, and notes each time that the host waits for it.

`python tests/pretend_device.py SYSTEM ...` runs systems of tests/systems on it and prints what was found as JSON. It is a process of its
own, since torch takes a backend of this kind once per process. `test_pretend_device.py` reads what it prints.

- `OnDevice`: a tensor that says `pretend:0`
- `Machine`: while it is entered, what is made or sent there is such a tensor
- `moved(pipe)`: all weights of a pipeline on it
"""

from __future__ import annotations

import functools
import itertools
import json
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from models import conditions, denoiser_pipe
from systems import ROWS, System, options_of
from systems.base import as_tensor, of
from systems.parts import normal
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

import fastdiff_lab as fl
from fastdiff_lab import KeySchedule
from fastdiff_lab.hooks.denoiser import denoiser_of
from fastdiff_lab.hooks.fingerprint import identity
from fastdiff_lab.propagation.fit import columns_of
from fastdiff_lab.sampling.call_options import in_a_batch
from fastdiff_lab.sampling.methods import first_arguments, generators, one_image
from fastdiff_lab.sampling.run_settings import RunSettings

NAME = "pretend"
ATEN = torch.ops.aten
READS = (ATEN._local_scalar_dense.default, ATEN.equal.default, ATEN.nonzero.default)
MOVES = (ATEN._to_copy.default, ATEN.copy_.default)
WAITS: list[str] = []  # what the host waited for, since it was cleared


class OnDevice(Tensor):
    """Says that it is on the device; its numbers are in `there`, a tensor of the CPU."""

    there: Tensor

    @staticmethod
    def __new__(cls, there: Tensor) -> OnDevice:
        found = Tensor._make_wrapper_subclass(cls, there.shape, strides=there.stride(), dtype=there.dtype, device=f"{NAME}:0")
        found.there = there
        return found

    def __deepcopy__(self, memo: dict) -> OnDevice:
        return OnDevice(self.there.clone())

    def data_ptr(self) -> int:
        return self.there.data_ptr()

    def tolist(self) -> Any:
        WAITS.append("tolist")
        return self.there.tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return _computed(func, args, kwargs or {})


class Machine(TorchDispatchMode):
    """The host's view of operations that make tensors from nothing, or send them to the device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return _computed(func, args, kwargs or {})


def _computed(func: Any, args: tuple, kwargs: dict) -> Any:
    given = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
    mine = [tensor for tensor in given if isinstance(tensor, OnDevice)]
    asked = kwargs.get("device")
    is_there = bool(mine) if asked is None else torch.device(asked).type == NAME
    _check_not_mixed(func, given, mine)
    _note_waits(func, given, mine, is_there)
    if func is ATEN._fused_sdp_choice.default:
        return 0  # the plain kernel
    known = {id(_bare(tensor)): tensor for tensor in given}  # what an operation gives back in place stays the same object
    output = func(*tree_map(_bare, args), **tree_map(_bare, kwargs))
    return tree_map(lambda value: known.get(id(value), _placed(value, is_there)) if isinstance(value, Tensor) else value, output)


def _bare(value: Any) -> Any:
    if isinstance(value, OnDevice):
        return value.there
    return torch.device("cpu") if isinstance(value, torch.device) and value.type == NAME else value


def _placed(tensor: Tensor, is_there: bool) -> Tensor:
    return OnDevice(tensor) if is_there else tensor


def _check_not_mixed(func: Any, given: list[Tensor], mine: list[Tensor]) -> None:
    """As on a GPU, numbers of no dimension may come from the host, and a copy may cross."""
    if mine and func not in MOVES and any(tensor.dim() and not isinstance(tensor, OnDevice) for tensor in given):
        raise RuntimeError(f"{func} got tensors on {NAME}:0 and on the CPU")


def _note_waits(func: Any, given: list[Tensor], mine: list[Tensor], is_there: bool) -> None:
    crosses = func in MOVES and (bool(mine) != is_there or 0 < len(mine) < len(given))
    if crosses or (mine and func in READS):
        WAITS.append(str(func))


def moved(pipe: Any) -> Any:
    """The pipeline with all its weights on the device."""
    for part in pipe.components.values():
        for module in part.modules() if isinstance(part, nn.Module) else ():
            for name, weight in module._parameters.items():
                if weight is not None:
                    module._parameters[name] = nn.Parameter(OnDevice(weight.data), requires_grad=False)
            module._buffers |= {name: OnDevice(buffer) for name, buffer in module._buffers.items() if buffer is not None}
    return pipe


def ways(system: System) -> dict[str, Callable[[Any], Any]]:
    """Each way of running a system, as a block around its call."""
    keys = KeySchedule(system.calls, system.keys)

    def propagated(**options: Any) -> Callable[[Any], Any]:
        return lambda pipe: fl.encoder_propagation(pipe, keys, **system.options, **options)

    found = {
        "record": fl.record, "serial": propagated(parallel_decoding=False), "prediction": propagated(reuse="prediction"),
        "serial, order 1": propagated(order=1, parallel_decoding=False),
    }  # fmt: skip
    if system.parallel:
        found |= {"parallel": propagated(), "parallel, order 1": propagated(order=1), "few rows": _few_rows(propagated)}
    if system.name == "ledits":  # it reads maps of attention at every step
        del found["prediction"]
    if system.name == "sd":
        found |= {"decoder": propagated(reuse="decoder"), "fitted": propagated(fit=_some_fit(keys))}
    if system.name not in NO_PRIOR_NOISE:
        found["prior noise"] = fl.prior_noise_injection
    return found


# Continuous time-steps, where nothing says which are late, or a scheduler that is replaced in mid-run: refused, and tested elsewhere.
NO_PRIOR_NOISE = ("stable-video", "text2video-zero", "consistency")


def _some_fit(keys: KeySchedule) -> fl.PropagationFit:
    """Scalars that change the result, and bounds that shorten the offsets."""
    groups = columns_of(keys, "encoder")
    return fl.PropagationFit(keys, tuple((0.01,) * len(names) for names in groups), (0.005,) * len(groups))


def _few_rows(propagated: Callable) -> Callable[[Any], Any]:
    """As many rows at once as two steps have."""

    def block(pipe: Any) -> Any:
        return propagated(max_rows=2 * rows_of[id(pipe)])(pipe)

    return block


rows_of: dict[int, int] = {}


def _watched(pipe: Any) -> Any:
    def look(module: Any, args: tuple, kwargs: dict) -> None:
        rows_of[id(pipe)] = len(args[0] if args else kwargs.get("sample", kwargs.get("hidden_states")))

    return denoiser_of(pipe).register_forward_pre_hook(look, with_kwargs=True)


@contextmanager
def _plain_kernels() -> Iterator[None]:
    with sdpa_kernel(SDPBackend.MATH), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def checked(name: str, chosen: list[str] | None = None) -> dict[str, Any]:
    """Of each way: the difference to the same on the CPU, how often the host waited, and how often in the baseline there."""
    system = ROWS[name]
    with _plain_kernels():
        here, there = system.build(), moved(system.build())
        handle = _watched(here)
        expected = {"baseline": of(system, here)}
        handle.remove()
        rows_of[id(there)] = rows_of[id(here)]
        expected |= {way: _run(system, here, block) for way, block in ways(system).items() if chosen is None or way in chosen}
        with Machine():
            try:
                of(system, there)
            except Exception as error:  # the baseline needs an operator that this device lacks
                return {"cannot": f"{type(error).__name__}: {str(error)[:80]}"}
            WAITS.clear()
            differences = {"baseline": _difference(of(system, there), expected["baseline"])}
            waits = {"baseline": len(WAITS)}
            for way in expected.keys() - {"baseline"}:
                WAITS.clear()
                differences[way] = _difference(_run(system, there, ways(system)[way]), expected[way])
                waits[way] = len(WAITS)
        if chosen is None or "entering" in chosen:
            differences["entering"], waits["entering"] = 0.0, waits["baseline"] + _waits_of_entering(system, there)
    return {
        "steps": sum(steps for steps, _ in system.keys_of_runs),
        "runs": len(system.keys_of_runs),
        "differences": differences,
        "waits": waits,
    }


def _waits_of_entering(system: System, pipe: Any) -> int:
    """Of the host, when a schedule that was measured on this pipeline is entered: its weights are looked at."""
    schedule = KeySchedule(system.calls, system.keys, measured_on=identity(pipe))
    WAITS.clear()
    with fl.encoder_propagation(pipe, schedule, **system.options):
        return len(WAITS)


def _run(system: System, pipe: Any, block: Callable[[Any], Any]) -> Tensor:
    with block(pipe):
        WAITS.clear()  # entering may read
        return of(system, pipe)


def _difference(found: Any, expected: Any) -> float:
    found = getattr(found, "there", found)
    return float((as_tensor(found).double() - as_tensor(expected).double()).abs().max())


def measured(name: str) -> dict[str, Any]:
    """`calibrate` and `compare` of a system that is called with prompts, there and here.

    `costs`, `table`: how far what they give there is from what they give here. Of both: `runs` of the pipeline there and how many came to
    their end, `waits` of the host in them, waits of the `baseline` that is called alike, and of a `look` at its first denoiser call.
    `compared`: how many tensors that first call has.
    """
    system, prompts = ROWS[name], ["a red circle", "a white ring"]
    further = {key: value for key, value in options_of(name).items() if key != "output_type"}
    options = {"num_inference_steps": 6, "guidance_scale": 5.0}
    call = options | in_a_batch(further, [{}, {}])
    jobs = {
        "calibrate": lambda pipe: fl.calibrate(pipe, prompts, max_span=3, order=1, pipe_kwargs=further, **options),
        "compare": lambda pipe: fl.compare(
            pipe, {"keys": KeySchedule(6, [0, 2])}, prompts, repeats=0, pipe_kwargs=further, **options
        ),
    }
    found, told = {job: [] for job in jobs}, {}
    with _plain_kernels():
        for pipe in (system.build(), moved(system.build())):
            with Machine():
                WAITS.clear()
                pipe(prompts, generator=generators([0, 1]), **call)
                baseline = len(WAITS)
                first = first_arguments(denoiser_of(pipe), one_image(pipe, prompts[0], RunSettings(pipe_kwargs=further, **options)))
                look, compared = len(WAITS) - baseline, _tensors(first)
                for job, do in jobs.items():
                    WAITS.clear()
                    with _counted_runs(pipe) as runs:
                        found[job].append(do(pipe))
                    told[job] = {"runs": len(runs), "ended": sum(runs), "waits": len(WAITS), "baseline": baseline, "look": look}
                told["calibrate"]["compared"] = compared
    costs, tables = found["calibrate"], found["compare"]
    names = ["psnr", "ssim", "latent_mse", "encoder_calls"]
    numbers = [table.set_index("method")[names].replace(float("inf"), 999.0) for table in tables]
    return told | {
        "costs": float((costs[0].displacement - costs[1].displacement).nan_to_num().abs().max()),
        "table": float((numbers[0] - numbers[1]).abs().to_numpy().max()),
    }


def _tensors(value: Any) -> int:
    if isinstance(value, dict | list | tuple):
        return sum(map(_tensors, value.values() if isinstance(value, dict) else value))
    return int(isinstance(value, torch.Tensor))


@contextmanager
def _counted_runs(pipe: Any) -> Iterator[list[int]]:
    """The list grows by one entry at each call of the pipeline: 1 if it came to its end."""
    runs: list[int] = []
    kind = type(pipe)
    inner = kind.__call__

    @functools.wraps(inner)
    def counted(*args: Any, **kwargs: Any) -> Any:
        runs.append(0)
        output = inner(*args, **kwargs)
        runs[-1] = 1
        return output

    kind.__call__ = counted
    try:
        yield runs
    finally:
        kind.__call__ = inner


def changed(order: int) -> dict[str, Any]:
    """What is said where the text, made anew at every step, changes at a step that is no key; and how often the host waits without that."""
    pipe, text = _denoiser_there(), conditions()["encoder_hidden_states"]
    waits = []

    def run(change_at: int) -> str:
        def given(step: int) -> dict[str, Any]:
            waits.append(len(WAITS))
            return {"encoder_hidden_states": OnDevice(-text if step >= change_at else text.clone())}

        try:
            with Machine(), torch.no_grad(), fl.encoder_propagation(pipe, KeySchedule(10, [0, 1, 4]), order=order):
                _loop(pipe, given)
        except ValueError as error:
            return str(error)
        return ""

    WAITS.clear()
    said = {"never": run(10)}
    of_steps = [after - before for before, after in itertools.pairwise(waits)]
    return {"said": said | {str(step): run(step) for step in (2, 4, 6)}, "waits": of_steps}


def astray(parallel: bool) -> dict[str, Any]:
    """What is said of NaN, by the step from which on there is some; when it is said, and how often the host waits at each step."""
    pipe, text = _denoiser_there(), OnDevice(conditions()["encoder_hidden_states"])
    said, begun, waits = {}, {}, []

    def given(step: int) -> dict[str, Any]:
        waits.append(len(WAITS))
        return {"encoder_hidden_states": text}

    for spoilt_at in (4, 6, 9):
        waits.clear()
        try:
            with Machine(), torch.no_grad(), fl.encoder_propagation(pipe, KeySchedule(10, [0, 1, 4]), parallel_decoding=parallel):
                _loop(pipe, given, spoilt_at)
        except ValueError as error:
            said[spoilt_at] = str(error)
        begun[spoilt_at] = len(waits)
    return {"said": said, "begun": begun, "waits": [after - before for before, after in itertools.pairwise(waits)]}


def _denoiser_there() -> Any:
    pipe = denoiser_pipe()
    for module in pipe.unet.modules():
        module._parameters |= {
            name: nn.Parameter(OnDevice(weight.data), False) for name, weight in module._parameters.items() if weight is not None
        }
    return pipe


def _loop(pipe: Any, given: Callable[[int], dict[str, Any]], spoilt_at: int | None = None) -> None:
    pipe.scheduler.set_timesteps(10, device=f"{NAME}:0")
    sample = OnDevice(normal(2, 4, 8, 8))
    for step, timestep in enumerate(pipe.scheduler.timesteps):
        sample = sample * (float("nan") if step == spoilt_at else 1.0)
        sample = pipe.unet(sample, timestep=timestep, **given(step)).sample


SPECIAL: dict[str, Callable[[str], dict[str, Any]]] = {
    "measured": measured,
    "changed": lambda order: changed(int(order)),
    "astray": lambda way: astray(way == "parallel"),
}


def main(names: list[str]) -> None:
    torch.set_num_threads(1)
    _setup_privateuseone_for_python_backend(NAME, backend_module=_DummyBackendModule())
    torch.accelerator.synchronize = lambda device=None: WAITS.append("synchronize")  # this kind of backend has no streams
    for name in names:
        kind, _, rest = name.partition(":")
        try:
            found = SPECIAL[kind](rest) if kind in SPECIAL else checked(kind, rest.split("+") if rest else None)
        except Exception as error:
            found = {"error": f"{type(error).__name__}: {str(error)[:300]}"}
        print(json.dumps({name: found}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
