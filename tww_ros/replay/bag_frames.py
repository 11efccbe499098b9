"""The pictures of a bag: recorded image messages → frames, camera by camera, without ROS.

In: a bag, and which topic is which camera. Out: (t_ns, Frame) in recorded order; t_ns is when the
message was received, the frame's stamp is its header's, as a node that hears the replay takes it.
One message is in memory at a time. A picture that cannot be read is counted and left out, as the
node does; the first one of every camera must be readable.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tww_ros.errors import FrameError, ReplayError
from tww_ros.replay.bag import BagInfo, BagMessage, bag_info, read_bag
from tww_ros.types import NS_PER_S, Frame
from tww_ros.video.encodings import compressed_to_rgb, image_to_rgb

CONVERT: dict[str, Callable[[Any, str], Any]] = {
    'sensor_msgs/msg/Image': image_to_rgb,
    'sensor_msgs/msg/CompressedImage': compressed_to_rgb,
}


class BagFrames:
    """Iterate over it for (t_ns, Frame); each `for` starts from the beginning.

    cameras: camera → topic; without it every image topic is a camera, named by `camera_name`.
    unreadable: pictures left out so far. Raises ReplayError.
    """

    def __init__(self, path: str | Path, cameras: Mapping[str, str] | None = None) -> None:
        self.info = bag_info(path)
        self.cameras = _chosen(self.info, cameras or {})
        self.unreadable = 0

    def __iter__(self) -> Iterator[tuple[int, Frame]]:
        from rosbags.typesys import Stores, get_typestore
        # These two messages are the same in every distribution since Foxy.
        store = get_typestore(Stores.ROS2_HUMBLE)
        names = {topic: name for name, topic in self.cameras.items()}
        self.unreadable, seen = 0, set()
        for message in read_bag(self.info.path, topics=list(names)):
            camera = names[message.topic]
            try:
                frame = _frame(store, message, camera)
            except FrameError as error:
                if camera not in seen:
                    raise ReplayError(
                        f'{self.info.path}: the first picture of camera {camera!r} cannot be '
                        f'read: {error}; or name the topics to watch as cameras') from error
                self.unreadable += 1
                continue
            seen.add(camera)
            yield message.t_ns, frame


def camera_name(topic: str) -> str:
    """'/front/image' → 'front', '/image' → 'camera', '/a/b/image_raw/compressed' → 'a/b'."""
    parts = topic.removesuffix('/compressed').strip('/').split('/')
    return '/'.join(parts[:-1]) or 'camera'


def _chosen(info: BagInfo, cameras: Mapping[str, str]) -> dict[str, str]:
    """Camera → topic, every topic an image topic of the bag."""
    images = [topic.name for topic in info.topics if topic.msgtype in CONVERT]
    if not images:
        raise ReplayError(f'{info.path}: expected sensor_msgs/Image or CompressedImage, got '
                          f'{", ".join(sorted({t.msgtype for t in info.topics})) or "no topics"}')
    for camera, topic in cameras.items():
        if topic not in images:
            raise ReplayError(f'{info.path}: camera {camera!r}: expected an image topic of this '
                              f'bag ({", ".join(images)}), got {topic!r}')
    if cameras:
        if len(set(cameras.values())) < len(cameras):
            raise ReplayError(f'{info.path}: expected another topic for each camera, got '
                              f'{", ".join(cameras.values())}')
        return dict(cameras)
    named: dict[str, str] = {}
    for topic in images:
        camera = camera_name(topic)
        if camera in named:
            raise ReplayError(f'{info.path}: {named[camera]} and {topic} would both be camera '
                              f'{camera!r}; name the topics to watch as cameras')
        named[camera] = topic
    return named


def _frame(store: Any, message: BagMessage, camera: str) -> Frame:
    try:
        decoded = store.deserialize_cdr(message.data, message.msgtype)
    except Exception as error:  # struct, assert, Unicode: whatever its generated code meets
        raise FrameError(f'{message.topic}: the message of {len(message.data)} bytes is no '
                         f'{message.msgtype} ({type(error).__name__}); record it again') from error
    image = CONVERT[message.msgtype](decoded, message.topic)
    stamp = decoded.header.stamp
    # As the node does: a driver that does not stamp its images gets the time of receipt.
    stamp_ns = stamp.sec * NS_PER_S + stamp.nanosec or message.t_ns
    return Frame(stamp_ns, camera, image)
