"""Scores: exact matches with their intervals, calibration, and what is wrong with a wrong note.

In: texts, truths, probabilities. Out: numbers. It knows nothing of engines and streams.

Answers are compared as text without case, punctuation and articles: 'The red ball.' is 'red ball'.
Notes are compared word for word.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tww_ros.world.notes import NOTHING_NEW
from tww_ros.world.table import COLOURS, PLACES, SHAPES

# Two-sided 95 % of a normal distribution.
Z_95 = 1.959963984540054
_WORDS = re.compile(r'\w+')
_ARTICLES = {'a', 'an', 'the'}
_SLOTS = {
    'place': '|'.join(sorted(PLACES, key=len, reverse=True)), 'colour': '|'.join(COLOURS),
    'shape': '|'.join(SHAPES), 'count': r'(?<=#)\d+', 'time': r'\d+(?= s\b)',
}
_SLOT = re.compile('|'.join(rf'(?P<{name}>\b(?:{words})\b)' for name, words in _SLOTS.items()))
_VERB = re.compile(r'\b(?:start|put|moved|covered|uncovered|taken|nothing)\b')
_THING = re.compile(rf'\b(?:{_SLOTS["colour"]}) (?:{_SLOTS["shape"]})\b')


@dataclass(frozen=True)
class Share:
    """`right` of `count`; its interval is Wilson's for 95 %."""

    right: int
    count: int

    @property
    def value(self) -> float:
        """right ÷ count; nan for none of none."""
        return self.right / self.count if self.count else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """(low, high), Wilson 1927: shares from which this one is no more than 1.96 σ away."""
        n = self.count
        if not n:
            return 0.0, 1.0
        spread = Z_95 ** 2 / n
        middle = (self.value + spread / 2) / (1 + spread)
        half = math.sqrt(spread * (self.value * (1 - self.value) + spread / 4)) / (1 + spread)
        return max(0.0, middle - half), min(1.0, middle + half)


def share(verdicts: Iterable[bool]) -> Share:
    """How many are true."""
    listed = list(verdicts)
    return Share(sum(listed), len(listed))


def normalise(text: str) -> str:
    """Words in lower case, without punctuation and articles."""
    return ' '.join(word for word in _WORDS.findall(text.lower()) if word not in _ARTICLES)


def is_right(given: str, truth: str) -> bool:
    """Whether an answer says the truth and no more."""
    return normalise(given) == normalise(truth)


@dataclass(frozen=True)
class Bin:
    """Answers whose highest probability lies in one stretch: its mean, and how many were right."""

    probability: float
    right: Share


def reliability(tops: Sequence[float], verdicts: Sequence[bool], bins: int) -> list[Bin]:
    """Answers sorted into stretches of equal width by their highest probability; none empty."""
    members: dict[int, list[int]] = {}
    for index, top in enumerate(tops):
        members.setdefault(min(int(top * bins), bins - 1), []).append(index)
    return [Bin(sum(tops[i] for i in part) / len(part), share(verdicts[i] for i in part))
            for _, part in sorted(members.items())]


def calibration_error(tops: Sequence[float], verdicts: Sequence[bool], bins: int) -> float:
    """Expected calibration error: |share right − mean probability|, weighted by the bins' sizes.

    Naeini, Cooper, Hauskrecht 2015. nan without answers.
    """
    if not tops:
        return math.nan
    return sum(abs(part.right.value - part.probability) * part.right.count
               for part in reliability(tops, verdicts, bins)) / len(tops)


# Notes

def is_event(note: str) -> bool:
    """Whether a perfect note tells something."""
    return note != NOTHING_NEW


def first_mentions(notes: Iterable[str]) -> list[bool]:
    """Per perfect note of one stream, whether it names a thing that none before it named."""
    known: set[str] = set()
    found = []
    for note in notes:
        named = set(_THING.findall(note))
        found.append(bool(named - known))
        known |= named
    return found


def describe_error(perfect: str, written: str) -> str:
    """What is wrong with a note: 'put: colour, place', 'moved told as taken', 'put missed'."""
    if _SLOT.sub(lambda found: found.lastgroup, perfect) != _SLOT.sub(
            lambda found: found.lastgroup, written):
        told, wanted = _kinds(written), _kinds(perfect)
        if not is_event(written):
            return f'{wanted} missed'
        if not is_event(perfect):
            return f'{told} invented'
        return f'{wanted} told as {told}' if told != wanted else f'{wanted}: other words'
    wrong = [a.lastgroup for a, b in zip(_SLOT.finditer(perfect), _SLOT.finditer(written),
                                         strict=True) if a.group() != b.group()]
    return f'{_kinds(perfect)}: {", ".join(dict.fromkeys(wrong))}'


def _kinds(note: str) -> str:
    """'start + put' of 'start: nothing; #1 red ball put …'."""
    verbs = [_VERB.search(clause) for clause in note.split(';')]
    return ' + '.join(found.group() if found else 'nothing' for found in verbs)
