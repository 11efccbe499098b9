"""One planned stream through the real engine: frames in at their stamps, questions, answers out.

In: a model, settings, a StreamPlan. Out: Outcomes, and each segment's note beside the perfect one.
Frames go in through Engine.feed and questions through Engine.ask, like anybody's.

What a question sees must depend on the stream alone, not on how quick this machine is:

    mode            before the questions of a moment are asked        the newest note   bit for bit
    settled         Engine.drain: everything is read and noted        is seen           no
    deterministic   the same, with step.deterministic: slower         is seen           yes
    live            every closed segment is noted; the question       is missing        no
                    itself closes the newest one

No frame is fed while answers are under way, so in all three every question of a moment sees the
same memory; `live` is what happens when somebody asks a node about what has just gone by. (There
the note may still be finished before the last of many questions is admitted.) Without
step.deterministic the questions of a moment share packed steps, which round differently for
different numbers of rows (1e-6 in a probability): two almost equal logits may change places.

The settings OFFLINE keep wall time out: no note is skipped, no camera counts as silent, nothing is
read ahead, and no session is forgotten for there being many.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tww_ros.config import EngineConfig
from tww_ros.engine.engine import Engine
from tww_ros.engine.pending import PendingAnswer
from tww_ros.errors import EvaluationError, QuestionError
from tww_ros.evaluation.protocol import CAMERA, Moment, Planned, StreamPlan, recent
from tww_ros.evaluation.scoring import is_right
from tww_ros.model.protocol import StepModel
from tww_ros.types import NS_PER_S, Answer, Frame, Question
from tww_ros.world.render import Renderer

MODES = ('settled', 'deterministic', 'live')
OFFLINE: Mapping[str, Any] = {
    'watch.idle_close_s': 3_600.0, 'watch.look_ahead': False, 'note.backlog': 10_000,
    'answer.max_waiting': 10_000, 'answer.max_sessions': 10_000,
    'answer.sessions_bytes': 1 << 40,
}
# Longest wait for room, for memory or for one answer: far more than anything takes.
PATIENCE_S = 1_800.0
POLL_S = 0.002


@dataclass(frozen=True)
class Outcome:
    """One question that was asked at at_s, and what came of it. failed: the engine's refusal."""

    stream: int
    at_s: float
    planned: Planned
    text: str
    right: bool
    reasoning: str = ''
    probabilities: tuple[float, ...] = ()
    tokens: int = 0
    finish_reason: str = ''
    failed: str = ''

    @property
    def top(self) -> float:
        """Probability of the choice that was taken; of an open answer, nan."""
        return max(self.probabilities, default=float('nan'))


@dataclass(frozen=True)
class NotedSegment:
    """What should have been noted about a segment, and what was."""

    perfect: str
    written: str
    tokens: int


@dataclass(frozen=True)
class Watched:
    """All that came of one stream; `notes` is empty when none were to be written."""

    outcomes: tuple[Outcome, ...]
    notes: tuple[NotedSegment, ...]


def run_stream(model: StepModel, config: EngineConfig, plan: StreamPlan, lots: Sequence[str], *,
               stream: int = 0, live: bool = False, recent_frames: int = 0) -> Watched:
    """Watch one stream and ask its questions of these lots.

    recent_frames: questions see only the newest segments with at most so many frames; 0 = all of
    memory. Raises EvaluationError when the engine did something else than was planned.
    """
    outcomes: list[Outcome] = []
    renderer, fed = Renderer(plan.episode, plan.size_px), 0
    with Engine(model, config) as engine:
        for moment in plan.moments:
            for stamp_ns in plan.stamps_ns[fed:moment.frames]:
                frame = Frame(stamp_ns, CAMERA, renderer.frame(stamp_ns / NS_PER_S))
                if not engine.feed(frame, PATIENCE_S):
                    raise EvaluationError('the engine took no more frames: '
                                          f'{engine.stats().last_error or "it was too slow"}')
            fed = moment.frames
            asked = [planned for planned in moment.questions if planned.lot in lots]
            if live and asked:
                _wait_for_notes(engine, moment.segment)
            else:
                _drain(engine)
            window = (recent(plan.segments, moment.segment, recent_frames) if recent_frames
                      else None)
            pending = [_ask(engine, planned, window, config) for planned in asked]
            outcomes += [_outcome(stream, plan, moment, planned, each)
                         for planned, each in zip(asked, pending, strict=True)]
        _drain(engine)
        return Watched(tuple(outcomes), _notes(engine, plan))


def _ask(engine: Engine, planned: Planned, window: tuple[int, int] | None,
         config: EngineConfig) -> PendingAnswer | QuestionError:
    made = planned.question
    try:
        return engine.ask(Question(made.text, session=planned.session, choices=made.choices,
                                   window=window, max_new_tokens=config.answer.max_new_tokens))
    except QuestionError as error:
        return error


def _outcome(stream: int, plan: StreamPlan, moment: Moment, planned: Planned,
             pending: PendingAnswer | QuestionError) -> Outcome:
    at_s = plan.stamps_ns[moment.frames - 1] / NS_PER_S
    try:
        if isinstance(pending, QuestionError):
            raise pending
        answer: Answer = pending.result(PATIENCE_S)
    except QuestionError as error:
        # A question that cannot be answered is one that was not answered right.
        return Outcome(stream, at_s, planned, '', False, failed=str(error))
    return Outcome(stream, at_s, planned, answer.text,
                   is_right(answer.text, planned.question.answer), answer.reasoning,
                   answer.choice_probabilities, answer.completion_tokens, answer.finish_reason)


def _drain(engine: Engine) -> None:
    if not engine.drain(PATIENCE_S):
        raise EvaluationError('the engine did not come to rest: '
                              f'{engine.stats().last_error or "it was too slow"}')


def _wait_for_notes(engine: Engine, count: int) -> None:
    """Until the notes of that many segments are written; a segment that is open gets none yet."""
    end_s = time.monotonic() + PATIENCE_S
    while engine.config.note.enabled:
        stats = engine.stats()
        if stats.notes_written + stats.notes_skipped >= count:
            return
        if time.monotonic() > end_s:
            raise EvaluationError(f'expected {count} notes, got {stats.notes_written}: '
                                  f'{stats.last_error or "the engine was too slow"}')
        time.sleep(POLL_S)


def _notes(engine: Engine, plan: StreamPlan) -> tuple[NotedSegment, ...]:
    segments = engine.memory.segments()
    cut = [(segment.start_ns, segment.end_ns) for segment in segments]
    planned = [(segment.stamps_ns[0], segment.stamps_ns[-1]) for segment in plan.segments]
    if cut != planned:
        first = next((n for n, pair in enumerate(zip(cut, planned, strict=False))
                      if pair[0] != pair[1]), min(len(cut), len(planned)))
        raise EvaluationError(f'expected {len(planned)} segments, got {len(cut)} that differ from '
                              f'number {first} on; is memory.max_segments too small? '
                              f'{engine.stats().last_error}')
    if not engine.config.note.enabled:
        return ()
    tokens = {note.segment_id: note.tokens for note in engine.memory.notes()}
    return tuple(NotedSegment(wanted.note, segment.note, tokens.get(segment.id, 0))
                 for segment, wanted in zip(segments, plan.segments, strict=True))
