"""Memory within its budget, and nothing that grows for ever."""

import gc
import threading

import pytest
import torch
from engine.harness import SMALL, WAIT_S, Gate, S, clip, frame, until, watch

from tww_ros import Engine, EngineConfig, Question
from tww_ros.errors import NothingSeenError
from tww_ros.memory.block import BlockShape, KVBlock
from tww_ros.model.scripted import ScriptedModel

BUDGET = 65_536
# Beyond it only notes remain.
ONE_TIER = {'memory__device_bytes': BUDGET, 'memory__quantized_bytes': 0,
            'memory__host_bytes': 0}


class Heavy(ScriptedModel):
    """1 kB of keys and values a token, so that a few segments fill the smallest budget."""

    head_dim = 128

    def __init__(self, **options):
        super().__init__(**options)
        self.block_shape = BlockShape(1, 1, self.head_dim, torch.float32, self.device)
        self.patches = 0

    def encode_patch(self, pixels):
        self.patches += 1
        return super().encode_patch(pixels)


class Middling(Heavy):
    """64 bytes a token: a segment of large frames takes much, its note little."""

    head_dim = 8


def ask(engine, text='what?', **options):
    return engine.ask(Question(text, **options)).result(WAIT_S)


def blocks():
    """KV blocks that are alive."""
    gc.collect()
    return sum(type(thing) is KVBlock for thing in gc.get_objects())


def test_beyond_the_budget_only_the_note_of_a_segment_remains(start):
    engine = start(Heavy(note='seen'), **ONE_TIER, memory__max_segments=1_000,
                   note__max_new_tokens=8)
    for second in range(0, 40, 2):
        watch(engine, clip(second, second + 2))
        newest = engine.memory.segments()[-1]
        assert engine.stats().memory_bytes <= BUDGET + newest.kv_bytes
    infos = engine.memory.segments()
    stats = engine.stats()
    assert stats.memory_bytes == sum(info.kv_bytes for info in infos)
    tiers = [info.tier for info in infos]
    assert tiers[0] == 'note'
    assert tiers[-1] == 'device'
    assert tiers == sorted(tiers, reverse=True)                             # the oldest go first
    assert all(info.note == 'seen' for info in infos)                       # as text, for good
    answer = ask(engine)
    assert answer.as_of_ns == engine.stats().newest_ns
    assert {e.tier for e in answer.evidence} >= {'device'}


def test_questions_are_answered_from_notes_alone(start):
    """The pixels of the first seconds are gone; what was noted about them can still be seen."""
    engine = start(Middling(), **ONE_TIER, note__max_new_tokens=8)
    frames = clip(0, 10, size=(448, 448))
    for first in range(0, 20, 4):
        watch(engine, frames[first:first + 4])
    infos = engine.memory.segments()
    gone = [info for info in infos if info.tier == 'note']
    kept = [info for info in infos if info.tier == 'device']
    assert gone
    assert kept
    assert engine.stats().memory_bytes <= BUDGET + infos[-1].kv_bytes
    answer = ask(engine, window=(gone[0].start_ns, gone[0].end_ns))
    evidence, = answer.evidence
    assert (evidence.segment_id, evidence.tier) == (gone[0].id, 'note')
    assert evidence.note == engine.memory.notes()[0].text
    header = len(engine.model.encode(engine.model.style.header))
    assert answer.reused_tokens == gone[0].kv_bytes // 64 + header
    assert ask(engine).as_of_ns == frames[-1].stamp_ns


def test_a_real_model_within_the_smallest_budget(start, tiny):
    engine = start(tiny, **ONE_TIER, note__max_new_tokens=2)
    for second in range(0, 10, 2):
        watch(engine, clip(second, second + 2))
    infos = engine.memory.segments()
    assert [info.tier for info in infos] == ['note'] * 4 + ['device']
    assert engine.stats().memory_bytes <= BUDGET + infos[-1].kv_bytes
    answer = engine.ask(Question('what?', max_new_tokens=2)).result(WAIT_S)
    assert answer.completion_tokens == 2
    assert answer.evidence[0].segment_id == infos[-1].id


def test_a_late_note_does_not_cost_the_newest_segment_its_place(start):
    """Notes come after their segments; whatever they take, they take from the oldest."""
    gate = Gate(lambda spans: any('In one short' in model.decode(s.run.ids) for s in spans))
    model = Heavy(before_step=gate)
    engine = start(model, **ONE_TIER, note__max_new_tokens=20)
    gate.close()
    for one in clip(0, 6.5):
        engine.push(one)
    gate.wait()                                                             # the first note's step
    until(lambda: model.patches == 6, 'everything was there to be read')
    gate.open()
    assert engine.drain(WAIT_S)
    assert [info.tier for info in engine.memory.segments()] == ['note'] * 3 + ['device']


def test_an_answer_under_way_keeps_what_it_saw(start, gate):
    """Eviction takes a segment from memory, not from under the question that looks at it."""
    engine = start(Heavy(answer='word ' * 10, before_step=gate), **ONE_TIER,
                   note__enabled=False)
    watch(engine, clip(0, 2))
    gate.close()
    pending = engine.ask(Question('what?'))
    gate.let(3)
    for one in clip(2, 10):
        engine.push(one)
    while engine.memory.segments()[0].tier == 'device' and not pending.done():
        gate.let()
    assert not pending.done()
    gate.open()
    answer = pending.result(WAIT_S)
    assert answer.text == ('word ' * 10).strip()
    assert [(e.segment_id, e.tier) for e in answer.evidence] == [(0, 'note')]
    with pytest.raises(NothingSeenError):
        ask(engine, window=(0, S))


@pytest.mark.parametrize('notes', [True, False])
def test_records_are_bounded_too(start, notes):
    engine = start(memory__max_segments=3, note__enabled=notes)
    watch(engine, clip(0, 16))
    assert [info.id for info in engine.memory.segments()] == [5, 6, 7]
    assert len(engine.memory.notes()) == (3 if notes else 0)
    stats = engine.stats()
    assert stats.memory_bytes == sum(info.kv_bytes for info in engine.memory.segments())
    assert stats.segments == 3
    assert [e.segment_id for e in ask(engine).evidence] == [5, 6, 7]


def test_one_record_is_enough(start):
    engine = start(memory__max_segments=1)
    watch(engine, clip(0, 8))
    assert [info.id for info in engine.memory.segments()] == [3]
    assert ask(engine).as_of_ns == 7.5 * S


def test_200_questions_and_segments_leave_nothing_behind():
    before, threads_before = blocks(), threading.active_count()
    config = EngineConfig.from_flat({
        **SMALL, 'memory.max_segments': 10, 'answer.max_sessions': 4,
        'answer.session_tokens': 300, 'note.max_new_tokens': 4, 'watch.segment_s': 0.5})
    with Engine(ScriptedModel(answer='word'), config) as engine:
        counts = []
        for number in range(200):
            assert engine.feed(frame(number / 2), WAIT_S)
            question = Question('what?', session=str(number % 9),
                                choices=('word', 'bird', 'none') if number % 3 == 0 else ())
            if number % 5 == 0:
                engine.ask(question).cancel()
            else:
                assert engine.ask(question).result(WAIT_S).text == 'word'
            if number % 50 == 49:
                assert engine.drain(WAIT_S)
                assert threading.active_count() == threads_before + 3
                counts.append(blocks() - before)
        stats = engine.stats()
        assert (stats.segments, stats.sessions) == (10, 4)
        # The header, ten segments with their notes, four sessions of two blocks a round.
        rounds = 300 // 40
        assert max(counts) <= 1 + 10 * 2 + 4 * 2 * rounds
        assert counts[-1] <= counts[1]
    del engine
    assert blocks() == before
    assert threading.active_count() == threads_before


@pytest.mark.parametrize('choices', [(), ('yes', 'no, not at all')])
def test_a_round_holds_no_spare_capacity(start, choices):
    engine = start(ScriptedModel(answer='word ' * 20))
    watch(engine, clip(0, 2))
    for text in ('what?', 'and now?'):
        engine.ask(Question(text, choices=choices, max_new_tokens=99)).result(WAIT_S)
    past = engine._sessions.get('default').rounds[0]
    # Question and answer; the second round began when the first was kept.
    assert len(past.entries) == 2
    assert [entry.block.capacity - entry.block.length for entry in past.entries] == [0, 0]


def test_frames_of_many_epochs_leave_no_trace_of_each(start):
    """A bag that loops: one camera, one open segment, however often it starts over."""
    engine = start(memory__max_segments=5)
    for _ in range(60):
        for one in clip(3, 5.5, fps=1.2):
            engine.feed(one, WAIT_S)
    assert engine.drain(WAIT_S)
    assert engine.stats().epochs == 60
    assert len(engine._watcher._zero_ns) <= 2
    assert [info.epoch for info in engine.memory.segments()] == [55, 56, 57, 58, 59]
    assert [info.frames for info in engine.memory.segments()] == [3] * 5
