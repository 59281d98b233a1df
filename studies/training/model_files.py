"""Files of trained models in diffusers' format.

- `save_half(model, folder)`: with fp16 weights
- `tidy_autoencoder(folder)`: without the entry that diffusers warns of
"""

from __future__ import annotations

import copy
import json
from pathlib import Path

from diffusers import ModelMixin

from fastdiff_lab.inputs.files import write_text


def save_half(model: ModelMixin, folder: Path) -> None:
    """Write a model with fp16 weights in safetensors, readable as the user's umask says; safetensors would let nobody else read them."""
    copy.deepcopy(model).half().save_pretrained(folder, safe_serialization=True)
    mode = (folder / "config.json").stat().st_mode
    for file in folder.glob("*.safetensors"):
        file.chmod(mode)


def tidy_autoencoder(folder: Path) -> None:
    """Take `block_out_channels` out of an AutoencoderTiny's file: the class sets it itself, and warns if the file has it."""
    config = folder / "config.json"
    kept = {name: value for name, value in json.loads(config.read_text()).items() if name != "block_out_channels"}
    write_text(config, json.dumps(kept, indent=2) + "\n")
