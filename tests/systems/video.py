"""Video: Text2Video-Zero, text-to-video with a 3D UNet (VideoFusion), Stable Video Diffusion, AnimateDiff."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    AnimateDiffControlNetPipeline,
    AnimateDiffPipeline,
    AnimateDiffSparseControlNetPipeline,
    AnimateDiffVideoToVideoPipeline,
    AutoencoderKLTemporalDecoder,
    EulerDiscreteScheduler,
    I2VGenXLPipeline,
    I2VGenXLUNet,
    MotionAdapter,
    PIAPipeline,
    SparseControlNetModel,
    StableVideoDiffusionPipeline,
    TextToVideoSDPipeline,
    TextToVideoZeroPipeline,
    UNet3DConditionModel,
    UNetSpatioTemporalConditionModel,
)
from models import redraw_zeros
from PIL import Image

from .base import PAPERS, System, done, given
from .parts import (
    OF_FRAMES,
    OF_MOTION,
    UNET,
    WIDTH,
    assembled,
    autoencoder,
    built,
    controlnet,
    drawn,
    image_encoder,
    scheduler,
    text_parts,
)
from .stable_diffusion import LATENT, NEGATIVE, OTHER_TEXT, stable_diffusion
from .steered import image_processor

SMALL = {"sample_size": 16, "layers_per_block": 1, "norm_num_groups": 9, "block_out_channels": (27, 54)}


def text_to_video_zero() -> Any:
    return stable_diffusion(TextToVideoZeroPipeline)


def text_to_video() -> Any:
    config = SMALL | {
        "cross_attention_dim": WIDTH, "attention_head_dim": 3, "down_block_types": ("CrossAttnDownBlock3D", "DownBlock3D"),
        "up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D"),
    }  # fmt: skip
    model = built(lambda: UNet3DConditionModel(**config))
    return assembled(TextToVideoSDPipeline, vae=autoencoder(), unet=model, scheduler=scheduler(), **text_parts())


def i2vgen() -> Any:
    config = SMALL | {
        "cross_attention_dim": WIDTH, "attention_head_dim": 3, "down_block_types": ("CrossAttnDownBlock3D", "DownBlock3D"),
        "up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D"),
    }  # fmt: skip
    parts = {
        "image_encoder": image_encoder(),
        "feature_extractor": image_processor(),
        "unet": built(lambda: I2VGenXLUNet(**config)),
    }
    pipe = assembled(I2VGenXLPipeline, vae=autoencoder(), scheduler=scheduler(), **parts, **text_parts())
    pipe.prepare_image_latents = _always_drawn_alike(pipe.prepare_image_latents)
    return pipe


def _always_drawn_alike(draw: Any) -> Any:
    """I2VGen-XL and SparseCtrl draw their images' latents without the generator, so that no two of their runs are the same."""

    def drawing(*args: Any, **kwargs: Any) -> Any:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return draw(*args, **kwargs)

    return drawing


def stable_video(side: int = 16) -> Any:
    """`side`: of what the image encoder gets: tensors as they are, PIL images resized to 224."""
    config = {
        "sample_size": 16, "in_channels": 22, "out_channels": 11, "block_out_channels": (32, 64), "layers_per_block": 1,
        "down_block_types": ("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"), "num_attention_heads": (4, 4),
        "up_block_types": ("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"), "addition_time_embed_dim": 4,
        "projection_class_embeddings_input_dim": 12, "cross_attention_dim": WIDTH, "num_frames": 5,
    }  # fmt: skip
    vae = {
        "block_out_channels": (32,) * 3,
        "down_block_types": ("DownEncoderBlock2D",) * 3,
        "latent_channels": 11,
        "sample_size": 64,
    }
    noise = EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type="v_prediction", use_karras_sigmas=True,
        timestep_spacing="leading", timestep_type="continuous", sigma_min=0.002, sigma_max=700.0, steps_offset=1,
    )  # fmt: skip
    return assembled(
        StableVideoDiffusionPipeline, vae=built(lambda: AutoencoderKLTemporalDecoder(**vae)), image_encoder=image_encoder(side),
        unet=built(lambda: UNetSpatioTemporalConditionModel(**config)), scheduler=noise, feature_extractor=image_processor(),
    )  # fmt: skip


def animatediff(kind: type = AnimateDiffPipeline, conv_in_channels: int | None = None, **parts: Any) -> Any:
    """A Stable Diffusion UNet and a motion adapter, made one model by the pipeline."""
    options = {
        "motion_norm_num_groups": 6,
        "motion_num_attention_heads": 3,
        "motion_max_seq_length": 8,
        "motion_layers_per_block": 1,
    }
    adapter = built(lambda: MotionAdapter(block_out_channels=(18, 48), conv_in_channels=conv_in_channels, **options), 7)
    pipe = stable_diffusion(kind, motion_adapter=adapter, safety_checker=..., **parts)
    redraw_zeros(pipe.unet)
    return pipe


def sparsectrl() -> Any:
    """AnimateDiff with a ControlNet of motion modules, which is given some of the frames."""
    names = ("block_out_channels", "layers_per_block", "norm_num_groups", "cross_attention_dim", "attention_head_dim")
    options = {name: UNET[name] for name in names} | {"motion_num_attention_heads": 3, "motion_max_seq_length": 8}
    kinds = ("CrossAttnDownBlockMotion", "DownBlockMotion")
    net = built(lambda: SparseControlNetModel(down_block_types=kinds, **options), 3)
    pipe = animatediff(AnimateDiffSparseControlNetPipeline, controlnet=net)
    pipe.prepare_image = _always_drawn_alike(pipe.prepare_image)
    return pipe


def with_free_init() -> Any:
    pipe = animatediff()
    pipe.enable_free_init(num_iters=2)
    return pipe


def _still(pipe: Any) -> None:
    """Without what moves the frames."""
    for name, parameter in pipe.unet.named_parameters():
        if "motion_modules" in name and "proj_out" in name:
            parameter.zero_()


SIZE = {"height": OF_FRAMES[0], "width": OF_FRAMES[1]}
FRAMES = LATENT | SIZE | {"num_frames": 5}
IMAGE = drawn(1, 3, *OF_FRAMES)
SMALL_IMAGE = drawn(1, 3, 16, 16)  # the image encoder gets it as it is
MOVING = {"height": OF_MOTION[0], "width": OF_MOTION[1]}
ANIMATED = FRAMES | MOVING
FIRST = drawn(1, 3, *OF_MOTION)
EDGES = [*drawn(5, 3, *OF_MOTION, seed=11)]
ZERO = MOVING | {
    "prompt": "a red circle", "video_length": 5, "num_inference_steps": 8, "t0": 4, "t1": 6, "output_type": "latent",
    "motion_field_strength_x": 100, "motion_field_strength_y": 100,
}  # fmt: skip


def _pil(image: torch.Tensor) -> Image.Image:
    return Image.fromarray((255 * image[0].permute(1, 2, 0)).byte().numpy())


SYSTEMS = (
    System(
        "text2video-zero", "Text2Video-Zero", text_to_video_zero, ZERO,
        OTHER_TEXT | {"motion": given(motion_field_strength_x=0, motion_field_strength_y=0)}, calls=8,
        keys=(0, 2, 5), runs=((0, 1), (1, 3), (1, 8)), parallel=False, paper="text-to-video", size="sd-1.5",
        note="serial, since its attention mixes the frames of a batch; each of its three loops is a run, which begins with a key and "
        "takes the schedule's keys of its time-steps; in diffusers 0.42.1 under `pipelines/deprecated`", group=PAPERS,
    ),
    System(
        "text-to-video", "Text to video with a 3D UNet (VideoFusion)", text_to_video, FRAMES, OTHER_TEXT | NEGATIVE,
        paper="text-to-video", size="text-to-video-1.7b", note="in diffusers 0.42.1 under `pipelines/deprecated`", group=PAPERS,
    ),
    System(
        "stable-video", "Stable Video Diffusion: image to video", stable_video,
        SIZE | {"image": SMALL_IMAGE, "num_frames": 5, "num_inference_steps": 6, "output_type": "latent"},
        {
            "image": given(image=1 - SMALL_IMAGE), "motion bucket": given(motion_bucket_id=3), "frames per second": given(fps=30),
            "guidance of the last frame": given(max_guidance_scale=1.5),
        },
        size="svd", close=1e-5,
    ),
    System(
        "i2vgen-xl", "I2VGen-XL: image and text to video", i2vgen, FRAMES | {"image": IMAGE.float(), "clip_skip": None},
        OTHER_TEXT | NEGATIVE | {"image": given(image=1 - IMAGE.float()), "frames per second": given(target_fps=2)},
        note="draws the image's latents without its generator (not in the test), so it cannot be calibrated; with transformers 5 it needs "
        "`clip_skip=None`; in diffusers 0.42.1 under `pipelines/deprecated`",
    ),
    System(
        "animatediff", "AnimateDiff", animatediff, ANIMATED, OTHER_TEXT | NEGATIVE | {"motion": done(_still)}, size="animatediff",
    ),
    System(
        "animatediff-controlnet", "AnimateDiff with a ControlNet, an edge image for each frame",
        lambda: animatediff(AnimateDiffControlNetPipeline, controlnet=controlnet()), ANIMATED | {"conditioning_frames": EDGES},
        OTHER_TEXT | {"control images": given(conditioning_frames=[1 - frame for frame in EDGES])}, controlnets=1,
    ),
    System(
        "animatediff-sparsectrl", "AnimateDiff with SparseCtrl, edges for one frame",
        sparsectrl, ANIMATED | {"conditioning_frames": _pil(FIRST), "controlnet_frame_indices": [0]},
        OTHER_TEXT | {"frame": given(controlnet_frame_indices=[2]), "control image": given(conditioning_frames=_pil(1 - FIRST))},
        controlnets=1, note="draws the control images' latents without its generator (not in the test), so it cannot be calibrated",
    ),
    System(
        "animatediff-video", "AnimateDiff, video to video", lambda: animatediff(AnimateDiffVideoToVideoPipeline),
        LATENT | MOVING | {"video": EDGES, "strength": 0.7, "num_inference_steps": 8},
        OTHER_TEXT | {"video": given(video=[1 - frame for frame in EDGES])}, calls=5, size="animatediff",
    ),
    System(
        "pia", "PIA: an image and a text to video", lambda: animatediff(PIAPipeline, conv_in_channels=9), ANIMATED | {"image": FIRST},
        OTHER_TEXT | {"image": given(image=1 - FIRST), "motion scale": given(motion_scale=2)},
        note="in diffusers 0.42.1 under `pipelines/deprecated`",
    ),
    System(
        "animatediff-free-init", "AnimateDiff with FreeInit, two iterations", with_free_init, ANIMATED,
        {"FreeInit": done(lambda pipe: pipe.disable_free_init())}, runs=((0, 6), (0, 6)), size="animatediff",
        note="each iteration is a run; it cannot be calibrated",
    ),
)  # fmt: skip
