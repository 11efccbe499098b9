"""Start, close, and everything that may be under way at that moment."""

import threading

import pytest
from engine.harness import SMALL, WAIT_S, clip, engine_threads, frame, threads, watch

from tww_ros import Engine, EngineConfig, Question
from tww_ros.errors import EngineClosedError, TwwError
from tww_ros.model.scripted import ScriptedModel

CONFIG = EngineConfig.from_flat(SMALL)
LONG = 'word ' * 20


def ask(engine, text='what?', **options):
    return engine.ask(Question(text, max_new_tokens=200, **options))


def test_three_threads_from_start_to_close():
    before = threading.active_count()
    engine = Engine(ScriptedModel(), CONFIG)
    assert engine_threads() == []
    engine.start()
    assert sorted(thread.name for thread in engine_threads()) == [
        'tww-keeper', 'tww-reasoner', 'tww-watcher']
    watch(engine, clip(0, 2))
    assert engine.close()
    assert threading.active_count() == before
    assert engine.close()                                                   # once more is no harm
    assert engine.close(0.0)


def test_start_twice_and_after_close():
    engine = Engine(ScriptedModel(), CONFIG)
    with engine:
        with pytest.raises(EngineClosedError, match='running'):
            engine.start()
        watch(engine, clip(0, 2))
    with pytest.raises(EngineClosedError, match='closed'):
        engine.start()


def test_closed_before_it_was_started():
    engine = Engine(ScriptedModel(), CONFIG)
    assert engine.close()
    with pytest.raises(EngineClosedError):
        engine.start()
    assert engine_threads() == []


def test_use_after_close_is_refused_and_memory_can_still_be_read():
    with Engine(ScriptedModel(), CONFIG) as engine:
        watch(engine, clip(0, 4))
        pending = ask(engine)
        pending.result(WAIT_S)
    with pytest.raises(EngineClosedError, match='closed'):
        ask(engine)
    with pytest.raises(EngineClosedError):
        engine.ask_stream(Question('what?'))
    with pytest.raises(EngineClosedError):
        engine.drain(WAIT_S)
    assert engine.push(frame(5)) is False
    assert engine.feed(frame(5), WAIT_S) is False
    assert len(engine.memory.segments()) == len(engine.memory.notes()) == 2
    stats = engine.stats()
    assert (stats.frames_received, stats.frames_watched) == (8, 8)
    assert pending.result().text == 'yes'
    assert not pending.cancel()


def test_an_error_inside_the_with_statement_still_closes():
    with pytest.raises(ZeroDivisionError), Engine(ScriptedModel(), CONFIG) as engine:
        watch(engine, clip(0, 2))
        raise ZeroDivisionError
    assert engine_threads() == []


def test_open_questions_fail_at_once_even_when_a_step_is_stuck(start, gate):
    engine = start(ScriptedModel(answer=LONG, before_step=gate))
    watch(engine, clip(0, 2))
    gate.close()
    running = ask(engine)
    gate.let(4)
    gate.wait()
    waiting, other = ask(engine), ask(engine, session='b')
    seen, closed = [], []
    running.add_done_callback(seen.append)

    def read():
        try:
            seen.extend(piece.text for piece in running.pieces(WAIT_S))
        except EngineClosedError:
            seen.append('closed')

    with threads(read, lambda: closed.append(engine.close(WAIT_S))):
        for pending in (running, waiting, other):
            with pytest.raises(EngineClosedError, match='closed before'):
                pending.result(WAIT_S)
        assert closed == []                                                 # the step still stands
        gate.open()
    assert closed == [True]
    assert running in seen
    assert 'closed' in seen
    assert running.text() == 'word'
    stats = engine.stats()
    assert (stats.answers_failed, stats.answers_active, stats.answers_waiting) == (3, 0, 0)


def test_close_says_that_a_thread_did_not_end_and_later_that_it_did(start, gate):
    engine = start()
    gate.close()
    for one in clip(0, 2):
        engine.push(one)
    gate.wait()
    assert not engine.close(0.0)
    gate.open()
    assert engine.close(WAIT_S)


def test_close_while_a_frame_is_being_encoded(start):
    see, looking = threading.Event(), threading.Event()

    class SlowEyes(ScriptedModel):
        def encode_patch(self, pixels):
            looking.set()
            assert see.wait(WAIT_S)
            return super().encode_patch(pixels)

    engine = start(SlowEyes())
    for one in clip(0, 5):
        engine.push(one)
    pending = ask(engine)
    assert looking.wait(WAIT_S)
    assert not engine.close(0.0)
    with pytest.raises(EngineClosedError):
        pending.result(WAIT_S)
    see.set()
    assert engine.close(WAIT_S)


def test_close_while_the_watcher_waits_for_room(start, gate):
    engine = start(step__read_ahead_patches=1)
    gate.close()
    for one in clip(0, 20):
        engine.push(one)
    gate.wait()
    with threads(lambda: engine.close(WAIT_S)):
        gate.open()
    assert engine_threads() == []


@pytest.mark.parametrize('place', ['note', 'segment', 'piece', 'done'])
def test_close_from_inside_a_listener(start, place):
    """It runs on the engine's own thread, which cannot wait for itself."""
    called = threading.Event()

    def close(*_):
        if not called.is_set():
            called.set()
            engine.close(WAIT_S)

    engine = start(ScriptedModel(answer=LONG), on_note=close if place == 'note' else None,
                   on_segment=close if place == 'segment' else None)
    for one in clip(0, 2):
        engine.push(one)
    try:
        pending = ask(engine)
        if place == 'piece':
            pending.add_piece_listener(close)
        elif place == 'done':
            pending.add_done_callback(close)
        pending.result(WAIT_S)
    except EngineClosedError:
        assert place != 'done'
    assert called.wait(WAIT_S)
    assert engine.close(WAIT_S)


def test_closed_by_two_threads_at_once(start, gate):
    engine = start()
    watch(engine, clip(0, 2))
    closed = []
    with threads(*[lambda: closed.append(engine.close(WAIT_S))] * 3):
        pass
    assert closed == [True] * 3


def test_asking_against_closing(start):
    """Every question is refused, answered or failed: none is left without an end."""
    for _ in range(15):
        engine = start()
        watch(engine, clip(0, 1))
        pending, go = [], threading.Event()

        def ask_on(engine=engine, pending=pending, go=go):
            assert go.wait(WAIT_S)
            try:
                for number in range(100):
                    pending.append(ask(engine, session=str(number % 3)))
            except TwwError:
                pass

        with threads(ask_on, ask_on):
            go.set()
            engine.close(WAIT_S)
        for question in pending:
            try:
                assert question.result(WAIT_S).text == 'yes'
            except EngineClosedError:
                pass


def test_one_model_serves_one_engine_after_another(tiny):
    answers = []
    config = EngineConfig.from_flat({**SMALL, 'step.deterministic': True, 'note.enabled': False})
    for _ in range(3):
        with Engine(tiny, config) as engine:
            watch(engine, clip(0, 3))
            answers.append(engine.ask(Question('what?', max_new_tokens=8)).result(WAIT_S))
    assert [answer.token_ids for answer in answers] == [answers[0].token_ids] * 3
    assert len(answers[0].token_ids) == 8
