"""The model card of a trained checkpoint: what it is, what it learnt from, how to make it again.

In: the run's options, steps and hours. Out: README.md beside the weights. `tww eval tabletop
--card DIR` puts the measured accuracy behind it.
"""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import torch
import transformers

from tww_ros import __version__

TEMPLATE = """# {name}

A Qwen3-VL of {millions:.1f} million parameters ({layers} layers, {width} wide; transformers' own
classes) for tww_ros. {about} It is a test and demonstration model: it knows no other pictures and
no other words.

| | |
|---|---|
| input | one camera at 1 frame/s, shrunk to 96 × 96 px; two frames a segment |
| positions, prompts | {positions}, {prompts} |
| data | {data} |
| command | `{command}` |
| seed | {seed} |
| stages | {stages} |
| time | {hours:.1f} hours on {machine} |
| made with | tww_ros {version}, torch {torch}, transformers {transformers} |
| licence | Apache-2.0, weights and data |
"""


def write_card(folder: Path, model: Any, *, name: str, command: str, seed: int, data: str,
               stages: dict[str, int], hours: float, begun: str = 'random weights') -> None:
    """Write the card; stages: steps of each; begun: with what."""
    text = model.hf.config.text_config
    about = (f'Trained from {begun} on the tabletop world (`tww_ros.world`), it watches a '
             'table,\nwrites notes about what a hand does there, and answers questions about it.'
             if data.startswith('the tabletop') else 'Trained on streams with notes and answers.')
    (folder / 'README.md').write_text(TEMPLATE.format(
        name=name, about=about, millions=sum(p.numel() for p in model.hf.parameters()) / 1e6,
        layers=text.num_hidden_layers, width=text.hidden_size, positions=model.scheme,
        prompts=model.style.name, data=data, command=command, seed=seed,
        stages=', '.join(f'{stage}: {steps} steps' for stage, steps in stages.items()),
        hours=hours, machine=_machine(model.device), version=__version__,
        torch=torch.__version__, transformers=transformers.__version__))


def _machine(device: torch.device) -> str:
    if device.type == 'cuda':
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f'{threads} thread{"s" * (threads > 1)} of an {platform.machine()} CPU'
