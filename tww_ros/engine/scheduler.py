"""Scheduler: what the next step computes, and how much of it.

In: who has work, and how long steps of so many rows (tokens) take on this machine. Out: spans for
one step, within its budget. It knows nothing of memory, words or threads.

    decoding    one row each: the next token of an answer, or of the note
    the rest    many rows: a question, a patch that is read, the beginning of a note

Answers go first, reading second, the note last, and nothing starves: a quarter of the rows is
reading's whoever waits with it, and a note lets eight steps pass in a row at most.

What costs are for. Reading may share a step with those that decode, or the two may take turns, a
step of one, a step of the other; and not all that decode need to be in one step. Which is cheaper
depends on the kernels:

    rows of a step       1    4    5   64     4 decode, 4 are read       8 decode
    a desktop card      10   10   10   11 ms  10 ms at once, 20 in turns  10 at once, 20 in fours
    4-bit on an Orin    10   10   60   90 ms  62 ms at once, 20 in turns  62 at once, 20 in fours

Of the plans that keep the promise (`step.token_ms`: so long at most between two tokens of an
answer) it takes the one that reads most a second. Without a table everything goes together.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Protocol
from weakref import WeakKeyDictionary

import numpy as np

from tww_ros.config import StepConfig
from tww_ros.model.costs import StepCosts
from tww_ros.model.run import Span

# Steps in a row that a note lets pass.
NOTE_PATIENCE = 8
# One row in so many is reading's, whoever else wants them.
READING_SHARE = 4
# Where the promise cannot be kept, watching still goes on at this pace.
LEAST_READ = 8
BUDGET_TOKENS = 512
# Fewer decode in one step only if that saves a tenth of the time: measurements are not exact.
WORTHWHILE = 1.1
# Of the promise, when none is set.
LEAST_PROMISE_S = 0.02
# How much of a new measurement enters the mean.
LEARNING = 0.1


class Work(Protocol):
    """A job or the reader: so many rows are wanted, and may be taken piece by piece."""

    @property
    def rows(self) -> int: ...
    def take(self, budget: int) -> list[Span]: ...


class Scheduler:
    """Packs steps. Only the reasoner calls it."""

    def __init__(self, config: StepConfig, costs: StepCosts | None = None) -> None:
        """costs: None = unknown."""
        self._config = config
        self._chunk = config.chunk_tokens
        self._costs = costs
        self.budget = config.tokens or self._measured_budget()
        self.promise_s = config.token_ms / 1e3 or self._measured_promise_s()
        self._table = None if costs is None else costs.table(self.budget)
        self._passed = 0
        self._owed = 0.0
        self._decoded = False
        self._turns = itertools.count()
        self._turn_of: WeakKeyDictionary[Work, int] = WeakKeyDictionary()
        self._beside_s = 0.0

    def describe(self) -> str:
        """One line for the log."""
        if self._costs is None:
            return f'{self.budget} tokens at most, costs not measured'
        return (f'{self.budget} tokens at most, {1e3 * self.promise_s:.0f} ms between two tokens '
                f'of an answer; {self._costs.describe()}')

    def pack(self, answers: Sequence[Work], reading: Work, note: Work | None,
             urgent: bool = False) -> list[tuple[Work, list[Span]]]:
        """Who is in the next step, with which spans; nobody when there is nothing to do.

        answers: oldest question first. urgent: somebody waits for the first token of an answer.
        """
        answers = [answer for answer in answers if answer.rows]
        note = note if note is not None and note.rows else None
        if self._config.deterministic:
            first = next((w for w in (*answers, reading, note) if w is not None and w.rows), None)
            return [] if first is None else [(first, first.take(self._chunk))]
        decoding = self._in_turn([answer for answer in answers if answer.rows == 1])
        rest = [answer for answer in answers if answer.rows > 1]
        rest += [reading] if reading.rows else []
        if note is not None and (self._passed >= NOTE_PATIENCE or not urgent):
            queue = decoding if note.rows == 1 else rest
            queue.insert(0 if self._passed >= NOTE_PATIENCE else len(queue), note)
        decoding = decoding[:self._together(len(decoding))]
        # Nobody waits for the next word of a note.
        limit_s = self._limit_s() if any(work is not note for work in decoding) else np.inf
        rows, mixed = self._room(len(decoding), sum(work.rows for work in rest), limit_s)
        if decoding and rest and not mixed:
            decoding, rest = ([], rest) if self._decoded else (decoding, [])
        self._decoded = bool(decoding)
        step = [(work, work.take(1)) for work in decoding] + self._share(rows, rest, reading)
        for work in decoding:
            self._turn_of[work] = next(self._turns)
        self._passed = (self._passed + 1 if note is not None
                        and all(work is not note for work, _ in step) else 0)
        return step

    def took(self, rows: int, seconds: float) -> None:
        """Hear how long a step really took: what it looks at costs time too."""
        if self._table is not None and rows <= self.budget:
            beside_s = max(0.0, seconds - float(self._table[rows]))
            self._beside_s += LEARNING * (beside_s - self._beside_s)

    def _in_turn(self, decoding: list[Work]) -> list[Work]:
        """Those that had no token for longest first."""
        for work in decoding:
            if work not in self._turn_of:
                self._turn_of[work] = next(self._turns)
        return sorted(decoding, key=self._turn_of.__getitem__)

    def _together(self, count: int) -> int:
        """How many of so many that decode share a step: the cheapest for each of them."""
        count = min(count, self.budget)
        if self._table is None or count < 2:
            return count
        each_s = self._table[1:count + 1] / np.arange(1, count + 1)
        best = int(np.argmin(each_s))
        return count if each_s[-1] <= WORTHWHILE * each_s[best] else best + 1

    def _room(self, decoding: int, waiting: int, limit_s: float) -> tuple[int, bool]:
        """Rows for the rest while so many decode, and whether all of them share one step."""
        most = min(waiting, self.budget)
        if not decoding or not most:
            return most, True
        beside = self.budget - decoding
        if self._table is None:
            return (beside, True) if beside > 0 else (most, False)
        rows = np.arange(1, most + 1)
        in_turns_s = self._table[decoding] + self._table[1:most + 1]
        at_once_s = np.full(most, np.inf)
        fit = max(0, min(most, beside))
        at_once_s[:fit] = self._table[decoding + 1:decoding + fit + 1]
        cheaper_s = np.minimum(at_once_s, in_turns_s)
        kept = cheaper_s <= limit_s
        # The last of the best: the same pace with fewer steps.
        best = (most - 1 - int(np.argmax((kept * rows / cheaper_s)[::-1])) if kept.any()
                else min(LEAST_READ, most) - 1)
        return best + 1, bool(at_once_s[best] <= in_turns_s[best])

    def _share(self, rows: int, rest: list[Work],
               reading: Work) -> list[tuple[Work, list[Span]]]:
        """Give out rows in order, and keep reading's share."""
        if reading in rest and rest[0] is not reading:
            self._owed = min(self._owed + rows / READING_SHARE, reading.rows, self._chunk)
        elif rest:
            self._owed = 0.0
        kept, taken = min(int(self._owed), rows), []
        for work in rest:
            if work is reading:
                kept = 0
            spans = work.take(min(self._chunk, rows - kept))
            given = sum(len(span.run) for span in spans)
            rows -= given
            if work is reading:
                self._owed = max(0.0, self._owed - given)
            if spans:
                taken.append((work, spans))
        return taken

    def _limit_s(self) -> float:
        """Of the promise, what is left for the linear layers."""
        # One that was measured is about them alone.
        return self.promise_s - (self._beside_s if self._config.token_ms else 0.0)

    def _measured_budget(self) -> int:
        """As many as make full use of the machine, and a chunk at least."""
        if self._costs is None:
            return max(BUDGET_TOKENS, self._chunk)
        return max(self._chunk, self._costs.least_rows(0.9, BUDGET_TOKENS))

    def _measured_promise_s(self) -> float:
        """So long that reading goes at half of its best pace, and three tokens' time at least."""
        if self._costs is None:
            return LEAST_PROMISE_S
        table = self._costs.table(self._chunk)
        paced = self._costs.least_rows(0.5, self._chunk)
        return float(max(LEAST_PROMISE_S, 3 * table[1], table[1] + table[paced]))
