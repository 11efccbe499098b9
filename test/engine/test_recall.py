"""What a question sees when memory is larger than its view: the newest, and what it is about."""

from __future__ import annotations

import pytest
import torch
from engine.harness import SMALL, WAIT_S, clip, watch

from tww_ros import Engine, EngineConfig, Question
from tww_ros.memory.block import BlockShape
from tww_ros.model.scripted import ScriptedModel

THINGS = ('red ball', 'blue box', 'green cone', 'white star', 'black ring', 'orange cup')
# Room for the keys of few notes, and for all their words.
SETTINGS = {**SMALL, 'memory.resident_note_tokens': 900, 'note.max_new_tokens': 64,
            'step.deterministic': True}


class Listener:
    """A `before_step` that writes down what every span of a question sees."""

    def __init__(self):
        self.model = None
        self.seen = []

    def __call__(self, spans):
        for span in spans:
            if '?' in self.model.decode(span.run.ids):
                self.seen.append([self.text(part) for part in span.view.parts])

    def text(self, part):
        """Scripted keys are the token ids themselves."""
        return self.model.decode(part.block.layer_keys(0, part.length)[0, :, 0].int().tolist())


def told(number):
    return f'a {THINGS[number]} came' if number < len(THINGS) else 'a person walked by'


@pytest.fixture
def running():
    """running(**settings) → (engine, listener) that has watched 20 segments with a note each."""
    engines = []

    def make(folder='', head_dim=2, **settings):
        listener = Listener()
        listener.model = model = ScriptedModel(note=told, before_step=listener)
        model.block_shape = BlockShape(1, 1, head_dim, torch.float32, model.device)
        flat = {**SETTINGS, 'memory.folder': str(folder),
                **{name.replace('__', '.'): value for name, value in settings.items()}}
        engine = Engine(model, EngineConfig.from_flat(flat)).start()
        engines.append(engine)
        watch(engine, clip(0, 40))
        assert len(engine.memory) == 20
        return engine, listener

    yield make
    for engine in engines:
        assert engine.close(WAIT_S)


def notes_seen(engine, listener, text, **options):
    """Words of the notes in the view of a question's own span."""
    listener.seen.clear()
    engine.ask(Question(text, **options)).result(WAIT_S)
    return [words for words in listener.seen[-1] if 'came' in words or 'walked' in words]


@pytest.mark.parametrize('number', range(len(THINGS)))
def test_an_old_note_is_found_by_its_words(running, number):
    engine, listener = running()
    seen = notes_seen(engine, listener, f'Where is the {THINGS[number]}?')
    assert any(THINGS[number] in words for words in seen)
    assert 'walked by' in seen[-1], 'the newest is there as well'
    assert len(seen) < 12, 'not all of memory'


def test_without_retrieval_only_the_newest_are_seen(running):
    engine, listener = running(memory__retrieved_segments=0)
    seen = notes_seen(engine, listener, 'Where is the red ball?')
    assert seen and not any('red ball' in words for words in seen)


def test_what_was_found_stands_in_the_order_of_time(running):
    engine, listener = running()
    seen = notes_seen(engine, listener, 'Where are the green cone and the blue box?')
    first, second = (next(i for i, words in enumerate(seen) if thing in words)
                     for thing in ('blue box', 'green cone'))
    assert first < second < len(seen) - 1


def test_a_follow_up_is_about_what_was_asked_before(running):
    engine, listener = running()
    notes_seen(engine, listener, 'Where is the white star?', session='a')
    for session, found in (('a', True), ('b', False)):
        seen = notes_seen(engine, listener, 'And now?', session=session)
        assert any('white star' in words for words in seen) == found


def test_only_the_window_that_was_asked_about(running):
    engine, listener = running()
    start_ns, end_ns = (engine.memory.segments()[n].start_ns for n in (2, 9))
    seen = notes_seen(engine, listener, 'Where is the red ball?', window=(start_ns, end_ns))
    assert not any('red ball' in words for words in seen)
    assert any('green cone' in words for words in seen)


def test_a_note_whose_keys_are_gone_is_read_again(running):
    """Keys of all notes but the newest are beyond the budget; their words are enough."""
    engine, listener = running(head_dim=128, memory__device_bytes=65_536,
                               memory__host_bytes=0, memory__kv_bits=16)
    assert engine.memory.segments()[0].kv_bytes == 0, 'this budget is too large for the test'
    seen = notes_seen(engine, listener, 'Where is the red ball?')
    assert any('red ball' in words for words in seen)


def test_a_window_of_the_past_is_answered_from_words_alone(running):
    engine, listener = running(head_dim=128, memory__device_bytes=65_536,
                               memory__host_bytes=0, memory__kv_bits=16)
    old = engine.memory.segments()[2]
    assert old.kv_bytes == 0 and old.tier == 'note'
    seen = notes_seen(engine, listener, 'What?', window=(old.start_ns, old.end_ns))
    assert len(seen) == 1 and THINGS[2] in seen[0]


def test_all_is_seen_when_it_fits(running):
    engine, listener = running(memory__resident_note_tokens=100_000)
    seen = notes_seen(engine, listener, 'Where?')
    assert len(seen) == 20


def test_nothing_of_a_later_note_is_seen(running):
    """The index may know more than a question that was asked before."""
    engine, _ = running()
    found = engine.memory.search('red ball')
    assert [note.segment_id for note in found] == [0]
    assert engine.memory.search('elephant') == []


def test_segments_are_found_by_keys_and_stand_among_the_newest(tiny):
    """A real model, a view for a few segments only: the newest, and some that were looked up."""
    flat = {**SMALL, 'note.enabled': False, 'step.deterministic': True,
            'memory.resident_tokens': 220, 'memory.recent_tokens': 80,
            'memory.retrieved_segments': 3}
    views = []
    with Engine(tiny, EngineConfig.from_flat(flat)) as engine:
        watch(engine, clip(0, 40))
        tokens = engine.memory.segments()[0].tokens
        for retrieved in (True, False):
            answer = engine.ask(Question('Is there a cup?', session=str(retrieved),
                                         max_new_tokens=2)).result(WAIT_S)
            views.append(answer.reused_tokens)
            seen = {item.segment_id for item in answer.evidence}
            newest = {19 - number for number in range(80 // tokens)}
            assert newest <= seen
            assert len(seen - newest) >= 3
            assert answer.reused_tokens <= 220 + 20
    assert views[0] == views[1]
