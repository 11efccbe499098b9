"""Notes that are written after memory has moved on: as if they had come at once, or not at all."""

from __future__ import annotations

import threading

import pytest
from engine.harness import SMALL, WAIT_S, clip, until

from tww_ros import Engine, EngineConfig
from tww_ros.engine.noting import NoteQueue
from tww_ros.engine.reasoner import MOST_UNNOTED

SECONDS = 24
# Keys and values of a few segments of tiny-random.
FEW = 65_536
# One of them, and not another.
WINDOW = 50


@pytest.fixture
def late(monkeypatch):
    """Set: notes may be written."""
    event, begin = threading.Event(), NoteQueue.begin
    monkeypatch.setattr(NoteQueue, 'begin',
                        lambda self: begin(self) if event.is_set() else None)
    return event


def watched(tiny, late, device_bytes, host_bytes, **more):
    """An engine's notes, all of them written after all segments were read; and its stats."""
    late.clear()
    settings = {**SMALL, 'note.max_new_tokens': 8, 'note.backlog': 100, 'memory.kv_bits': 16,
                'watch.queue_frames': 1_000, 'memory.device_bytes': device_bytes,
                'memory.host_bytes': host_bytes,
                # Of its segment alone: keys of others, and of notes, go where room is so short.
                'note.window_tokens': WINDOW, 'memory.resident_note_tokens': 0,
                'memory.read_window_tokens': 0, **more}
    with Engine(tiny, EngineConfig.from_flat(settings)) as engine:
        for frame in clip(0, SECONDS):
            assert engine.push(frame)
        drained = threading.Thread(target=engine.drain, args=(WAIT_S,))
        drained.start()
        until(lambda: engine._reasoner.notes_waiting == len(engine.memory.segments()) > 9,
              'every segment waits')
        late.set()
        drained.join(WAIT_S)
        tiers = {info.tier for info in engine.memory.segments()}
        notes = {note.segment_id: note.text for note in engine.memory.notes()}
        return notes, tiers, engine.stats()


def test_a_late_note_sees_all_of_its_segment(tiny, late):
    """What tells nothing new leaves with a segment's youth, but not before its note."""
    expected, _, whole = watched(tiny, late, 1 << 30, 0)
    drop = {'watch.drop_threshold': 1.0, 'watch.drop_refresh_s': 1_000.0,
            'memory.recent_tokens': 1}
    notes, _, stats = watched(tiny, late, 1 << 30, 0, **drop)
    assert notes == expected
    assert stats.tokens_dropped > stats.tokens_seen / 2
    assert stats.memory_tokens < whole.memory_tokens - stats.tokens_dropped / 2, 'and then it went'


@pytest.mark.parametrize('where', ['host', 'disk'])
def test_a_late_note_sees_its_segment_wherever_it_is(tiny, late, where, tmp_path):
    expected, _, stats = watched(tiny, late, 1 << 30, 0)
    assert stats.notes_written == len(expected) == 12 and len({*expected.values()}) > 3
    more = {'memory.folder': str(tmp_path)} if where == 'disk' else {}
    notes, tiers, stats = watched(tiny, late, FEW, 1 << 30 if where == 'host' else 0, **more)
    assert where in tiers
    assert notes == expected and stats.notes_skipped == 0


def test_no_note_is_made_up_about_a_segment_that_is_gone(tiny, late):
    expected, _, _ = watched(tiny, late, 1 << 30, 0)
    notes, tiers, stats = watched(tiny, late, FEW, 0)
    assert tiers == {'note', 'device'}
    assert 0 < len(notes) < len(expected)
    assert stats.notes_skipped == len(expected) - len(notes)
    assert 'raise memory.device_bytes' in stats.last_error


def test_feeding_waits_for_notes(tiny, late):
    settings = {**SMALL, 'note.max_new_tokens': 3, 'note.backlog': 100,
                'watch.queue_frames': 4}
    with Engine(tiny, EngineConfig.from_flat(settings)) as engine:
        frames = iter(clip(0, SECONDS))
        taken = 0
        while engine.feed(next(frames), timeout_s=1.0):
            taken += 1
        waiting = engine._reasoner.notes_waiting
        assert waiting > MOST_UNNOTED and engine.stats().frames_watched <= taken < 2 * SECONDS
        late.set()
        assert all(engine.feed(frame, WAIT_S) for frame in frames) and engine.drain(WAIT_S)
        assert len(engine.memory.notes()) == len(engine.memory.segments())
