"""What was evaluated in a block of encoder propagation.

- `Counts`
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Counts:
    """What was evaluated in the block, over all its runs.

    `encoder_calls`: evaluations of the encoder (and bottleneck). `decoder_calls`: steps that were decoded; several may share a
    forward. `forward_calls`: calls of the denoiser's own forward. `controlnet_calls`: evaluations of the ControlNet.
    `runs`: runs begun. `steps`: denoiser calls of the pipeline that were answered; fewer than `runs` times the schedule's steps
    if a run ended early.
    """

    encoder_calls: int = 0
    decoder_calls: int = 0
    forward_calls: int = 0
    controlnet_calls: int = 0
    runs: int = 0
    steps: int = 0
