"""SpinningNode: a node of one's own, spun in a thread, for programs that are no ROS nodes.

In: a name. Out: a node to make clients and subscriptions on, and futures for any thread, which
fail when it is closed before they are done. It has its own ROS context, so it can be used beside
any other ROS code, and several can live in one process.
"""

from __future__ import annotations

import threading
import uuid
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import rclpy
from rclpy.action import ActionClient
from rclpy.client import Client
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor

from tww_ros.errors import EngineClosedError
from tww_ros.node.waiting import fail, shared


class SpinningNode:
    """Make it, then what hangs on `node`, then start()."""

    def __init__(self, prefix: str, domain_id: int | None = None) -> None:
        self._context = rclpy.Context()
        # The arguments of the program that uses it are none of its business.
        rclpy.init(args=[], context=self._context, domain_id=domain_id)
        # A name of its own, and no /rosout: two of them in one process would share both.
        self.node = rclpy.create_node(
            f'{prefix}_{uuid.uuid4().hex[:8]}', context=self._context, enable_rosout=False,
            use_global_arguments=False, start_parameter_services=False)
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self.node)
        self._thread = threading.Thread(target=self._spin, name=prefix.replace('_', '-'),
                                        daemon=True)
        self._lock = threading.Lock()
        self._closed = False
        # Those that somebody may wait for.
        self._shared: weakref.WeakSet[Future] = weakref.WeakSet()

    def start(self) -> None:
        """Spin from now on."""
        self._thread.start()

    def call(self, function: Callable[..., Any], *args: Any, **options: Any) -> Future:
        """Call what returns an rclpy future in the spinning thread; that future's result.

        Humble's ActionClient has no lock: a reply that is quicker than the caller would be lost.
        """
        async def ask() -> Any:
            return await function(*args, **options)
        return self.share(self._executor.create_task(ask))

    def share(self, future: Any) -> Future:
        """The result of an rclpy future of this node, for any thread.

        EngineClosedError when this is closed before it has come.
        """
        made = shared(future)
        with self._lock:
            self._shared.add(made)
            closed = self._closed
        if closed:
            fail(made, _closed())
        return made

    def close(self, *before: Callable[[], None]) -> None:
        """Stop spinning, call `before`, destroy the node and leave ROS. Idempotent."""
        if not self._thread.is_alive():
            return
        rclpy.try_shutdown(context=self._context)
        self._thread.join(5.0)
        with self._lock:
            self._closed = True
            left = list(self._shared)
        for future in left:
            fail(future, _closed())
        for destroy in before:
            destroy()
        self._executor.shutdown(timeout_sec=1.0)
        self.node.destroy_node()

    def _spin(self) -> None:
        while self._context.ok():
            try:
                self._executor.spin_once(timeout_sec=0.5)
            except ExternalShutdownException:
                return
            except Exception:
                # The future of the call that failed holds it for the caller.
                continue


def is_there(client: ActionClient | Client) -> bool:
    """Whether somebody serves what a client calls; from any thread."""
    ready = (client.server_is_ready if isinstance(client, ActionClient)
             else client.service_is_ready)
    try:
        return ready()
    except RuntimeError:
        # The client was destroyed meanwhile.
        return False


def _closed() -> EngineClosedError:
    return EngineClosedError('the client was closed before the reply came; make another one')
