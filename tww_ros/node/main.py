"""The program `tww_node`: one TwwNode in a single-threaded executor.

Exit codes: 0 after SIGINT or SIGTERM, 1 when the node cannot start by itself (`autostart`) or
fails, 2 when a parameter does not fit. Signals are handled here and not by rclpy, because rclpy's
handler closes the ROS context at once, and the clients that wait for an answer would never hear
that there is none.
"""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from types import FrameType

import rclpy
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.signals import SignalHandlerOptions

from tww_ros.errors import ConfigError
from tww_ros.node.node import LoadModel, TwwNode

# A signal is noticed when the executor wakes up; this is the longest it sleeps.
POLL_S = 0.2
# How long refusals of open questions get to reach their clients at the end.
LAST_WORDS_S = 1.0
OK, FAILED, BAD_PARAMETER = 0, 1, 2


def main(argv: Sequence[str] | None = None, load: LoadModel | None = None) -> int:
    """Run the node until a signal comes or it cannot start by itself; returns the exit code.

    argv: the command line with the program's name; load: as in TwwNode.
    A model that is still being loaded when the time to end has come ends the process right here.
    """
    code, working = _run(argv, load)
    if working:
        # A thread inside torch cannot be stopped, and the interpreter's own end aborts under it.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def _run(argv: Sequence[str] | None, load: LoadModel | None) -> tuple[int, bool]:
    """The exit code, and whether a thread of the node is still at work."""
    rclpy.init(args=list(sys.argv if argv is None else argv),
               signal_handler_options=SignalHandlerOptions.NO)
    stop = _Stop()
    try:
        try:
            node = TwwNode(load)
        except ConfigError as error:
            print(f'tww_node: {error}', file=sys.stderr)
            return BAD_PARAMETER, False
        executor = SingleThreadedExecutor()
        executor.add_node(node)
        ended = False
        try:
            _spin(executor, node, stop)
        finally:
            ended = node.close_engine()
            _say_last_words(executor, node)
            executor.shutdown(timeout_sec=LAST_WORDS_S)
            node.destroy_node()
        return FAILED if node.failed_to_start else OK, not ended
    finally:
        rclpy.try_shutdown()
        stop.restore()


class _Stop:
    """Turns SIGINT and SIGTERM into a flag; a second one ends the process as usual."""

    def __init__(self) -> None:
        self.asked = False
        self._before = {number: signal.signal(number, self._on_signal)
                        for number in (signal.SIGINT, signal.SIGTERM)}

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        self.restore()

    def restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


def _spin(executor: SingleThreadedExecutor, node: TwwNode, stop: _Stop) -> None:
    while not stop.asked and not node.failed_to_start:
        try:
            executor.spin_once(timeout_sec=POLL_S)
        except ExternalShutdownException:
            return
        except Exception as error:  # a fault in one callback must not end the others
            trace = ''.join(traceback.format_exception(error))
            node.get_logger().error(f'internal error in a callback, going on: {error}\n{trace}')


def _say_last_words(executor: SingleThreadedExecutor, node: TwwNode) -> None:
    """Spin until open questions are refused; the executor sends a result after its callback."""
    end_s = time.monotonic() + LAST_WORDS_S
    quiet_s = end_s
    while time.monotonic() < min(end_s, quiet_s):
        try:
            executor.spin_once(timeout_sec=LAST_WORDS_S / 20)
        except ExternalShutdownException:
            return
        except Exception as error:
            node.get_logger().debug(f'while shutting down: {error}')
        if not node.questions_active and quiet_s == end_s:
            quiet_s = time.monotonic() + LAST_WORDS_S / 10


if __name__ == '__main__':
    sys.exit(main())
