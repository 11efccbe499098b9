"""Waiting for what another thread brings, in a thread that blocks or in a coroutine of asyncio.

In: rclpy futures, items put from the executor's thread. Out: their results, or AnswerTimeoutError
with what was waited for, or EngineClosedError when who should bring it has gone: ROS says nothing
to who waits for a node that has died. Everything is a future of concurrent.futures, because both
kinds of callers can wait for those. It knows nothing of questions.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import Any, Generic, TypeVar

from tww_ros.errors import AnswerTimeoutError, EngineClosedError, TwwError

# How often who waits looks whether the other side is still there, and how long it has to be gone:
# the last words of a node that ends may come after it was seen to have gone.
LOOK_S = 1.0
GONE_S = 2.0

Item = TypeVar('Item')


def shared(future: Any) -> Future:
    """The result of an rclpy future, for any thread; who waits in vain does not cancel it."""
    made: Future = Future()
    made.set_running_or_notify_cancel()

    def end(done: Any) -> None:
        error = done.exception()
        if error is not None:
            fail(made, error)
        else:
            with contextlib.suppress(InvalidStateError):
                made.set_result(done.result())

    future.add_done_callback(end)
    return made


def fail(future: Future, error: BaseException) -> None:
    """End a future with an error, unless it has ended."""
    with contextlib.suppress(InvalidStateError):
        future.set_exception(error)


def wait(future: Future, timeout_s: float | None, what: str,
         is_there: Callable[[], bool] = lambda: True) -> Any:
    """Its result; blocks. timeout_s: None = for ever; is_there: whether it can still come."""
    patience = _Patience(timeout_s, what, is_there)
    while not future.done():
        try:
            return future.result(patience.next_s())
        except FutureTimeoutError:
            patience.look(future)
    return future.result()


async def wait_async(future: Future, timeout_s: float | None, what: str,
                     is_there: Callable[[], bool] = lambda: True) -> Any:
    """The same for a coroutine."""
    patience = _Patience(timeout_s, what, is_there)
    wrapped = asyncio.wrap_future(future)
    try:
        while not (await asyncio.wait((wrapped,), timeout=patience.next_s()))[0]:
            patience.look(future)
        return wrapped.result()
    finally:
        # Also when the coroutine is cancelled.
        future.cancel()
        wrapped.cancel()


class _Patience:
    """Until when to wait, and what for."""

    def __init__(self, timeout_s: float | None, what: str, is_there: Callable[[], bool]) -> None:
        self._timeout_s = math.inf if timeout_s is None else timeout_s
        self._what = what
        self._is_there = is_there
        self._began_s = self._there_s = time.monotonic()

    def next_s(self) -> float:
        """How long to wait before the next look."""
        return min(LOOK_S, max(0.0, self._began_s + self._timeout_s - time.monotonic()))

    def look(self, future: Future) -> None:
        """Raise why there is nothing to wait for any more; what has come by then counts."""
        now_s = time.monotonic()
        if self._is_there():
            self._there_s = now_s
        error: TwwError | None = None
        if now_s - self._began_s >= self._timeout_s:
            error = AnswerTimeoutError(f'{self._what}: nothing came within {self._timeout_s:g} s; '
                                       'has the node ended?')
        elif now_s - self._there_s >= GONE_S:
            error = EngineClosedError(f'{self._what}: the node that was to reply has gone; start '
                                      'it again, and ask again')
        # What cannot be cancelled and is done has come at the last moment.
        if error is not None and (future.cancel() or not future.done()):
            raise error from None


class Mailbox(Generic[Item]):
    """Items in the order in which they were put; put() from any thread, one reader."""

    def __init__(self) -> None:
        self._items: deque[Item] = deque()
        self._readers: deque[Future[Item]] = deque()
        self._lock = threading.Lock()

    def put(self, item: Item) -> None:
        """Add one."""
        with self._lock:
            reader = self._reader()
            if reader is None:
                self._items.append(item)
        if reader is not None:
            reader.set_result(item)

    def next(self) -> Future[Item]:
        """The next one; cancel it to leave that one to the next reader."""
        future: Future[Item] = Future()
        with self._lock:
            if not self._items:
                self._readers.append(future)
                return future
            item = self._items.popleft()
        future.set_result(item)
        return future

    def _reader(self) -> Future[Item] | None:
        """The first one that still waits."""
        while self._readers:
            reader = self._readers.popleft()
            if reader.set_running_or_notify_cancel():
                return reader
        return None
