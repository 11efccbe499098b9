"""CameraClient: start and stop `tabletop_camera` from Python, and hear what is on its table.

In: nothing but a ROS domain. Out: the messages of `~/truth`, decoded, in order. Like TwwClient it
spins a node of its own in a thread, and every call has a time limit.
"""

from __future__ import annotations

import contextlib
import json
import queue
import time
from typing import Any

from rclpy.qos import QoSProfile, ReliabilityPolicy
from std_msgs.msg import String
from std_srvs.srv import SetBool

from tww_ros.errors import AnswerTimeoutError, ReplayError
from tww_ros.node.spinning import SpinningNode
from tww_ros.node.waiting import shared, wait

# Truths that may wait to be heard: as many as the camera keeps for its listeners.
DEPTH = 50


class CameraClient:
    """Blocking calls to the node `camera` (its full name). Close it, or use it in `with`."""

    def __init__(self, camera: str = '/tabletop_camera') -> None:
        self._spinning = SpinningNode('camera_client')
        node = self._spinning.node
        self._truths: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        node.create_subscription(
            String, f'{camera}/truth', lambda got: self._truths.put(json.loads(got.data)),
            QoSProfile(depth=DEPTH, reliability=ReliabilityPolicy.RELIABLE))
        self._set_running = node.create_client(SetBool, f'{camera}/set_running')
        self._spinning.start()

    def __enter__(self) -> CameraClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop spinning and leave ROS. Idempotent."""
        self._spinning.close()

    def truths(self) -> list[dict[str, Any]]:
        """Those that have come since the last call."""
        return [self._truths.get() for _ in range(self._truths.qsize())]

    def set_running(self, running: bool, timeout_s: float = 30.0) -> str:
        """Let the world go on, or stop it; the camera's own words about it."""
        end_s = time.monotonic() + timeout_s
        if self._set_running.wait_for_service(timeout_s):
            future = self._set_running.call_async(SetBool.Request(data=running))
            left_s = max(0.0, end_s - time.monotonic())
            with contextlib.suppress(AnswerTimeoutError):
                return wait(shared(future), left_s, self._set_running.srv_name).message
        raise ReplayError(f'{self._set_running.srv_name}: no reply within {timeout_s:g} s; start '
                          'tabletop_camera, and check ROS_DOMAIN_ID')
