"""A script for processes that have the core's packages and no others: does the core work, and what is said of the rest?

`python core_alone.py PACKAGE ...` treats these packages as missing.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from importlib import import_module

STEPS = 10
PROMPT = "a small red circle at the left on a blue background"


def use_the_core() -> None:
    """Measure, derive, run: every step a key gives the baseline image, bit for bit."""
    import torch

    import fastdiff_lab as fl

    pipe = fl.load_pipeline()
    pipe.set_progress_bar_config(disable=True)

    def latents() -> torch.Tensor:
        noise = torch.Generator().manual_seed(0)
        return pipe(PROMPT, num_inference_steps=STEPS, generator=noise, output_type="latent").images

    with fl.record(pipe, keep=["mid_block"]) as recording:
        baseline = latents()
    assert set(fl.feature_change(recording)["part"]) == {"encoder", "decoder"}
    assert fl.pca_maps(recording, "mid_block").shape[0] == len(fl.step_clusters(fl.step_similarity(recording, "mid_block"), 3))
    costs = fl.calibrate(pipe, [PROMPT], num_inference_steps=STEPS, max_span=3)
    with fl.encoder_propagation(pipe, fl.KeySchedule.uniform(STEPS, STEPS)):
        assert torch.equal(latents(), baseline)
    with fl.encoder_propagation(pipe, fl.derive_schedule(costs, 5)) as counts:
        assert torch.isfinite(latents()).all() and counts.encoder_calls == 5
    methods = {"every step": fl.KeySchedule.uniform(STEPS, STEPS)}
    table = fl.compare(pipe, methods, [PROMPT], num_inference_steps=STEPS, rivals=False, repeats=0)
    assert table.set_index("method")["ssim"].round(6).tolist() == [1, 1]


def ask_for_the_rest() -> None:
    """Everything that needs an extra says which."""
    import fastdiff_lab as fl

    pipe = fl.load_pipeline()

    def compare(**options) -> object:
        return fl.compare(pipe, options.pop("methods", {}), [PROMPT], num_inference_steps=2, rivals=False, repeats=0, **options)

    check(lambda: import_module("fastdiff_lab.plot"), "fastdiff_lab.plot needs matplotlib", "lab")
    check(lambda: import_module("fastdiff_lab.lab.widget"), "fastdiff_lab.lab.widget needs anywidget", "lab")
    check(lambda: import_module("fastdiff_lab.exercises"), "fastdiff_lab.exercises needs IPython", "notebooks")
    check(lambda: import_module("fastdiff_lab.cli.tour"), "the tour needs nbformat", "notebooks")
    check(lambda: compare(metrics=["lpips"], metric_weights="weights"), "metrics=['lpips'] needs torchmetrics", "quality")
    check(lambda: compare(n_jobs=2), "n_jobs needs joblib", "workers")
    check(lambda: compare(methods={"a": fl.Method(deepcache=2)}), "a method with DeepCache needs DeepCache", "rivals")
    check(lambda: compare(methods={"a": fl.Method(token_merging=0.5)}), "a method with token merging needs tomesd", "rivals")


def ask_for_the_command_line() -> None:
    """typer comes with transformers 5; where it does not, the command line says so."""
    for name in [name for name in sys.modules if name.startswith("fastdiff_lab.cli")]:
        del sys.modules[name]
    sys.modules["typer"] = None
    check(lambda: import_module("fastdiff_lab.cli"), "the command line needs typer", "cli")


def check(asking: Callable[[], object], needs: str, extra: str) -> None:
    try:
        asking()
    except ModuleNotFoundError as error:
        expected = f'{needs}, which is not installed; get the extra {extra}: pip install "fastdiff-lab[{extra}]"'
        assert str(error) == expected, str(error)
    else:
        raise AssertionError(f"nothing was missed: {needs}")


if __name__ == "__main__":
    sys.modules.update(dict.fromkeys(sys.argv[1:]))  # importing None raises ModuleNotFoundError
    warnings.simplefilter("ignore")
    use_the_core()
    ask_for_the_rest()
    ask_for_the_command_line()
    print("the core works alone")
