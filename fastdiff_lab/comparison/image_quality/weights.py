"""Read the weights of the judging networks from local files. Nothing is downloaded, and no file can run code."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn
from transformers import CLIPModel, CLIPProcessor

from ...hooks.patching import replaced_method
from ...inputs.extras import extra
from ...sampling.silence import no_loading_bars
from .networks import InceptionV3, alexnet_features

with extra("quality", "LPIPS"):
    import torchmetrics.functional.image.lpips as torchmetrics_lpips

MAX_BYTES = 4 * 2**30


@dataclass(frozen=True)
class Weights:
    """Names of a network's weight file without ending, the proposed one first, and where to download it."""

    network: str
    names: tuple[str, ...]
    address: str


WEIGHTS = {
    "inception": Weights(
        "Inception v3",
        ("weights-inception-2015-12-05-6726825d", "pt_inception-2015-12-05-6726825d"),
        "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth",
    ),
    "alexnet": Weights("AlexNet", ("alexnet-owt-7be5be79",), "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth"),
    "clip": Weights("CLIP", ("clip",), "https://huggingface.co/openai/clip-vit-base-patch32"),
}


def load_inception(folder: Path) -> nn.Module:
    """Inception v3 with the weights in a folder. Raises FileNotFoundError without them, ValueError for others."""
    return _loaded(InceptionV3(), WEIGHTS["inception"], folder)


def load_lpips(folder: Path) -> nn.Module:
    """torchmetrics' LPIPS on AlexNet with the weights in a folder. The weights of its heads come with torchmetrics.

    Raises FileNotFoundError without the weights, ValueError for others.
    """
    backbone = _loaded(alexnet_features(), WEIGHTS["alexnet"], folder, within="features.")
    # torchmetrics would let torchvision download the weights and unpickle them.
    with replaced_method(torchmetrics_lpips, "_get_tv_model_features", lambda _: lambda net, pretrained: backbone):
        return torchmetrics_lpips._NoTrainLpips(net="alex").eval()


def _loaded(network: nn.Module, weights: Weights, folder: Path, within: str = "") -> nn.Module:
    path = _file(weights, folder)
    found = read_tensors(path)
    # Evaluation does not use the number of batches, and older files lack it.
    wanted = {name: value for name, value in network.state_dict().items() if not name.endswith("num_batches_tracked")}
    _check_tensors(path, weights.network, {within + name: value for name, value in wanted.items()}, found)
    network.load_state_dict({name: found[within + name] for name in wanted}, strict=False)
    return network.float().eval().requires_grad_(False)


def _file(weights: Weights, folder: Path) -> Path:
    places = [folder / (name + ending) for ending in (".safetensors", ".pth") for name in weights.names]
    place = next((place for place in places if place.is_file()), None)
    if place is None:
        raise FileNotFoundError(
            f"no weights of {weights.network} in {folder}; accepted: {weights.names[0]}.pth there, from {weights.address}, or the same "
            f"tensors as {weights.names[0]}.safetensors"
        )
    return place


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a safetensors file, or of a PyTorch file with nothing but tensors, to the CPU.

    >>> read_tensors(Path("weights/alexnet-owt-7be5be79.pth"))["features.0.weight"].shape  # doctest: +SKIP
    torch.Size([64, 3, 11, 11])

    Raises ValueError for any other file, without running anything in it.
    """
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise ValueError(f"{path} has {size} bytes; accepted: at most {MAX_BYTES}")
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch can raise anything for a foreign file
        raise ValueError(
            f"{path} is no file of tensors ({type(error).__name__}: {str(error).splitlines()[0][:120]}); accepted: safetensors, or a "
            "PyTorch file with nothing but tensors in it, which can be read without running code"
        ) from None
    if not isinstance(found, Mapping) or not all(isinstance(value, Tensor) for value in found.values()):
        raise ValueError(f"{path} holds a {type(found).__name__}; accepted: tensors by their names (a state_dict)")
    return dict(found)


def _check_tensors(path: Path, network: str, wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    for name, value in wanted.items():
        shape = tuple(found[name].shape) if name in found else None
        if shape != tuple(value.shape):
            seen = "is missing" if shape is None else f"has the shape {shape}"
            raise ValueError(
                f"{path} is no weight file of {network}: {name!r} {seen}; accepted: {name!r} of shape {tuple(value.shape)} and "
                f"{len(wanted) - 1} more"
            )


def load_clip(folder: Path) -> tuple[Any, Any]:
    """Model and processor for torchmetrics' CLIPScore, from the folder `clip`. Raises FileNotFoundError or ValueError."""
    place = folder / WEIGHTS["clip"].names[0]
    if not (place / "config.json").is_file():
        raise FileNotFoundError(
            f"no weights of CLIP in {folder}; accepted: a folder {place.name!r} there, with config.json, model.safetensors and the files "
            f"of the tokenizer and the processor, from {WEIGHTS['clip'].address}"
        )
    try:
        with no_loading_bars():
            safe = any(place.glob("*.safetensors"))
            model, about = CLIPModel.from_pretrained(
                place, local_files_only=True, use_safetensors=safe, weights_only=True, output_loading_info=True
            )
            processor = CLIPProcessor.from_pretrained(place, local_files_only=True)
    except Exception as error:  # transformers can raise anything for a foreign folder
        raise ValueError(
            f"{place} is no CLIP that transformers can read ({type(error).__name__}: {str(error).splitlines()[0][:120]}); accepted: what "
            "CLIPModel and CLIPProcessor save there with save_pretrained"
        ) from None
    missing = [*about["missing_keys"], *(name for name, *_ in about["mismatched_keys"])]
    if missing:  # transformers would fill them with random numbers
        raise ValueError(
            f"{place} holds no whole CLIP: {missing[0]!r} is missing or of another shape, and so are {len(missing) - 1} more; accepted: all "
            "tensors of the model that its config.json describes"
        )
    return _Clip(model.float().eval().requires_grad_(False)), _Processor(
        processor, model.config.text_config.max_position_embeddings
    )


class _Clip(nn.Module):
    """A CLIPModel that returns features as bare tensors, as torchmetrics 1.9 expects; transformers 5 wraps them."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.config = model.config

    def get_image_features(self, pixels: Tensor) -> Tensor:
        return self.model.get_image_features(pixels).pooler_output

    def get_text_features(self, tokens: Tensor, mask: Tensor) -> Tensor:
        return self.model.get_text_features(tokens, mask).pooler_output


class _Processor:
    """A CLIPProcessor that shortens long captions as CLIP does; torchmetrics would cut off the end-of-text token."""

    def __init__(self, processor: Any, longest: int) -> None:
        self.processor, self.longest = processor, longest

    def __call__(self, text: list[str] | None = None, images: list[Tensor] | None = None, **_: Any) -> Any:
        if text is None:
            return self.processor.image_processor(images, return_tensors="pt")
        return self.processor.tokenizer(text, padding=True, truncation=True, max_length=self.longest, return_tensors="pt")
