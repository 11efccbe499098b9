"""Memory in a folder: what an engine remembered, another one goes on with."""

from __future__ import annotations

import dataclasses
import logging

import pytest
from engine.harness import SMALL, WAIT_S, S, clip, frame, watch

from tww_ros import Engine, EngineConfig, Question, load_model
from tww_ros.errors import StoreError
from tww_ros.model.scripted import ScriptedModel

SETTINGS = {**SMALL, 'note.max_new_tokens': 6, 'step.deterministic': True,
            'answer.max_new_tokens': 8}


def config(folder='', **settings):
    return EngineConfig.from_flat({
        **SETTINGS, 'memory.folder': str(folder),
        **{name.replace('__', '.'): value for name, value in settings.items()}})


def ask(engine, text='What is there?', **options):
    return engine.ask(Question(text, **options)).result(WAIT_S)


@pytest.mark.parametrize('bits', [16, 4])
def test_the_same_answer_after_a_restart(tiny, tmp_path, bits):
    settings = {'memory__kv_bits': bits, 'memory__device_bytes': 65_536}
    with Engine(tiny, config(tmp_path, **settings)) as engine:
        watch(engine, clip(0, 20))
        before, segments, notes = ask(engine), engine.memory.segments(), engine.memory.notes()
    with Engine(tiny, config(tmp_path, **settings)) as engine:
        assert [dataclasses.replace(info, tier='', kv_bytes=0)
                for info in engine.memory.segments()] == [
            dataclasses.replace(info, tier='', kv_bytes=0) for info in segments]
        assert engine.memory.notes() == notes
        after = ask(engine)
        assert (after.text, after.as_of_ns) == (before.text, before.as_of_ns)
        assert after.reused_tokens == before.reused_tokens
        if bits == 16:
            assert after.token_ids == before.token_ids


def test_what_the_next_question_looks_at_is_there_before_it_comes(tiny, tmp_path):
    settings = {'memory__resident_tokens': 200, 'memory__recent_tokens': 200,
                'memory__resident_note_tokens': 1_000}
    with Engine(tiny, config(tmp_path, **settings)) as engine:
        watch(engine, clip(0, 30))
    with Engine(tiny, config(tmp_path, **settings)) as engine:
        tiers = [info.tier for info in engine.memory.segments()]
        assert tiers[0] == 'disk' and tiers[-1] == 'quantized'
        assert tiers == sorted(tiers)
        loaded = sum(info.tokens for info in engine.memory.segments() if info.tier != 'disk')
        assert 100 < loaded <= 200
        notes = [info.kv_bytes for info in engine.memory.segments() if info.tier == 'disk']
        assert 0 < sum(map(bool, notes)) < len(notes), 'the newest notes too, and not all'


def test_memory_is_looked_at_before_the_first_question(tmp_path):
    """One step over all that the first question will see, before it is asked."""
    model = ScriptedModel()
    with Engine(model, config(tmp_path)) as engine:
        watch(engine, clip(0, 8))
    steps, step = [], model.step

    def recorded(spans):
        steps.append([(part.block, part.length) for span in spans for part in span.view.parts])
        return step(spans)

    model.step = recorded
    with Engine(model, config(tmp_path)) as engine:
        assert engine.drain(WAIT_S)
        assert engine.stats().last_error == ''
        ahead = steps[-1]
        assert len(ahead) > 4, 'the header, segments and notes'
        del steps[:]
        ask(engine)
        assert any(seen[:len(ahead)] == ahead for seen in steps)
    del steps[:]
    with Engine(model, config(tmp_path / 'new')) as engine:
        assert engine.drain(WAIT_S)
    assert steps == [[]], 'the header alone'


def test_notes_that_were_not_written_at_the_end_are_written_at_the_start(tiny, tmp_path):
    """Segments are kept before their notes; after a kill, or a stop, some have none."""
    whole = {'memory__kv_bits': 16}
    with Engine(tiny, config(**whole)) as engine:
        for first in (0, 8):
            watch(engine, clip(first, first + 8))
        expected = engine.memory.notes()
    with Engine(tiny, config(tmp_path, **whole)) as engine:
        watch(engine, clip(0, 8))
    with Engine(tiny, config(tmp_path, note__enabled=False, **whole)) as engine:
        watch(engine, clip(8, 16))
        assert len(engine.memory) == len(expected) and len(engine.memory.notes()) == 4
    told = []
    with Engine(tiny, config(tmp_path, **whole), on_note=told.append) as engine:
        assert engine.drain(WAIT_S)
        notes = engine.memory.notes()
        assert [note.segment_id for note in told] == [4, 5, 6, 7]
    assert [(note.segment_id, note.text) for note in notes] == [
        (note.segment_id, note.text) for note in expected]
    with Engine(tiny, config(tmp_path, **whole)) as engine:
        assert engine.memory.notes() == notes and engine.stats().notes_written == 0


def test_watching_goes_on_where_it_ended(tmp_path):
    for first in (0, 20, 40):
        with Engine(ScriptedModel(note='seen'), config(tmp_path)) as engine:
            watch(engine, clip(first, first + 10))
            infos = engine.memory.segments()
    assert [info.id for info in infos] == list(range(15))
    assert {info.epoch for info in infos} == {0}
    assert [info.start_ns for info in infos] == sorted(info.start_ns for info in infos)
    assert ask_all(tmp_path).as_of_ns == infos[-1].end_ns


def ask_all(folder):
    with Engine(ScriptedModel(note='seen'), config(folder)) as engine:
        answer = ask(engine)
        assert {item.segment_id for item in answer.evidence} <= set(range(15))
        return answer


def test_stamps_that_begin_again_begin_a_new_epoch(tmp_path):
    for _ in range(2):
        with Engine(ScriptedModel(), config(tmp_path)) as engine:
            watch(engine, clip(100, 104))
            infos = engine.memory.segments()
    assert [info.epoch for info in infos] == [0, 0, 1, 1]


def test_another_models_memory_is_refused_and_not_touched(tiny, tmp_path):
    with Engine(tiny, config(tmp_path)) as engine:
        watch(engine, clip(0, 4))
    with pytest.raises(StoreError, match='weights'):
        Engine(load_model('tiny-random', device='cpu', seed=1), config(tmp_path))
    with pytest.raises(StoreError, match='positions'):
        Engine(load_model('tiny-random', device='cpu', positions='decoupled'), config(tmp_path))
    with Engine(tiny, config(tmp_path)) as engine:
        assert len(engine.memory) == 2


def test_a_damaged_file_costs_its_own_segment(tiny, tmp_path, caplog):
    with Engine(tiny, config(tmp_path)) as engine:
        watch(engine, clip(0, 8))
    damaged, *others = sorted((tmp_path / 'blocks').rglob('*segment*'))
    assert others
    damaged.write_bytes(damaged.read_bytes()[:-7])
    with caplog.at_level(logging.WARNING), Engine(tiny, config(tmp_path)) as engine:
        for _ in range(2):
            assert ask(engine).as_of_ns == frame(7.5).stamp_ns
        assert sum(info.tier == 'note' for info in engine.memory.segments()) == 1
        assert len(engine.memory) == len(engine.memory.notes()) == 4
    assert any(damaged.name in message for message in caplog.messages)


def test_saved_from_memory_and_loaded(tiny, tmp_path):
    with Engine(tiny, config(memory__kv_bits=16)) as engine:
        watch(engine, clip(0, 8))
        before = ask(engine)
        engine.memory.save(tmp_path / 'day')
        with pytest.raises(StoreError, match='not empty'):
            engine.memory.save(tmp_path / 'day')
    with Engine.load(tiny, tmp_path / 'day', config(memory__kv_bits=16)) as engine:
        assert ask(engine).token_ids == before.token_ids
        watch(engine, clip(8, 10))
        engine.memory.save(tmp_path / 'copy')
    with Engine.load(tiny, tmp_path / 'copy', config()) as engine:
        assert len(engine.memory) == 5
    with pytest.raises(StoreError, match='no memory'):
        Engine.load(tiny, tmp_path / 'nowhere')


def test_a_folder_keeps_its_budget(tiny, tmp_path):
    """KV goes first, oldest segment first; words stay."""
    cap = 400_000
    with Engine(tiny, config(tmp_path, memory__disk_bytes=cap, memory__kv_bits=16,
                             memory__device_bytes=65_536, memory__host_bytes=0)) as engine:
        sizes = []
        for second in range(0, 24, 2):
            watch(engine, clip(second, second + 2))
            sizes.append(engine.memory.tier_bytes['disk'])
        infos = engine.memory.segments()
        largest = max(info.kv_bytes for info in infos) + 300_000
        assert max(sizes) <= cap + largest and max(sizes) > cap / 2
        assert infos[0].tier == 'note' and infos[-1].tier == 'device'
        assert len(engine.memory.notes()) == 12
        assert engine.stats().last_error == ''


def test_clearing_all_the_time_stops_nothing(tmp_path):
    with Engine(ScriptedModel(note='seen'), EngineConfig.from_flat({
            **SMALL, 'memory.folder': str(tmp_path), 'note.max_new_tokens': 6,
            'memory.resident_note_tokens': 300, 'note.episode_notes': 3,
            'memory.max_segments': 6})) as engine:
        for second in range(0, 60, 2):
            for one in clip(second, second + 2):
                engine.push(one)
            engine.memory.clear(before_ns=max(0, second - 4) * S)
        assert engine.drain(WAIT_S)
        assert 'no longer written' not in engine.stats().last_error
        assert 'nothing more' not in engine.stats().last_error
        expected = [info.id for info in engine.memory.segments()]
    with Engine(ScriptedModel(note='seen'), config(tmp_path)) as engine:
        assert [info.id for info in engine.memory.segments()] == expected


def test_what_was_cleared_stays_away(tmp_path):
    with Engine(ScriptedModel(note='seen'), config(tmp_path)) as engine:
        watch(engine, clip(0, 10))
        assert engine.memory.clear(before_ns=5 * S) == 2
        assert [info.id for info in engine.memory.segments()] == [2, 3, 4]
    with Engine(ScriptedModel(note='seen'), config(tmp_path)) as engine:
        assert [info.id for info in engine.memory.segments()] == [2, 3, 4]
        assert [note.segment_id for note in engine.memory.search('seen')] != []
        watch(engine, clip(20, 22))
        assert engine.memory.segments()[-1].id == 5


def test_a_folder_that_cannot_be_written_ends_writing_and_nothing_else(tiny, tmp_path):
    with Engine(tiny, config(tmp_path)) as engine:
        watch(engine, clip(0, 4))
        blocks = tmp_path / 'blocks'
        blocks.rename(tmp_path / 'moved')
        blocks.write_text('no folder any more')
        watch(engine, clip(4, 8))
        assert 'nothing more is written' in engine.stats().last_error
        assert ask(engine).as_of_ns == frame(7.5).stamp_ns
        assert len(engine.memory) == 4


def test_answers_are_written_with_their_evidence(tmp_path):
    with Engine(ScriptedModel(answer='a cup'), config(tmp_path)) as engine:
        watch(engine, clip(0, 4))
        ask(engine, 'What is that?', session='planner')
        ask(engine, 'Which?', choices=('a cup', 'a ball'))
    from tww_ros.memory.store import Store
    with Store.open(tmp_path, None) as store:
        first, second = store.answers()
    assert (first.question, first.answer, first.session) == ('What is that?', 'a cup', 'planner')
    assert {segment for segment, _ in first.evidence} == {0, 1}
    assert second.choices == ('a cup', 'a ball') and len(second.probabilities) == 2
    assert second.answer == 'a cup'
