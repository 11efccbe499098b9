"""CameraClient: start and stop `tabletop_camera` from Python, and hear what is on its table.

In: nothing but a ROS domain. Out: the messages of `~/truth`, decoded, in order. Like TwwClient it
spins a node of its own in a thread, and every call has a time limit.
"""

from __future__ import annotations

import json
import queue
import threading
import time
import uuid
from typing import Any

import rclpy
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.qos import QoSProfile, ReliabilityPolicy
from std_msgs.msg import String
from std_srvs.srv import SetBool

from tww_ros.errors import ReplayError

# Truths that may wait to be heard: as many as the camera keeps for its listeners.
DEPTH = 50


class CameraClient:
    """Blocking calls to the node `camera` (its full name). Close it, or use it in `with`."""

    def __init__(self, camera: str = '/tabletop_camera') -> None:
        self._context = rclpy.Context()
        rclpy.init(args=[], context=self._context)
        self._node = rclpy.create_node(
            f'camera_client_{uuid.uuid4().hex[:8]}', context=self._context, enable_rosout=False,
            use_global_arguments=False, start_parameter_services=False)
        self._truths: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._node.create_subscription(
            String, f'{camera}/truth', lambda got: self._truths.put(json.loads(got.data)),
            QoSProfile(depth=DEPTH, reliability=ReliabilityPolicy.RELIABLE))
        self._set_running = self._node.create_client(SetBool, f'{camera}/set_running')
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self._node)
        self._thread = threading.Thread(target=self._spin, name='camera-client', daemon=True)
        self._thread.start()

    def __enter__(self) -> CameraClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop spinning and leave ROS. Idempotent."""
        if not self._thread.is_alive():
            return
        rclpy.try_shutdown(context=self._context)
        self._thread.join(5.0)
        self._executor.shutdown(timeout_sec=1.0)
        self._node.destroy_node()

    def truths(self) -> list[dict[str, Any]]:
        """Those that have come since the last call."""
        return [self._truths.get() for _ in range(self._truths.qsize())]

    def set_running(self, running: bool, timeout_s: float = 30.0) -> str:
        """Let the world go on, or stop it; the camera's own words about it."""
        end_s = time.monotonic() + timeout_s
        done = threading.Event()
        if self._set_running.wait_for_service(timeout_s):
            future = self._set_running.call_async(SetBool.Request(data=running))
            future.add_done_callback(lambda _: done.set())
            if done.wait(max(0.0, end_s - time.monotonic())):
                return future.result().message
        raise ReplayError(f'{self._set_running.srv_name}: no reply within {timeout_s:g} s; start '
                          'tabletop_camera, and check ROS_DOMAIN_ID')

    def _spin(self) -> None:
        while self._context.ok():
            try:
                self._executor.spin_once(timeout_sec=0.5)
            except ExternalShutdownException:
                return
