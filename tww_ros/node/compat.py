"""Where rclpy needs help: results from other threads, timers without /clock. Humble to Kilted.

What rclpy's executors do, and why `Bell` exists: a coroutine that awaits a Future is polled once
each time the executor wakes up, tasks in the order in which they were made.
`executor.create_task(future.set_result, x)` wakes it, but polls the coroutine *before* that task
runs and then sleeps again: measured 948 ms until the next unrelated event, against 0.5 ms with the
result set first and the executor woken afterwards. So: set, then ring.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.clock import Clock, ClockType
from rclpy.node import Node
from rclpy.task import Future
from rclpy.timer import Timer


class Bell:
    """Brings calls and results from any thread into the executor of a node, without blocking.

    It is a guard condition, so it works with every executor, and what is rung before the node has
    an executor is done when it gets one.
    """

    def __init__(self, node: Node, on_error: Callable[[BaseException], None]) -> None:
        self._calls: deque[tuple[Callable[..., Any], tuple[Any, ...]]] = deque()
        self._on_error = on_error
        self._guard = node.create_guard_condition(
            self._run, callback_group=ReentrantCallbackGroup())

    def call(self, function: Callable[..., Any], *args: Any) -> None:
        """Run function(*args) in the executor soon. Thread-safe."""
        self._calls.append((function, args))
        self._guard.trigger()

    def finish(self, future: Future, result: Any) -> None:
        """Set the result that a callback awaits, and let it go on at once. Thread-safe."""
        future.set_result(result)
        self._guard.trigger()

    def _run(self) -> None:
        while self._calls:
            function, args = self._calls.popleft()
            try:
                function(*args)
            except Exception as error:  # one call that fails must not end the node
                self._on_error(error)


def steady_timer(node: Node, period_s: float, callback: Callable[[], None]) -> Timer:
    """A timer on the steady clock: with use_sim_time others wait for /clock."""
    return node.create_timer(period_s, callback, callback_group=ReentrantCallbackGroup(),
                             clock=Clock(clock_type=ClockType.STEADY_TIME))
