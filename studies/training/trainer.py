"""The training loop of every part: averaged weights (EMA), checkpoints, resuming."""

from __future__ import annotations

import copy
import csv
import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm

from fastdiff_lab.hooks.private_api import move_towards
from fastdiff_lab.inputs.files import write_whole

from .data_parallel import Team

NO_LIMIT = 10**9  # of steps


def learning_rate_factor(progress: float, warm_up: float = 0.02, decay_from: float = 0.7) -> float:
    """Linear warm-up, then constant, then a linear decay to nearly 0; `progress` runs from 0 to 1.

    >>> [round(learning_rate_factor(progress), 2) for progress in (0.01, 0.5, 0.85, 1.0)]
    [0.5, 1.0, 0.5, 0.01]
    """
    return max(0.01, min(progress / warm_up, 1.0, (1 - progress) / (1 - decay_from)))


class _Checkpoint:
    """The whole state of a training in one safetensors file: weights, EMA, AdamW moments, step, seconds."""

    def __init__(self, path: Path, model: nn.Module, ema: nn.Module, optimizer: torch.optim.AdamW) -> None:
        self.path, self.model, self.ema, self.optimizer = path, model, ema, optimizer

    def save(self, step: int, seconds: float) -> None:
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        tensors |= {f"ema.{name}": tensor for name, tensor in self.ema.state_dict().items()}
        for name, parameter in self.model.named_parameters():
            state = self.optimizer.state.get(parameter, {})
            tensors |= {f"{moment}.{name}": state[moment] for moment in ("exp_avg", "exp_avg_sq") if moment in state}
        tensors = {name: tensor.detach().contiguous().clone() for name, tensor in tensors.items()}
        header = {"step": str(step), "seconds": str(seconds)}
        write_whole(self.path, lambda place: save_file(tensors, place, metadata=header))

    def load(self) -> tuple[int, float]:
        if not self.path.exists():
            return 0, 0.0
        with safe_open(self.path, framework="pt") as file:
            header = file.metadata()
            tensors = {name: file.get_tensor(name) for name in file.keys()}
        for part, module in (("model.", self.model), ("ema.", self.ema)):
            module.load_state_dict({name[len(part) :]: t for name, t in tensors.items() if name.startswith(part)})
        step = int(header["step"])
        for name, parameter in self.model.named_parameters():
            if f"exp_avg.{name}" in tensors:
                moments = {m: tensors[f"{m}.{name}"].to(parameter.device) for m in ("exp_avg", "exp_avg_sq")}
                self.optimizer.state[parameter] = {"step": torch.tensor(float(step)), **moments}
        return step, float(header["seconds"])


def fit(
    model: nn.Module,
    loss: Callable[[nn.Module, int, float], Tensor],
    *,
    name: str,
    folder: Path,
    learning_rate: float,
    max_steps: int,
    max_seconds: float = math.inf,
    ema_decay: float = 0.999,
    autocast: torch.dtype | None = None,
    save_every: float = 120.0,
    on_save: Callable[[nn.Module, int], None] = lambda ema, step: None,
) -> nn.Module:
    """Train `model` with AdamW and return a copy with the averaged weights.

    >>> ema = fit(model, lambda model, step, progress: model(batch(step)).square().mean(), name="judge", folder=Path("runs/train"),
    ...           learning_rate=1e-3, max_steps=2000)  # doctest: +SKIP

    `loss(model, draw, progress)` is the loss of one step. It draws its batch from the number `draw`, which belongs to this step
    and process alone. So a resumed run sees the same batches. `progress` goes from 0 to 1.
    The state goes to `folder/name.safetensors` every `save_every` seconds, the losses to `folder/name.csv`. The same call resumes.
    Training ends after `max_steps` steps or `max_seconds`; the learning rate follows the larger share of the two.
    In a team (see `data_parallel.py`) all processes take part, and the leader writes.
    """
    device = next(model.parameters()).device
    ema = copy.deepcopy(model).requires_grad_(False).eval()
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.01)
    checkpoint = _Checkpoint(folder / f"{name}.safetensors", model, ema, optimizer)
    team = Team()
    step, spent = checkpoint.load()
    started = saved = time.monotonic()
    model.train()
    losses: list[tuple[int, float]] = []
    bar = tqdm(initial=step, total=max_steps, desc=name, mininterval=2, disable=not team.leads)

    def save() -> None:
        if not team.leads:
            return
        checkpoint.save(step, spent + time.monotonic() - started)
        with open(folder / f"{name}.csv", "a", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(losses)
        losses.clear()
        on_save(ema, step)

    while step < max_steps and (used := team.as_the_leader(spent + time.monotonic() - started)) < max_seconds:
        progress = max(step / max_steps, used / max_seconds)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * learning_rate_factor(progress)
        with torch.autocast(device.type, dtype=autocast, enabled=autocast is not None):
            value = loss(model, team.draw(step), progress)
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        team.average_gradients(model)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step += 1
        decay = min(ema_decay, (1 + step) / (10 + step))
        with torch.no_grad():
            move_towards(ema.parameters(), model.parameters(), 1 - decay)
            for averaged, current in zip(ema.buffers(), model.buffers(), strict=True):
                averaged.copy_(current)
        if step % 20 == 0:
            losses.append((step, value.item()))
            bar.set_postfix(loss=f"{losses[-1][1]:.4f}", refresh=False)
        bar.update()
        if time.monotonic() - saved > save_every:
            save()
            saved = time.monotonic()
    save()
    bar.close()
    return ema
