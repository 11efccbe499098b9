"""Where rclpy needs help: results from other threads, timers without /clock, clocks that go back.
Humble to Kilted.

What rclpy's executors do, and why `Bell` exists: a coroutine that awaits a Future is polled once
each time the executor wakes up, tasks in the order in which they were made.
`executor.create_task(future.set_result, x)` wakes it, but polls the coroutine *before* that task
runs and then sleeps again: measured 948 ms until the next unrelated event, against 0.5 ms with the
result set first and the executor woken afterwards. So: set, then ring.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.clock import Clock, ClockType, JumpHandle, JumpThreshold, TimeJump
from rclpy.duration import Duration
from rclpy.node import Node
from rclpy.task import Future
from rclpy.timer import Timer

NS_PER_S = 10**9


class Bell:
    """Brings calls and results from any thread into the executor of a node, without blocking.

    It is a guard condition, so it works with every executor, and what is rung before the node has
    an executor is done when it gets one.
    """

    def __init__(self, node: Node, on_error: Callable[[BaseException], None]) -> None:
        self._calls: deque[tuple[Callable[..., Any], tuple[Any, ...]]] = deque()
        self._on_error = on_error
        self._workers: set[threading.Thread] = set()
        self._guard = node.create_guard_condition(
            self._run, callback_group=ReentrantCallbackGroup())

    @property
    def working(self) -> bool:
        """Whether a thread of work() has not ended."""
        return any(worker.is_alive() for worker in list(self._workers))

    def call(self, function: Callable[..., Any], *args: Any) -> None:
        """Run function(*args) in the executor soon. Thread-safe."""
        self._calls.append((function, args))
        self._guard.trigger()

    def finish(self, future: Future, result: Any) -> None:
        """Set the result that a callback awaits, and let it go on at once. Thread-safe."""
        future.set_result(result)
        self._guard.trigger()

    async def work(self, function: Callable[..., Any], *args: Any,
                   name: str = 'tww-worker') -> Any:
        """Run function(*args) in a thread of its own and await its result, or its error.

        Only from the executor. A thread for each call: they are few, some take minutes, and the
        interpreter waits for the threads of a pool when it ends.
        """
        future, outcome = Future(), []

        def run() -> None:
            try:
                outcome[:] = [function(*args), None]
            except BaseException as error:
                outcome[:] = [None, error]
            self.finish(future, True)

        worker = threading.Thread(target=run, name=name, daemon=True)
        self._workers.add(worker)
        worker.start()
        await future
        # It has nothing left to do; who counts threads afterwards does not find it.
        worker.join()
        self._workers.discard(worker)
        result, error = outcome
        outcome.clear()
        if error is None:
            return result
        try:
            raise error
        finally:
            # Its traceback holds this frame: together they would keep alive all that failed.
            del error

    def join(self, timeout_s: float) -> bool:
        """Wait for the threads of work(), at the end, when the executor does not spin any more.

        False when one did not end in time.
        """
        end_s = time.monotonic() + timeout_s
        for worker in list(self._workers):
            worker.join(max(0.0, end_s - time.monotonic()))
        return not self.working

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


def set_period(timer: Timer, period_s: float) -> None:
    """Let a timer run with another period from now on."""
    timer.timer_period_ns = round(period_s * NS_PER_S)
    # The one under way is still the old one.
    if not timer.is_canceled():
        timer.reset()


def on_clock_back(node: Node, callback: Callable[[int, int], None]) -> JumpHandle:
    """Call callback(now_ns, back_ns) when the node's clock goes back, as a looping bag makes it.

    Only simulated time does so. The handle must be kept: without it there are no calls.
    """
    def after(jump: TimeJump) -> None:
        if jump.delta.nanoseconds < 0:
            callback(node.get_clock().now().nanoseconds, -jump.delta.nanoseconds)

    threshold = JumpThreshold(min_forward=None, min_backward=Duration(nanoseconds=-1),
                              on_clock_change=False)
    return node.get_clock().create_jump_callback(threshold, post_callback=after)
