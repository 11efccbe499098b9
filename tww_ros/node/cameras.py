"""The cameras of a node: image topics → frames for the engine, and why none arrive.

    <camera>/image ─→ convert ─→ take(Frame)

In: messages, in the executor. Out: frames, counters, and the state of each camera. A malformed
image is counted and told of; it never ends a callback. It does not know who takes the frames.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.node import Node
from rclpy.qos import HistoryPolicy, QoSProfile, ReliabilityPolicy
from rclpy.qos_overriding_options import QoSOverridingOptions
from sensor_msgs.msg import CompressedImage, Image

from tww_ros.errors import FrameError, TwwError
from tww_ros.node.conversions import from_time
from tww_ros.node.diagnostics import CameraState
from tww_ros.node.images import compressed_to_rgb, image_to_rgb
from tww_ros.node.parameters import Parameters
from tww_ros.types import Frame


class Cameras:
    """Subscribes to every camera of the parameters between open() and close().

    take: gets each frame and says whether it was accepted; complain, on_error: tell of a bad image
    and of a fault of ours.
    """

    def __init__(self, node: Node, parameters: Parameters, take: Callable[[Frame], bool],
                 complain: Callable[[str], None],
                 on_error: Callable[[BaseException], None]) -> None:
        self.watching = True
        self._node = node
        self._parameters = parameters
        self._take = take
        self._complain = complain
        self._on_error = on_error
        self._received = dict.fromkeys(parameters.cameras, 0)
        self._rejected = 0
        self._ignored = 0
        self._last_image_s = dict.fromkeys(parameters.cameras, time.monotonic())
        self._subscriptions: dict[str, Any] = {}

    @property
    def received(self) -> int:
        """Image messages since the start, all cameras."""
        return sum(self._received.values())

    @property
    def rejected(self) -> int:
        """Malformed ones."""
        return self._rejected

    @property
    def ignored(self) -> int:
        """Those that nobody took: not watching, or no engine."""
        return self._ignored

    def open(self) -> None:
        """Subscribe. Idempotent."""
        for camera in self._parameters.cameras:
            if camera not in self._subscriptions:
                self._last_image_s[camera] = time.monotonic()
                self._subscriptions[camera] = self._subscribe(camera)

    def close(self) -> None:
        """Unsubscribe. Idempotent."""
        while self._subscriptions:
            _, subscription = self._subscriptions.popitem()
            self._node.destroy_subscription(subscription)

    def states(self) -> list[CameraState]:
        """How each subscribed camera does now."""
        now_s = time.monotonic()
        return [CameraState(camera, subscription.topic_name, self._received[camera],
                            now_s - self._last_image_s[camera],
                            self._node.count_publishers(subscription.topic_name))
                for camera, subscription in self._subscriptions.items()]

    def _subscribe(self, camera: str) -> Any:
        node = self._parameters.node
        kind, convert, topic = Image, image_to_rgb, self._parameters.topic(camera)
        if node.image_transport == 'compressed':
            kind, convert = CompressedImage, compressed_to_rgb
            # As image_transport does: who remaps `image` means its compressed form too.
            topic = f'{self._node.resolve_topic_name(topic)}/compressed'
        reliability = (ReliabilityPolicy.RELIABLE if node.image_reliability == 'reliable'
                       else ReliabilityPolicy.BEST_EFFORT)
        subscription = self._node.create_subscription(
            kind, topic, partial(self._on_image, camera, convert),
            QoSProfile(depth=node.image_queue_depth, history=HistoryPolicy.KEEP_LAST,
                       reliability=reliability),
            callback_group=MutuallyExclusiveCallbackGroup(),
            qos_overriding_options=QoSOverridingOptions.with_default_policies())
        self._node.get_logger().info(f'camera {camera!r}: {subscription.topic_name} '
                                     f'({node.image_transport}, {node.image_reliability})')
        return subscription

    def _on_image(self, camera: str, convert: Any, message: Image | CompressedImage) -> None:
        self._received[camera] += 1
        self._last_image_s[camera] = time.monotonic()
        subscription = self._subscriptions.get(camera)
        if not self.watching or subscription is None:
            self._ignored += 1
            return
        topic = subscription.topic_name
        try:
            image = convert(message, topic)
            frame = Frame(stamp_ns=self._stamp_ns(message, topic), camera=camera, image=image)
            if not self._take(frame):
                self._ignored += 1
        except TwwError as error:
            self._rejected += 1
            self._complain(f'image rejected: {error}')
        except Exception as error:
            self._rejected += 1
            self._on_error(error)

    def _stamp_ns(self, message: Image | CompressedImage, topic: str) -> int:
        stamp_ns = from_time(message.header.stamp)
        if stamp_ns == 0:
            self._complain(f'{topic}: the header stamp is 0; using the time of receipt, so stamps '
                           'are only as exact as that; set the stamp in the driver')
            return self._node.get_clock().now().nanoseconds
        if stamp_ns < 0:
            raise FrameError(f'{topic}: the header stamp is {stamp_ns} ns; expected 0 or more; '
                             'check the clock of the camera driver')
        return stamp_ns
