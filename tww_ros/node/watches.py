"""~/watch: standing questions from ROS clients to the engine, and word of each check back.

In: goals. Out: feedback at each check, the result when it holds. As in questions.py nothing blocks
the executor, every error becomes an error code and a message, and none leaves a callback.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rclpy.action import ActionServer, CancelResponse
from rclpy.action.server import ServerGoalHandle
from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.node import Node
from rclpy.task import Future

from tww_interfaces.action import Watch
from tww_ros.errors import CancelledError, UnknownCameraError
from tww_ros.node.compat import Bell
from tww_ros.node.conversions import fill_update, watch_from
from tww_ros.node.parameters import Parameters
from tww_ros.node.qos import ACTION_SERVER
from tww_ros.node.refusing import cancel, end_goal, refuse
from tww_ros.types import WatchUpdate


class Watches:
    """Serves Watch on a node.

    engine: returns the running Engine, or raises EngineClosedError when there is none.
    """

    def __init__(self, node: Node, bell: Bell, parameters: Parameters,
                 engine: Callable[[], Any]) -> None:
        self._log = node.get_logger()
        self._bell = bell
        self._parameters = parameters
        self._engine = engine
        self._pending: dict[bytes, Any] = {}
        self._active = 0
        # Reentrant: in an exclusive group one watch would keep all others out.
        self._server = ActionServer(
            node, Watch, '~/watch', execute_callback=self._on_watch,
            cancel_callback=self._on_cancel, callback_group=ReentrantCallbackGroup(),
            result_timeout=parameters.node.result_timeout_s, **ACTION_SERVER)

    @property
    def active(self) -> int:
        """Watches whose result has not been sent yet."""
        return self._active

    def close(self) -> None:
        """Destroy the action server (a node does not do it)."""
        self._server.destroy()

    async def _on_watch(self, goal: ServerGoalHandle) -> Watch.Result:
        self._active += 1
        key = bytes(goal.goal_id.uuid)
        result, pending = Watch.Result(), None
        try:
            if goal.is_cancel_requested:
                raise CancelledError('the watch was cancelled before it began')
            pending = self._start(goal)
            self._pending[key] = pending
            done = Future()
            pending.add_done_callback(lambda _: self._bell.finish(done, True))
            await done
            fill_update(result, pending.result(timeout=0))
            goal.succeed()
        except Exception as error:
            if pending is not None and pending.last is not None:
                fill_update(result, pending.last)
            refuse(result, error, self._log, 'watch ended')
            end_goal(goal, error)
        finally:
            self._active -= 1
            self._pending.pop(key, None)
        return result

    def _start(self, goal: ServerGoalHandle) -> Any:
        engine, question = self._engine(), watch_from(goal.request)
        unknown = sorted(set(question.cameras) - set(self._parameters.cameras))
        if unknown:
            raise UnknownCameraError(f'no camera {", ".join(unknown)}; this node watches '
                                     f'{", ".join(self._parameters.cameras)}')
        pending = engine.watch(question)
        pending.add_listener(lambda update: self._bell.call(self._send, goal, update))
        return pending

    def _send(self, goal: ServerGoalHandle, update: WatchUpdate) -> None:
        if goal.is_active:
            feedback = Watch.Feedback()
            fill_update(feedback, update)
            goal.publish_feedback(feedback)

    def _on_cancel(self, goal: ServerGoalHandle) -> CancelResponse:
        return cancel(self._pending.get(bytes(goal.goal_id.uuid)))
