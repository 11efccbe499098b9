"""Waiting for what another thread brings, in a thread that blocks or in a coroutine of asyncio.

In: rclpy futures, items put from the executor's thread. Out: their results, or AnswerTimeoutError
with what was waited for. Everything is a future of concurrent.futures, because both kinds of
callers can wait for those. It knows nothing of questions.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import Any, Generic, TypeVar

from tww_ros.errors import AnswerTimeoutError

Item = TypeVar('Item')


def shared(future: Any) -> Future:
    """The result of an rclpy future, for any thread; who waits in vain does not cancel it."""
    made: Future = Future()
    made.set_running_or_notify_cancel()

    def end(done: Any) -> None:
        error = done.exception()
        if error is not None:
            made.set_exception(error)
        else:
            made.set_result(done.result())

    future.add_done_callback(end)
    return made


def wait(future: Future, timeout_s: float | None, what: str) -> Any:
    """Its result; blocks. timeout_s: None = for ever."""
    try:
        return future.result(timeout_s)
    except FutureTimeoutError:
        # What cannot be cancelled any more has come at the last moment.
        if not future.cancel() and future.done():
            return future.result()
        raise _late(what, timeout_s) from None


async def wait_async(future: Future, timeout_s: float | None, what: str) -> Any:
    """The same for a coroutine."""
    try:
        return await asyncio.wait_for(asyncio.wrap_future(future), timeout_s)
    except asyncio.TimeoutError:
        raise _late(what, timeout_s) from None


def _late(what: str, timeout_s: float | None) -> AnswerTimeoutError:
    return AnswerTimeoutError(f'{what}: nothing came within {timeout_s:g} s; has the node ended?')


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
