"""What steers Stable Diffusion and SDXL: ControlNet, T2I-Adapter, IP-Adapter, LoRA, textual inversion, FreeU, ToMe."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    MultiAdapter,
    MultiControlNetModel,
    StableDiffusionAdapterPipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLAdapterPipeline,
    StableDiffusionXLControlNetPipeline,
    StableDiffusionXLControlNetUnionPipeline,
    T2IAdapter,
)
from diffusers.models.controlnets.multicontrolnet_union import MultiControlNetUnionModel
from transformers import CLIPImageProcessor

from .base import PAPERS, System, done, given
from .parts import SDXL_UNET, WIDTH, built, controlnet, controlnet_union, drawn, image, image_encoder, normal
from .stable_diffusion import LATENT, OTHER_TEXT, sdxl, stable_diffusion

EDGES = image(11)
OTHER_EDGES = {"control image": given(image=1 - EDGES)}


def steered(**parts: Any) -> Any:
    return stable_diffusion(StableDiffusionControlNetPipeline, **{"controlnet": controlnet()} | parts)


def several() -> Any:
    return steered(controlnet=MultiControlNetModel([controlnet(), controlnet(seed=4)]))


def united(*nets: Any) -> Any:
    """ControlNetUnion, or several of them."""
    net = nets[0] if len(nets) == 1 else MultiControlNetUnionModel(nets)
    return sdxl(StableDiffusionXLControlNetUnionPipeline, controlnet=net, add_watermarker=False)


def _adapter(kind: str, seed: int = 6) -> T2IAdapter:
    """Features of the UNet's own widths and sizes."""
    sizes = (
        {"channels": [18, 48], "downscale_factor": 4}
        if kind == "full_adapter"
        else {"channels": [18, 48, 48, 48], "downscale_factor": 8}
    )
    return built(lambda: T2IAdapter(**sizes, num_res_blocks=1, adapter_type=kind), seed)


def with_ip_adapter() -> Any:
    """As `load_ip_adapter` does after its download: weights of the projection and of the added keys and values."""
    pipe = stable_diffusion(image_encoder=image_encoder(), feature_extractor=image_processor())
    pipe.unet._load_ip_adapter_weights([ip_adapter_weights(pipe.unet)])
    pipe.unet.to(torch.float64).requires_grad_(False)
    return pipe


def image_processor() -> Any:
    size = {"size": {"shortest_edge": 16}, "crop_size": {"height": 16, "width": 16}}
    return CLIPImageProcessor(**size)


def ip_adapter_weights(model: Any) -> dict[str, Any]:
    width = model.config.cross_attention_dim
    projection = {
        "proj.weight": normal(4 * width, WIDTH, seed=1), "proj.bias": normal(4 * width, seed=2),
        "norm.weight": 1 + 0.3 * normal(width, seed=3), "norm.bias": 0.3 * normal(width, seed=4),
    }  # fmt: skip
    sizes = {name: module.to_k.weight.shape[0] for name, module in model.named_modules() if name.endswith("attn2")}
    names = [name.removesuffix(".processor") for name in model.attn_processors]
    layers = {
        f"{place}.to_{part}_ip.weight": normal(sizes[name], width, seed=place)
        for place, name in enumerate(names) if name in sizes for part in "kv"
    }  # fmt: skip
    return {"image_proj": projection, "ip_adapter": layers}


def lora_weights(model: Any) -> dict[str, Any]:
    """A file of LoRA weights as training scripts save them, for the UNet's attention."""
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    torch.manual_seed(0)
    model.add_adapter(LoraConfig(r=2, target_modules=["to_k", "to_v", "to_out.0"], init_lora_weights=False))
    weights = {f"unet.{name}": value.clone() for name, value in get_peft_model_state_dict(model).items()}
    model.delete_adapters("default")
    return weights


def with_lora(kind: type = StableDiffusionPipeline) -> Any:
    pipe = stable_diffusion(kind)
    pipe.load_lora_weights(lora_weights(stable_diffusion().unet), adapter_name="style")
    pipe.unet.to(torch.float64).requires_grad_(False)
    return pipe


def with_fused_lora() -> Any:
    pipe = with_lora()
    pipe.fuse_lora(lora_scale=0.8)
    return pipe


def with_new_word() -> Any:
    """As `load_textual_inversion` loads a file: one word more, with an embedding of its own."""
    pipe = stable_diffusion()
    pipe.load_textual_inversion({"<thing>": 3 * normal(WIDTH, seed=12)}, token="<thing>")
    pipe.text_encoder.to(torch.float64).requires_grad_(False)
    return pipe


def with_freeu() -> Any:
    pipe = stable_diffusion()
    pipe.enable_freeu(s1=0.9, s2=0.2, b1=1.5, b2=1.6)
    return pipe


def with_tome() -> Any:
    import tomesd

    pipe = stable_diffusion()
    tomesd.apply_patch(pipe, ratio=0.5, max_downsample=2, use_rand=False)
    return pipe


def _without_tome(pipe: Any) -> None:
    import tomesd

    tomesd.remove_patch(pipe)


CONTROL = LATENT | {"image": EDGES}
SYSTEMS = (
    System(
        "controlnet", "ControlNet", steered, CONTROL,
        OTHER_TEXT | OTHER_EDGES | {"scale": given(controlnet_conditioning_scale=0.3)},
        controlnets=1, paper="controlnet", size="sd-1.5 with ControlNet", note="evaluated with the encoder: at key steps only", group=PAPERS,
    ),
    System(
        "controlnets", "Several ControlNets", several, LATENT | {"image": [EDGES, 1 - EDGES], "controlnet_conditioning_scale": [1.0, 0.7]},
        {"first image": given(image=[1 - EDGES, 1 - EDGES]), "second image": given(image=[EDGES, EDGES])},
        controlnets=2, paper="controlnet", size="sd-1.5 with ControlNet", group=PAPERS,
    ),
    System(
        "controlnet-guess", "ControlNet in guess mode", steered, CONTROL | {"guess_mode": True},
        OTHER_EDGES | {"guess mode": given(guess_mode=False)}, controlnets=1, paper="controlnet", size="sd-1.5 with ControlNet", group=PAPERS,
    ),
    System(
        "controlnet-part", "ControlNet for a part of the run", steered,
        CONTROL | {"control_guidance_start": 0.3, "control_guidance_end": 0.7},
        {
            "control image": given(image=5 * (1 - EDGES)), "start": given(control_guidance_start=0.0),
            "end": given(control_guidance_end=1.0),
        },
        keys=(0, 2, 4), controlnets=1, paper="controlnet", size="sd-1.5 with ControlNet",
        note="the steps where its scale changes must be keys; else the error names the step", group=PAPERS,
    ),
    System(
        "sdxl-controlnet", "SDXL with ControlNet",
        lambda: sdxl(StableDiffusionXLControlNetPipeline, controlnet=controlnet(SDXL_UNET), add_watermarker=False),
        CONTROL, OTHER_TEXT | OTHER_EDGES, controlnets=1, size="sdxl with ControlNet",
    ),
    System(
        "controlnet-union", "SDXL with ControlNetUnion: two kinds of control at once", lambda: united(controlnet_union()),
        LATENT | {"control_image": [EDGES, 1 - EDGES], "control_mode": [0, 3]},
        OTHER_TEXT | {
            "first image": given(control_image=[1 - EDGES, 1 - EDGES]), "kind": given(control_mode=[0, 5]),
            "scale": given(controlnet_conditioning_scale=0.3),
        }, controlnets=1, size="sdxl with ControlNetUnion",
    ),
    System(
        "controlnet-unions", "SDXL with several ControlNetUnions", lambda: united(controlnet_union(), controlnet_union(seed=4)),
        LATENT | {"control_image": [EDGES, 1 - EDGES], "control_mode": [1, 4], "controlnet_conditioning_scale": [1.0, 0.7]},
        {
            "second image": given(control_image=[EDGES, EDGES]), "kind": given(control_mode=[1, 2]),
            "scale": given(controlnet_conditioning_scale=[1.0, 0.1]),
        }, controlnets=2,
    ),
    System(
        "t2i-adapter", "T2I-Adapter", lambda: stable_diffusion(StableDiffusionAdapterPipeline, adapter=_adapter("full_adapter")),
        CONTROL, OTHER_TEXT | OTHER_EDGES | {"scale": given(adapter_conditioning_scale=0.2)}, size="sd-1.5",
    ),
    System(
        "t2i-adapters", "Several T2I-Adapters",
        lambda: stable_diffusion(
            StableDiffusionAdapterPipeline, adapter=MultiAdapter([_adapter("full_adapter"), _adapter("full_adapter", 7)])
        ),
        LATENT | {"image": [EDGES, 1 - EDGES], "adapter_conditioning_scale": [0.9, 0.6]},
        {"second image": given(image=[EDGES, EDGES])}, size="sd-1.5",
    ),
    System(
        "sdxl-t2i-adapter", "SDXL with T2I-Adapter",
        lambda: sdxl(StableDiffusionXLAdapterPipeline, adapter=_adapter("full_adapter_xl")),
        CONTROL, OTHER_TEXT | OTHER_EDGES, size="sdxl",
    ),
    System(
        "ip-adapter", "IP-Adapter", with_ip_adapter, LATENT | {"ip_adapter_image": drawn(1, 3, 16, 16, seed=13)},
        OTHER_TEXT | {
            "image prompt": given(ip_adapter_image=drawn(1, 3, 16, 16, seed=14)),
            "scale": done(lambda pipe: pipe.set_ip_adapter_scale(0.2)),
        }, size="sd-1.5",
    ),
    System(
        "lora", "LoRA, loaded", with_lora, LATENT,
        OTHER_TEXT | {
            "scale": done(lambda pipe: pipe.set_adapters("style", 0.3)), "off": done(lambda pipe: pipe.disable_lora()),
            "scale of the call": given(cross_attention_kwargs={"scale": 0.2}),
        }, size="sd-1.5", note="a scale changed between runs belongs to the next run",
    ),
    System(
        "lora-fused", "LoRA, fused", with_fused_lora, LATENT, {"unfused": done(lambda pipe: (pipe.unfuse_lora(), pipe.disable_lora()))},
        size="sd-1.5",
    ),
    System(
        "textual-inversion", "Textual inversion", with_new_word, LATENT | {"prompt": "a red <thing>"},
        {"new word": given(prompt="a red circle")}, size="sd-1.5",
    ),
    System("freeu", "FreeU", with_freeu, LATENT, {"FreeU": done(lambda pipe: pipe.disable_freeu())}, size="sd-1.5"),
    System(
        "tome", "Token merging (tomesd 0.1.3)", with_tome, LATENT, {"merging": done(_without_tome)}, paper="stable-diffusion", size="sd-1.5",
        note="`use_rand=False` for the identities: with random destinations no two runs merge alike", group=PAPERS,
    ),
)  # fmt: skip
