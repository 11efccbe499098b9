"""What the tabletop demo has shown: each question with its verdict, the score, the picture.

In: questions with their keys and answers, the node's segments and counters. Out: a DemoReport,
which says what it counts, what went wrong (`faults`, the exit code), and draws the picture. It
asks nobody anything.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from tww_interfaces.msg import MemoryStatus
from tww_ros.node.answer_key import AnswerKey
from tww_ros.node.demo_sheet import RIGHT, UNJUDGED, WRONG, Proof, SheetRow, draw_sheet
from tww_ros.types import NS_PER_S, Answer, Evidence, SegmentInfo
from tww_ros.world.known import TableQuestion
from tww_ros.world.render import Renderer

PROOFS = 3
# What the exit code asks for: no hole in what was watched, and more than guessing.
MOST_PERIODS, LEAST_SCORE = 2.5, 0.5


@dataclass(frozen=True)
class Asked:
    """One question and what came of it.

    answer: None when there was none (`error` says why). judged: whether the key's answer held for
    all that the node had seen when it answered.
    """

    question: TableQuestion
    answer: Answer | None
    judged: bool = False
    error: str = ''

    @property
    def verdict(self) -> str:
        """RIGHT when the answer is the key's, word for word; no answer is WRONG."""
        if self.answer is None:
            return WRONG
        if not self.judged:
            return UNJUDGED
        return RIGHT if _same(self.answer.text, self.question.answer) else WRONG


def score(asked: Sequence[Asked]) -> tuple[int, int]:
    """(answered right, answered right or wrong)."""
    verdicts = [each.verdict for each in asked]
    return verdicts.count(RIGHT), len(verdicts) - verdicts.count(UNJUDGED)


def told_times(answer: Answer) -> str:
    """How quick an answer was."""
    return (f'first token {answer.first_token_s * 1e3:.0f} ms, {answer.completion_tokens} tokens '
            f'in {answer.total_s:.2f} s')


def told_chances(asked: Asked) -> str:
    """The probability of each choice."""
    pairs = zip(asked.question.choices, asked.answer.choice_probabilities, strict=False)
    return ' · '.join(f'{choice}: {chance:.0%}' for choice, chance in pairs)


def told_share(evidence: Evidence, first_ns: int) -> str:
    """When a segment was, and its share of the attention."""
    seconds = [f'{(stamp_ns - first_ns) / NS_PER_S:.0f}'
               for stamp_ns in dict.fromkeys((evidence.start_ns, evidence.end_ns))]
    return f'{" to ".join(seconds)} s, {evidence.score:.0%}'


@dataclass(frozen=True)
class DemoReport:
    """All of it. asked: in order; segments: all that the node made; status: its last counters;
    arrived: frames that came in during the rounds of questions; size_px: of the pictures.
    """

    asked: Sequence[Asked]
    segments: Sequence[SegmentInfo]
    key: AnswerKey
    status: MemoryStatus
    arrived: int
    rate_hz: float
    size_px: int

    @property
    def first_token_s(self) -> float:
        """Median over all answers; nan without one."""
        times = [asked.answer.first_token_s for asked in self.asked if asked.answer]
        return statistics.median(times) if times else math.nan

    @property
    def gap_s(self) -> float:
        """The longest stretch of the stream without a watched frame."""
        return self.key.longest_gap_s(self.segments)

    @property
    def faults(self) -> list[str]:
        """Why the demo did not show what it should; empty when it did."""
        right, judged = score(self.asked)
        most_s = MOST_PERIODS / self.key.sample_fps
        lost = sum(asked.answer is None for asked in self.asked)
        checks = [
            (not self.asked, 'no question was asked'),
            (lost > 0, f'{lost} of {len(self.asked)} questions got no answer'),
            (self.arrived == 0, 'no frame arrived while questions were answered'),
            (self.status.frames_dropped > 0, f'{self.status.frames_dropped} frames were dropped'),
            (self.gap_s > most_s, f'nothing was watched for {self.gap_s:.1f} s; expected at most '
                                  f'{most_s:.1f} s'),
            (right < LEAST_SCORE * judged,
             f'{right} of {judged} answers are right; expected at least half'),
        ]
        return [text for wrong, text in checks if wrong]

    @property
    def summary(self) -> list[tuple[str, str]]:
        """(what, numbers) line by line."""
        status, (right, judged) = self.status, score(self.asked)
        unjudged = len(self.asked) - judged
        return [
            ('frames', f'{self.key.frames} published, {status.frames_received} received, '
                       f'{status.frames_watched} watched, {status.frames_skipped} between them '
                       f'not needed, {status.frames_dropped} dropped'),
            ('watching', f'went on: {self.arrived} frames arrived during the rounds of questions, '
                         f'and no stretch without a watched one is longer than {self.gap_s:.1f} '
                         's'),
            ('memory', f'{status.segments} segments, {status.notes_written} notes, '
                       f'{status.memory_tokens} tokens, {status.memory_bytes / 1e6:.1f} MB of '
                       'keys and values'),
            ('latency', f'first token after {self.first_token_s * 1e3:.0f} ms (median) while '
                        f'{self.rate_hz:g} frames a second come in'),
            ('score', f'{right} of {judged} right'
                      + (f', {unjudged} not judged' if unjudged else '')),
        ]

    def sheet(self) -> Image.Image:
        """A row per answered question."""
        right, judged = score(self.asked)
        picture = _Pictures(self)
        rows = [picture.row(asked) for asked in self.asked if asked.answer is not None]
        return draw_sheet(
            f'{right} of {judged} questions answered right',
            f'A simulated table (world {self.key.episode.seed}, never trained on), watched over '
            f'DDS at {self.rate_hz:g} frames a second. First token after '
            f'{self.first_token_s * 1e3:.0f} ms (median).', rows)


class _Pictures:
    """Draws again what the camera published: a frame is a function of world, time and size."""

    def __init__(self, report: DemoReport) -> None:
        self._key = report.key
        self._renderer = Renderer(report.key.episode, report.size_px)
        self._first_ns = report.segments[0].start_ns
        self._notes = {segment.id: segment.note for segment in report.segments}

    def row(self, asked: Asked) -> SheetRow:
        answer, question = asked.answer, asked.question
        return SheetRow(
            when=f'{(answer.as_of_ns - self._first_ns) / NS_PER_S:.0f} s',
            picture=self._frame(answer.as_of_ns), question=question.text,
            choices=told_chances(asked), answer=answer.text or '(nothing)',
            truth=f'truth: {question.answer}', verdict=asked.verdict,
            reasoning=f'because: {answer.reasoning}' if answer.reasoning else '',
            detail=told_times(answer),
            proofs=[self._proof(evidence) for evidence in answer.evidence[:PROOFS]])

    def _proof(self, evidence: Evidence) -> Proof:
        stamps_ns = dict.fromkeys((evidence.start_ns, evidence.end_ns))
        return Proof([self._frame(stamp_ns) for stamp_ns in stamps_ns],
                     told_share(evidence, self._first_ns),
                     f'“{self._notes[evidence.segment_id]}”')

    def _frame(self, stamp_ns: int) -> np.ndarray:
        return self._renderer.frame(self._key.world_s(stamp_ns))


def _same(given: str, truth: str) -> bool:
    return given.strip().rstrip('.').lower() == truth.lower()
