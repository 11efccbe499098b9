"""A bag replayed, questions asked at their times, answers checked: what `tww test` does.

In: a bag, BagQuestions, a model. Out: a BagReport: every question with its answer and its checks,
and the notes, as a table, JSON or JUnit XML. Nothing in a report depends on when, how fast or
where it was made: the same bag, questions and model give the same bytes on one machine.

    check         holds when
    exact         the answer is this text
    choice        the chosen one is this
    probability   the expected choice has at least this probability
    contains      each of these stands in the answer, whatever the case
    regex         it is found somewhere in the answer
    evidence      the strongest piece lies in this time span (of that camera), at least in part;
                  or, with a share, pieces with that much of the attention together do
"""

from __future__ import annotations

import dataclasses
import json
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from tww_ros.errors import ReplayError, TwwError
from tww_ros.replay.bag_memory import BagMemory
from tww_ros.replay.bag_questions import BagQuestion, BagQuestions, ExpectedEvidence
from tww_ros.types import Answer

if TYPE_CHECKING:
    from tww_ros.model.protocol import StepModel

# What XML 1.0 cannot hold, even escaped.
_NOT_XML = re.compile('[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]')


@dataclass(frozen=True)
class Piece:
    """A segment that an answer attended to, in seconds of the bag; score: 0 to 1."""

    segment_id: int
    camera: str
    from_s: float
    to_s: float
    score: float
    note: str


@dataclass(frozen=True)
class Check:
    """One expectation; expected and got in words."""

    name: str
    passed: bool
    expected: str
    got: str


@dataclass(frozen=True)
class Asked:
    """One question with its answer and its checks; as_of_s: the newest frame that it could see."""

    name: str
    at_s: float
    question: str
    answer: str
    reasoning: str
    finish_reason: str
    as_of_s: float
    probabilities: dict[str, float]
    evidence: tuple[Piece, ...]
    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        return all(check.passed for check in self.checks)


@dataclass(frozen=True)
class BagReport:
    """A whole run. notes: (from_s, to_s, camera, text); frames: counters of the engine."""

    bag: str
    duration_s: float
    model: dict[str, str]
    questions: str
    asked: tuple[Asked, ...]
    notes: tuple[tuple[float, float, str, str], ...]
    frames: dict[str, int]

    @property
    def failed(self) -> int:
        """Questions with a check that did not hold."""
        return sum(not asked.passed for asked in self.asked)

    def to_json(self) -> str:
        """One JSON object, with a line end."""
        data = dataclasses.asdict(self)
        for asked, told in zip(self.asked, data['asked'], strict=True):
            told['passed'] = asked.passed
        return json.dumps({'passed': len(self.asked) - self.failed, 'failed': self.failed, **data},
                          indent=2, ensure_ascii=False) + '\n'

    def to_junit(self) -> str:
        """JUnit XML: a test case for each question."""
        counts = {'tests': str(len(self.asked)), 'failures': str(self.failed), 'errors': '0',
                  'skipped': '0'}
        suites = ElementTree.Element('testsuites', counts)
        suite = ElementTree.SubElement(suites, 'testsuite', {'name': _xml(self.bag), **counts})
        for asked in self.asked:
            case = ElementTree.SubElement(suite, 'testcase', {
                'classname': _xml(self.questions), 'name': _xml(asked.name)})
            if not asked.passed:
                wrong = [check for check in asked.checks if not check.passed]
                failure = ElementTree.SubElement(case, 'failure', {
                    'type': ', '.join(check.name for check in wrong),
                    'message': _xml('; '.join(map(_told, wrong)))})
                failure.text = _xml(f'at {asked.at_s:g} s: {asked.question}\n{asked.answer}\n')
        ElementTree.indent(suites)
        return ("<?xml version='1.0' encoding='utf-8'?>\n"
                + ElementTree.tostring(suites, encoding='unicode') + '\n')

    def print(self, console: Console) -> None:
        """A table for people."""
        table = Table('', 'question', 'at', 'answer', 'expected', box=None, pad_edge=False,
                      header_style='dim')
        for asked in self.asked:
            table.add_row('passed' if asked.passed else 'FAILED', asked.name,
                          f'{asked.at_s:.1f} s', _line(asked.answer),
                          '; '.join(_told(check) for check in asked.checks if not check.passed),
                          style=None if asked.passed else 'red')
        console.print(table)
        console.print(f'{len(self.asked) - self.failed} of {len(self.asked)} passed; '
                      f'{self.bag}, {self.duration_s:.1f} s: {self.frames["watched"]} of '
                      f'{self.frames["received"]} frames watched, {len(self.notes)} notes')


def run_bag_test(bag: str | Path, questions: BagQuestions, model: StepModel,
                 settings: Mapping[str, Any] | None = None,
                 timeout_s: float = 600.0) -> BagReport:
    """Watch the bag, ask, check. Raises ReplayError when a question cannot be asked there.

    settings: over those of the file. timeout_s: for each wait on the engine.
    """
    with BagMemory(bag, model, {**questions.settings, **(settings or {})},
                   questions.cameras or None, timeout_s) as memory:
        info = memory.frames.info
        due = sorted(questions.questions, key=lambda asked: _due_s(asked, memory))
        asked = [_ask(memory, each, questions.file) for each in due]
        stats = memory.engine.stats()
        return BagReport(
            bag=Path(bag).resolve().name, duration_s=round(info.duration_s, 3),
            model={'name': Path(model.name).name, 'quantization': model.quantization,
                   'fingerprint': model.fingerprint},
            questions=questions.file.stem, asked=tuple(asked),
            notes=tuple((*_span(memory, note), note.camera, note.text)
                        for note in memory.engine.memory.notes()),
            frames={'received': stats.frames_received, 'watched': stats.frames_watched,
                    'skipped': stats.frames_skipped, 'rejected': stats.frames_rejected,
                    'dropped': stats.frames_dropped, 'unreadable': memory.frames.unreadable})


def check(asked: BagQuestion, answer: Answer, evidence: tuple[Piece, ...]) -> tuple[Check, ...]:
    """All checks of one answer, in the order of the table above."""
    expected, text = asked.expected, answer.text
    checks = []
    if expected.exact is not None:
        checks.append(Check('exact', text == expected.exact, repr(expected.exact), repr(text)))
    if expected.choice is not None:
        checks.append(Check('choice', text == expected.choice, repr(expected.choice), repr(text)))
    if expected.probability is not None:
        share = answer.choice_probabilities[asked.question.choices.index(expected.choice)]
        checks.append(Check('probability', share >= expected.probability,
                            f'at least {expected.probability:g} for {expected.choice!r}',
                            f'{share:.4g}'))
    checks += [Check('contains', part.casefold() in text.casefold(), repr(part), repr(text))
               for part in expected.contains]
    if expected.regex is not None:
        checks.append(Check('regex', re.search(expected.regex, text) is not None,
                            f'a match of {expected.regex!r}', repr(text)))
    if expected.evidence is not None:
        checks.append(_check_evidence(expected.evidence, evidence))
    return tuple(checks)


def _check_evidence(expected: ExpectedEvidence, evidence: tuple[Piece, ...]) -> Check:
    def fits(piece: Piece) -> bool:
        return (piece.from_s <= expected.to_s and piece.to_s >= expected.from_s
                and expected.camera in ('', piece.camera))
    where = f'{expected.from_s:g}–{expected.to_s:g} s' + (
        f' of {expected.camera}' if expected.camera else '')
    if expected.share is not None:
        share = sum(piece.score for piece in evidence if fits(piece))
        return Check('evidence', share >= expected.share,
                     f'at least {expected.share:g} of the attention in {where}', f'{share:.4g}')
    strongest = max(evidence, key=lambda piece: piece.score, default=None)
    got = 'none' if strongest is None else (
        f'{strongest.from_s:g}–{strongest.to_s:g} s of {strongest.camera}')
    return Check('evidence', strongest is not None and fits(strongest), where, got)


def _due_s(asked: BagQuestion, memory: BagMemory) -> float:
    if asked.at_ns is not None:
        return memory.seconds(asked.at_ns)
    return memory.frames.info.duration_s if asked.at_s is None else asked.at_s


def _ask(memory: BagMemory, asked: BagQuestion, file: Path) -> Asked:
    question = asked.question
    options = {name: getattr(question, name)
               for name in ('session', 'cameras', 'choices', 'max_new_tokens')}
    try:
        answer = memory.ask(question.text, asked.at_s, at_ns=asked.at_ns, **options)
    except TwwError as error:
        raise ReplayError(f'{file}:{asked.line}: question {asked.name!r}: {error}') from error
    evidence = tuple(Piece(told.segment_id, told.camera, *_span(memory, told),
                           round(told.score, 6), told.note) for told in answer.evidence)
    shares = [round(share, 6) for share in answer.choice_probabilities]
    return Asked(
        asked.name, round(_due_s(asked, memory), 3), question.text, answer.text, answer.reasoning,
        answer.finish_reason, round(memory.received_s(answer.as_of_ns), 3),
        dict(zip(question.choices, shares, strict=False)), evidence,
        check(asked, answer, evidence))


def _span(memory: BagMemory, told: Any) -> tuple[float, float]:
    from_s, to_s = memory.span_s(told)
    return round(from_s, 3), round(to_s, 3)


def _told(check: Check) -> str:
    return f'{check.name}: expected {check.expected}, got {check.got}'


def _line(text: str) -> str:
    """One printable line: a model with random weights writes control characters too."""
    return ''.join(c if c.isprintable() else ' ' for c in ' '.join(text.split()))


def _xml(text: str) -> str:
    return _NOT_XML.sub('\ufffd', text)
