"""Whether a sample says what its stage demands, and uses nothing that comes later.

In: an Entry. Out: nothing, or a DatasetError that names the file and the place. The rules:

    note            cites no time after its segment's end
    reasoning       cites no time after its question; a part of it (parts end at '; ') that is a
                    part of a note is one of a segment that was closed by then
    answer          says 'at 14 s' of no time after its question
    proof           lies in segments that were closed by then
    rounds          in order; their notes are those of the segments before, the newest one's
                    perhaps not yet finished
    stages 1 to 3   a note for every segment and a reasoning for every question; in stage 1 every
                    session has one round

A reasoning may say what the newest closed segment's note says before that note is finished,
because the question sees that segment's frames. What is told in other words than a note's cannot
be checked this way; of tabletop data, `training.validate` makes everything again and compares.
"""

from __future__ import annotations

import re

from tww_ros.errors import DatasetError
from tww_ros.training.format import SLACK_S, Entry, closed_by
from tww_ros.world.notes import NOTHING_NEW

_NUMBER = r'(?<![\w.,:])(\d+(?:\.\d+)?)'
_SECONDS = re.compile(_NUMBER + r'\s*-?(?:s|secs?|seconds?)\b', re.IGNORECASE)
_AT_SECONDS = re.compile(r'\bat\s+' + _NUMBER + r'\s*(?:s|secs?|seconds?)\b', re.IGNORECASE)

# '#3 red ball put … at 14 s' in a note is 'red ball put …' in a reasoning, with or without its
# times ('…, now 40 s, 26 s ago').
_TOLD_WITH = re.compile(r'^#\d+ |^\d+(?:\.\d+)? s: '
                        r'|(?:,? (?:at|now) \d+(?:\.\d+)? s|, \d+(?:\.\d+)? s ago)+$')
# Timestamps, which times are read from, show tenths of a second.
_SHOWN_S = 0.05


def check(entry: Entry, file: str) -> None:
    """Raise DatasetError for the first thing that breaks a rule."""
    own = entry.stage > 0
    for number, segment in enumerate(entry.segments):
        where = f'{file}: metadata.tww.segments[{number}].note'
        if own and not (segment.note or '').strip():
            raise DatasetError(f'{where}: expected a note, as stage {entry.stage} demands, got '
                               f'none; write {NOTHING_NEW!r} where nothing happens')
        check_times(segment.note or '', segment.end_s, where, 'its segment\'s end')
    _check_rounds(entry, file)
    first = _first_told(entry)
    for number, question in enumerate(entry.questions):
        base = f'{file}: metadata.tww.questions[{number}]'
        reasoning, answer = ((f'{base}.reasoning', f'{base}.answer') if own else
                             (f'{file}: conversations[{2 * number + 1}].value',) * 2)
        if own and not question.reasoning.strip():
            raise DatasetError(f'{reasoning}: expected a reasoning, as stage {entry.stage} '
                               'demands, got none; say which notes the answer rests on')
        check_times(question.reasoning, question.at_s, reasoning, 'its question')
        check_times(question.answer, question.at_s, answer, 'its question', _AT_SECONDS)
        for part in _parts(question.reasoning):
            if first.get(part, 0) >= question.after:
                raise DatasetError(
                    f'{reasoning}: expected only what segments 0 to {question.after - 1} tell, '
                    f'which were closed at {question.at_s:g} s, got {part!r} of segment '
                    f'{first[part]}\'s note; this leaks what comes later')
        late = [segment for segment in question.proof if segment >= question.after]
        if late:
            raise DatasetError(f'{base}.proof: expected segments before {question.after}, which '
                               f'had not ended at {question.at_s:g} s, got {late[0]}; this leaks '
                               'what comes later')


def late_times(text: str, until_s: float, pattern: re.Pattern[str] = _SECONDS) -> list[str]:
    """The times cited in a text that come after until_s, as they are written."""
    latest_s = until_s + _SHOWN_S + SLACK_S
    return [found[0] for found in pattern.finditer(text) if float(found[1]) > latest_s]


def check_times(text: str, until_s: float, where: str, what: str,
                pattern: re.Pattern[str] = _SECONDS) -> None:
    """DatasetError when a text cites a time after until_s; `what` is what ends then."""
    late = late_times(text, until_s, pattern)
    if late:
        raise DatasetError(f'{where}: expected no time after {what}, {until_s:g} s, got '
                           f'{late[0]!r} in {text!r}; this leaks what comes later (write a '
                           'duration in words)')


def _check_rounds(entry: Entry, file: str) -> None:
    sessions, noted = set(), 0
    for number, question in enumerate(entry.questions):
        base = f'{file}: metadata.tww.questions[{number}]'
        after = closed_by(entry.segments, question.at_s)
        if not after:
            raise DatasetError(f'{file}: conversations[{2 * number}].timestamps: expected a time '
                               f'when a segment has ended, {entry.segments[0].end_s:g} s or '
                               f'later, got {question.at_s:g}')
        if question.after != after:
            raise DatasetError(f'{base}.after: expected {after}, the segments that have ended at '
                               f'{question.at_s:g} s, got {question.after}')
        if not max(noted, after - 1) <= question.noted <= after:
            raise DatasetError(f'{base}.notes_visible: expected {max(noted, after - 1)} to '
                               f'{after}, not fewer than the round before, got {question.noted}')
        noted = question.noted
        if entry.stage == 1 and question.session in sessions:
            raise DatasetError(f'{base}.session: expected one round a session, as stage 1 '
                               f'demands, got another of {question.session!r}')
        sessions.add(question.session)


def _first_told(entry: Entry) -> dict[str, int]:
    """The segment whose note is the first to hold a part."""
    first: dict[str, int] = {}
    for number, segment in enumerate(entry.segments):
        for part in _parts(segment.note or ''):
            first.setdefault(part, number)
    return first


def _parts(text: str) -> list[str]:
    """What a note or a reasoning is made of, in one spelling, without its time and number."""
    parts = [_TOLD_WITH.sub('', ' '.join(part.split()).rstrip('.').lower())
             for part in (text, *text.split(';'))]
    return [part for part in parts if part and part != NOTHING_NEW]
