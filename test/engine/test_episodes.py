"""Old notes are summed up when not all fit, by the model itself, and survive a restart."""

from __future__ import annotations

import pytest
from engine.harness import SMALL, WAIT_S, clip, until, watch

from tww_ros import Engine, EngineConfig, Question
from tww_ros.model.scripted import ScriptedModel

# A scripted note with its layout has about 110 tokens.
SETTINGS = {**SMALL, 'memory.resident_note_tokens': 1_000, 'note.episode_notes': 4,
            'note.backlog': 100}


def model(episode='much happened'):
    return ScriptedModel(note=lambda number: f'thing {number} came',
                         answer=lambda text: episode if text.startswith('Sum up') else 'yes')


@pytest.mark.parametrize('deterministic', [False, True], ids=['live', 'deterministic'])
def test_the_oldest_notes_become_episodes(deterministic):
    config = EngineConfig.from_flat({**SETTINGS, 'step.deterministic': deterministic})
    with Engine(model(), config) as engine:
        watch(engine, clip(0, 40))
        watch(engine, clip(40, 42))
        until(lambda: len(engine.memory.episodes()) >= 3, 'the notes were summed up')
        episodes, notes = engine.memory.episodes(), engine.memory.notes()
        assert [episode.segment_id for episode in episodes][:2] == [0, 4]
        assert all(episode.text == 'much happened' for episode in episodes)
        assert episodes[0].start_ns == notes[0].start_ns
        assert episodes[0].end_ns == notes[3].end_ns
        assert [note.text for note in notes] == [f'thing {n} came' for n in range(21)]
        # All of it fits now: so many notes as are not summed up, and the episodes.
        answer = engine.ask(Question('What was there?')).result(WAIT_S)
        assert answer.text == 'yes' and answer.reused_tokens > 1_000 / 2


def test_an_episode_is_evidence_with_its_span_and_words():
    config = EngineConfig.from_flat({**SETTINGS, 'step.deterministic': True})
    with Engine(model(), config) as engine:
        watch(engine, clip(0, 40))
        start_ns, end_ns = engine.memory.episodes()[0].start_ns, engine.memory.episodes()[0].end_ns
        answer = engine.ask(Question('What?', window=(start_ns, end_ns))).result(WAIT_S)
    found = [item for item in answer.evidence if item.note == 'much happened']
    assert [(item.segment_id, item.start_ns, item.end_ns) for item in found] == [
        (0, start_ns, end_ns)]


@pytest.mark.parametrize('episode', ['', 'word ' * 100])
def test_an_episode_that_says_nothing_or_too_much_is_not_taken(episode):
    config = EngineConfig.from_flat({**SETTINGS, 'note.episode_max_new_tokens': 1_000,
                                     'step.deterministic': True})
    with Engine(model(episode), config) as engine:
        watch(engine, clip(0, 30))
        assert engine.memory.episodes() == []
        assert 'episode' in engine.stats().last_error
        assert engine.ask(Question('What?')).result(WAIT_S).text == 'yes'


def test_none_when_switched_off_or_when_all_fits():
    for settings in ({'note.episode_notes': 0}, {'memory.resident_note_tokens': 100_000}):
        config = EngineConfig.from_flat({**SETTINGS, **settings, 'step.deterministic': True})
        with Engine(model(), config) as engine:
            watch(engine, clip(0, 30))
            assert engine.memory.episodes() == []
            assert len(engine.memory.notes()) == 15


def test_episodes_survive_a_restart(tmp_path):
    config = EngineConfig.from_flat({**SETTINGS, 'step.deterministic': True,
                                     'memory.folder': str(tmp_path)})
    with Engine(model(), config) as engine:
        watch(engine, clip(0, 40))
        before = engine.memory.episodes()
    with Engine(model(), config) as engine:
        after = engine.memory.episodes()
        assert [(e.segment_id, e.start_ns, e.end_ns, e.text) for e in after] == [
            (e.segment_id, e.start_ns, e.end_ns, e.text) for e in before]
        assert engine.ask(Question('What?')).result(WAIT_S).text == 'yes'
        watch(engine, clip(40, 60))
        assert len(engine.memory.episodes()) > 0
