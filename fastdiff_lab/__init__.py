"""Measure and use encoder propagation in diffusion models.

>>> import fastdiff_lab as fl
>>> pipe = fl.load_pipeline()  # doctest: +SKIP
>>> with fl.encoder_propagation(pipe, fl.KeySchedule.paper(50)):  # doctest: +SKIP
...     image = pipe("a small red circle at the left on a blue background", num_inference_steps=50).images[0]

A public name is imported when it is first used: what a run does not need, it does not load.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

# Public name -> its module. A new one also goes into the block for type checkers below (a test compares the two).
_HOME = {
    "Counts": "propagation.counts",
    "Extrapolation": "propagation.extrapolation",
    "KeySchedule": "key_schedule",
    "Method": "sampling.methods",
    "PropagationConfig": "propagation.config",
    "PropagationFit": "propagation.fit",
    "Recording": "recording.recording",
    "ReuseCosts": "calibration.reuse_costs",
    "accumulated_change": "calibration.derive",
    "apply_encoder_propagation": "propagation.encoder_propagation",
    "bytes_to_keep": "recording.record",
    "calibrate": "calibration.calibrate",
    "compare": "comparison.compare",
    "compare_images": "comparison.compare",
    "decode": "sampling.methods",
    "demo": "comparison.measured",
    "derive_schedule": "calibration.derive",
    "embedded_costs": "pipelines",
    "embedded_fit": "pipelines",
    "encoder_propagation": "propagation.encoder_propagation",
    "feature_change": "recording.analysis",
    "feature_norm": "recording.analysis",
    "fidelity": "comparison.fidelity",
    "fit_propagation": "calibration.fitting",
    "full_size": "comparison.architectures",
    "load_pipeline": "pipelines",
    "mean_psnr": "comparison.fidelity",
    "measured": "comparison.measured",
    "measured_with": "comparison.measured",
    "paired_difference": "comparison.fidelity",
    "pca_maps": "recording.analysis",
    "prior_noise_injection": "propagation.prior_noise",
    "prompt_accuracy": "shapes.judge",
    "record": "recording.record",
    "refine_schedule": "calibration.refine",
    "register_denoiser": "hooks.denoiser_classes",
    "sample": "sampling.methods",
    "schedule_front": "calibration.derive",
    "step_clusters": "recording.analysis",
    "step_similarity": "recording.analysis",
}
__all__ = [*_HOME]

# The same for names that need an extra, and for a module of many names.
_WITH_EXTRAS = {
    "check": "exercises.checking",
    "guessed": "exercises.guessing",
    "plot": "",
    "recording_explorer": "lab.widget",
    "schedule_lab": "lab.widget",
}

if TYPE_CHECKING:
    from .calibration.calibrate import calibrate as calibrate
    from .calibration.derive import accumulated_change as accumulated_change
    from .calibration.derive import derive_schedule as derive_schedule
    from .calibration.derive import schedule_front as schedule_front
    from .calibration.fitting import fit_propagation as fit_propagation
    from .calibration.refine import refine_schedule as refine_schedule
    from .calibration.reuse_costs import ReuseCosts as ReuseCosts
    from .comparison.architectures import full_size as full_size
    from .comparison.compare import compare as compare
    from .comparison.compare import compare_images as compare_images
    from .comparison.fidelity import fidelity as fidelity
    from .comparison.fidelity import mean_psnr as mean_psnr
    from .comparison.fidelity import paired_difference as paired_difference
    from .comparison.measured import demo as demo
    from .comparison.measured import measured as measured
    from .comparison.measured import measured_with as measured_with
    from .hooks.denoiser_classes import register_denoiser as register_denoiser
    from .key_schedule import KeySchedule as KeySchedule
    from .pipelines import embedded_costs as embedded_costs
    from .pipelines import embedded_fit as embedded_fit
    from .pipelines import load_pipeline as load_pipeline
    from .propagation.config import PropagationConfig as PropagationConfig
    from .propagation.counts import Counts as Counts
    from .propagation.encoder_propagation import apply_encoder_propagation as apply_encoder_propagation
    from .propagation.encoder_propagation import encoder_propagation as encoder_propagation
    from .propagation.extrapolation import Extrapolation as Extrapolation
    from .propagation.fit import PropagationFit as PropagationFit
    from .propagation.prior_noise import prior_noise_injection as prior_noise_injection
    from .recording.analysis import feature_change as feature_change
    from .recording.analysis import feature_norm as feature_norm
    from .recording.analysis import pca_maps as pca_maps
    from .recording.analysis import step_clusters as step_clusters
    from .recording.analysis import step_similarity as step_similarity
    from .recording.record import bytes_to_keep as bytes_to_keep
    from .recording.record import record as record
    from .recording.recording import Recording as Recording
    from .sampling.methods import Method as Method
    from .sampling.methods import decode as decode
    from .sampling.methods import sample as sample
    from .shapes.judge import prompt_accuracy as prompt_accuracy


def __getattr__(name: str) -> Any:
    """A public name, looked up in its module and kept (PEP 562)."""
    home = (_HOME | _WITH_EXTRAS).get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{home}", __name__), name) if home else import_module(f".{name}", __name__)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME, *_WITH_EXTRAS})
