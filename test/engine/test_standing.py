"""Standing questions: one check a settled segment, shared, bounded, seen by nobody else."""

import random
import threading

import pytest
from engine.harness import WAIT_S, S, clip, until, watch

from tww_ros import Question
from tww_ros.config import AnswerConfig
from tww_ros.engine.standing import MAX_FAILURES, Standing, check_question
from tww_ros.errors import (
    AnswerTimeoutError,
    BusyError,
    CancelledError,
    EngineClosedError,
    QuestionError,
    QuestionTooLongError,
)
from tww_ros.model.scripted import ScriptedModel
from tww_ros.types import Answer, WatchQuestion, WatchUpdate


class Says:
    """Answers in turn, the last one again and again, and the questions as they were read."""

    def __init__(self, *answers):
        self._answers = answers
        self.asked = []

    def __call__(self, prompt):
        self.asked.append(prompt)
        return self._answers[min(len(self.asked), len(self._answers)) - 1]


def scripted(start, *answers, **options):
    """A running engine whose checks are answered in turn, and what it was asked."""
    says = Says(*answers)
    model = ScriptedModel(answer=says, before_step=options.pop('before_step', lambda spans: None))
    return start(model, **options), says


def test_checks_every_closed_segment_until_it_holds(start):
    engine, says = scripted(start, 'no', 'no', 'yes', step__deterministic=True)
    standing = engine.watch(WatchQuestion('is the cup gone?'))
    updates = standing.updates(WAIT_S)
    watch(engine, clip(0, 12))
    found = list(updates)
    assert [update.answer for update in found] == ['no', 'no', 'yes']
    assert [(update.checks, update.agreeing, update.holds) for update in found] == [
        (1, 0, False), (2, 0, False), (3, 1, True)]
    assert standing.result(0) == found[-1] == standing.last and standing.done()
    # Each check sees what is closed, up to the segment that brought it, and cuts nothing short.
    segments = engine.memory.segments()
    assert [update.stamp_ns for update in found] == [info.end_ns for info in segments[:3]]
    assert {info.closed_by for info in segments[:-1]} == {'time'}
    assert len(says.asked) == 3 and 'is the cup gone?' in says.asked[0]
    assert found[0].probability < 0.01 and found[2].probability > 0.99
    assert {evidence.segment_id for evidence in found[2].evidence} == {0, 1, 2}


@pytest.mark.parametrize('note', [True, False])
def test_a_check_waits_for_the_note_of_its_segment(start, note):
    order = []
    engine, _ = scripted(start, 'no', note__enabled=note, step__deterministic=True,
                         on_note=lambda note: order.append(('note', note.end_ns)),
                         on_segment=lambda info: order.append(('segment', info.end_ns)))
    standing = engine.watch(WatchQuestion('now?'))
    standing.add_listener(lambda update: order.append(('check', update.stamp_ns)))
    watch(engine, clip(0, 4))
    ends = [info.end_ns for info in engine.memory.segments()]
    kinds = ('segment', 'note', 'check') if note else ('segment', 'check')
    assert order == [(kind, end) for end in ends for kind in kinds] and len(ends) == 2


def test_a_segment_whose_note_fails_or_is_skipped_is_checked_too(start):
    def break_notes(spans):
        if any(tuple(span.run.ids) == prompt for span in spans):
            raise RuntimeError('no note today')

    model = ScriptedModel(answer='no', before_step=break_notes)
    prompt = tuple(model.encode(model.style.note_prefix))
    engine = start(model, step__deterministic=True)
    standing = engine.watch(WatchQuestion('now?'))
    watch(engine, clip(0, 6))
    assert engine.stats().notes_skipped == 3 and engine.stats().notes_written == 0
    assert standing.last.checks == 3


def test_confirmations_in_a_row(start):
    engine, _ = scripted(start, 'yes', 'no', 'yes', 'yes', 'no', step__deterministic=True)
    standing = engine.watch(WatchQuestion('gone?', confirmations=2))
    updates = standing.updates(WAIT_S)
    watch(engine, clip(0, 14))
    assert [update.agreeing for update in updates] == [1, 0, 1, 2]
    assert standing.result(0).checks == 4


def test_threshold_and_expected(start):
    """A scripted choice wins with about 0.9999; a tie of equals does not reach 0.6."""
    engine, _ = scripted(start, 'white', 'neither', 'green', step__deterministic=True)
    choices = ('green', 'white', 'black')
    sure = engine.watch(WatchQuestion('which?', choices=choices, threshold=0.6))
    white = engine.watch(WatchQuestion('which?', choices=choices, expected='white'))
    tie = engine.watch(WatchQuestion('which?', choices=choices, threshold=0.2))
    watch(engine, clip(0, 8))
    assert (white.result(0).checks, white.result(0).answer) == (1, 'white')
    # 'neither' is none of them: all are equally likely, and the first is taken.
    assert (tie.result(0).checks, tie.result(0).answer) == (2, 'green')
    assert tie.result(0).probability == pytest.approx(1 / 3)
    assert (sure.result(0).checks, sure.result(0).answer) == (3, 'green')


def test_equal_watches_share_a_check_and_cameras_choose(start):
    engine, says = scripted(start, 'no', step__deterministic=True)
    front = WatchQuestion('now?', cameras=('front',))
    equal = [engine.watch(front), engine.watch(WatchQuestion('now?', ('front',), expected='no',
                                                             confirmations=3)),
             engine.watch(WatchQuestion('now?', ('front', 'front'), timeout_s=60.0))]
    rear = engine.watch(WatchQuestion('now?', cameras=('rear',)))
    both = engine.watch(WatchQuestion('now?'))
    watch(engine, clip(0, 6))
    assert engine.stats().watches == 4
    assert [standing.last.checks for standing in equal] == [3, 3, 3]
    assert equal[1].result(0).agreeing == 3 and both.last.checks == 3 and rear.last is None
    assert len(says.asked) == 6
    watch(engine, clip(6, 8, camera='rear'))
    assert rear.last.checks == 1 and both.last.checks == 4
    assert [standing.last.checks for standing in equal] == [3, 3, 3]


def test_segments_settled_during_a_check_bring_one_more():
    asked = []
    standing = Standing(AnswerConfig(), lambda check, epoch: asked.append((check, epoch)),
                        lambda: None)
    pending = standing.add(WatchQuestion('now?'))
    for epoch in (0, 0, 1, 2):
        standing.settled('front', epoch)
    assert [epoch for _, epoch in asked] == [0]
    no = Answer('no', '', 'choice', 7, (), choice_probabilities=(0.25, 0.75))
    asked[0][0].complete(no)
    assert [epoch for _, epoch in asked] == [0, 2] and pending.last.checks == 1
    asked[1][0].complete(no)
    assert len(asked) == 2 and pending.last == WatchUpdate(7, 'no', 0.25, checks=2)
    standing.settled('front', 2)
    assert len(asked) == 3 and pending.cancel()
    assert isinstance(asked[2][0].error(), CancelledError) and len(standing) == 0


def test_many_watches_share_steps(start):
    together = []
    engine, _ = scripted(start, 'no', note__enabled=False,
                         before_step=lambda spans: together.append(
                             sum(span.logits == 'all' for span in spans)))
    standing = [engine.watch(WatchQuestion(f'is it {n}?')) for n in range(8)]
    watch(engine, clip(0, 2))
    until(lambda: all(one.last for one in standing), 'all were checked')
    # Two choices each, all of them in one step.
    assert max(together) == 16 and sum(together) == 16


def test_nobody_else_sees_checks(start, tmp_path):
    def answers(watches, folder):
        engine, _ = scripted(start, 'no', step__deterministic=True, memory__folder=str(folder))
        standing = [engine.watch(WatchQuestion(f'is it {n}?')) for n in range(watches)]
        found = []
        for second in (0, 4):
            watch(engine, clip(second, second + 4))
            found.append(engine.ask(Question('what?', session='a')).result(WAIT_S))
            found.append(engine.ask(Question('what?', session='')).result(WAIT_S))
        stats = engine.stats()
        assert all(one.last.checks == 4 for one in standing)
        assert len(standing) == stats.watches and stats.answers_done == 4
        assert stats.sessions == 2 and stats.answers_waiting == stats.answers_active == 0
        assert len(engine.memory.segments()) == 4
        engine.drain(WAIT_S)
        return [(a.text, a.prompt_tokens, a.reused_tokens, a.as_of_ns) for a in found], (
            stats.session_bytes, stats.memory_bytes)

    assert answers(0, tmp_path / 'none') == answers(3, tmp_path / 'three')


def test_a_check_says_what_a_question_says(start, tiny):
    """Real scores: the same question at the same moment has the same probabilities, exactly."""
    engine = start(tiny, step__deterministic=True, note__max_new_tokens=4)
    standing = engine.watch(WatchQuestion('which?', choices=('red', 'green', 'blue'),
                                          threshold=1.0))
    watch(engine, clip(0, 2))
    watch(engine, clip(2, 4))
    asked = engine.ask(Question('which?', choices=('red', 'green', 'blue'))).result(WAIT_S)
    assert standing.last.checks == 2
    assert standing.last.probability == asked.choice_probabilities[0]
    assert standing.last.answer == asked.text and standing.last.evidence == asked.evidence
    assert standing.last.stamp_ns == asked.as_of_ns


def test_cancel_timeout_and_close(start):
    engine, says = scripted(start, 'no')
    standing = engine.watch(WatchQuestion('now?'))
    assert standing.cancel() and not standing.cancel()
    with pytest.raises(CancelledError, match=r'now\?'):
        standing.result(0)
    # Nothing happens meanwhile: the reasoner wakes up for the time limit alone.
    late = engine.watch(WatchQuestion('now?', timeout_s=0.05))
    with pytest.raises(AnswerTimeoutError, match=r'0\.05 s \(0 checks\).*images arrive'):
        late.result(WAIT_S)
    with pytest.raises(AnswerTimeoutError):
        list(late.updates(WAIT_S))
    watch(engine, clip(0, 4))
    assert engine.stats().watches == 0 and says.asked == []
    last = engine.watch(WatchQuestion('now?'))
    ended = threading.Event()
    last.add_done_callback(lambda done: ended.set())
    with pytest.raises(TimeoutError, match='hold within 0 s'):
        last.result(0)
    with pytest.raises(TimeoutError, match='no check came'):
        next(last.updates(0.01))
    engine.close(WAIT_S)
    assert ended.is_set() and isinstance(last.error(), EngineClosedError)
    with pytest.raises(EngineClosedError):
        engine.watch(WatchQuestion('now?'))


def test_a_watch_cancelled_during_its_check_ends_the_check(start, gate):
    gate._which = lambda spans: any(span.logits == 'all' for span in spans)
    engine = start(ScriptedModel(answer='yes', before_step=gate), note__enabled=False)
    one, other = engine.watch(WatchQuestion('now?')), engine.watch(WatchQuestion('now?'))
    gate.close()
    for frame in clip(0, 2.5):
        engine.feed(frame)
    gate.wait()
    late = engine.watch(WatchQuestion('now?'))
    assert one.cancel()
    gate.open()
    assert other.result(WAIT_S).holds
    # The check saw memory as it was before this one came.
    assert late.last is None and not late.done()
    gate.close()
    for frame in clip(2.5, 5):
        engine.feed(frame)
    gate.wait()
    assert late.cancel()
    gate.open()
    assert engine.ask(Question('and now?')).result(WAIT_S).text == 'yes'
    assert late.last is None and engine.stats().watches == 0


def test_limits(start):
    engine, _ = scripted(start, 'no', answer__max_watches=2, answer__max_question_tokens=64)
    standing = [engine.watch(WatchQuestion('now?')) for _ in range(2)]
    with pytest.raises(BusyError, match=r'2 standing questions.*max_watches'):
        engine.watch(WatchQuestion('and now?'))
    standing[0].cancel()
    engine.watch(WatchQuestion('and now?')).cancel()
    for length in (100, 2_000):
        with pytest.raises(QuestionTooLongError):
            engine.watch(WatchQuestion('x' * length))


def test_checks_that_fail_end_the_watch_in_the_end(start):
    fails = iter([False, True, True, False] + [True] * MAX_FAILURES)

    def break_checks(spans):
        if any(span.logits == 'all' for span in spans) and next(fails):
            raise RuntimeError('out of memory')

    engine, _ = scripted(start, 'no', step__deterministic=True, before_step=break_checks)
    standing = engine.watch(WatchQuestion('now?'))
    watch(engine, clip(0, 12))
    assert standing.last.checks == 2 and not standing.done()
    watch(engine, clip(12, 16))
    with pytest.raises(QuestionError, match='out of memory'):
        standing.result(0)
    assert standing.last.stamp_ns == int(7.5 * S) and engine.stats().watches == 0
    assert engine.ask(Question('what?')).result(WAIT_S).text == 'no'


def test_a_listener_that_fails_harms_nobody(start, caplog):
    engine, _ = scripted(start, 'no', 'yes', step__deterministic=True)
    standing = engine.watch(WatchQuestion('now?'))
    standing.add_listener(lambda update: 1 / 0)
    watch(engine, clip(0, 4))
    assert standing.result(0).checks == 2
    assert caplog.text.count('a listener of a watch failed') == 2


def test_watches_and_cancels_from_many_threads(start):
    engine, _ = scripted(start, 'no')
    ended, running = [], threading.Event()

    def caller(number):
        while not running.is_set():
            one = engine.watch(WatchQuestion(f'is it {number % 3}?'))
            next(one.updates(WAIT_S))
            ended.append(one.cancel())

    callers = [threading.Thread(target=caller, args=(n,), daemon=True) for n in range(6)]
    for thread in callers:
        thread.start()
    # Every caller waits for a check, so segments have to come until the last one has gone.
    for n in range(400):
        watch(engine, clip(2 * n, 2 * n + 2))
        if len(ended) >= 30:
            running.set()
        if not any(thread.is_alive() for thread in callers):
            break
    assert len(ended) >= 30 and all(ended) and engine.stats().watches == 0
    assert not engine.stats().last_error


@pytest.mark.parametrize(('values', 'message'), [
    ({'text': ' '}, 'empty'), ({'choices': ('yes',)}, 'no choice'),
    ({'choices': ('a', 'a')}, 'differ'), ({'expected': 'maybe'}, "'maybe', and no choice"),
    ({'threshold': 1.5}, 'threshold'), ({'threshold': float('nan')}, 'threshold'),
    ({'confirmations': 0}, 'confirmations'), ({'timeout_s': -1.0}, 'timeout_s'),
])
def test_what_makes_no_sense_is_refused(values, message):
    with pytest.raises(QuestionError, match=message):
        WatchQuestion(**{'text': 'now?', **values})


def test_tell_me_when_is_asked_in_the_words_of_training():
    from tww_ros.world.notes import Chronicle
    from tww_ros.world.questions import Asker
    from tww_ros.world.table import simulate

    trained = Asker(Chronicle(simulate(1, 60.0)), random.Random(1)).make('tell_me')
    asked = check_question(WatchQuestion(trained.text))
    assert asked.text == trained.text and set(asked.choices) == set(trained.others)
    assert asked.choices[0] == 'it is so now'
    own = WatchQuestion(trained.text, choices=('so', 'not'))
    assert check_question(own).choices == ('so', 'not')
    assert check_question(WatchQuestion('Is it gone?')).choices == ('yes', 'no')
