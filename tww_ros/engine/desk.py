"""Desk: every question that is not finished, from the moment it is asked, wherever it is.

In: PendingAnswers from any thread. Out: who is too many, who stands where in the line, whose time
is up. A question may still be a mark in the watcher's queue, wait for its session, or be in the
steps; its deadline and its place hold all the same.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from tww_ros.config import AnswerConfig
from tww_ros.engine.counters import Counters
from tww_ros.engine.pending import PendingAnswer
from tww_ros.errors import BusyError, CancelledError, EngineClosedError, TwwError

# Locks cannot be waited for longer than some number of seconds that depends on the platform.
LONGEST_WAIT_S = 3600.0
NEVER_S = float('inf')


class Desk:
    """Unfinished questions. `wake` is called when one comes or ends."""

    def __init__(self, config: AnswerConfig, counters: Counters, wake: Callable[[], None]) -> None:
        self._limit = config.max_waiting
        self._counters = counters
        self._wake = wake
        self._lock = threading.Lock()
        self._open: dict[int, PendingAnswer] = {}
        self._urgent: set[int] = set()
        self._next_deadline_s = NEVER_S
        self._closed = False

    def __len__(self) -> int:
        return len(self._open)

    @property
    def urgent(self) -> int:
        """How many wait for the first token of their answer."""
        return len(self._urgent)

    def register(self, pending: PendingAnswer) -> None:
        """Take a question; BusyError when there are too many, EngineClosedError after close."""
        with self._lock:
            if self._closed:
                raise EngineClosedError('the engine is closed; start a new one before asking')
            if len(self._open) >= self._limit:
                raise BusyError(f'{self._limit} questions are waiting or being answered already; '
                                'ask later, or raise answer.max_waiting')
            pending.position = self._position
            pending.on_first_token = self._begun
            pending.on_end = self._ended
            pending.on_ended = self._wake
            self._open[pending.number] = pending
            self._urgent.add(pending.number)
            self._next_deadline_s = min(self._next_deadline_s, _deadline_s(pending))
        # The loop may be asleep, and this question's deadline is the one to wake up for.
        self._wake()

    def expire(self) -> None:
        """End those whose time is up."""
        now_s = time.monotonic()
        if now_s < self._next_deadline_s:
            return
        for pending in self._questions():
            pending.expired(now_s)
        with self._lock:
            self._next_deadline_s = min(map(_deadline_s, self._open.values()), default=NEVER_S)

    def wait_s(self) -> float | None:
        """Seconds until the nearest deadline, an hour at most; None when there is none."""
        next_s = self._next_deadline_s
        if next_s == NEVER_S:
            return None
        # A little later, so that the deadline has passed when the sleeper wakes up.
        return min(LONGEST_WAIT_S, max(0.0, next_s - time.monotonic()) + 1e-3)

    def close(self, reason: str) -> None:
        """Fail all questions, and take no more."""
        with self._lock:
            self._closed = True
        self.fail_all(reason)

    def fail_all(self, reason: str) -> None:
        """Fail all questions; later ones are taken."""
        for pending in self._questions():
            pending.fail(EngineClosedError(reason))

    def _questions(self) -> list[PendingAnswer]:
        with self._lock:
            return list(self._open.values())

    def _position(self, pending: PendingAnswer) -> int:
        return sum(other.number < pending.number for other in self._questions())

    def _begun(self, pending: PendingAnswer) -> None:
        with self._lock:
            self._urgent.discard(pending.number)
        self._wake()

    def _ended(self, pending: PendingAnswer, error: TwwError | None) -> None:
        if error is None:
            now_s = time.monotonic()
            self._counters.first_token_s = (pending.first_token_s or now_s) - pending.asked_s
            self._counters.answer_s = now_s - pending.asked_s
            self._counters.add(answers_done=1)
        elif isinstance(error, CancelledError):
            self._counters.add(answers_cancelled=1)
        else:
            self._counters.add(answers_failed=1)
        with self._lock:
            self._open.pop(pending.number, None)
            self._urgent.discard(pending.number)


def _deadline_s(pending: PendingAnswer) -> float:
    return pending.asked_s + (pending.question.timeout_s or NEVER_S)
