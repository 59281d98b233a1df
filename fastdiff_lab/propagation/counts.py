"""What was evaluated in a block of encoder propagation.

- `Counts`
- `Usage`: what became of the block's calls
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Counts:
    """What was evaluated in the block, over all its runs.

    `encoder_calls`: evaluations of the encoder (and bottleneck). `decoder_calls`: steps that were decoded; several may share a
    forward. `forward_calls`: calls of the denoiser's own forward. `controlnet_calls`: evaluations of the ControlNet.
    `runs`: runs begun. `steps`: denoiser calls of the pipeline that were answered; fewer than `runs` times the schedule's steps
    if a run ended early. `images_beyond_fit`: images with an offset larger than any that was seen when fitting, which was shortened;
    look at these.
    """

    encoder_calls: int = 0
    decoder_calls: int = 0
    forward_calls: int = 0
    controlnet_calls: int = 0
    runs: int = 0
    steps: int = 0
    images_beyond_fit: int = 0


@dataclass
class Usage:
    """What became of the denoiser calls in the block: told at its end where nothing was accelerated.

    `was_called`: the pipeline called its denoiser. `others_calls`: those of other pipelines that share it. `has_reused`: a step used
    what another one left. `why_key`: what made a step a key that is none in the schedule, at the last one of these.
    """

    was_called: bool = False
    others_calls: int = 0
    has_reused: bool = False
    why_key: str | None = None
