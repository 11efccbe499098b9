"""`tww train` from end to end: what it leaves is what load_model loads and the engine runs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tww_ros import Engine, Frame, Question, load_model
from tww_ros.errors import TrainingError
from tww_ros.memory.view import View
from tww_ros.model.run import Span, TokenRun
from tww_ros.training import tabletop
from tww_ros.training.embedded import SETTINGS
from tww_ros.training.train import TrainOptions, train
from tww_ros.types import NS_PER_S

STEPS = {'stages': ('perception', 'single'), 'steps': (2, 1), 'tokens': 300, 'workers': 0,
         'precision': 'no'}


@pytest.fixture(scope='module')
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint after three steps."""
    return train(TrainOptions(tmp_path_factory.mktemp('base') / 'run', **STEPS))


def logits(model) -> torch.Tensor:
    run = TokenRun.text(model.encode('Where is the red ball?'), 0)
    return model.step([Span(model.new_block(), View((), 0, 0), run, 'all')])[0]


def test_result_loads_with_its_settings_and_answers(base: Path) -> None:
    assert base.name == 'single' and (base.parent / 'perception').is_dir()
    model = load_model(str(base))
    assert (model.scheme, model.style.name) == ('continuous', 'tww')
    assert model.settings == SETTINGS
    assert not list(base.parent.rglob('*.bin')) + list(base.parent.rglob('*.pt'))
    sample = tabletop.sample(3, tabletop.PERCEPTION)
    with Engine(model) as engine:
        for number, image in enumerate(sample.segments[0].patches[0].frames):
            engine.push(Frame(number * NS_PER_S, 'table', image))
        answer = engine.ask(Question('Where is it?', max_new_tokens=4)).result(timeout=60.0)
        assert engine.config.watch.sample_fps == 1.0
    assert answer.completion_tokens >= 1


def test_card_says_how_it_was_made(base: Path) -> None:
    card = (base / 'README.md').read_text()
    for words in ('tww train --out run --stages perception single --steps 2 1',
                  'perception: 2 steps, single: 1 steps', 'from random weights',
                  'Qwen3-VL of 4.9 million parameters', 'hours on'):
        assert words in card


@pytest.mark.parametrize('quantization', ['none', 'nf4'])
def test_adapters_train_and_load_beside_their_base(quantization: str, base: Path,
                                                   tmp_path: Path) -> None:
    out = train(TrainOptions(tmp_path / 'lora', model=str(base), quantization=quantization, lora=4,
                             rate=1e-2, stages=('single',), steps=(3,), tokens=300, workers=0,
                             precision='no'))
    weights = load_file(out / 'adapter_model.safetensors')
    assert weights and all('lora' in name for name in weights)
    assert sum(value.numel() for value in weights.values()) < 200_000
    adapted = load_model(str(out), quantization=quantization)
    plain = load_model(str(base), quantization=quantization)
    assert (logits(adapted) - logits(plain)).abs().max() > 0.01
    # By hand: the base's first query projection and its adapter, as LoRA defines them.
    layer = adapted.hf.model.language_model.layers[0].self_attn.q_proj
    down, up = (next(value for name, value in weights.items()
                     if 'layers.0.self_attn.q_proj' in name and kind in name)
                for kind in ('lora_A', 'lora_B'))
    x = torch.randn(3, down.shape[1])
    base_layer = plain.hf.model.language_model.layers[0].self_attn.q_proj
    expected = base_layer(x) + 2.0 * x @ down.T @ up.T
    with torch.no_grad():
        torch.testing.assert_close(layer(x), expected.detach(), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize('wrong, words', [
    ({'stages': ('perception', 'dancing')}, 'dancing'),
    ({'stages': ('single',), 'steps': (1, 2)}, 'one number of steps'),
    ({'lora': 8}, '--model'),
    ({'model': 'x', 'quantization': 'nf4'}, '--lora'),
])
def test_options_that_do_not_fit(wrong: dict, words: str, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=words):
        train(TrainOptions(tmp_path / 'run', **wrong))


@pytest.mark.parametrize('asked, scheme', [('auto', 'continuous'), ('decoupled', 'decoupled')])
def test_positions_are_the_checkpoints_own_or_as_asked(asked: str, scheme: str, base: Path,
                                                       tmp_path: Path) -> None:
    out = train(TrainOptions(tmp_path / 'run', model=str(base), positions=asked, tokens=300,
                             stages=('perception',), steps=(1,), workers=0, precision='no'))
    assert load_model(str(out)).scheme == scheme


def test_a_folder_holds_one_run(base: Path) -> None:
    with pytest.raises(TrainingError, match='another tokens'):
        train(TrainOptions(base.parent.parent, **(STEPS | {'tokens': 400})))
