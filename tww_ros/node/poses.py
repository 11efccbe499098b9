"""Where the robot was at the stamp of a frame: a pose topic, matched by header stamps.

In: nav_msgs/Odometry, geometry_msgs/PoseStamped or PoseWithCovarianceStamped. Out: the pose whose
stamp is nearest to a frame's, if it is within `pose_tolerance_s`; else none. A pose often arrives
a little later than the image that it belongs to: the frame then waits for it, WAIT_S at most after
its own arrival and in the thread that makes the image, never in the executor.

Only the newest KEPT_S seconds are kept, as bytes; a pose is deserialized when a frame takes it.
Stamps that go back by more than `watch.back_jump_s` empty the buffer: what was before belongs to
another epoch. The pose is that of the frame `header.frame_id`, as published: no transforms here.
"""

from __future__ import annotations

import math
import threading
import time
from bisect import bisect_left
from collections.abc import Callable
from typing import Any

from geometry_msgs.msg import PoseStamped, PoseWithCovarianceStamped
from nav_msgs.msg import Odometry
from rclpy.node import Node
from rclpy.serialization import deserialize_message

from tww_ros.errors import FrameError, TwwError
from tww_ros.node.diagnostics import TopicState
from tww_ros.node.listener import Listener, stamp_ns
from tww_ros.node.parameters import Parameters
from tww_ros.types import NS_PER_S, Pose

KINDS = {'odometry': Odometry, 'pose': PoseStamped,
         'pose_with_covariance': PoseWithCovarianceStamped}
QUEUE_DEPTH = 50
KEPT_S = 10.0
KEPT_POSES = 10_000
WAIT_S = 0.05
# A topic that has been silent for this long is not waited for.
SILENT_S = 1.0


class PoseBuffer:
    """The newest poses by stamp; add() and nearest() from any thread."""

    def __init__(self, tolerance_s: float, back_jump_s: float) -> None:
        self._tolerance_ns = round(tolerance_s * NS_PER_S)
        self._back_jump_ns = round(back_jump_s * NS_PER_S)
        self._kept_ns = round(KEPT_S * NS_PER_S)
        self._stamps: list[int] = []
        self._values: list[Any] = []
        self._added_s = -math.inf
        self._changed = threading.Condition()

    def add(self, stamp: int, value: Any) -> None:
        """Take one pose."""
        with self._changed:
            if self._stamps and self._stamps[-1] - stamp > self._back_jump_ns:
                self._stamps.clear()
                self._values.clear()
            place = bisect_left(self._stamps, stamp)
            if place < len(self._stamps) and self._stamps[place] == stamp:
                self._values[place] = value
            else:
                self._stamps.insert(place, stamp)
                self._values.insert(place, value)
            old = bisect_left(self._stamps, self._stamps[-1] - self._kept_ns)
            old = max(old, len(self._stamps) - KEPT_POSES)
            del self._stamps[:old], self._values[:old]
            self._added_s = time.monotonic()
            self._changed.notify_all()

    def nearest(self, stamp: int, until_s: float) -> Any:
        """The value nearest to a stamp within the tolerance, or None.

        While no pose from the stamp or later is there, waits for one until `until_s` of the
        steady clock, if poses come at all.
        """
        with self._changed:
            now_s = time.monotonic()
            if now_s - self._added_s < SILENT_S:
                self._changed.wait_for(lambda: self._has_from(stamp), max(0.0, until_s - now_s))
            place = bisect_left(self._stamps, stamp)
            near = range(max(0, place - 1), min(place + 1, len(self._stamps)))
            best = min(near, key=lambda at: abs(self._stamps[at] - stamp), default=None)
            if best is None or abs(self._stamps[best] - stamp) > self._tolerance_ns:
                return None
            return self._values[best]

    def _has_from(self, stamp: int) -> bool:
        place = bisect_left(self._stamps, stamp)
        return (place < len(self._stamps)
                and self._stamps[place] - stamp <= self._tolerance_ns)


class Poses:
    """Subscribes to `pose_topic` between open() and close().

    complain: tells of a bad message, from any thread.
    """

    def __init__(self, node: Node, parameters: Parameters,
                 complain: Callable[[str], None]) -> None:
        settings = parameters.node
        self._node = node
        self._complain = complain
        self._kind = KINDS[settings.pose_type]
        self._buffer = PoseBuffer(settings.pose_tolerance_s,
                                  parameters.engine.watch.back_jump_s)
        self._listener = Listener(
            node, 'pose', 'pose', settings.pose_topic, self._kind, self._on_pose,
            {kind: f'set pose_type to {name}' for name, kind in KINDS.items()},
            depth=QUEUE_DEPTH)

    def open(self) -> None:
        """Subscribe. Idempotent."""
        self._listener.open()

    def close(self) -> None:
        """Unsubscribe. Idempotent."""
        self._listener.close()

    def state(self) -> TopicState:
        """How the topic does now."""
        return self._listener.state()

    def at(self, stamp: int, arrived_s: float) -> Pose | None:
        """The pose for a frame that arrived then (steady clock); may wait, see above."""
        data = self._buffer.nearest(stamp, arrived_s + WAIT_S)
        if data is None:
            return None
        try:
            return pose_of(deserialize_message(data, self._kind), self._listener.topic)
        except TwwError as error:
            self._listener.tell_malformed(str(error))
            self._complain(f'pose ignored: {error}')
            return None

    def _on_pose(self, data: bytes) -> None:
        try:
            stamp = stamp_ns(data, self._listener.topic)
            if stamp <= 0:
                raise FrameError(f'{self._listener.topic}: the header stamp is {stamp} ns; '
                                 'expected the time of the pose; set it in the publisher')
            self._buffer.add(stamp, data)
        except TwwError as error:
            self._listener.tell_malformed(str(error))
            self._complain(f'pose ignored: {error}')


def pose_of(message: Any, topic: str) -> Pose:
    """Any of the KINDS → Pose with a unit quaternion; FrameError when it is none."""
    pose = message.pose if isinstance(message, PoseStamped) else message.pose.pose
    position = (pose.position.x, pose.position.y, pose.position.z)
    turn = (pose.orientation.x, pose.orientation.y, pose.orientation.z, pose.orientation.w)
    length = math.hypot(*turn)
    if not all(map(math.isfinite, position)) or not 0.5 < length < 2.0:
        raise FrameError(f'{topic}: expected finite numbers and a unit quaternion, got position '
                         f'{position} and orientation {turn}; check the publisher')
    if not message.header.frame_id:
        raise FrameError(f'{topic}: the header has no frame_id, so nobody knows where that is; '
                         'set it in the publisher, to map or odom')
    return Pose(message.header.frame_id, position, tuple(part / length for part in turn))
