"""Questions about a video at given times, without ROS: the offline use of the engine.

In: a running Engine, a video, questions with the time at which each is asked. Out: answers in the
order of asking. Frames are fed up to the time of a question, memory and notes are waited for, then
it is asked; so no frame is dropped, and an engine with `step.deterministic` gives the same words
each time. It decides nothing about models or printing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tww_ros.errors import AnswerTimeoutError, QuestionError, ReplayError
from tww_ros.replay.video import VideoInfo, read_video, video_info
from tww_ros.types import NS_PER_S, Answer, Frame, Question

if TYPE_CHECKING:
    from tww_ros.engine.engine import Engine

# Containers round their duration; a question may be this much later than the end.
_SLACK_S = 0.5


@dataclass(frozen=True)
class TimedQuestion:
    """A question and the second of the video at which it is asked; infinity = at the end."""

    at_s: float
    question: Question

    def __post_init__(self) -> None:
        if not self.at_s >= 0:
            raise QuestionError(f'expected a time of 0 s or later, got {self.at_s:g} s')


@dataclass(frozen=True)
class TimedAnswer:
    """at_s: when it was asked, in seconds of the video (the last frame's time for infinity)."""

    at_s: float
    question: Question
    answer: Answer


def pair_questions(texts: Sequence[str], times_s: Sequence[float],
                   **options: object) -> list[TimedQuestion]:
    """Questions with times: one of either goes with all of the other, else they go in pairs.

    No times: all at the end. options: further fields of Question. Raises QuestionError when the
    numbers do not fit.
    """
    times = list(times_s) or [math.inf]
    if len(texts) == 1:
        pairs = [(at_s, texts[0]) for at_s in times]
    elif len(times) == 1:
        pairs = [(times[0], text) for text in texts]
    elif len(times) == len(texts):
        pairs = list(zip(times, texts, strict=True))
    else:
        raise QuestionError(f'expected as many times as questions, or one of either; got '
                            f'{len(times)} times and {len(texts)} questions')
    return [TimedQuestion(at_s, Question(text=text, **options)) for at_s, text in pairs]


def check_times(questions: Sequence[TimedQuestion], info: VideoInfo) -> None:
    """ReplayError when a question's time lies beyond the end of the video, where that is known."""
    for timed in questions:
        if math.isfinite(timed.at_s) and 0 < info.duration_s < timed.at_s - _SLACK_S:
            raise ReplayError(f'expected a time within the video (0 to {info.duration_s:.1f} s), '
                              f'got {timed.at_s:g} s for {timed.question.text!r}')


def ask_video(engine: Engine, video: str | Path, questions: Sequence[TimedQuestion], *,
              camera: str = 'camera', timeout_s: float = 600.0,
              on_frame: Callable[[Frame], None] | None = None) -> Iterator[TimedAnswer]:
    """Feed the video and answer each question at its time; frames at exactly that time are seen.

    Frames are stamped with the time of the video from 0. timeout_s: for each wait on the
    engine. on_frame: called with every frame fed. Raises ReplayError when the video cannot be
    read, ends before a question, or the engine does not keep up; the engine's errors pass through.
    """
    check_times(questions, video_info(video))
    waiting = sorted(questions, key=lambda timed: timed.at_s)
    seen_s = 0.0
    for frame in read_video(video, camera=camera):
        while waiting and frame.stamp_ns > waiting[0].at_s * NS_PER_S:
            yield _ask(engine, waiting.pop(0), seen_s, timeout_s)
        if not waiting:
            return
        if not engine.feed(frame, timeout_s=timeout_s):
            raise ReplayError(f'the engine took no frame at {frame.stamp_ns / NS_PER_S:.2f} s '
                              f'within {timeout_s:g} s; see its last error: '
                              f'{engine.stats().last_error or "none"}')
        seen_s = frame.stamp_ns / NS_PER_S
        if on_frame is not None:
            on_frame(frame)
    for timed in waiting:
        yield _ask(engine, timed, seen_s, timeout_s)


def _ask(engine: Engine, timed: TimedQuestion, seen_s: float, timeout_s: float) -> TimedAnswer:
    if not engine.drain(timeout_s=timeout_s):
        raise ReplayError(f'memory was not ready within {timeout_s:g} s of the question at '
                          f'{min(timed.at_s, seen_s):.1f} s; use a smaller model or fewer frames')
    try:
        answer = engine.ask(timed.question).result(timeout=timeout_s)
    except FutureTimeoutError as error:
        raise AnswerTimeoutError(f'no answer to {timed.question.text!r} within {timeout_s:g} s; '
                                 'ask for fewer tokens or give it more time') from error
    return TimedAnswer(seen_s if math.isinf(timed.at_s) else timed.at_s, timed.question, answer)
