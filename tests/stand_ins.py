"""Weights of the right form and no meaning, for what is judged with published weights elsewhere; a machine that there is not."""

from __future__ import annotations

from pathlib import Path

import safetensors.torch
import torch
from torch import nn
from transformers import CLIPConfig, CLIPModel, CLIPProcessor, CLIPTokenizer
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from fastdiff_lab.comparison.image_quality.networks import InceptionV3, alexnet_features
from fastdiff_lab.pipelines import embedded_folder
from fastdiff_lab.sampling.silence import no_loading_bars
from fastdiff_lab.shapes.data import held_out_scenes
from fastdiff_lab.shapes.scenes import draw

MACHINE = {"device": "cpu", "processor": "some", "threads": 1, "versions": {"torch": "2"}, "code": "c0de"}  # in a file of timings
INCEPTION, ALEXNET = "weights-inception-2015-12-05-6726825d", "alexnet-owt-7be5be79"


@torch.no_grad()
def random_weights(network: nn.Module) -> dict[str, torch.Tensor]:
    """The same weights at every call, of a size that lets images through to the end."""
    generator = torch.Generator().manual_seed(0)
    for name, value in sorted(network.state_dict().items()):
        if name.endswith("num_batches_tracked"):
            continue
        noise = torch.randn(value.shape, generator=generator)
        if value.ndim > 1:
            value.copy_(noise * (2 / value[0].numel()) ** 0.5)
        else:
            value.copy_(noise * 0.1 + (1 if name.endswith(("weight", "var")) else 0))
    return {name: value.clone() for name, value in network.state_dict().items()}


def write_weights(folder: Path) -> Path:
    """Inception's as safetensors, AlexNet's as a PyTorch file as torchvision has it, and a CLIP of a few thousand numbers."""
    folder.mkdir(parents=True, exist_ok=True)
    safetensors.torch.save_file(random_weights(InceptionV3()), folder / f"{INCEPTION}.safetensors")
    layers = {f"features.{name}": value for name, value in random_weights(alexnet_features()).items()}
    torch.save(layers | {"classifier.6.bias": torch.zeros(1000)}, folder / f"{ALEXNET}.pth")
    write_clip(folder / "clip")
    return folder


def write_clip(folder: Path) -> None:
    tokenizer = CLIPTokenizer.from_pretrained(embedded_folder() / "tokenizer")
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = small | {"vocab_size": len(tokenizer), "max_position_embeddings": 24}
    text |= {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    vision = small | {"image_size": 32, "patch_size": 8}
    torch.manual_seed(6)  # of those tried, one with which images and captions point the same way, so that no score is cut off at 0
    with no_loading_bars():
        CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).save_pretrained(folder)
        images = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
        CLIPProcessor(images, tokenizer).save_pretrained(folder)


def write_images(folder: Path, count: int) -> Path:
    """Drawn scenes, larger than the embedded pipeline's and not square, as real images are."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, scene in enumerate(held_out_scenes(count)):
        draw(scene).resize((96, 80)).save(folder / f"{number:04d}.png")
    return folder
