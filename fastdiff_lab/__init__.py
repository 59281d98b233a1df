"""Measure and use encoder propagation in diffusion models.

>>> import fastdiff_lab as fl
>>> pipe = fl.load_pipeline()  # doctest: +SKIP
>>> with fl.encoder_propagation(pipe, fl.KeySchedule.paper(50)):  # doctest: +SKIP
...     image = pipe("a small red circle at the left on a blue background", num_inference_steps=50).images[0]
"""

from .calibration.calibrate import calibrate
from .calibration.derive import accumulated_change, derive_schedule, schedule_front
from .calibration.refine import refine_schedule
from .calibration.reuse_costs import ReuseCosts
from .comparison.compare import compare, compare_pictures
from .comparison.fidelity import paired_difference
from .hooks.denoiser_classes import register_denoiser
from .key_schedule import KeySchedule
from .pipelines import embedded_costs, load_pipeline
from .propagation.config import PropagationConfig
from .propagation.counts import Counts
from .propagation.encoder_propagation import apply_encoder_propagation, encoder_propagation
from .propagation.extrapolation import Extrapolation
from .propagation.prior_noise import prior_noise_injection
from .recording.analysis import feature_change, feature_norm, of_parts, pca_maps, step_clusters, step_similarity
from .recording.record import bytes_to_keep, record
from .recording.recording import Recording
from .sampling.methods import Arm
from .shapes.judge import prompt_accuracy

__version__ = "0.1.0"

__all__ = [
    "Arm",
    "Counts",
    "Extrapolation",
    "KeySchedule",
    "PropagationConfig",
    "Recording",
    "ReuseCosts",
    "accumulated_change",
    "apply_encoder_propagation",
    "bytes_to_keep",
    "calibrate",
    "compare",
    "compare_pictures",
    "derive_schedule",
    "embedded_costs",
    "encoder_propagation",
    "feature_change",
    "feature_norm",
    "load_pipeline",
    "of_parts",
    "paired_difference",
    "pca_maps",
    "prior_noise_injection",
    "prompt_accuracy",
    "record",
    "refine_schedule",
    "register_denoiser",
    "schedule_front",
    "step_clusters",
    "step_similarity",
]
