"""Many callers do everything at once, in seeded disorder: nothing hangs and nothing is lost."""

import random
import sys
import threading

import pytest
from engine.harness import SMALL, WAIT_S, balance, frame, until

from tww_ros import Engine, EngineConfig, Question
from tww_ros.errors import EngineClosedError, TwwError
from tww_ros.model.scripted import ScriptedModel

ACTIONS = 500
SETTINGS = {
    **SMALL, 'watch.queue_frames': 6, 'watch.idle_close_s': 0.1, 'step.read_ahead_patches': 2,
    'step.chunk_tokens': 24, 'answer.max_waiting': 12, 'answer.max_sessions': 3,
    'answer.session_tokens': 400, 'note.backlog': 2, 'note.max_new_tokens': 4,
    'memory.max_segments': 6}


class Caller:
    """One thread of a robot that pushes, asks, streams, cancels and drains as it comes."""

    def __init__(self, engine, number, seed):
        self.pending = []
        self.balanced = True
        self._engine = engine
        self._number = number
        self._random = random.Random(f'{seed} {number}')
        self._now_s = 0.0

    def __call__(self):
        acts = [(self.push, 50), (self.ask, 20), (self.cancel, 8), (self.stream, 4),
                (self.close_session, 4), (self.drain, 2), (self.look, 12)]
        try:
            for _ in range(ACTIONS):
                act, = self._random.choices(*zip(*acts, strict=True))
                act()
        except EngineClosedError:
            pass

    def push(self):
        jump_s = self._random.choice([0.5] * 30 + [-0.2, -5.0])
        self._now_s = max(0.0, self._now_s + jump_s)
        size = self._random.choice([(32, 32)] * 9 + [(64, 32)])
        self._engine.push(frame(self._now_s, f'camera {self._number % 2}', size))

    def ask(self):
        options = self._random.choice([
            {}, {'timeout_s': 0.002}, {'choices': ('word', 'bird')}, {'cameras': ('camera 0',)},
            {'window': (0, 3_000_000_000)}, {'max_new_tokens': 3}])
        try:
            self.pending.append(self._engine.ask(
                Question('what?', session=self._random.choice('abcde'), **options)))
        except EngineClosedError:
            raise
        except TwwError:
            return None
        if self._random.random() < 0.3:
            self.pending[-1].add_done_callback(lambda pending: pending.cancel())
        return self.pending[-1]

    def stream(self):
        pending = self.ask()
        if pending is not None:
            try:
                text = ''.join(piece.text for piece in pending.pieces(WAIT_S))
                assert text == pending.text()
            except TwwError:
                pass

    def cancel(self):
        if self.pending:
            self._random.choice(self.pending[-4:]).cancel()

    def close_session(self):
        try:
            self._engine.close_session(self._random.choice('abcde'))
        except EngineClosedError:
            raise
        except TwwError:
            pass

    def drain(self):
        self._engine.drain(self._random.choice([0.0, 0.005, WAIT_S]))

    def look(self):
        stats = self._engine.stats()
        received, accounted = balance(stats)
        self.balanced &= received == accounted and stats.frames_waiting >= 0
        self._engine.memory.segments()
        self._engine.memory.notes()


@pytest.mark.parametrize('seed', range(3))
@pytest.mark.parametrize('end', ['drained', 'closed in the middle'])
def test_four_callers_in_disorder(seed, end):
    model = ScriptedModel(answer='some words', note='something')
    engine = Engine(model, EngineConfig.from_flat(SETTINGS)).start()
    callers = [Caller(engine, number, seed) for number in range(4)]
    workers = [threading.Thread(target=caller, daemon=True) for caller in callers]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)
    try:
        for worker in workers:
            worker.start()
        if end == 'closed in the middle':
            until(lambda: engine.stats().answers_done >= 10, 'some answers were given')
            assert engine.close(WAIT_S)
        for worker in workers:
            worker.join(WAIT_S)
            assert not worker.is_alive(), 'a caller hangs'
        if end == 'drained':
            assert engine.drain(WAIT_S)
    finally:
        sys.setswitchinterval(interval)
        closed = engine.close(WAIT_S)
    assert closed
    assert all(caller.balanced for caller in callers)
    ends = {'done': 0, 'cancelled': 0, 'failed': 0}
    for pending in (pending for caller in callers for pending in caller.pending):
        assert pending.done()
        try:
            assert pending.result(0).text in ('some words', 'some', 'som', 'word', 'bird')
            ends['done'] += 1
        except TwwError as error:
            ends['cancelled' if 'cancelled' in str(error) else 'failed'] += 1
    stats = engine.stats()
    assert ends == {'done': stats.answers_done, 'cancelled': stats.answers_cancelled,
                    'failed': stats.answers_failed}
    assert ends['done'] >= 10
    assert (stats.answers_active, stats.answers_waiting) == (0, 0)
    assert 'could not' not in stats.last_error or 'nothing' in stats.last_error
    if end == 'drained':
        assert stats.frames_waiting == 0
        assert stats.notes_waiting == 0
