"""What the engine is fed before each question, seen from the engine's side."""

import math
from concurrent.futures import Future

import pytest

from tww_ros.errors import AnswerTimeoutError, QuestionError, ReplayError
from tww_ros.replay.questions import TimedQuestion, ask_video, pair_questions
from tww_ros.types import Answer, EngineStats, Question


class RecordingEngine:
    """Writes down what it is told; answers with the stamp of the newest frame."""

    def __init__(self, feeds=True, drains=True, answers=True):
        self.log, self.feeds, self.drains, self.answers = [], feeds, drains, answers

    def feed(self, frame, timeout_s):
        self.log.append(frame.stamp_ns // 10**6)
        return self.feeds

    def drain(self, timeout_s):
        self.log.append('drain')
        return self.drains

    def ask(self, question):
        newest = max(entry for entry in self.log if isinstance(entry, int))
        self.log.append(question.text)
        future = Future()
        if self.answers:
            future.set_result(Answer(question.text, '', 'stop', newest * 10**6, ()))
        return future

    def stats(self):
        return EngineStats(last_error='out of memory')


def timed(at_s, text):
    return TimedQuestion(at_s, Question(text))


def test_frames_up_to_each_time_are_fed_and_none_after(video):
    engine = RecordingEngine()
    asked = [timed(1.0, 'b'), timed(0.25, 'a'), timed(1.0, 'c')]
    answers = list(ask_video(engine, video, asked))
    assert engine.log == [0, 100, 200, 'drain', 'a', *range(300, 1_100, 100), 'drain', 'b',
                          'drain', 'c']
    assert [(a.at_s, a.question.text, a.answer.as_of_ns // 10**6) for a in answers] == [
        (0.25, 'a', 200), (1.0, 'b', 1_000), (1.0, 'c', 1_000)]


def test_at_the_start_and_at_the_end(video):
    engine = RecordingEngine()
    answers = list(ask_video(engine, video, [timed(math.inf, 'end'), timed(0.0, 'start')]))
    assert engine.log[:3] == [0, 'drain', 'start']
    assert engine.log[-3:] == [2_400, 'drain', 'end']
    assert [a.at_s for a in answers] == [0.0, 2.4]


def test_every_frame_fed_is_shown_to_the_listener(video):
    seen = []
    list(ask_video(RecordingEngine(), video, [timed(0.5, 'a')], camera='left',
                   on_frame=lambda frame: seen.append((frame.camera, frame.stamp_ns // 10**6))))
    assert seen == [('left', ms) for ms in range(0, 600, 100)]


@pytest.mark.parametrize('engine, error, message', [
    (RecordingEngine(feeds=False), ReplayError, 'out of memory'),
    (RecordingEngine(drains=False), ReplayError, 'memory was not ready within 0.1 s'),
    (RecordingEngine(answers=False), AnswerTimeoutError, "no answer to 'a' within 0.1 s")])
def test_engine_that_does_not_keep_up(video, engine, error, message):
    with pytest.raises(error, match=message):
        list(ask_video(engine, video, [timed(0.5, 'a')], timeout_s=0.1))


def test_time_beyond_the_end_is_refused_before_anything_is_fed(video):
    engine = RecordingEngine()
    with pytest.raises(ReplayError, match='within the video'):
        list(ask_video(engine, video, [timed(0.5, 'a'), timed(60.0, 'late')]))
    assert engine.log == []


@pytest.mark.parametrize('at_s', [-0.1, math.nan])
def test_bad_times(at_s):
    with pytest.raises(QuestionError, match='0 s or later'):
        timed(at_s, 'a')


def test_pairing():
    def pairs(texts, times):
        return [(t.at_s, t.question.text) for t in pair_questions(texts, times, session='s')]

    assert pairs(['a'], []) == [(math.inf, 'a')]
    assert pairs(['a', 'b'], []) == [(math.inf, 'a'), (math.inf, 'b')]
    assert pairs(['a'], [1, 2]) == [(1, 'a'), (2, 'a')]
    assert pairs(['a', 'b'], [3]) == [(3, 'a'), (3, 'b')]
    assert pairs(['a', 'b'], [2, 1]) == [(2, 'a'), (1, 'b')]
    assert pair_questions(['a'], [1], session='s')[0].question.session == 's'
    with pytest.raises(QuestionError, match='3 times and 2 questions'):
        pairs(['a', 'b'], [1, 2, 3])
