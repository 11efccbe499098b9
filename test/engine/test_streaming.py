"""Pieces of an answer, and the ways in which a question ends without one."""

import threading
import time

import pytest
from engine.harness import WAIT_S, Gate, clip, threads, until, watch

from tww_ros import Question
from tww_ros.config import AnswerConfig
from tww_ros.engine.counters import Counters
from tww_ros.engine.desk import Desk
from tww_ros.engine.pending import PendingAnswer
from tww_ros.errors import AnswerTimeoutError, CancelledError
from tww_ros.model.scripted import ScriptedModel

LONG = 'word ' * 20
MANY_BYTES = '  née 漢字 \u0391 🤖🎈 e\u0301 — end \n'


def ask(engine, text='what?', max_new_tokens=200, **options):
    return engine.ask(Question(text, max_new_tokens=max_new_tokens, **options))


@pytest.fixture
def talking(start, gate):
    """talking(answer) → an engine that has watched two seconds, with its gate closed."""
    def make(answer=LONG, **settings):
        engine = start(ScriptedModel(answer=answer, before_step=gate), **settings)
        watch(engine, clip(0, 2))
        gate.close()
        return engine
    return make


# Pieces

def test_pieces_are_the_whole_text_and_never_half_a_character(talking, gate):
    engine = talking(MANY_BYTES)
    gate.open()
    pieces = list(engine.ask_stream(Question('what?', max_new_tokens=200), WAIT_S))
    assert ''.join(piece.text for piece in pieces) == MANY_BYTES
    assert not any('\ufffd' in piece.text for piece in pieces)
    assert len(pieces) > 20
    assert [piece.answer is None for piece in pieces] == [True] * (len(pieces) - 1) + [False]
    assert pieces[-1].answer.text == MANY_BYTES.strip()


def test_text_cut_off_inside_a_character_is_delivered_as_it_is(talking, gate):
    engine = talking('ab漢')
    gate.open()
    pieces = list(engine.ask_stream(Question('what?', max_new_tokens=4), WAIT_S))
    assert ''.join(piece.text for piece in pieces) == 'ab\ufffd'
    answer = pieces[-1].answer
    assert (answer.text, answer.finish_reason, answer.completion_tokens) == (
        'ab\ufffd', 'length', 4)


@pytest.mark.parametrize('model', ['tiny', 'tiny_tww'])
def test_pieces_of_random_bytes(start, request, model):
    model = request.getfixturevalue(model)
    engine = start(model, note__enabled=False)
    watch(engine, clip(0, 2))
    for text in ('a', 'b', 'c'):
        *_, last = pieces = list(engine.ask_stream(
            Question(text, session=text, max_new_tokens=40), WAIT_S))
        assert ''.join(piece.text for piece in pieces) == model.decode(last.answer.token_ids)


def test_an_empty_answer_is_one_piece(talking, gate):
    engine = talking('')
    gate.open()
    piece, = engine.ask_stream(Question('what?'), WAIT_S)
    assert (piece.text, piece.answer.text, piece.answer.finish_reason) == ('', '', 'stop')
    assert piece.answer.completion_tokens == 0


def test_pieces_can_be_read_twice_and_after_the_end(talking, gate):
    engine = talking()
    pending = ask(engine)
    gate.open()
    first = list(pending.pieces(WAIT_S))
    assert list(pending.pieces(WAIT_S)) == first
    assert pending.text() == LONG


def test_pieces_come_while_the_answer_is_written(talking, gate):
    engine = talking('word')
    pending = ask(engine)
    pieces = pending.pieces(WAIT_S)
    gate.let(1)
    assert next(pieces).text == 'w'
    gate.let(2)
    assert next(pieces).text == 'o'
    gate.open()
    assert ''.join(piece.text for piece in pieces) == 'rd'


def test_waiting_for_a_piece_has_a_limit(talking, gate):
    engine = talking()
    pending = ask(engine)
    pieces = pending.pieces(timeout_s=0.01)
    with pytest.raises(TimeoutError, match='no piece'):
        next(pieces)
    with pytest.raises(TimeoutError):
        pending.result(0.01)
    gate.open()
    assert pending.result(WAIT_S).text == LONG.strip()


# Listeners

def test_a_listener_added_late_hears_everything_from_the_start(talking, gate):
    engine = talking()
    pending = ask(engine)
    early, late, too_late = [], [], []
    pending.add_piece_listener(early.append)
    gate.let(8)
    gate.wait()
    pending.add_piece_listener(late.append)
    assert late == early != []
    gate.open()
    pending.result(WAIT_S)
    until(lambda: early and early[-1].answer, 'the last piece was heard')
    until(lambda: late == early, 'the late listener heard it too')
    pending.add_piece_listener(too_late.append)
    assert too_late == early == list(pending.pieces(WAIT_S))


def test_a_listener_hears_pieces_in_order_whoever_brings_them(talking, gate):
    """A piece that is written while the first ones are handed over must not overtake them."""
    engine = talking()
    pending = ask(engine)
    gate.let(2)
    gate.wait()
    heard, first = [], threading.Event()

    def slow(piece):
        if not first.is_set():
            first.set()
            until(lambda: len(pending.text()) > 2, 'the next piece was written')
        heard.append(piece)

    with threads(lambda: pending.add_piece_listener(slow)):
        assert first.wait(WAIT_S)
        gate.let(3)
    gate.open()
    pending.result(WAIT_S)
    until(lambda: heard and heard[-1].answer, 'the last piece was heard')
    assert ''.join(piece.text for piece in heard) == LONG


def test_listeners_that_fail_stop_nobody(talking, gate, caplog):
    engine = talking('word')
    pending = ask(engine)
    heard, done = [], []

    def fail(_):
        raise ZeroDivisionError('a listener\'s own fault')

    for listener in (fail, heard.append):
        pending.add_piece_listener(listener)
    for listener in (fail, done.append, lambda p: pending.cancel() and done.append('cancelled')):
        pending.add_done_callback(listener)
    gate.open()
    assert pending.result(WAIT_S).text == 'word'
    until(lambda: done == [pending], 'the callbacks were called')
    assert ''.join(piece.text for piece in heard) == 'word'
    pending.add_done_callback(fail)                                         # called at once
    pending.add_done_callback(done.append)
    assert done == [pending, pending]
    assert 'a listener of an answer failed' in caplog.text
    assert ask(engine).result(WAIT_S).text == 'word'


def test_a_callback_may_ask_the_next_question(talking, gate):
    engine = talking('word')
    following = []
    pending = ask(engine)
    pending.add_done_callback(lambda p: following.append(ask(engine, 'and then?')))
    gate.open()
    until(lambda: following, 'the callback asked')
    assert following[0].result(WAIT_S).reused_tokens > pending.result().reused_tokens


# Cancelling

def test_cancel_stops_an_answer_within_one_step(talking, gate):
    engine = talking()
    pending = ask(engine)
    gate.let(5)
    gate.wait()
    steps = engine.model.steps
    assert pending.cancel()
    assert not pending.cancel()
    gate.open()
    with pytest.raises(CancelledError, match=r'what\?'):
        pending.result(WAIT_S)
    assert ask(engine, 'again?', max_new_tokens=1).result(WAIT_S).text == 'w'
    assert engine.drain(WAIT_S)
    # The one that stood at the gate, then two for the other question: its text, its closing mark.
    assert engine.model.steps - steps <= 1 + 2
    stats = engine.stats()
    assert (stats.answers_cancelled, stats.answers_done, stats.answers_active) == (1, 1, 0)
    assert (stats.answers_waiting, stats.last_error) == (0, '')


def test_pieces_of_a_cancelled_answer_end_with_the_error(talking, gate):
    engine = talking()
    pending = ask(engine)
    gate.let(4)
    gate.wait()
    pending.cancel()
    written = []
    with pytest.raises(CancelledError):
        written.extend(piece.text for piece in pending.pieces(WAIT_S))
    assert LONG.startswith(pending.text())
    assert len(pending.text()) == 4
    gate.open()
    assert ask(engine).result(WAIT_S).text == LONG.strip()
    assert len(pending.text()) == 4                                         # nothing was added


def test_cancel_before_the_start_costs_no_step(talking, gate):
    engine = talking()
    for one in clip(2, 3):
        engine.push(one)
    gate.wait()
    steps = engine.model.steps
    pending = [ask(engine, session=name) for name in 'abc']
    assert all(question.cancel() for question in pending)
    gate.open()
    assert engine.drain(WAIT_S)
    note = len('nothing new') + 2                                           # prompt, text, closer
    assert engine.model.steps - steps == 1 + note
    assert engine.stats().answers_cancelled == 3


def test_who_sleeps_until_an_end_is_woken_when_it_can_be_seen():
    seen = []
    desk = Desk(AnswerConfig(), Counters(), lambda: seen.append(pending.done()))
    pending = PendingAnswer(Question('what?'))
    desk.register(pending)
    assert pending.cancel()
    assert seen[-1] and not seen[0]


def test_cancel_after_the_end_changes_nothing(talking, gate):
    engine = talking('word')
    gate.open()
    pending = ask(engine)
    pending.result(WAIT_S)
    assert not pending.cancel()
    assert pending.result(WAIT_S).text == 'word'
    assert engine.stats().answers_cancelled == 0


@pytest.mark.parametrize('at', [0, 3])
def test_cancel_from_inside_a_listener(talking, gate, at):
    engine = talking()
    pending = ask(engine)
    heard = []

    def listen(piece):
        heard.append(piece)
        if len(heard) == at + 1:
            assert pending.cancel()

    pending.add_piece_listener(listen)
    gate.open()
    with pytest.raises(CancelledError):
        pending.result(WAIT_S)
    assert ask(engine).result(WAIT_S).text == LONG.strip()
    assert len(heard) == at + 1


# Time limits and the line

def test_time_limit_while_the_answer_is_written(talking, gate):
    engine = talking()
    pending = ask(engine, timeout_s=0.05)
    gate.let(4)
    gate.wait()
    until(lambda: time.monotonic() > pending.asked_s + 0.05, 'its time was up')
    assert not pending.done()
    gate.open()
    with pytest.raises(AnswerTimeoutError, match='wrote 5 characters'):
        pending.result(WAIT_S)
    assert ask(engine).result(WAIT_S).text == LONG.strip()
    assert engine.stats().answers_failed == 1


def test_time_limit_while_waiting_for_the_session(talking, gate):
    engine = talking()
    first = ask(engine)
    gate.let(2)
    second = ask(engine, timeout_s=0.05)
    until(lambda: time.monotonic() > second.asked_s + 0.05, 'its time was up')
    gate.open()
    with pytest.raises(AnswerTimeoutError, match='1 questions in front'):
        second.result(WAIT_S)
    assert first.result(WAIT_S).text == LONG.strip()


def test_time_limit_holds_while_the_watcher_is_stuck(start):
    """The engine sleeps, and the question has not come through to it yet."""
    see = threading.Event()

    class SlowEyes(ScriptedModel):
        def encode_patch(self, pixels):
            assert see.wait(WAIT_S)
            return super().encode_patch(pixels)

    engine = start(SlowEyes())
    try:
        for one in clip(0, 1):
            engine.push(one)
        with pytest.raises(AnswerTimeoutError):
            ask(engine, timeout_s=0.05).result(WAIT_S)
        with pytest.raises(CancelledError):
            pending = ask(engine)
            pending.cancel()
            pending.result(WAIT_S)
    finally:
        see.set()
    assert engine.drain(WAIT_S)
    assert ask(engine).result(WAIT_S).text == 'yes'


def test_queue_position_counts_who_is_in_front(talking, gate):
    engine = talking()
    pending = [ask(engine) for _ in range(4)]
    assert [question.queue_position() for question in pending] == [0, 1, 2, 3]
    gate.let(3)
    pending[1].cancel()
    assert [question.queue_position() for question in pending] == [0, 0, 1, 2]
    gate.open()
    for question in (pending[0], pending[2], pending[3]):
        question.result(WAIT_S)
    assert [question.queue_position() for question in pending] == [0, 0, 0, 0]


def test_who_has_an_answer_is_no_longer_counted_as_waiting(start):
    """Also in the instant after it came: the next question is not refused as one too many."""
    engine = start(answer__max_waiting=1)
    watch(engine, clip(0, 2))
    for number in range(1, 101):
        assert ask(engine, session=str(number % 5)).result(WAIT_S).text == 'yes'
        stats = engine.stats()
        assert (stats.answers_done, stats.answers_waiting) == (number, 0)


def test_timings_are_in_order(talking, gate):
    engine = talking()
    gate.open()
    answer = ask(engine).result(WAIT_S)
    assert 0 <= answer.queue_s <= answer.first_token_s <= answer.total_s


def test_gate_holds_what_it_should():
    """The tool of these tests: closed it holds a step, open it does not."""
    gate, passed = Gate(closed=True), []
    with threads(lambda: (gate(()), passed.append(1), gate(()), passed.append(2))):
        gate.wait()
        assert passed == []
        gate.let()
        gate.wait()
        assert passed == [1]
        gate.open()
    assert passed == [1, 2]
