"""From outcomes to the report: accuracies, calibration, tokens, notes, and the targets.

In: an Evaluation. Out: metrics by name in a Report, and lines for people.

    <row>_accuracy, _low, _high, _n           of the row's own lot, Wilson 95 %
    <row>_open_…, <row>_choice_…              the same, by form
    <row>_<family>_…, <row>_kind_<kind>_…     the same; `<row>_present` holds the lot `present` too
    <row>_backward_<a>_<b>_…                  backward questions by the distance of their newest
                                              proof in segments; `_60_up` holds the lot `far` too
    <row>_ece_10, <row>_ece_15                expected calibration error of the choices
    <row>_tokens_per_answer                   written for an answer, and for notes: all notes of a
    <row>_note_tokens_per_answer              stream ÷ the answers of the row's own lot in it
    <…>notes_accuracy, _events, _first_mentions   notes that are the perfect ones, word for word
    multi_minus_single, _low, _high           rounds against their twins; interval: bootstrap over
                                              streams
    tokens_ratio_…                            multi ÷ long_reasoning
"""

from __future__ import annotations

import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from tww_ros.evaluation.protocol import FAR
from tww_ros.evaluation.report import Report
from tww_ros.evaluation.rows import Evaluation, Row
from tww_ros.evaluation.runner import NotedSegment, Outcome, Watched
from tww_ros.evaluation.scoring import (
    Share,
    calibration_error,
    describe_error,
    first_mentions,
    is_event,
    share,
)

BINS = (10, 15)
# Lower bounds of the distances; the last one has no upper.
DISTANCES = (0, 5, 10, 20, 40, FAR)
FAR_NAME = f'{FAR}_up'
RESAMPLES = 2_000
# Metric → (sign, value); only those that were measured count.
TARGETS = {
    'single_present_accuracy': ('>=', 0.97), f'single_backward_{FAR_NAME}_accuracy': ('>=', 0.90),
    'multi_minus_single': ('>=', -0.01), 'multi_minus_long_reasoning': ('>=', 0.0),
    'tokens_ratio_notes_counted': ('<=', 0.44), 'tokens_ratio_notes_not_counted': ('<=', 0.44),
}


def measure(evaluation: Evaluation, report: Report) -> list[tuple[str, Share]]:
    """Put all numbers into the report; returns the rows of the table for people."""
    table: list[tuple[str, Share]] = []
    for row in evaluation.rows:
        own = evaluation.outcomes(row, row.lot)
        table.append((row.name, _accuracy(report, row.name, own)))
        table += _by_kind(report, evaluation, row)
        _calibration(report, row.name, own)
        _tokens(report, row.name, own, evaluation.streams[row.watch])
        report.add(f'{row.name}_failed',
                   sum(bool(outcome.failed) for outcome in evaluation.outcomes(row)))
    for prefix, streams in _note_writers(evaluation).items():
        for name, verdicts in note_verdicts(streams).items():
            table.append((f'{prefix}{name}', _share(report, f'{prefix}{name}', share(verdicts))))
    for row in evaluation.rows:
        if row.lot == 'multi' and 'single' in row.lots:
            name = 'multi_minus_single' if row.name == 'multi' else f'{row.name}_minus_single'
            for ending, value in zip(('', '_low', '_high'), paired(evaluation.outcomes(row)),
                                     strict=True):
                report.add(name + ending, value)
    _against_long_reasoning(report)
    for name, (sign, value) in TARGETS.items():
        if name in report.metrics:
            report.target(name, sign, value)
    return table


def _share(report: Report, name: str, part: Share) -> Share:
    """One share; none of none is no number."""
    if part.count:
        low, high = part.interval
        report.add(f'{name}_accuracy', part.value)
        report.add(f'{name}_low', low)
        report.add(f'{name}_high', high)
        report.add(f'{name}_n', part.count)
    return part


def _accuracy(report: Report, name: str, outcomes: Iterable[Outcome]) -> Share:
    return _share(report, name, share(outcome.right for outcome in outcomes))


def _by_kind(report: Report, evaluation: Evaluation, row: Row) -> list[tuple[str, Share]]:
    own = evaluation.outcomes(row, row.lot)
    more = own + evaluation.outcomes(row, 'present') if row.lot == 'single' else own
    far = own + evaluation.outcomes(row, 'far') if row.lot == 'single' else own
    _accuracy(report, f'{row.name}_open', [o for o in own if not o.probabilities])
    _accuracy(report, f'{row.name}_choice', [o for o in own if o.probabilities])
    table = []
    for family, part in _groups(more, lambda o: o.planned.question.family).items():
        found = _accuracy(report, f'{row.name}_{family.replace("-", "_")}', part)
        if family == 'present':
            table.append((f'{row.name}: present', found))
    for kind, part in sorted(_groups(more, lambda o: o.planned.question.kind).items()):
        _accuracy(report, f'{row.name}_kind_{kind}', part)
    for name, part in by_distance(far):
        found = _accuracy(report, f'{row.name}_backward_{name}', part)
        if name == FAR_NAME and part:
            table.append((f'{row.name}: proof ≥ {FAR} segments back', found))
    return table


def by_distance(outcomes: Iterable[Outcome]) -> Iterator[tuple[str, list[Outcome]]]:
    """Backward questions by the distance of their newest proof: '0_4', …, '60_up'."""
    backward = [o for o in outcomes if o.planned.question.family == 'backward'
                and o.planned.distance is not None]
    for low, above in zip(DISTANCES, (*DISTANCES[1:], sys.maxsize), strict=True):
        name = FAR_NAME if low == FAR else f'{low}_{above - 1}'
        yield name, [o for o in backward if low <= o.planned.distance < above]


def _groups(outcomes: Iterable[Outcome],
            key: Callable[[Outcome], str]) -> dict[str, list[Outcome]]:
    groups = defaultdict(list)
    for outcome in outcomes:
        groups[key(outcome)].append(outcome)
    return groups


def _calibration(report: Report, name: str, outcomes: Sequence[Outcome]) -> None:
    tops, verdicts = choices(outcomes)
    for bins in BINS if tops else ():
        report.add(f'{name}_ece_{bins}', calibration_error(tops, verdicts, bins))


def choices(outcomes: Iterable[Outcome]) -> tuple[list[float], list[bool]]:
    """Of the answers that were chosen: the probability of the one taken, and whether it is right.
    """
    chosen = [outcome for outcome in outcomes if outcome.probabilities]
    return [outcome.top for outcome in chosen], [outcome.right for outcome in chosen]


def _tokens(report: Report, name: str, outcomes: Sequence[Outcome],
            streams: Sequence[Watched]) -> None:
    written = [outcome for outcome in outcomes if not outcome.failed]
    opened = [outcome for outcome in written if not outcome.probabilities]
    for ending, part in (('', written), ('_open', opened)):
        if part:
            report.add(f'{name}_tokens_per_answer{ending}',
                       sum(outcome.tokens for outcome in part) / len(part))
    if outcomes:
        notes = sum(note.tokens for watched in streams for note in watched.notes)
        report.add(f'{name}_note_tokens_per_answer', notes / len(outcomes))
        report.add(f'{name}_answers_per_stream', len(outcomes) / len(streams))


def paired(outcomes: Iterable[Outcome]) -> tuple[float, float, float]:
    """Accuracy of the rounds minus that of their twins, and its interval (95 %, bootstrap)."""
    pairs: dict[tuple[int, int], dict[str, bool]] = defaultdict(dict)
    for outcome in outcomes:
        pairs[outcome.stream, outcome.planned.pair][outcome.planned.lot] = outcome.right
    streams: dict[int, list[int]] = defaultdict(list)
    for (stream, _), both in pairs.items():
        if {'multi', 'single'} <= both.keys():
            streams[stream].append(both['multi'] - both['single'])
    totals = np.array([sum(part) for part in streams.values()])                 # [streams]
    counts = np.array([len(part) for part in streams.values()])                 # [streams]
    drawn = np.random.default_rng(0).integers(len(totals), size=(RESAMPLES, len(totals)))
    means = totals[drawn].sum(1) / counts[drawn].sum(1)                         # [RESAMPLES]
    low, high = np.quantile(means, (0.025, 0.975))
    return float(totals.sum() / counts.sum()), float(low), float(high)


def _against_long_reasoning(report: Report) -> None:
    told = report.metrics
    if not {'multi_accuracy', 'long_reasoning_accuracy'} <= told.keys():
        return
    report.add('multi_minus_long_reasoning',
               told['multi_accuracy'] - told['long_reasoning_accuracy'])
    long = told.get('long_reasoning_tokens_per_answer', 0.0)
    if long and 'multi_tokens_per_answer' in told:
        answers, notes = told['multi_tokens_per_answer'], told['multi_note_tokens_per_answer']
        report.add('tokens_ratio_notes_not_counted', answers / long)
        report.add('tokens_ratio_notes_counted', (answers + notes) / long)


# Notes

def _note_writers(evaluation: Evaluation) -> dict[str, list[Watched]]:
    """Prefix → streams, for every model that wrote notes with its own settings."""
    return {'' if row.name in ('single', 'multi') else row.name.rsplit('_', 1)[0] + '_':
            evaluation.streams[row.watch]
            for row in evaluation.rows if not row.watch.settings}


def note_verdicts(streams: Iterable[Watched]) -> dict[str, list[bool]]:
    """Whether each note is the perfect one: all, those that tell something, those that name a
    thing for the first time."""
    verdicts: dict[str, list[bool]] = {'notes': [], 'notes_events': [],
                                       'notes_first_mentions': []}
    for watched in streams:
        for note, first in zip(watched.notes,
                               first_mentions(note.perfect for note in watched.notes),
                               strict=True):
            right = note.written == note.perfect
            verdicts['notes'].append(right)
            if is_event(note.perfect):
                verdicts['notes_events'].append(right)
            if first:
                verdicts['notes_first_mentions'].append(right)
    return verdicts


def note_errors(streams: Iterable[Watched], most: int = 12) -> list[tuple[str, int, NotedSegment]]:
    """The commonest errors in notes: what is wrong, how often, an example."""
    counts: Counter[str] = Counter()
    examples: dict[str, NotedSegment] = {}
    for note in (note for watched in streams for note in watched.notes):
        if note.written != note.perfect:
            error = describe_error(note.perfect, note.written)
            counts[error] += 1
            examples.setdefault(error, note)
    return [(error, count, examples[error]) for error, count in counts.most_common(most)]


def answer_errors(outcomes: Iterable[Outcome], most: int = 12
                  ) -> list[tuple[str, Share, Outcome]]:
    """Kinds of questions with most wrong answers: the kind, its share right, an example."""
    kinds = _groups(outcomes, lambda o: o.planned.question.kind)
    found = [(kind, share(o.right for o in part), next(o for o in part if not o.right))
             for kind, part in kinds.items() if not all(o.right for o in part)]
    return sorted(found, key=lambda row: row[1].right - row[1].count)[:most]
