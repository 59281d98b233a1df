"""Load pipelines.

- `load_pipeline(source=None, ...)`: the embedded trained pipeline, or one from a folder or the hub
- `embedded_folder()`: the folder of the embedded pipeline
- `embedded_costs(reuse, order)`, `embedded_fit(num_keys, reuse)`: its measured reuse costs, and fits
- `data_file(name, description)`: any shipped file
- `SCHEDULERS`, `with_settings_of(scheduler, name)`: schedulers by name
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import AutoencoderTiny, DDIMScheduler, DiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextModel

from .calibration.reuse_costs import ReuseCosts
from .propagation.fit import PropagationFit
from .sampling.silence import no_import_warnings, no_loading_bars
from .shapes.text import CaptionTokenizer

with no_import_warnings():
    from diffusers import StableDiffusionPipeline

SCHEDULERS = {
    "ddim": "DDIMScheduler",
    "pndm": "PNDMScheduler",
    "euler": "EulerDiscreteScheduler",
    "euler-ancestral": "EulerAncestralDiscreteScheduler",
    "dpm-solver++": "DPMSolverMultistepScheduler",
    "heun": "HeunDiscreteScheduler",
    "unipc": "UniPCMultistepScheduler",
    "lms": "LMSDiscreteScheduler",
    "kdpm2": "KDPM2DiscreteScheduler",
}
EMBEDDED_GUIDANCE = 5.0  # in all measurements of the embedded pipeline; its class's default is Stable Diffusion's 7.5
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16, "float64": torch.float64}


def embedded_folder() -> Path:
    """The folder of the embedded pipeline, in the installed package or in a checkout.

    >>> (embedded_folder() / "model_index.json").exists()
    True
    """
    return data_file("shapes/model_index.json", "the embedded pipeline").parent


def embedded_costs(reuse: str = "encoder", order: int = 0, measured: str = "ddim-50") -> ReuseCosts:
    """Load reuse costs of the embedded pipeline, measured with guidance 5 on 16 captions.

    >>> embedded_costs(order=1).title()
    'UNet2DConditionModel with DDIMScheduler, 50 steps, guidance 5.0, order 1'

    Args:
        reuse: As in `calibrate`; so is `order`.
        measured: Scheduler and steps, "ddim-50" or "dpm-solver++-20".

    Raises:
        FileNotFoundError: These were not measured.
    """
    name = f"calibration/{measured}/{reuse}-{order}.safetensors"
    return ReuseCosts.load(data_file(name, f"costs of {reuse}, order {order}, {measured}"))


def embedded_fit(num_keys: int = 9, reuse: str = "encoder", measured: str = "ddim-50") -> PropagationFit:
    """Load a fit of the embedded pipeline at its derived key steps, fitted with guidance 5 on 16 captions.

    >>> str(embedded_fit(5).schedule)
    '0,5,16,29,43 of 50'

    Args:
        num_keys: 5, 7, 9 or 13, and with "ddim-50" also 17. The keys are those of `derive_schedule(embedded_costs(), num_keys)`.
        reuse: "encoder" or "prediction". Both are fitted at the keys derived for features.
        measured: Scheduler and steps, "ddim-50" or "dpm-solver++-20".

    Raises:
        FileNotFoundError: There is no such fit.
    """
    return PropagationFit.load(
        data_file(f"fits/{measured}/{reuse}-{num_keys}.json", f"a fit of {reuse} at {num_keys} keys, {measured},")
    )


def data_file(name: str, description: str) -> Path:
    """A shipped file, in the installed package or in a checkout. Raises FileNotFoundError, with the description, if it is missing."""
    package = Path(__file__).resolve().parent
    places = (package / "data" / name, package.parent / "data" / name)
    found = next((place for place in places if place.exists()), None)
    if found is None:
        raise FileNotFoundError(f"{description} is missing; looked in: {', '.join(map(str, places))}. Install the package whole")
    return found


def load_pipeline(
    source: str | Path | None = None,
    *,
    device: str | torch.device = "cpu",
    dtype: str | torch.dtype = "float32",
    scheduler: str | None = None,
) -> Any:
    """Load the embedded trained pipeline, or a diffusers pipeline from a local folder or the hub.

    >>> pipe = load_pipeline()
    >>> type(pipe).__name__
    'StableDiffusionPipeline'

    The embedded one refuses words that it does not know, and shows no progress bar. Others stay as they are.

    Args:
        source: None for the embedded one; else a folder in diffusers' format, or a hub id. Only safetensors weights are read.
        device: "cpu", "cuda", "cuda:1", "mps".
        dtype: float32, float16, bfloat16 or float64, as text or torch's own.
        scheduler: One of `SCHEDULERS`, made from the settings of the pipeline's own; None keeps that.

    Raises:
        FileNotFoundError: A folder that is no pipeline or has only pickled weights, or a hub id that is not there.
        PermissionError: The hub asks for a token.
        ConnectionError: There is no network.
        ValueError: Another value.
    """
    kind = dtype if isinstance(dtype, torch.dtype) else DTYPES.get(str(dtype).removeprefix("torch."))
    if kind not in DTYPES.values():
        raise ValueError(f"dtype={dtype!r} asked; accepted: {', '.join(DTYPES)}, or torch's own")
    if scheduler is not None and scheduler not in SCHEDULERS:
        raise ValueError(f"scheduler={scheduler!r} asked; accepted: {', '.join(SCHEDULERS)}")
    check_device(device)
    with no_loading_bars(), no_import_warnings():
        pipe = _embedded(kind) if source is None else _foreign(source, kind)
    pipe = pipe.to(device)
    if scheduler is not None:
        pipe.scheduler = with_settings_of(pipe.scheduler, scheduler)
    return pipe


def with_settings_of(scheduler: Any, name: str) -> Any:
    """A scheduler of another kind, one of `SCHEDULERS`, with the same settings as far as it has them.

    >>> with_settings_of(pipe.scheduler, "euler")  # doctest: +SKIP
    """
    return getattr(diffusers, SCHEDULERS[name]).from_config(scheduler.config)


def check_device(device: str | torch.device) -> None:
    """Raise ValueError for a device that is not there, with those that are."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        usable = ["cpu"] + ["cuda"] * torch.cuda.is_available() + ["mps"] * torch.backends.mps.is_available()
        reason = str(error).splitlines()[0]
        reason = "torch knows no device of that name" if reason.startswith("Expected one of") else reason
        raise ValueError(f"device={device!r} asked; on this machine: {', '.join(usable)} ({reason})") from None


def _embedded(dtype: torch.dtype) -> StableDiffusionPipeline:
    # Loaded part by part, to avoid the network and warnings of missing parts.
    folder = embedded_folder()
    pipe = assemble(
        vae=AutoencoderTiny.from_pretrained(folder / "vae", dtype=dtype),
        text_encoder=CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=dtype),
        tokenizer=CaptionTokenizer.from_pretrained(folder / "tokenizer"),
        unet=UNet2DConditionModel.from_pretrained(folder / "unet", dtype=dtype),
        scheduler=DDIMScheduler.from_pretrained(folder / "scheduler"),
    )
    pipe.register_to_config(tokenizer=("transformers", "CLIPTokenizer"))  # its name in saved files
    pipe.set_progress_bar_config(disable=True)  # an image takes a second or two
    return pipe


def assemble(**parts: Any) -> StableDiffusionPipeline:
    """A StableDiffusionPipeline of the given parts, without safety checker."""
    return StableDiffusionPipeline(safety_checker=None, feature_extractor=None, requires_safety_checker=False, **parts)


def _foreign(source: str | Path, dtype: torch.dtype) -> Any:
    folder = Path(source)
    check_source(source)
    try:
        return DiffusionPipeline.from_pretrained(
            str(source), dtype=dtype, use_safetensors=True, trust_remote_code=False, local_files_only=folder.is_dir()
        )
    except Exception as error:
        if not isinstance(error, OSError) and not _is_no_connection(error):
            raise
        if folder.is_dir():
            raise FileNotFoundError(f"cannot load {source}: {error}; accepted: a whole folder in diffusers' format") from error
        raise _of_the_hub(str(source), error) from error


def _of_the_hub(source: str, error: BaseException) -> OSError:
    """The error for the hub's refusal, or for no answer at all."""
    chain = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None and cause not in chain:
        chain.append(cause)
    answers = [code for one in chain if (code := getattr(getattr(one, "response", None), "status_code", None)) is not None]
    if 404 in answers:
        return FileNotFoundError(
            f"the hub has no pipeline {source!r} (404: no such model, file or revision); accepted: the id of one, such as 'owner/name'"
        )
    if 401 in answers or 403 in answers:
        return PermissionError(
            f"the hub does not give {source!r} ({answers[-1]}: it is not there, private, or its licence was not accepted); accepted: a "
            "public model, or a token that may read it (hf auth login)"
        )
    if answers or not any(_is_no_connection(one) for one in chain):
        return OSError(
            f"cannot load {source!r} from the hub: {str(error).splitlines()[0]}; accepted: a pipeline in diffusers' format"
        )
    return ConnectionError(
        f"cannot get {source!r} from the hub ({str(error).splitlines()[0]}); without network, give the path of a local folder in "
        "diffusers' format, or leave it out for the embedded pipeline"
    )


def _is_no_connection(error: BaseException) -> bool:
    of_http = type(error).__module__.startswith(
        ("httpx", "httpcore", "requests")
    )  # the hub's client passes its library's errors on
    return isinstance(error, ConnectionError | TimeoutError) or of_http


def check_source(source: str | Path) -> None:
    """Raise FileNotFoundError unless this is a pipeline's folder with safetensors weights, or looks like a hub id."""
    folder = Path(source)
    if folder.is_dir():
        _check_folder(folder)
    elif folder.is_absolute() or str(source).count("/") != 1 or str(source).startswith("."):
        raise FileNotFoundError(
            f"no folder {str(source)!r}; accepted: a folder in diffusers' format, or a hub id such as 'owner/name'"
        )


def _check_folder(folder: Path) -> None:
    if not (folder / "model_index.json").exists():
        raise FileNotFoundError(
            f"{folder} has no model_index.json; accepted: a pipeline in diffusers' format (save_pretrained writes one)"
        )
    pickled = [file for ending in ("*.bin", "*.ckpt", "*.pt", "*.pth") for file in sorted(folder.rglob(ending))]
    if pickled and not list(folder.rglob("*.safetensors")):
        raise FileNotFoundError(
            f"{folder} has pickled weights only ({pickled[0].relative_to(folder)}), which can run code when they are read; accepted: "
            "safetensors. Save it again where you trust it: pipe.save_pretrained(folder, safe_serialization=True)"
        )
