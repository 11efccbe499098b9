"""Records ↔ messages: nothing is lost on the way, and every error has its code."""

import math
from collections import Counter

import pytest
from builtin_interfaces.msg import Duration, Time
from hypothesis import given
from hypothesis import strategies as st

from tww_interfaces.action import Query, Watch
from tww_interfaces.srv import Ask, CloseSession, ListSegments
from tww_ros import errors
from tww_ros.node import conversions as c
from tww_ros.types import (
    Answer,
    Evidence,
    Note,
    Pose,
    Question,
    SegmentInfo,
    WatchQuestion,
    WatchUpdate,
)

POSE = Pose('map', (1.0, -2.5, 0.25), (0.0, 0.0, 0.6, 0.8))
STAMP_NS = 1_700_000_000_123_456_789


def codes(kind: type) -> dict[str, int]:
    return {name: getattr(kind, name) for name in dir(kind)
            if name.isupper() and isinstance(getattr(kind, name), int)}


def test_error_codes_are_the_same_everywhere() -> None:
    ask = codes(Ask.Response)
    assert codes(Query.Result) == ask
    assert codes(Watch.Result).items() <= ask.items()
    assert codes(CloseSession.Response).items() <= ask.items()
    assert codes(ListSegments.Response).items() <= ask.items()
    assert ask['NONE'] == 0 and max(Counter(ask.values()).values()) == 1


@pytest.mark.parametrize(('error', 'name'), [
    (errors.EngineClosedError('x'), 'NOT_ACTIVE'), (errors.BusyError('x'), 'BUSY'),
    (errors.AnswerTimeoutError('x'), 'TIMEOUT'), (errors.CancelledError('x'), 'CANCELLED'),
    (errors.NothingSeenError('x'), 'NOTHING_SEEN'),
    (errors.UnknownCameraError('x'), 'UNKNOWN_CAMERA'),
    (errors.UnknownSessionError('x'), 'UNKNOWN_SESSION'),
    (errors.QuestionError('x'), 'INVALID_REQUEST'),
    (c.RequestError(Ask.Response.INVALID_CHOICES, 'x'), 'INVALID_CHOICES'),
])
def test_error_travels_and_comes_back(error: errors.TwwError, name: str) -> None:
    response = Ask.Response()
    c.fill_error(response, error)
    assert response.error_code == getattr(Ask.Response, name)
    again = c.error_from_code(response.error_code, response.error_msg)
    assert str(again) == 'x'
    if type(error) is not errors.QuestionError:
        assert type(again) is type(error)


def test_unexpected_error_is_internal_and_named() -> None:
    response = Ask.Response()
    c.fill_error(response, ZeroDivisionError('by zero'))
    assert response.error_code == Ask.Response.INTERNAL
    assert 'ZeroDivisionError: by zero' in response.error_msg
    assert 'log of the node' in response.error_msg


@pytest.mark.parametrize(('fields', 'code'), [
    ({'question': ''}, 'EMPTY_QUESTION'), ({'question': ' \n\t'}, 'EMPTY_QUESTION'),
    ({'choices': ['yes']}, 'INVALID_CHOICES'), ({'choices': ['yes', ' ']}, 'INVALID_CHOICES'),
    ({'choices': ['yes', 'yes']}, 'INVALID_CHOICES'),
    ({'window_start': Time(sec=5), 'window_end': Time(sec=4)}, 'INVALID_WINDOW'),
    ({'timeout': Duration(sec=-1)}, 'INVALID_REQUEST'),
])
def test_wrong_request(fields: dict[str, object], code: str) -> None:
    with pytest.raises(c.RequestError) as caught:
        c.question_from(Ask.Request(**{'question': 'what?', **fields}))
    assert caught.value.code == getattr(Ask.Response, code)


def test_request_defaults() -> None:
    question = c.question_from(Ask.Request(question='what?'))
    assert question == Question('what?')


@pytest.mark.parametrize(('start', 'end', 'expected'), [
    (Time(), Time(), None),
    (Time(sec=3, nanosec=7), Time(), (3_000_000_007, c.LAST_STAMP_NS)),
    (Time(), Time(sec=4), (0, 4_000_000_000)),
])
def test_open_windows(start: Time, end: Time, expected: object) -> None:
    assert c.window_from(start, end) == expected


@pytest.mark.parametrize('kind', [Ask.Request, Query.Goal])
def test_question_round_trip(kind: type) -> None:
    question = Question('what is it?', session='a', cameras=('front', 'rear'),
                        choices=('a cup', 'a book'), window=(STAMP_NS, STAMP_NS + 5),
                        max_new_tokens=7, timeout_s=2.5)
    request = kind()
    c.fill_question(request, question)
    assert c.question_from(request) == question


@pytest.mark.parametrize('kind', [Ask.Response, Query.Result])
def test_answer_round_trip(kind: type) -> None:
    answer = Answer(
        text='Größe 你好', reasoning='because', finish_reason='choice', as_of_ns=STAMP_NS,
        evidence=(Evidence(3, 'front', STAMP_NS - 9, STAMP_NS, 0.5, 'device', 'a cup', POSE),
                  Evidence(1, 'rear', 5, 6, 0.25, 'note')),
        choice_probabilities=(0.75, 0.25), prompt_tokens=11, completion_tokens=12,
        reused_tokens=13, queue_s=0.5, first_token_s=1.5, total_s=2.25)
    response = kind()
    c.fill_answer(response, answer)
    assert c.answer_from(response) == answer


def test_note_and_segment_round_trip() -> None:
    note = Note(4, 'front', STAMP_NS, STAMP_NS + 1, 'a note', 5, 'stop', 0.125)
    assert c.note_from(c.note_message(note)) == note
    info = SegmentInfo(4, 9, 'front', 2, STAMP_NS, STAMP_NS + 1, 8, 400, 2**33, 'device',
                       'resolution', 'a note', POSE)
    assert c.segment_from(c.segment_message(info)) == info


@pytest.mark.parametrize(('fields', 'code'), [
    ({'question': ' '}, 'EMPTY_QUESTION'), ({'choices': ['yes']}, 'INVALID_CHOICES'),
    ({'expected': 'maybe'}, 'INVALID_CHOICES'),
    ({'choices': ['a', 'b'], 'expected': 'yes'}, 'INVALID_CHOICES'),
    ({'threshold': 1.5}, 'INVALID_REQUEST'), ({'threshold': math.nan}, 'INVALID_REQUEST'),
    ({'timeout': Duration(sec=-1)}, 'INVALID_REQUEST'),
])
def test_wrong_watch(fields: dict[str, object], code: str) -> None:
    with pytest.raises(c.RequestError) as caught:
        c.watch_from(Watch.Goal(**{'question': 'now?', **fields}))
    assert caught.value.code == getattr(Watch.Result, code)


def test_watch_round_trip() -> None:
    assert c.watch_from(Watch.Goal(question='now?')) == WatchQuestion('now?')
    question = WatchQuestion('which?', cameras=('front', 'rear'), choices=('a cup', 'a book'),
                             expected='a book', threshold=0.75, confirmations=3, timeout_s=2.5)
    goal = Watch.Goal()
    c.fill_watch(goal, question)
    assert c.watch_from(goal) == question


def test_watch_update_round_trip() -> None:
    evidence = (Evidence(3, 'front', STAMP_NS - 9, STAMP_NS, 0.5, 'device', 'a cup', POSE),)
    result, feedback = Watch.Result(), Watch.Feedback()
    held = WatchUpdate(STAMP_NS, 'yes', 0.75, evidence, checks=4, agreeing=1)
    c.fill_update(result, held)
    assert c.update_from(result) == held
    c.fill_update(feedback, WatchUpdate(STAMP_NS, 'no', 0.25, evidence, checks=4, agreeing=2))
    assert c.update_from(feedback) == WatchUpdate(STAMP_NS, 'no', 0.25, checks=4, agreeing=2)


@given(st.integers(0, c.LAST_STAMP_NS))
def test_stamps_are_exact(stamp_ns: int) -> None:
    assert c.from_time(c.to_time(stamp_ns)) == stamp_ns


@pytest.mark.parametrize(('stamp_ns', 'expected'), [(-1, 0), (2**63 - 1, c.LAST_STAMP_NS)])
def test_stamps_that_do_not_fit_are_clamped(stamp_ns: int, expected: int) -> None:
    assert c.from_time(c.to_time(stamp_ns)) == expected


@given(st.floats(0.0, 1e6))
def test_durations(seconds: float) -> None:
    assert math.isclose(c.from_duration(c.to_duration(seconds)), seconds, abs_tol=1.1e-9)


def test_a_tiny_timeout_does_not_become_never() -> None:
    assert c.from_duration(c.to_duration(1e-15)) > 0


@pytest.mark.parametrize('seconds', [-1.0, math.nan, math.inf])
def test_durations_that_make_no_sense_are_zero(seconds: float) -> None:
    assert c.to_duration(seconds) == Duration()


@given(st.text())
def test_any_text_survives(text: str) -> None:
    sent = c.ros_string(text)
    assert '\x00' not in sent and len(sent) == len(text)
    sent.encode('utf-8')


def test_text_with_nul_and_half_a_surrogate() -> None:
    assert c.ros_string('a\x00b\ud800c') == 'a\N{REPLACEMENT CHARACTER}b?c'
