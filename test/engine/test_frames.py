"""Frames on their way into memory: every one is accounted for, and pushing never waits."""

import threading

import pytest
from engine.harness import WAIT_S, balance, clip, frame, threads, until, watch

from tww_ros import Question
from tww_ros.engine.reasoner import DrainItem
from tww_ros.errors import EngineClosedError
from tww_ros.model.scripted import ScriptedModel


class SlowEyes(ScriptedModel):
    """Its vision tower stands still until `see` is set; `looking` is set when it has begun."""

    def __init__(self):
        super().__init__()
        self.see, self.looking = threading.Event(), threading.Event()

    def encode_patch(self, pixels):
        self.looking.set()
        assert self.see.wait(WAIT_S)
        return super().encode_patch(pixels)


@pytest.fixture
def eyes():
    model = SlowEyes()
    yield model
    model.see.set()


def test_full_queue_drops_the_oldest_and_push_returns_at_once(start, eyes):
    engine = start(eyes, watch__queue_frames=4)
    for one in clip(0, 1):
        assert engine.push(one)
    assert eyes.looking.wait(WAIT_S)                                     # 2 frames are under way
    for one in clip(1, 6):                                                  # 10 more for 4 places
        assert engine.push(one)
    stats = engine.stats()
    assert (stats.frames_received, stats.frames_dropped, stats.frames_waiting) == (12, 6, 6)
    eyes.see.set()
    assert engine.drain(WAIT_S)
    stats = engine.stats()
    assert (stats.frames_watched, stats.frames_dropped, stats.frames_waiting) == (6, 6, 0)
    spans = [(info.start_ns, info.end_ns, info.frames) for info in engine.memory.segments()]
    assert spans == [(0, 500_000_000, 2), (4_000_000_000, 5_500_000_000, 4)]


def test_a_question_is_never_dropped_with_the_frames_around_it(start, eyes):
    engine = start(eyes, watch__queue_frames=2)
    for one in clip(0, 1):
        engine.push(one)
    assert eyes.looking.wait(WAIT_S)
    pending = engine.ask(Question('now?'))
    for one in clip(1, 4):
        engine.push(one)
    assert engine.stats().frames_dropped == 4
    eyes.see.set()
    assert pending.result(WAIT_S).as_of_ns == 500_000_000


def test_feed_waits_for_room_and_drops_nothing(start, eyes):
    engine = start(eyes, watch__queue_frames=2, step__read_ahead_patches=1)
    fed = []

    def feed_all():
        fed.extend(engine.feed(one, WAIT_S) for one in clip(0, 15))

    with threads(feed_all):
        assert eyes.looking.wait(WAIT_S)
        until(lambda: engine.stats().frames_received == 4, 'the queue was full')
        assert len(fed) < 30
        eyes.see.set()
    assert fed == [True] * 30
    assert engine.drain(WAIT_S)
    stats = engine.stats()
    assert (stats.frames_watched, stats.frames_dropped) == (30, 0)


def test_feed_gives_up_without_counting_the_frame(start, eyes):
    engine = start(eyes, watch__queue_frames=1)
    for one in clip(0, 1):
        assert engine.feed(one, WAIT_S)
    assert eyes.looking.wait(WAIT_S)
    assert engine.feed(frame(1.0), WAIT_S)
    assert not engine.feed(frame(1.5), timeout_s=0.01)
    assert engine.stats().frames_received == 3


def test_close_wakes_a_feed_that_waits(start, eyes):
    engine = start(eyes, watch__queue_frames=1)
    for one in clip(0, 1):
        engine.feed(one, WAIT_S)
    assert eyes.looking.wait(WAIT_S)
    assert engine.feed(frame(1.0), WAIT_S)
    fed, waiting = [], threading.Event()

    def feed_one():
        waiting.set()
        fed.append(engine.feed(frame(1.5), WAIT_S))

    with threads(feed_one):
        assert waiting.wait(WAIT_S)
        engine.close(0.0)
        eyes.see.set()
    assert fed == [False]


@pytest.mark.parametrize('frames', [1, 2, 5, 8, 9])
def test_odd_last_frames_are_watched_too(start, frames):
    engine = start()
    watch(engine, clip(0, frames / 2))
    stats = engine.stats()
    assert (stats.frames_watched, stats.frames_waiting) == (frames, 0)
    assert sum(info.frames for info in engine.memory.segments()) == frames
    assert stats.newest_ns == (frames - 1) * 500_000_000


def test_every_frame_has_one_end(start):
    """Watched, skipped, late, of another size, after a jump, unreadable: all add up."""
    class Blinking(ScriptedModel):
        patches = 0

        def encode_patch(self, pixels):
            self.patches += 1
            if self.patches == 2:
                raise RuntimeError('blink')
            return super().encode_patch(pixels)

    engine = start(Blinking())
    frames = [*clip(10, 14, fps=10.0), frame(13.0), frame(13.5, size=(32, 64)), frame(14.1),
              frame(14.6, size=(32, 64)), *clip(2, 3.5), *clip(3.5, 5, camera='rear')]
    for one in frames:
        assert engine.feed(one, WAIT_S)
        received, accounted = balance(engine.stats())
        assert received == accounted
    assert engine.drain(WAIT_S)
    stats = engine.stats()
    assert balance(stats) == (len(frames), len(frames))
    assert stats.frames_waiting == 0
    assert stats.frames_rejected == 2 + 2                                   # late, and one patch
    assert stats.frames_skipped > 30
    assert stats.frames_watched == len(frames) - stats.frames_skipped - 4
    assert stats.epochs == 2
    assert 'blink' in stats.last_error


def test_stats_add_up_at_any_moment(start):
    engine = start(watch__queue_frames=3)
    wrong, stop = [], threading.Event()

    def look():
        while not stop.is_set():
            stats = engine.stats()
            received, accounted = balance(stats)
            if received != accounted or stats.frames_waiting < 0:
                wrong.append(stats)

    with threads(look):
        for one in clip(0, 100):
            engine.push(one)
        assert engine.drain(WAIT_S)
        stop.set()
    assert wrong == []
    assert engine.stats().frames_received == 200


def test_drain_of_nothing_and_twice(start):
    engine = start()
    assert engine.drain(WAIT_S)
    watch(engine, clip(0, 1))
    assert engine.drain(WAIT_S)
    assert engine.stats().segments == 1


def test_drain_says_when_time_ran_out_and_a_later_one_still_works(start, eyes):
    engine = start(eyes)
    for one in clip(0, 1):
        engine.push(one)
    assert not engine.drain(0.0)
    assert not engine.drain(0.01)
    eyes.see.set()
    assert engine.drain(WAIT_S)
    assert engine.stats().notes_written == 1


def test_drain_ends_while_frames_keep_coming(start):
    """It waits for the frames before it, not for those behind."""
    engine = start(watch__queue_frames=8)
    stop = threading.Event()

    def push_on():
        for number in range(10_000_000):
            if stop.is_set():
                return
            engine.push(frame(number / 2))

    with threads(push_on):
        until(lambda: engine.stats().frames_watched >= 2, 'frames were watched')
        drained = [engine.drain(WAIT_S) for _ in range(3)]
        stop.set()
    assert drained == [True] * 3


def test_drain_waits_for_every_note_of_its_frames(start, gate):
    """Also when the newest is skipped, because too many wait, while an older one is written."""
    engine = start(note__backlog=2)
    watch(engine, [])
    gate.close()
    for one in clip(0, 4):
        engine.push(one)
    drained = threading.Event()

    def drain():
        assert engine.drain(WAIT_S)
        drained.set()

    with threads(drain):
        def passed(condition):
            for _ in range(200):
                if condition():
                    return
                gate.let()
            raise AssertionError('the steps led nowhere')

        # The first step is held until the end of what is drained has come to the reasoner.
        until(lambda: any(isinstance(item, DrainItem) for item in list(engine._reasoner._inbox)),
              'the drain reached the reasoner')
        passed(lambda: engine.stats().notes_waiting == 2)
        for one in clip(4, 8):
            engine.push(one)
        passed(lambda: engine.stats().notes_skipped >= 1)
        assert not drained.is_set()
        gate.open()
        assert drained.wait(WAIT_S)
    assert engine.stats().notes_written >= 1


def test_drain_returns_when_the_engine_is_closed(start, eyes):
    engine = start(eyes)
    for one in clip(0, 1):
        engine.push(one)
    assert eyes.looking.wait(WAIT_S)
    results, begun = [], threading.Event()

    def drain():
        begun.set()
        try:
            results.append(engine.drain(WAIT_S))
        except EngineClosedError:
            results.append(False)

    with threads(drain):
        assert begun.wait(WAIT_S)
        engine.close(0.0)
        eyes.see.set()
    assert results == [False]
