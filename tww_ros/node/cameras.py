"""The cameras of a node: image topics → frames for the engine, and why none arrive.

    <camera>/image ─→ stamp ─→ take(LateFrame) ┄→ watched? ─→ deserialize, convert, pose ─→ Frame
       executor                                    the taker's thread

In: serialized messages, in the executor, where only the stamp is read. Out: frames whose images
are made when they are wanted, counters, and the state of each camera. A malformed image is told of
and ends no callback. It does not know who takes the frames.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

from rclpy.node import Node
from rclpy.serialization import deserialize_message
from sensor_msgs.msg import CompressedImage, Image

from tww_ros.errors import FrameError, TwwError
from tww_ros.node.bridge import image_to_rgb
from tww_ros.node.diagnostics import TopicState
from tww_ros.node.listener import Listener, stamp_ns
from tww_ros.node.parameters import Parameters
from tww_ros.node.poses import Poses
from tww_ros.types import Frame, LateFrame
from tww_ros.video.encodings import compressed_to_rgb

TRANSPORTS = {Image: 'set image_transport to raw', CompressedImage: 'set image_transport to '
                                                                    'compressed'}


class Cameras:
    """Subscribes to every camera of the parameters, and to the pose, between open() and close().

    take: gets each frame and says whether it was accepted; complain, on_error: tell of a bad image
    and of a fault of ours, from any thread.
    """

    def __init__(self, node: Node, parameters: Parameters, take: Callable[[LateFrame], bool],
                 complain: Callable[[str], None],
                 on_error: Callable[[BaseException], None]) -> None:
        self.watching = True
        self._node = node
        self._take = take
        self._complain = complain
        self._on_error = on_error
        self._rejected = 0
        self._ignored = 0
        self._listeners = {camera: self._listener(camera, parameters)
                           for camera in parameters.cameras}
        self._poses = Poses(node, parameters, complain) if parameters.node.pose_topic else None

    @property
    def received(self) -> int:
        """Image messages since the start, all cameras."""
        return sum(listener.messages for listener in self._listeners.values())

    @property
    def rejected(self) -> int:
        """Those without a usable stamp."""
        return self._rejected

    @property
    def ignored(self) -> int:
        """Those that nobody took: not watching, or no engine."""
        return self._ignored

    def open(self) -> None:
        """Subscribe. Idempotent."""
        if self._poses is not None:
            self._poses.open()
        for listener in self._listeners.values():
            listener.open()

    def close(self) -> None:
        """Unsubscribe. Idempotent."""
        for listener in self._listeners.values():
            listener.close()
        if self._poses is not None:
            self._poses.close()

    def states(self) -> list[TopicState]:
        """How each camera, and the pose topic, does now."""
        states = [listener.state() for listener in self._listeners.values()]
        return states if self._poses is None else [*states, self._poses.state()]

    def _listener(self, camera: str, parameters: Parameters) -> Listener:
        node = parameters.node
        kind, topic = Image, parameters.topic(camera)
        if node.image_transport == 'compressed':
            # As image_transport does: who remaps `image` means its compressed form too.
            kind, topic = CompressedImage, f'{self._node.resolve_topic_name(topic)}/compressed'
        return Listener(self._node, 'camera', camera, topic, kind, partial(self._on_image, camera),
                        TRANSPORTS, depth=node.image_queue_depth,
                        reliability=node.image_reliability, setting='image_reliability')

    def _on_image(self, camera: str, data: bytes) -> None:
        if not self.watching:
            self._ignored += 1
            return
        try:
            listener = self._listeners[camera]
            stamp = self._stamp_ns(data, listener.topic)
            read = partial(self._read, listener, camera, stamp, data, time.monotonic())
            if not self._take(LateFrame(stamp, camera, read)):
                self._ignored += 1
        except TwwError as error:
            self._rejected += 1
            self._complain(f'image rejected: {error}')
        except Exception as error:
            self._rejected += 1
            self._on_error(error)

    def _read(self, listener: Listener, camera: str, stamp: int, data: bytes,
              arrived_s: float) -> Frame | None:
        """The frame of a serialized image; None when there is something wrong with it."""
        try:
            message = deserialize_message(data, listener.kind)
            convert: Any = image_to_rgb if listener.kind is Image else compressed_to_rgb
            image = convert(message, listener.topic)
            pose = None if self._poses is None else self._poses.at(stamp, arrived_s)
            return Frame(stamp_ns=stamp, camera=camera, image=image, pose=pose)
        except TwwError as error:
            listener.tell_malformed(str(error))
            self._complain(f'image rejected: {error}')
        except Exception as error:
            self._on_error(error)
        return None

    def _stamp_ns(self, data: bytes, topic: str) -> int:
        stamp = stamp_ns(data, topic)
        if stamp == 0:
            self._complain(f'{topic}: the header stamp is 0; using the time of receipt, so stamps '
                           'are only as exact as that; set the stamp in the driver')
            return self._node.get_clock().now().nanoseconds
        if stamp < 0:
            raise FrameError(f'{topic}: the header stamp is {stamp} ns; expected 0 or more; '
                             'check the clock of the camera driver')
        return stamp
