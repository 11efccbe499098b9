"""What a checkpoint says about itself in `tww.json`, beside its config; needs no torch.

    {"positions": "decoupled", "prompts": "tww", "settings": {"watch.sample_fps": 1.0, …}}

positions and prompts: how it was trained. settings: the engine's settings that it was trained
with, and that hold unless the user says otherwise. A stock checkpoint has no such file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tww_ros.config import EngineConfig
from tww_ros.errors import ConfigError, ModelError
from tww_ros.model.prompts import STYLES

FILE = 'tww.json'
EMBEDDED = Path(__file__).with_name('embedded')
SCHEMES = ('continuous', 'decoupled')


@dataclass(frozen=True)
class Marks:
    """positions: one of SCHEMES; prompts: a key of prompts.STYLES; settings: by dotted name."""

    positions: str = 'continuous'
    prompts: str = 'stock'
    settings: Mapping[str, Any] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Put tww.json into a checkpoint's directory."""
        (folder / FILE).write_text(json.dumps(asdict(self), indent=2) + '\n')


def read_marks(file: Path) -> Marks:
    """Marks from a tww.json; ModelError when it is not as it should be."""
    try:
        marks = Marks(**json.loads(file.read_text()))
        for value, known in ((marks.positions, SCHEMES), (marks.prompts, STYLES)):
            if value not in known:
                raise ValueError(f'expected one of {", ".join(known)}, got {value!r}')
        EngineConfig.from_flat(marks.settings)
    except (ValueError, TypeError, AttributeError, ConfigError) as error:
        raise ModelError(f'{file}: {error}; expected {{"positions": "decoupled", '
                         '"prompts": "tww", "settings": {}}}') from error
    return marks


def local_marks(name: str) -> Marks:
    """Marks of 'embedded' or of a local directory, by the model's name; none for other names."""
    file = folder_of(name) / FILE
    return read_marks(file) if file.is_file() else Marks()


def folder_of(name: str) -> Path:
    """Where a model of that name would be on this machine."""
    return EMBEDDED if name == 'embedded' else Path(name).expanduser()
