"""The model that ships: its files, its words, and that it answers about streams it never saw."""

from __future__ import annotations

import json

import pytest
from safetensors import safe_open

from tww_ros import load_model
from tww_ros.evaluation.protocol import Protocol
from tww_ros.evaluation.rows import EvalOptions, evaluate
from tww_ros.model.marks import EMBEDDED
from tww_ros.training.embedded import SETTINGS
from tww_ros.world.notes import NOTHING_NEW
from tww_ros.world.table import PLACES, THINGS

MOST_BYTES = 12_000_000
# What is measured is in the model card; this catches weights, words or settings that got lost.
LEAST_RIGHT = 0.5


@pytest.fixture(scope='module')
def model():
    return load_model('embedded', device='cpu')


def test_files_are_small_and_hold_no_pickle() -> None:
    files = [path for path in EMBEDDED.rglob('*') if path.is_file()]
    assert {'README.md', 'config.json', 'generation_config.json', 'model.safetensors',
            'tokenizer.json', 'tokenizer_config.json', 'tww.json'} == {f.name for f in files}
    assert sum(path.stat().st_size for path in files) <= MOST_BYTES
    with safe_open(EMBEDDED / 'model.safetensors', 'pt') as weights:
        assert {weights.get_slice(name).get_dtype() for name in weights.keys()} == {'F16'}


def test_it_brings_the_settings_that_it_was_trained_with(model) -> None:
    assert model.settings == SETTINGS
    assert (model.scheme, model.style.name) == ('continuous', 'tww')


def test_card_tells_how_it_was_made_and_what_was_measured() -> None:
    card = (EMBEDDED / 'README.md').read_text()
    for words in ('million parameters', '| command |', '| seed |', '| time |', '## Accuracy',
                  'tww eval tabletop'):
        assert words in card


def test_a_thing_and_a_place_is_one_token_behind_a_space(model) -> None:
    for name in [*(thing.name for thing in THINGS), *PLACES]:
        ids = model.encode(f' {name}')
        assert len(ids) == 1 and model.decode(ids) == f' {name}'
    # Any other text is bytes, and comes back.
    for text in ('Größe der Kiste?', 'redder balls', '部屋'):
        assert model.decode(model.encode_user(text)) == text


def test_it_answers_about_a_table_that_it_never_saw(model) -> None:
    protocol = Protocol(seed=5, questions=30, streams=2, segments=30, moments=3, size_px=96)
    options = EvalOptions('embedded', protocol, rows=('single',), mode='deterministic')
    made = evaluate(options, lambda name: model)
    row, = made.rows
    asked = made.outcomes(row, 'single', 'present')
    assert len(asked) >= 40
    right = [outcome for outcome in asked if outcome.right]
    assert len(right) >= LEAST_RIGHT * len(asked), json.dumps(
        [(o.planned.question.text, o.planned.question.answer, o.text) for o in asked
         if not o.right], indent=1)
    notes = [note for watched in made.streams[row.watch] for note in watched.notes]
    agree = [note for note in notes if note.written == note.perfect]
    assert len(agree) >= 0.8 * len(notes)
    assert any(note.perfect != NOTHING_NEW for note in agree)
