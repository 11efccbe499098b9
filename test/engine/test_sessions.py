"""Conversations: rounds that see each other, and nothing of a round that was cut short."""

import time

import pytest
import torch
from engine.harness import WAIT_S, S, clip, until, watch

from tww_ros import Question
from tww_ros.config import AnswerConfig
from tww_ros.engine.sessions import Round, Sessions
from tww_ros.errors import (
    AnswerTimeoutError,
    CancelledError,
    QuestionError,
    UnknownSessionError,
)
from tww_ros.memory.block import BlockShape, KVBlock
from tww_ros.memory.view import Entry
from tww_ros.model.scripted import ScriptedModel

LONG = 'word ' * 20


def ask(engine, text='what?', session='a', max_new_tokens=200, **options):
    return engine.ask(Question(text, session, max_new_tokens=max_new_tokens, **options))


def reused(engine, session='a', **options):
    """Tokens that the next round sees: memory and its session's earlier rounds."""
    return ask(engine, session=session, **options).result(WAIT_S).reused_tokens


def round_tokens(engine, answer):
    """Question, answer and the mark that closes the round."""
    closer = engine.model.encode(engine.model.style.answer_closer)
    return answer.prompt_tokens + answer.completion_tokens + len(closer)


def answer_spans(engine, gate, steps):
    """In each of the next steps: how many spans decode a token of an answer; then all goes on."""
    counts = []
    engine.model._before_step = lambda spans: (
        counts.append(sum(span.logits == 'last' for span in spans)), gate(spans))
    gate.let(steps)
    return counts


def test_a_round_sees_the_rounds_before_it_and_other_sessions_do_not(start):
    engine = start()
    watch(engine, clip(0, 2))
    first = ask(engine, 'what is it?').result(WAIT_S)
    second = ask(engine, 'is it?').result(WAIT_S)
    assert second.reused_tokens == first.reused_tokens + round_tokens(engine, first)
    third = ask(engine, 'was it?').result(WAIT_S)
    assert third.reused_tokens == second.reused_tokens + round_tokens(engine, second)
    assert reused(engine, session='b') == first.reused_tokens
    assert engine.stats().sessions == 2


@pytest.mark.parametrize('model', ['tiny', 'tiny_tww'])
def test_rounds_of_a_real_model(start, request, model):
    engine = start(request.getfixturevalue(model), note__max_new_tokens=2)
    watch(engine, clip(0, 2))
    first = ask(engine, 'what is it?', max_new_tokens=3).result(WAIT_S)
    second = ask(engine, 'is it?', choices=('no', 'yes')).result(WAIT_S)
    third = ask(engine, 'was it?', max_new_tokens=3).result(WAIT_S)
    other = ask(engine, 'what is it?', session='b', max_new_tokens=3).result(WAIT_S)
    assert first.reused_tokens < second.reused_tokens < third.reused_tokens
    assert (other.reused_tokens, other.token_ids) == (first.reused_tokens, first.token_ids)


def test_one_session_answers_in_turn_and_two_sessions_in_the_same_steps(start, gate):
    engine = start(ScriptedModel(answer=LONG, before_step=gate), note__enabled=False)
    watch(engine, clip(0, 2))
    gate.close()
    same = [ask(engine), ask(engine)]
    assert max(answer_spans(engine, gate, 40)) == 1
    assert [pending.queue_position() for pending in same] == [0, 1]
    other = ask(engine, session='b')
    assert max(answer_spans(engine, gate, 40)) == 2
    assert same[1].started_s is None
    gate.open()
    for pending in (*same, other):
        assert pending.result(WAIT_S).text == LONG.strip()
    assert same[1].result().reused_tokens > same[0].result().reused_tokens


@pytest.mark.parametrize('end', ['cancelled', 'timed out'])
def test_next_round_begins_when_the_one_before_it_was_cut_short(start, gate, end):
    """At once, with no frame and no other question to wake the engine up; the cut one is gone."""
    engine = start(ScriptedModel(answer=LONG, before_step=gate))
    watch(engine, clip(0, 2))
    before = reused(engine, session='other')
    gate.close()
    cut = ask(engine, timeout_s=0.05 if end == 'timed out' else 0.0)
    gate.let(5)
    gate.wait()
    following = ask(engine)
    if end == 'cancelled':
        assert cut.cancel()
    else:
        until(lambda: time.monotonic() > cut.asked_s + 0.05, 'its time was up')
    gate.open()
    with pytest.raises(CancelledError if end == 'cancelled' else AnswerTimeoutError):
        cut.result(WAIT_S)
    assert following.result(WAIT_S).reused_tokens == before


def test_failed_round_leaves_no_trace(start):
    def words(question):
        if 'fail' in question:
            raise RuntimeError('no words')
        return 'yes'

    engine = start(ScriptedModel(answer=words))
    watch(engine, clip(0, 2))
    pending = [ask(engine, text) for text in ('fail', 'good', 'fail', 'good')]
    for failing in pending[::2]:
        with pytest.raises(QuestionError, match='no words'):
            failing.result(WAIT_S)
    first, second = (good.result(WAIT_S) for good in pending[1::2])
    assert second.reused_tokens == first.reused_tokens + round_tokens(engine, first)
    stats = engine.stats()
    assert (stats.answers_done, stats.answers_failed, stats.answers_active) == (2, 2, 0)


def test_session_forgets_its_oldest_round_beyond_its_tokens(start):
    engine = start(answer__session_tokens=0)
    watch(engine, clip(0, 2))
    tokens = [reused(engine) for _ in range(3)]
    assert tokens == [tokens[0]] * 3

    first = ask(engine, session='x').result(WAIT_S)
    roomy = start(answer__session_tokens=2 * round_tokens(engine, first))
    watch(roomy, clip(0, 2))
    one = round_tokens(engine, first)
    base = first.reused_tokens
    assert [reused(roomy) for _ in range(5)] == [base, base + one, base + 2 * one,
                                                 base + 2 * one, base + 2 * one]


def test_sessions_idle_for_longest_are_forgotten_beyond_their_number(start):
    engine = start(answer__max_sessions=2)
    watch(engine, clip(0, 2))
    fresh = reused(engine, 'a')
    reused(engine, 'b')
    assert reused(engine, 'a') > fresh
    reused(engine, 'c')                                                     # b is idle for longest
    assert engine.stats().sessions == 2
    assert reused(engine, 'a') > fresh
    assert reused(engine, 'b') == fresh


def test_session_with_a_question_in_line_is_not_forgotten(start, gate):
    engine = start(answer__max_sessions=1)
    watch(engine, clip(0, 2))
    gate.close()
    for one in clip(2, 3):
        engine.push(one)
    gate.wait()                                                             # reading stands still
    first, other = ask(engine, session='a'), ask(engine, session='b')
    gate.open()
    assert first.result(WAIT_S).as_of_ns == other.result(WAIT_S).as_of_ns == 2.5 * S
    assert engine.drain(WAIT_S)
    assert reused(engine, 'a') > reused(engine, 'c')


def test_close_session(start, gate):
    engine = start(ScriptedModel(answer=LONG, before_step=gate))
    with pytest.raises(UnknownSessionError, match='none'):
        engine.close_session('a')
    watch(engine, clip(0, 2))
    fresh = reused(engine)
    with pytest.raises(UnknownSessionError, match="'a'"):
        engine.close_session('b')
    engine.close_session('a')
    with pytest.raises(UnknownSessionError):
        engine.close_session('a')
    assert reused(engine) == fresh
    assert reused(engine) > fresh

    gate.close()
    under_way = ask(engine)
    gate.let(4)
    engine.close_session('a')
    following = ask(engine)
    gate.open()
    assert under_way.result(WAIT_S).text == LONG.strip()
    assert following.result(WAIT_S).reused_tokens == fresh
    assert reused(engine) > fresh


def test_rounds_of_all_sessions_within_a_byte_budget():
    """The session idle for longest loses its oldest rounds, and the newest round goes last."""
    shape = BlockShape(1, 1, 128, torch.float32, torch.device('cpu'))           # 1 KiB a token
    sessions = Sessions(AnswerConfig(sessions_bytes=65_536))

    def add(name, tokens):
        block = KVBlock(shape, capacity=tokens)
        block.commit(tokens, tokens)
        session = sessions.get(name)
        sessions.add(session, Round(0, (Entry(block, 'source'),)))
        return [past.tokens for past in session.rounds]

    assert add('a', 20) == [20] and add('a', 10) == [20, 10]
    assert add('b', 30) == [30] and sessions.nbytes == 60 * 1024
    assert add('c', 8) == [8]
    assert [past.tokens for past in sessions.get('a').rounds] == [10]
    assert sessions.get('a').entries()[0][0] == (0, 2, 1, 0)                     # keeps its place
    assert add('b', 40) == [40] and sessions.nbytes <= 65_536
    assert add('d', 70) == [] and sessions.nbytes == 0                          # too long for all
