"""How far loading is: the share of the weights, as transformers counts them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tww_ros.config import NodeConfig
from tww_ros.model.tiny import tiny_model
from tww_ros.node.loading import IMPORTED, LOADED, Progress, load_checkpoint


class Recorded(Progress):
    """Keeps every value."""

    def __init__(self) -> None:
        self.values: list[float] = []

    @property
    def value(self) -> float:
        return self.values[-1]

    @value.setter
    def value(self, value: float) -> None:
        self.values.append(value)


def test_progress_of_a_checkpoint(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    model, tokenizer = tiny_model(0)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    capfd.readouterr()
    progress = Recorded()
    loaded = load_checkpoint(NodeConfig(model=str(tmp_path)), progress)
    assert loaded.name == str(tmp_path)
    assert progress.values == sorted(progress.values)
    assert progress.values[0] == IMPORTED and progress.values[-1] == pytest.approx(LOADED)
    # One for each weight of the model, and no bar in the log.
    assert len(set(progress.values)) > 20
    assert 'Loading weights' not in capfd.readouterr().err
