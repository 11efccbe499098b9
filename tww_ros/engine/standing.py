"""Standing: questions that are asked again each time a segment is closed and noted.

In: WatchQuestions from any thread, and word from the reasoner that a segment is settled (closed,
and its note written or given up). Out: checks, which are questions with choices of a session that
is never kept, so that neither other sessions nor later checks see them; and their results through
PendingWatches.

The cost is bounded: equal questions share one check, a question has at most one check under way,
and segments that are settled meanwhile bring one more check, however many they are. Checks of
different questions share the packed steps like all questions.
"""

from __future__ import annotations

import functools
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass, field

from tww_ros.config import AnswerConfig
from tww_ros.engine.desk import LONGEST_WAIT_S
from tww_ros.engine.pending import PendingAnswer
from tww_ros.errors import (
    AnswerTimeoutError,
    BusyError,
    CancelledError,
    EngineClosedError,
    NothingSeenError,
    TwwError,
)
from tww_ros.model.prompts import SO_NOW, TELL_ME_WHEN
from tww_ros.types import Answer, Question, WatchQuestion, WatchUpdate

log = logging.getLogger(__name__)

# A question whose checks fail so many times in a row will not be answered by one more.
MAX_FAILURES = 3
NEVER_S = float('inf')


def check_question(watch: WatchQuestion) -> Question:
    """What each check asks; its choices mean those of `watch`, in the same order."""
    choices = watch.choices
    if watch.text.lower().startswith(TELL_ME_WHEN):
        choices = tuple(SO_NOW.get(choice, choice) for choice in choices)
    return Question(watch.text, cameras=watch.cameras, choices=choices)


class PendingWatch:
    """A standing question on its way, seen from the caller's side. Made by `Engine.watch`.

    Listeners run on the thread that causes the event (usually the reasoner) and must not block.
    """

    def __init__(self, question: WatchQuestion) -> None:
        self.question = question
        self.asked_s = time.monotonic()
        self.last: WatchUpdate | None = None
        # The engine's books, kept before anybody learns of the end.
        self.on_end: Callable[[PendingWatch], None] = lambda _: None
        self._future: Future[WatchUpdate] = Future()
        self._listeners: list[Callable[[WatchUpdate], None]] = []
        self._lock = threading.Lock()

    # The caller's side

    def done(self) -> bool:
        """Whether it holds, or has ended with an error."""
        return self._future.done()

    def result(self, timeout: float | None = None) -> WatchUpdate:
        """The check by which it holds; raises its error, or TimeoutError after `timeout` s."""
        try:
            return self._future.result(timeout)
        except FutureTimeoutError:
            # Another class than the built-in one before Python 3.11.
            raise TimeoutError(f'it did not hold within {timeout} s; wait longer, or cancel it'
                               ) from None

    def error(self) -> BaseException | None:
        """The error of a watch that failed, None when it holds or is still under way."""
        return self._future.exception() if self._future.done() else None

    def updates(self, timeout_s: float | None = None) -> Iterator[WatchUpdate]:
        """Checks from now on, the last one is that by which it holds; raises its error.

        TimeoutError when none comes for `timeout_s`.
        """
        arrived: queue.SimpleQueue[WatchUpdate | None] = queue.SimpleQueue()
        self.add_listener(arrived.put)
        self.add_done_callback(lambda _: arrived.put(None))
        return self._read(arrived, timeout_s)

    def cancel(self) -> bool:
        """End it; False when it had ended before."""
        return self.fail(CancelledError(f'the watch {self.question.text!r} was cancelled'))

    def add_listener(self, listener: Callable[[WatchUpdate], None]) -> None:
        """Call `listener` with every check from now on, the last one included."""
        with self._lock:
            self._listeners.append(listener)

    def add_done_callback(self, listener: Callable[[PendingWatch], None]) -> None:
        """Call `listener` at the end; at once if it has come already."""
        self._future.add_done_callback(lambda _: listener(self))

    # The engine's side

    def checked(self, answer: Answer) -> None:
        """Take the answer of a check; the end when it agrees often enough."""
        question, probabilities = self.question, answer.choice_probabilities
        if self.done():
            return
        best = max(range(len(probabilities)), key=probabilities.__getitem__)
        probability = probabilities[question.choices.index(question.expected)]
        agrees = (question.choices[best] == question.expected
                  and probability >= question.threshold)
        before = self.last or WatchUpdate(0, '', 0.0, checks=0)
        agreeing = before.agreeing + 1 if agrees else 0
        self.last = WatchUpdate(
            answer.as_of_ns, question.choices[best], probability, answer.evidence,
            before.checks + 1, agreeing, agreeing >= question.confirmations)
        with self._lock:
            listeners = list(self._listeners)
        for listener in listeners:
            try:
                listener(self.last)
            except Exception:
                # A caller's fault must not end the thread that answers everybody else.
                log.exception('a listener of a watch failed')
        if self.last.holds:
            self._finish(self.last)

    def fail(self, error: TwwError) -> bool:
        """End with an error; False when it had ended before."""
        return self._finish(error)

    @property
    def deadline_s(self) -> float:
        """When its time is up, on the monotonic clock."""
        return self.asked_s + self.question.timeout_s if self.question.timeout_s else NEVER_S

    def expired(self, now_s: float) -> bool:
        """End with AnswerTimeoutError when its time is up."""
        if now_s < self.deadline_s:
            return False
        checks = self.last.checks if self.last else 0
        return self.fail(AnswerTimeoutError(
            f'it did not hold within {self.question.timeout_s:g} s ({checks} checks); allow more '
            'time' + ('' if checks else ', and check that images arrive: a segment is checked '
                                        'when it is closed')))

    def _finish(self, end: WatchUpdate | TwwError) -> bool:
        with self._lock:
            # Running = somebody is ending it: nobody else may.
            if self._future.running() or self._future.done():
                return False
            self._future.set_running_or_notify_cancel()
        self.on_end(self)
        if isinstance(end, TwwError):
            self._future.set_exception(end)
        else:
            self._future.set_result(end)
        return True

    def _read(self, arrived: queue.SimpleQueue[WatchUpdate | None],
              timeout_s: float | None) -> Iterator[WatchUpdate]:
        try:
            while (update := arrived.get(timeout=timeout_s)) is not None:
                yield update
        except queue.Empty:
            raise TimeoutError(f'no check came for {timeout_s} s; do images arrive?') from None
        self._future.result()


@dataclass(eq=False)
class _Topic:
    """Equal watches, and the check that they share.

    again: epoch of the newest segment that was settled during the check; None = there was none.
    """

    question: Question
    watches: list[PendingWatch] = field(default_factory=list)
    check: PendingAnswer | None = None
    again: int | None = None
    failures: int = 0


class Standing:
    """All standing questions.

    ask(pending, epoch): put a check in line; wake: look for a new deadline. Both thread-safe.
    """

    def __init__(self, config: AnswerConfig, ask: Callable[[PendingAnswer, int], None],
                 wake: Callable[[], None]) -> None:
        self._limit = config.max_watches
        self._ask = ask
        self._wake = wake
        self._lock = threading.Lock()
        self._topics: dict[Question, _Topic] = {}
        self._closed = False

    def __len__(self) -> int:
        return len(self._watches())

    def add(self, question: WatchQuestion) -> PendingWatch:
        """Take one; BusyError when there are too many, EngineClosedError after close."""
        watch, asked = PendingWatch(question), check_question(question)
        watch.on_end = self._ended
        with self._lock:
            if self._closed:
                raise EngineClosedError('the engine is closed; start a new one before watching')
            count = sum(len(topic.watches) for topic in self._topics.values())
            if count >= self._limit:
                raise BusyError(f'{count} standing questions are watched already; cancel one, or '
                                'raise answer.max_watches')
            self._topics.setdefault(asked, _Topic(asked)).watches.append(watch)
        # The reasoner may be asleep, and this one's deadline is the one to wake up for.
        self._wake()
        return watch

    def settled(self, camera: str, epoch: int) -> None:
        """A segment is closed and its note is written or given up: check what it may change."""
        with self._lock:
            due = [topic for topic in self._topics.values()
                   if not topic.question.cameras or camera in topic.question.cameras]
        # Each check goes to the front of the line.
        for topic in reversed(due):
            self._check(topic, epoch)

    def expire(self) -> None:
        """End those whose time is up."""
        now_s = time.monotonic()
        for watch in self._watches():
            watch.expired(now_s)

    def wait_s(self) -> float | None:
        """Seconds until the nearest deadline, an hour at most; None when there is none."""
        nearest_s = min((watch.deadline_s for watch in self._watches()), default=NEVER_S)
        if nearest_s == NEVER_S:
            return None
        # A little later, so that the deadline has passed when the sleeper wakes up.
        return min(LONGEST_WAIT_S, max(0.0, nearest_s - time.monotonic()) + 1e-3)

    def close(self, reason: str) -> None:
        """Fail all, and take no more."""
        with self._lock:
            self._closed = True
        self.end(reason)

    def end(self, reason: str) -> None:
        """Fail all there are."""
        for watch in self._watches():
            watch.fail(EngineClosedError(reason))

    def _watches(self) -> list[PendingWatch]:
        with self._lock:
            return [watch for topic in self._topics.values() for watch in topic.watches]

    def _check(self, topic: _Topic, epoch: int) -> None:
        with self._lock:
            if topic.check is not None:
                topic.again = epoch
                return
            if not topic.watches:
                return
            topic.check = check = PendingAnswer(topic.question)
            # One that comes later did not ask for this check, which may not see what it waits for.
            watches = tuple(topic.watches)
        check.on_end = lambda *_: self._wake()
        check.add_done_callback(functools.partial(self._checked, topic, watches))
        self._ask(check, epoch)

    def _checked(self, topic: _Topic, watches: tuple[PendingWatch, ...],
                 check: PendingAnswer) -> None:
        error = check.error()
        if error is None:
            topic.failures = 0
            for watch in watches:
                watch.checked(check.result())
        elif not isinstance(error, (CancelledError, EngineClosedError, NothingSeenError)):
            topic.failures += 1
            log.warning('a check of the watch %r failed: %s', topic.question.text, error)
            # More: a watch that joined meanwhile was not in the check that was one too many.
            if topic.failures >= MAX_FAILURES:
                for watch in watches:
                    watch.fail(error)
        with self._lock:
            topic.check, epoch, topic.again = None, topic.again, None
        if epoch is not None:
            self._check(topic, epoch)

    def _ended(self, watch: PendingWatch) -> None:
        with self._lock:
            topic = self._topics[check_question(watch.question)]
            topic.watches.remove(watch)
            if topic.watches:
                return
            del self._topics[topic.question]
            check = topic.check
        if check is not None:
            check.cancel()
