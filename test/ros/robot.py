"""A robot for tests: images and odometry with stamps of this test's choosing, over real DDS."""

from __future__ import annotations

import threading
import time

from nav_msgs.msg import Odometry
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image

from tww_ros.node.conversions import to_time
from tww_ros.node.spinning import SpinningNode

S = 1_000_000_000
FOUND_S = 20.0


class Robot:
    """Publishes on `image` and `odom` as soon as somebody subscribes to both."""

    def __init__(self, odometry: bool = True) -> None:
        self._spinning = SpinningNode('robot')
        node = self._spinning.node
        reliable = QoSProfile(depth=50, reliability=ReliabilityPolicy.RELIABLE)
        self._image = node.create_publisher(Image, 'image', reliable)
        self._odometry = node.create_publisher(Odometry, 'odom', reliable) if odometry else None
        self._ending = threading.Event()
        self._thread: threading.Thread | None = None
        self._spinning.start()

    def __enter__(self) -> Robot:
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        if self._thread is not None:
            self._thread.join()
        self._spinning.close()

    def wait_until_watched(self) -> None:
        """Until the node has subscribed."""
        end_s = time.monotonic() + FOUND_S
        topics = [topic for topic in (self._image, self._odometry) if topic is not None]
        while not all(topic.get_subscription_count() for topic in topics):
            assert time.monotonic() < end_s, f'nobody subscribed within {FOUND_S} s'
            time.sleep(0.01)

    def see(self, stamp_ns: int, x_m: float = 0.0) -> None:
        """One image, taken x metres from the origin."""
        if self._odometry is not None:
            where = Odometry()
            where.header.frame_id, where.header.stamp = 'map', to_time(stamp_ns)
            where.pose.pose.position.x = x_m
            self._odometry.publish(where)
        image = Image(height=64, width=64, encoding='rgb8', step=192,
                      data=bytes([stamp_ns // S % 256]) * (64 * 192))
        image.header.stamp = to_time(stamp_ns)
        self._image.publish(image)

    def drive(self, first_s: float, last_s: float, fps: float = 2.0) -> None:
        """Images from first to last (exclusive), one metre a second; as fast as they go.

        Not from 0: a camera without stamps says 0, and the node takes its own time instead.
        """
        for number in range(round((last_s - first_s) * fps)):
            at_s = first_s + number / fps
            self.see(round(at_s * S), at_s)

    def stare(self) -> None:
        """Ten images a second with the time of this machine, until the end."""
        def look() -> None:
            while not self._ending.wait(0.1):
                self.see(time.time_ns())

        self._thread = threading.Thread(target=look, daemon=True)
        self._thread.start()
