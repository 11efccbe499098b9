"""Streams: one action goal under way, to be read while it runs; blocking or with asyncio.

    for text in stream: …            async for text in stream: …
    stream.result()                  await stream.result_async()
    stream.cancel()                  await stream.cancel_async()

Made by `TwwClient.query` and `TwwClient.watch`. What fails is raised by result(), as the error
that the engine raised in the node; iterating only ends. When the node or the client has gone,
whoever waits hears of it (EngineClosedError), also where there is no time limit.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from typing import Any, Generic, TypeVar

from rclpy.action import ActionClient
from rclpy.action.client import GoalStatus

from tww_interfaces.action import Query, Watch
from tww_ros.errors import QuestionError, TwwError
from tww_ros.node.conversions import answer_from, error_from_code, update_from
from tww_ros.node.spinning import SpinningNode, is_there
from tww_ros.node.waiting import Mailbox, wait, wait_async
from tww_ros.types import Answer, WatchUpdate

# The node keeps the time limit of a question; a client waits this much longer to hear about it.
GRACE_S = 5.0
# For a reply that needs no model.
REPLY_S = 10.0
# How a goal may end that did not succeed.
ENDS = {GoalStatus.STATUS_UNKNOWN: 'unknown to the node', GoalStatus.STATUS_ABORTED: 'aborted',
        GoalStatus.STATUS_CANCELED: 'cancelled'}

Item = TypeVar('Item')
Result = TypeVar('Result')


class GoalStream(ABC, Generic[Item, Result]):
    """timeout_s: the goal's own limit; 0 = none, then waiting has none either."""

    name = ''

    def __init__(self, spinning: SpinningNode, client: ActionClient, goal: Any,
                 timeout_s: float) -> None:
        self._spinning = spinning
        self._limit_s = timeout_s + GRACE_S if timeout_s else None
        self._is_there = partial(is_there, client)
        self._items: Mailbox[Item | None] = Mailbox()
        self._sent = spinning.call(client.send_goal_async, goal, feedback_callback=self._heard)
        self._handle: Any = None
        self._ended: Future = Future()

    def start(self) -> None:
        """Wait until the node has taken the goal."""
        with self._or_cancel():
            handle = wait(self._sent, REPLY_S, self.name, self._is_there)
        self._take(handle)

    async def start_async(self) -> None:
        """As start()."""
        with self._or_cancel():
            handle = await wait_async(self._sent, REPLY_S, self.name, self._is_there)
        self._take(handle)

    def __iter__(self) -> Iterator[Item]:
        """What comes until the end; AnswerTimeoutError when the node says no more."""
        while (item := wait(self._items.next(), self._limit_s, self.name,
                            self._is_there)) is not None:
            yield item
        # Who iterates once more gets nothing, and does not wait for it either.
        self._items.put(None)

    async def __aiter__(self) -> AsyncIterator[Item]:
        """As iterating."""
        while True:
            item = await wait_async(self._items.next(), self._limit_s, self.name,
                                    self._is_there)
            if item is None:
                break
            yield item
        self._items.put(None)

    def result(self, timeout_s: float | None = None) -> Result:
        """What it came to, or the error that ended it."""
        return self._told(self._outcome(timeout_s))

    async def result_async(self, timeout_s: float | None = None) -> Result:
        """As result()."""
        return self._told(await wait_async(
            self._ended, timeout_s or self._limit_s, self.name, self._is_there))

    def response(self, timeout_s: float | None = None) -> Any:
        """The result message as it came, error or not."""
        return self._outcome(timeout_s).result

    def cancel(self, timeout_s: float = REPLY_S) -> bool:
        """Ask the node to stop; True when it agreed, False when it had ended."""
        return self._stopped(wait(self._cancel(), timeout_s, self.name, self._is_there))

    async def cancel_async(self, timeout_s: float = REPLY_S) -> bool:
        """As cancel()."""
        return self._stopped(await wait_async(self._cancel(), timeout_s, self.name,
                                              self._is_there))

    @contextlib.contextmanager
    def _or_cancel(self) -> Iterator[None]:
        """Who gives up waiting for the goal to be taken cancels it, should that still happen."""
        try:
            yield
        except BaseException:
            self._sent.add_done_callback(self._cancel_late)
            raise

    def _cancel_late(self, sent: Future) -> None:
        if sent.exception() is None and sent.result().accepted:
            self._spinning.call(sent.result().cancel_goal_async)

    def _take(self, handle: Any) -> None:
        if not handle.accepted:
            raise QuestionError(f'{self.name}: the node rejected the goal without saying why')
        self._handle = handle
        self._ended = self._spinning.call(handle.get_result_async)
        self._ended.add_done_callback(self._finish)

    def _finish(self, ended: Future) -> None:
        self._items.put(None)

    def _outcome(self, timeout_s: float | None) -> Any:
        return wait(self._ended, timeout_s or self._limit_s, self.name, self._is_there)

    def _cancel(self) -> Future:
        return self._spinning.call(self._handle.cancel_goal_async)

    def _stopped(self, response: Any) -> bool:
        return bool(response.goals_canceling)

    def _told(self, outcome: Any) -> Result:
        result = outcome.result
        if result.error_code:
            raise error_from_code(result.error_code, result.error_msg)
        # What ends before the node could say why comes with an empty result.
        if outcome.status != GoalStatus.STATUS_SUCCEEDED:
            raise TwwError(f'{self.name}: expected a goal that succeeded, got one that is '
                           f'{ENDS.get(outcome.status, outcome.status)}, without an error; see '
                           'the log of the node')
        return self._read(result)

    @abstractmethod
    def _heard(self, message: Any) -> None:
        """Put what a feedback message tells among the items."""

    @abstractmethod
    def _read(self, result: Any) -> Result:
        """The result of a goal that ended well."""


class QueryStream(GoalStream[str, Answer]):
    """A question: pieces of text, then the Answer. queue_positions: as they were told."""

    name = 'query'

    def __init__(self, *args: Any) -> None:
        self.queue_positions: list[int] = []
        super().__init__(*args)

    def _heard(self, message: Any) -> None:
        feedback: Query.Feedback = message.feedback
        self.queue_positions.append(feedback.queue_position)
        if feedback.text_delta:
            self._items.put(feedback.text_delta)

    def _read(self, result: Query.Result) -> Answer:
        return answer_from(result)


class WatchStream(GoalStream[WatchUpdate, WatchUpdate]):
    """A standing question: each check, then the one by which it holds, with its evidence.

    last: the newest check heard of.
    """

    name = 'watch'

    def __init__(self, *args: Any) -> None:
        self.last: WatchUpdate | None = None
        super().__init__(*args)

    def _heard(self, message: Any) -> None:
        self._tell(update_from(message.feedback))

    def _finish(self, ended: Future) -> None:
        # The result may be quicker than the feedback of the same check.
        if ended.exception() is None and ended.result().result.checks:
            self._tell(update_from(ended.result().result))
        super()._finish(ended)

    def _tell(self, update: WatchUpdate) -> None:
        if self.last is None or update.checks > self.last.checks:
            self.last = update
            self._items.put(update)

    def _read(self, result: Watch.Result) -> WatchUpdate:
        return replace(update_from(result), holds=True)
