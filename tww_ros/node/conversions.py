"""The records of tww_ros.types ↔ the messages of tww_interfaces, and errors ↔ error codes.

Both directions live here, for the node and for its client, so that a field that is written is also
read. Stamps are integers in nanoseconds on our side. In messages a zero window bound means open, a
zero timeout never, a zero max_new_tokens the default.
"""

from __future__ import annotations

import math
from typing import Any

from builtin_interfaces.msg import Duration, Time
from geometry_msgs.msg import PoseStamped

from tww_interfaces import msg as messages
from tww_interfaces.srv import Ask, SaveMemory
from tww_ros import errors
from tww_ros.types import (
    NS_PER_S,
    Answer,
    Evidence,
    Note,
    Pose,
    Question,
    SegmentInfo,
    WatchQuestion,
    WatchUpdate,
)

DEFAULT_SESSION = 'default'
LAST_STAMP_NS = (2**31 - 1) * NS_PER_S

_CODES: dict[type[BaseException], int] = {
    errors.EngineClosedError: Ask.Response.NOT_ACTIVE,
    errors.BusyError: Ask.Response.BUSY,
    errors.AnswerTimeoutError: Ask.Response.TIMEOUT,
    errors.CancelledError: Ask.Response.CANCELLED,
    errors.NothingSeenError: Ask.Response.NOTHING_SEEN,
    errors.QuestionTooLongError: Ask.Response.QUESTION_TOO_LONG,
    errors.UnknownCameraError: Ask.Response.UNKNOWN_CAMERA,
    errors.UnknownSessionError: Ask.Response.UNKNOWN_SESSION,
    errors.StoreError: SaveMemory.Response.STORE,
}


class RequestError(errors.QuestionError):
    """A request that is wrong in itself; knows its error code."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


def error_code(error: BaseException) -> int:
    """The error code of every service and action for an exception."""
    if isinstance(error, RequestError):
        return error.code
    for kind, code in _CODES.items():
        if isinstance(error, kind):
            return code
    if isinstance(error, errors.QuestionError):
        return Ask.Response.INVALID_REQUEST
    return Ask.Response.INTERNAL


def error_from_code(code: int, message: str) -> errors.TwwError:
    """The exception that a client raises for an error code."""
    for kind, known in _CODES.items():
        if known == code:
            return kind(message)
    if code == Ask.Response.INTERNAL:
        return errors.TwwError(message)
    return RequestError(code, message)


def fill_error(response: Any, error: BaseException) -> None:
    """error_code and error_msg of any response or result."""
    response.error_code = error_code(error)
    text = str(error) or type(error).__name__
    if not isinstance(error, errors.TwwError):
        text = f'{type(error).__name__}: {text}; see the log of the node'
    response.error_msg = ros_string(text)


def ros_string(text: str) -> str:
    """Text that survives a ROS string: C strings end at NUL, and lone surrogates are no UTF-8."""
    return text.replace('\x00', '\N{REPLACEMENT CHARACTER}').encode('utf-8', 'replace').decode()


def to_time(stamp_ns: int) -> Time:
    """ns → Time; what does not fit (before 1970, after 2038) is clamped."""
    seconds, nanoseconds = divmod(min(max(int(stamp_ns), 0), LAST_STAMP_NS), NS_PER_S)
    return Time(sec=seconds, nanosec=nanoseconds)


def from_time(time: Time) -> int:
    """Time (or Duration) → ns."""
    return time.sec * NS_PER_S + time.nanosec


def to_duration(seconds: float) -> Duration:
    """Seconds → Duration; negative and not finite ones become 0."""
    if not math.isfinite(seconds) or seconds <= 0:
        return Duration()
    # At least 1 ns: zero would mean never in a timeout.
    whole, nanoseconds = divmod(max(round(min(seconds, 2**31 - 2) * NS_PER_S), 1), NS_PER_S)
    return Duration(sec=whole, nanosec=nanoseconds)


def from_duration(duration: Duration) -> float:
    """Duration → seconds."""
    return duration.sec + duration.nanosec / NS_PER_S


def window_from(start: Time, end: Time) -> tuple[int, int] | None:
    """Window of a request in ns, None when both bounds are open; RequestError when reversed."""
    start_ns, end_ns = from_time(start), from_time(end)
    if start_ns == 0 and end_ns == 0:
        return None
    if end_ns == 0:
        end_ns = LAST_STAMP_NS
    if start_ns > end_ns:
        raise RequestError(
            Ask.Response.INVALID_WINDOW, f'window_start is {start_ns} ns, after window_end at '
            f'{end_ns} ns; swap the two, or leave one of them zero')
    return start_ns, end_ns


def question_from(request: Any) -> Question:
    """Ask.Request or Query.Goal → Question; RequestError with the code of what is wrong."""
    _check_text_and_timeout(request)
    window = window_from(request.window_start, request.window_end)
    options = {'max_new_tokens': request.max_new_tokens} if request.max_new_tokens else {}
    try:
        return Question(
            text=request.question, session=request.session_id or DEFAULT_SESSION,
            cameras=tuple(request.cameras), choices=tuple(request.choices), window=window,
            timeout_s=from_duration(request.timeout), **options)
    except errors.QuestionError as error:
        # All that is left for Question to refuse.
        raise RequestError(Ask.Response.INVALID_CHOICES, str(error)) from error


def _check_text_and_timeout(request: Any) -> None:
    if not request.question.strip():
        raise RequestError(Ask.Response.EMPTY_QUESTION,
                           'the question is empty; say what you want to know')
    if from_duration(request.timeout) < 0:
        raise RequestError(
            Ask.Response.INVALID_REQUEST,
            f'timeout is {from_duration(request.timeout)} s; expected 0 (never) or more')


def fill_question(request: Any, question: Question) -> None:
    """Question → Ask.Request or Query.Goal."""
    request.question = question.text
    request.session_id = question.session
    request.cameras = list(question.cameras)
    request.choices = list(question.choices)
    if question.window is not None:
        # A bound of zero would mean open.
        request.window_start = to_time(max(question.window[0], 1))
        request.window_end = to_time(max(question.window[1], 1))
    request.max_new_tokens = question.max_new_tokens
    request.timeout = to_duration(question.timeout_s)


def fill_answer(response: Any, answer: Answer) -> None:
    """Answer → Ask.Response or Query.Result."""
    response.error_code = Ask.Response.NONE
    response.answer = ros_string(answer.text)
    response.reasoning = ros_string(answer.reasoning)
    response.finish_reason = answer.finish_reason
    response.choice_probabilities = [float(value) for value in answer.choice_probabilities]
    response.evidence = [evidence_message(evidence) for evidence in answer.evidence]
    response.as_of = to_time(answer.as_of_ns)
    response.prompt_tokens = answer.prompt_tokens
    response.completion_tokens = answer.completion_tokens
    response.reused_tokens = answer.reused_tokens
    response.queue_time = to_duration(answer.queue_s)
    response.first_token_time = to_duration(answer.first_token_s)
    response.total_time = to_duration(answer.total_s)


def answer_from(response: Any) -> Answer:
    """Ask.Response or Query.Result → Answer (its token_ids do not travel)."""
    return Answer(
        text=response.answer, reasoning=response.reasoning, finish_reason=response.finish_reason,
        as_of_ns=from_time(response.as_of),
        evidence=tuple(evidence_from(ref) for ref in response.evidence),
        choice_probabilities=tuple(response.choice_probabilities),
        prompt_tokens=response.prompt_tokens, completion_tokens=response.completion_tokens,
        reused_tokens=response.reused_tokens, queue_s=from_duration(response.queue_time),
        first_token_s=from_duration(response.first_token_time),
        total_s=from_duration(response.total_time))


def watch_from(goal: Any) -> WatchQuestion:
    """Watch.Goal → WatchQuestion; RequestError with the code of what is wrong."""
    _check_text_and_timeout(goal)
    if not 0 <= goal.threshold <= 1:
        raise RequestError(Ask.Response.INVALID_REQUEST,
                           f'threshold is {goal.threshold}; expected a probability, 0 to 1')
    try:
        return WatchQuestion(
            goal.question, tuple(goal.cameras), tuple(goal.choices), goal.expected,
            goal.threshold, goal.confirmations or 1, from_duration(goal.timeout))
    except errors.QuestionError as error:
        # All that is left for WatchQuestion to refuse.
        raise RequestError(Ask.Response.INVALID_CHOICES, str(error)) from error


def fill_watch(goal: Any, question: WatchQuestion) -> None:
    """WatchQuestion → Watch.Goal."""
    goal.question = question.text
    goal.cameras = list(question.cameras)
    goal.choices = list(question.choices)
    goal.expected = question.expected
    goal.threshold = float(question.threshold)
    goal.confirmations = question.confirmations
    goal.timeout = to_duration(question.timeout_s)


def fill_update(message: Any, update: WatchUpdate) -> None:
    """WatchUpdate → Watch.Result (which has evidence) or Watch.Feedback (which has not)."""
    message.stamp = to_time(update.stamp_ns)
    message.answer = ros_string(update.answer)
    message.probability = float(update.probability)
    message.checks, message.agreeing = update.checks, update.agreeing
    if hasattr(message, 'evidence'):
        message.evidence = [evidence_message(evidence) for evidence in update.evidence]


def update_from(message: Any) -> WatchUpdate:
    """Watch.Feedback or Watch.Result → WatchUpdate, each without what it does not hold."""
    return WatchUpdate(
        from_time(message.stamp), message.answer, message.probability,
        tuple(evidence_from(ref) for ref in getattr(message, 'evidence', ())), message.checks,
        message.agreeing)


def evidence_message(evidence: Evidence) -> messages.SegmentRef:
    """Evidence → SegmentRef."""
    ref = messages.SegmentRef(
        id=evidence.segment_id, camera=evidence.camera, start=to_time(evidence.start_ns),
        end=to_time(evidence.end_ns), score=float(evidence.score), tier=evidence.tier,
        note=ros_string(evidence.note))
    _fill_pose(ref, evidence.pose, evidence.end_ns)
    return ref


def evidence_from(ref: messages.SegmentRef) -> Evidence:
    """SegmentRef → Evidence."""
    return Evidence(
        segment_id=ref.id, camera=ref.camera, start_ns=from_time(ref.start),
        end_ns=from_time(ref.end), score=ref.score, tier=ref.tier, note=ref.note,
        pose=pose_from(ref))


def segment_message(info: SegmentInfo) -> messages.SegmentInfo:
    """SegmentInfo → its message."""
    message = messages.SegmentInfo(
        id=info.id, order=info.order, camera=info.camera, epoch=info.epoch,
        start=to_time(info.start_ns), end=to_time(info.end_ns), frames=info.frames,
        tokens=info.tokens, kv_bytes=info.kv_bytes, tier=info.tier, closed_by=info.closed_by,
        note=ros_string(info.note))
    _fill_pose(message, info.pose, info.end_ns)
    return message


def segment_from(message: messages.SegmentInfo) -> SegmentInfo:
    """Message → SegmentInfo."""
    return SegmentInfo(
        id=message.id, order=message.order, camera=message.camera, epoch=message.epoch,
        start_ns=from_time(message.start), end_ns=from_time(message.end), frames=message.frames,
        tokens=message.tokens, kv_bytes=message.kv_bytes, tier=message.tier,
        closed_by=message.closed_by, note=message.note, pose=pose_from(message))


def note_message(note: Note) -> messages.SegmentNote:
    """Note → SegmentNote."""
    return messages.SegmentNote(
        segment_id=note.segment_id, camera=note.camera, start=to_time(note.start_ns),
        end=to_time(note.end_ns), text=ros_string(note.text), tokens=note.tokens,
        finish_reason=note.finish_reason, write_time=to_duration(note.seconds))


def note_from(message: messages.SegmentNote) -> Note:
    """SegmentNote → Note."""
    return Note(
        segment_id=message.segment_id, camera=message.camera, start_ns=from_time(message.start),
        end_ns=from_time(message.end), text=message.text, tokens=message.tokens,
        finish_reason=message.finish_reason, seconds=from_duration(message.write_time))


def pose_from(message: Any) -> Pose | None:
    """The pose of a SegmentRef or SegmentInfo message, when it has one."""
    if not message.has_pose:
        return None
    position, orientation = message.pose.pose.position, message.pose.pose.orientation
    return Pose(message.pose.header.frame_id, (position.x, position.y, position.z),
                (orientation.x, orientation.y, orientation.z, orientation.w))


def _fill_pose(message: Any, pose: Pose | None, stamp_ns: int) -> None:
    message.has_pose = pose is not None
    if pose is None:
        return
    stamped = PoseStamped()
    stamped.header.frame_id = pose.frame_id
    stamped.header.stamp = to_time(stamp_ns)
    position, orientation = stamped.pose.position, stamped.pose.orientation
    position.x, position.y, position.z = (float(value) for value in pose.position_m)
    orientation.x, orientation.y, orientation.z, orientation.w = (
        float(value) for value in pose.orientation_xyzw)
    message.pose = stamped
