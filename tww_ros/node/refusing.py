"""What could not be done: told to who asked for it, and in the log.

In: an error, and the response or the goal that it ends. Out: an error code and a message; a line
in the log, with the trace when it is a fault of ours. Nothing is raised, because an exception in a
callback ends the executor.
"""

from __future__ import annotations

import traceback
from typing import Any

from rclpy.action import CancelResponse
from rclpy.action.server import ServerGoalHandle
from rclpy.impl.rcutils_logger import RcutilsLogger

from tww_ros.errors import CancelledError, TwwError
from tww_ros.node.conversions import fill_error


def refuse(response: Any, error: Exception, log: RcutilsLogger, what: str) -> None:
    """Fill in the error of a response or result; what: the beginning of the line in the log."""
    fill_error(response, error)
    if isinstance(error, TwwError):
        log.info(f'{what}: {response.error_msg}')
    else:
        trace = ''.join(traceback.format_exception(error))
        log.error(f'{what}: {response.error_msg}\n{trace}')


def end_goal(goal: ServerGoalHandle, error: Exception) -> None:
    """Canceled, when that is what was asked for; aborted otherwise."""
    if isinstance(error, CancelledError) and goal.is_cancel_requested:
        goal.canceled()
    else:
        goal.abort()


def cancel(pending: Any) -> CancelResponse:
    """Stop what a goal has begun; None: it has not been executed and will see the request."""
    if pending is not None:
        pending.cancel()
    return CancelResponse.ACCEPT
