"""Measure and use encoder propagation in diffusion models.

>>> import fastdiff_lab as fl
>>> pipe = fl.load_pipeline()  # doctest: +SKIP
>>> with fl.encoder_propagation(pipe, fl.KeySchedule.paper(50)):  # doctest: +SKIP
...     image = pipe("a small red circle at the left on a blue background", num_inference_steps=50).images[0]
"""

from .analysis import feature_change, feature_norm, of_parts, pca_maps, step_clusters, step_similarity
from .calibration import calibrate
from .comparison import compare, compare_pictures
from .counts import Counts
from .derivation import accumulated_change, derive_schedule, schedule_front
from .evaluation import Arm
from .extrapolation import Extrapolation
from .metrics import paired_difference
from .pipelines import embedded_costs, load_pipeline
from .prior_noise import prior_noise_injection
from .propagation import encoder_propagation
from .recorded import Recording
from .recording import bytes_to_keep, record
from .refinement import refine_schedule
from .reuse_costs import ReuseCosts
from .schedule import KeySchedule
from .shapes.judge import prompt_accuracy

__version__ = "0.1.0"

__all__ = [
    "Arm",
    "Counts",
    "Extrapolation",
    "KeySchedule",
    "Recording",
    "ReuseCosts",
    "accumulated_change",
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
    "schedule_front",
    "step_clusters",
    "step_similarity",
]
