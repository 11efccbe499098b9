"""The training loop: it learns, it survives kills, and a run that went on equals one that never
stopped."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tww_ros.errors import TrainingError
from tww_ros.model.language_model import VideoLanguageModel
from tww_ros.training import trainer as trainer_module
from tww_ros.training.embedded import settings, untrained
from tww_ros.training.recipes import TabletopBatches
from tww_ros.training.trainer import Stage, Trainer, TrainerConfig


class Interrupted(Exception):
    """Stands for a kill between two steps."""


class Killed(TabletopBatches):
    """Batches that end the run before a given one."""

    def __init__(self, *args: object, at: int, **options: object) -> None:
        super().__init__(*args, **options)
        self._at = at

    def batch(self, stage: str, number: int):
        if number == self._at:
            raise Interrupted
        return super().batch(stage, number)


def make(folder: Path, *, steps: int = 6, rate: float = 1e-3, at: int | None = None,
         tokens: int = 250, **options: object) -> tuple[VideoLanguageModel, Trainer]:
    model = untrained(seed=1)
    batches = (TabletopBatches(model, settings(), tokens) if at is None
               else Killed(model, settings(), tokens, at=at))
    stages = (Stage('perception', steps, rate, warmup=2),)
    told = {'save_every': 2, 'check_every': 3, 'check_batches': 1, 'report_every': 1,
            'muon': True, **options}
    return model, Trainer(model, batches, TrainerConfig(folder, stages, precision='no', workers=0,
                                                        **told))


def weights(model: VideoLanguageModel) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.hf.named_parameters()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope='module')
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """Weights after six steps without a stop."""
    model, run = make(tmp_path_factory.mktemp('whole'))
    run.run()
    return weights(model)


@pytest.mark.parametrize('at', [1, 3, 4, 5])
def test_goes_on_as_if_never_killed(at: int, whole: dict[str, torch.Tensor],
                                    tmp_path: Path) -> None:
    _, run = make(tmp_path, at=at)
    with pytest.raises(Interrupted):
        run.run()
    assert run.step == at
    model, run = make(tmp_path)
    assert run.step == at - at % 2
    run.run()
    assert same(weights(model), whole)
    steps = [json.loads(line)['step'] for line in (tmp_path / 'log.jsonl').read_text().split('\n')
             if line]
    assert steps == [1, 2, 3, 4, 5, 6]
    assert (tmp_path / 'curves.png').read_bytes().startswith(b'\x89PNG')


@pytest.mark.parametrize('damage', ['during save', 'truncated weights', 'no state',
                                    'truncated moments'])
def test_takes_the_last_whole_checkpoint(damage: str, whole: dict[str, torch.Tensor],
                                         tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if damage == 'during save':
        real = trainer_module.save_file

        def save_file(tensors, path):
            # The second checkpoint's optimizer is never written.
            if 'step-0000004' in str(path) and path.name == 'optimizer.safetensors':
                raise Interrupted
            real(tensors, path)

        monkeypatch.setattr(trainer_module, 'save_file', save_file)
    _, run = make(tmp_path, at=5)
    with pytest.raises(Interrupted):
        run.run()
    monkeypatch.undo()
    place = tmp_path / 'checkpoints' / 'step-0000004'
    if damage.startswith('truncated'):
        file = place / ('model.safetensors' if 'weights' in damage else 'optimizer.safetensors')
        file.write_bytes(file.read_bytes()[:1_000])
    elif damage == 'no state':
        (place / 'state.json').unlink()
    model, run = make(tmp_path)
    assert run.step == 2
    run.run()
    assert same(weights(model), whole)
    assert len(run.checkpoints()) == 2


def test_folder_of_another_model_is_refused(tmp_path: Path) -> None:
    _, run = make(tmp_path, at=3)
    with pytest.raises(Interrupted):
        run.run()
    model = untrained(seed=1)
    del model.hf.model.visual.deepstack_merger_list[0]
    with pytest.raises(TrainingError, match='another model'):
        Trainer(model, TabletopBatches(model, settings(), 250), TrainerConfig(
            tmp_path, (Stage('perception', 3, 1e-3),), precision='no', workers=0))


def test_folder_of_an_earlier_version_is_refused(tmp_path: Path) -> None:
    _, run = make(tmp_path, at=3)
    with pytest.raises(Interrupted):
        run.run()
    # Before Muon there was one optimizer, and its tensors had no number of it.
    for place in run.checkpoints():
        save_file({'0.exp_avg': torch.zeros(1)}, place / 'optimizer.safetensors')
    with pytest.raises(TrainingError, match='written by an earlier tww train'):
        make(tmp_path)


def test_folder_of_another_optimizer_is_refused(tmp_path: Path) -> None:
    _, run = make(tmp_path, at=3)
    with pytest.raises(Interrupted):
        run.run()
    with pytest.raises(TrainingError, match='of 2 optimizers, expected 1'):
        make(tmp_path, muon=False)


def test_diverging_run_stops_with_a_reason(tmp_path: Path) -> None:
    model, run = make(tmp_path)
    with torch.no_grad():
        model.hf.model.language_model.norm.weight.fill_(float('nan'))
    with pytest.raises(TrainingError, match='lower the learning rate'):
        run.run()


class Barren(TabletopBatches):
    """Batches of which every second one has nothing to learn."""

    def batch(self, stage: str, number: int):
        made = super().batch(stage, number)
        if number % 2:
            nothing = {name: getattr(made, name)[:0]
                       for name in ('chosen', 'targets', 'spans', 'final')}
            made = dataclasses.replace(made, **nothing)
        return made


def test_batches_with_nothing_to_learn_do_no_harm(tmp_path: Path) -> None:
    model = untrained(seed=1)
    before = weights(model)
    stages = (Stage('perception', 4, 1e-3, warmup=2),)
    Trainer(model, Barren(model, settings(), 250), TrainerConfig(
        tmp_path, stages, precision='no', workers=0, report_every=1)).run()
    after = weights(model)
    assert all(value.isfinite().all() for value in after.values()) and not same(before, after)
    losses = [json.loads(line)['loss'] for line in (tmp_path / 'log.jsonl').read_text().split('\n')
              if line]
    assert losses[1] == losses[3] == 0.0 < losses[2]


def test_it_learns(tmp_path: Path) -> None:
    _, run = make(tmp_path, steps=40, rate=2e-3, tokens=700, save_every=100, check_every=100)
    run.run()
    losses = [json.loads(line)['loss'] for line in (tmp_path / 'log.jsonl').read_text().split('\n')
              if line]
    # ln 640 = 6.5 is what knowing nothing costs.
    assert 4.0 < losses[0] < 8.0
    assert sum(losses[-5:]) / 5 < 0.4 * losses[0]


def test_worker_processes_give_the_same_batches(tmp_path: Path,
                                                whole: dict[str, torch.Tensor]) -> None:
    model = untrained(seed=1)
    Trainer(model, TabletopBatches(model, settings(), 250), TrainerConfig(
        tmp_path, (Stage('perception', 6, 1e-3, warmup=2),), precision='no', workers=2,
        check_every=3, check_batches=1, muon=True)).run()
    assert same(weights(model), whole)
    shutil.rmtree(tmp_path)
