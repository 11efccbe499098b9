"""~/ask and ~/query: questions from ROS clients to the engine, and its answers back.

In: requests and goals. Out: responses, feedback, results. Nothing here blocks the executor: a
callback gives the question to the engine, awaits a Future, and the engine's thread rings when the
answer is there. Any number of questions may be under way; the engine decides the order.
Every error becomes an error code and a message; none leaves a callback, because an exception in a
callback ends the executor.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rclpy.action import ActionServer, CancelResponse
from rclpy.action.server import ServerGoalHandle
from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.node import Node
from rclpy.task import Future

from tww_interfaces.action import Query
from tww_interfaces.srv import Ask
from tww_ros.errors import CancelledError
from tww_ros.node.compat import Bell, set_period, steady_timer
from tww_ros.node.conversions import fill_answer, question_from, ros_string
from tww_ros.node.parameters import Parameters
from tww_ros.node.qos import ACTION_SERVER, MANY
from tww_ros.node.refusing import cancel, end_goal, refuse
from tww_ros.types import AnswerPiece


class Questions:
    """Serves Ask and Query on a node.

    engine: returns the running Engine, or raises EngineClosedError when there is none yet.
    """

    def __init__(self, node: Node, bell: Bell, parameters: Parameters,
                 engine: Callable[[], Any]) -> None:
        self._log = node.get_logger()
        self._bell = bell
        self._engine = engine
        self._streams: dict[bytes, _Stream] = {}
        self._active = 0
        # Reentrant: in an exclusive group one running answer would keep all other questions out.
        group = ReentrantCallbackGroup()
        node.create_service(Ask, '~/ask', self._on_ask, qos_profile=MANY, callback_group=group)
        self._server = ActionServer(
            node, Query, '~/query', execute_callback=self._on_query,
            cancel_callback=self._on_cancel, callback_group=group,
            result_timeout=parameters.node.result_timeout_s, **ACTION_SERVER)
        self._timer = steady_timer(node, parameters.node.feedback_period_s, self._send_feedback)
        self._timer.cancel()

    @property
    def active(self) -> int:
        """Questions whose response or result has not been sent yet."""
        return self._active

    def set_feedback_period(self, period_s: float) -> None:
        """Collect text for this long from now on."""
        set_period(self._timer, period_s)

    def close(self) -> None:
        """Destroy the action server (a node does not do it)."""
        self._server.destroy()

    async def _on_ask(self, request: Ask.Request, response: Ask.Response) -> Ask.Response:
        self._active += 1
        pending = None
        try:
            pending = self._start(request)
            fill_answer(response, await self._answer(pending))
        except Exception as error:
            self._refuse(response, error, pending)
        finally:
            self._active -= 1
        return response

    async def _on_query(self, goal: ServerGoalHandle) -> Query.Result:
        self._active += 1
        key = bytes(goal.goal_id.uuid)
        result, stream = Query.Result(), None
        try:
            if goal.is_cancel_requested:
                raise CancelledError('the question was cancelled before it was asked')
            stream = _Stream(goal, self._start(goal.request))
            self._streams[key] = stream
            # A timer that is reset over and over never rings.
            if self._timer.is_canceled():
                self._timer.reset()
            self._send_first_words(stream)
            answer = await self._answer(stream.pending)
            stream.send()
            fill_answer(result, answer)
            goal.succeed()
        except Exception as error:
            self._refuse(result, error, stream and stream.pending)
            end_goal(goal, error)
        finally:
            self._active -= 1
            self._streams.pop(key, None)
            if not self._streams:
                self._timer.cancel()
        return result

    def _start(self, request: Any) -> Any:
        return self._engine().ask(question_from(request))

    async def _answer(self, pending: Any) -> Any:
        future = Future()
        pending.add_done_callback(lambda done: self._bell.finish(future, True))
        await future
        return pending.result(timeout=0)

    def _refuse(self, response: Any, error: Exception, pending: Any) -> None:
        if pending is not None:
            response.answer = ros_string(pending.text())
        refuse(response, error, self._log, 'question not answered')

    def _on_cancel(self, goal: ServerGoalHandle) -> CancelResponse:
        stream = self._streams.get(bytes(goal.goal_id.uuid))
        return cancel(stream and stream.pending)

    def _send_first_words(self, stream: _Stream) -> None:
        """Feedback as soon as there is text; the timer sends the rest in batches."""
        first = iter((True,))

        def on_piece(_: AnswerPiece) -> None:
            if next(first, False):
                self._bell.call(stream.send)

        stream.pending.add_piece_listener(on_piece)

    def _send_feedback(self) -> None:
        for stream in list(self._streams.values()):
            try:
                stream.send()
            except Exception as error:  # the goal may end between two lines; others go on
                self._log.debug(f'feedback not sent: {error}')


class _Stream:
    """One action goal and its answer under way: sends as feedback what has been written."""

    def __init__(self, goal: ServerGoalHandle, pending: Any) -> None:
        self.pending = pending
        self._goal = goal
        self._sent = 0
        self._position = -1

    def send(self) -> None:
        """Publish what has changed since the last feedback."""
        position, text = self.pending.queue_position(), self.pending.text()
        if not self._goal.is_active or (len(text) == self._sent and position == self._position):
            return
        delta, self._sent, self._position = text[self._sent:], len(text), position
        self._goal.publish_feedback(Query.Feedback(text_delta=ros_string(delta),
                                                   queue_position=position))
