"""save_checkpoint: a VideoLanguageModel → a directory that load_model takes.

Weights as safetensors, never a pickle; in bfloat16 or float16 they take half the room.
"""

from __future__ import annotations

import copy
from pathlib import Path

import torch

from tww_ros.model.language_model import VideoLanguageModel
from tww_ros.model.marks import Marks


def save_checkpoint(model: VideoLanguageModel, folder: Path,
                    dtype: torch.dtype = torch.float32) -> None:
    """Write config, weights, tokenizer and tww.json; what is there already is overwritten."""
    hf = model.hf if dtype == model.dtype else copy.deepcopy(model.hf).to(dtype)
    hf.save_pretrained(folder)
    for file in folder.glob('*.safetensors'):
        # It is written through a private temporary file.
        file.chmod(0o644)
    model.tokenizer.save_pretrained(folder)
    Marks(model.scheme, model.style.name, model.settings).write(folder)
