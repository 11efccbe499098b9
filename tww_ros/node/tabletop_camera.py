"""The program `tabletop_camera`: a simulated camera above a table on which hands move things.

    image, camera_info   as a camera driver publishes them (sensor-data QoS), stamped by the node's
                         clock
    ~/truth              std_msgs/String, JSON: what is on the table in the frame of that stamp
    ~/set_running        std_srvs/SetBool: false stops the world, true lets it go on

A picture of more than 416 px is larger than the shared memory of Fast DDS (512 KiB), and most of
those get lost when an end is best effort: of 10 a second, 2 to 4 came through at 480 px, all at
416. Larger ones need reliable ends: qos_overrides./image.publisher.reliability:=reliable here, and
the subscribers' own setting.

The world is endless and follows from its seed and pace alone: frame and truth at `t_s` are those
of `world.render` and `world.truth` for `simulate(seed, …)`. It runs in the time of the node's
clock; a machine that is too slow gets fewer frames of the same world. Exit codes: 0 after SIGINT,
SIGTERM or duration_s, 2 when a parameter does not fit.
"""

from __future__ import annotations

import array
import json
import math
import signal
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import rclpy
from rclpy.exceptions import InvalidParameterTypeException, InvalidParameterValueException
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.qos_overriding_options import QoSOverridingOptions
from rclpy.signals import SignalHandlerOptions
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import String
from std_srvs.srv import SetBool

from tww_ros.config import setting, settings
from tww_ros.errors import ConfigError
from tww_ros.node.conversions import to_time
from tww_ros.node.parameters import descriptor
from tww_ros.types import NS_PER_S
from tww_ros.world.render import Renderer
from tww_ros.world.table import TEST_SEEDS, TRAIN_SEEDS, Episode, Pace, simulate
from tww_ros.world.truth import truth_at

NS_PER_MS = 1_000_000
# A signal is noticed when the executor wakes up; this is the longest it sleeps.
POLL_S = 0.2
# How much of the world is simulated at first; twice as much each time its end comes near.
HORIZON_S = 3_600.0
# An event lasts less than this.
LONGEST_EVENT_S = 10.0
FIELD_OF_VIEW_DEG = 60.0
TRUTH_DEPTH = 50
# What Fast DDS carries in one piece, less a header.
SHARED_MEMORY_BYTES = 512 * 1024 - 4_096
OK, BAD_PARAMETER = 0, 2


@dataclass(frozen=True)
class PaceConfig:
    """How lively the world is."""

    gap_s: float = setting(Pace.gap_s, 'mean rest between two events, beyond '
                                       f'{Pace.rest_s:g} s', low=0.1, high=3_600.0)


@dataclass(frozen=True)
class TabletopConfig:
    """Parameters of the node."""

    rate_hz: float = setting(10.0, 'frames per second', low=0.1, high=120.0)
    size_px: int = setting(384, 'width and height of the picture; above 416, make both ends '
                                'reliable (qos_overrides)', low=32, high=2_048)
    seed: int = setting(
        TEST_SEEDS.start, f'which world; training saw some of those below {TEST_SEEDS.start}',
        low=TRAIN_SEEDS.start, high=TEST_SEEDS.stop - 1)
    duration_s: float = setting(0.0, 'the program ends after that much of the world; 0 = never',
                                low=0.0, high=1e6)
    frame_id: str = setting('tabletop_camera_optical_frame', 'frame_id of the headers')
    start_paused: bool = setting(False, 'nothing happens and nothing is published until '
                                        '~/set_running, or see wait_for_subscriber')
    wait_for_subscriber: bool = setting(True, 'with start_paused: start when image has its first '
                                              'subscriber')
    pace: PaceConfig = field(default_factory=PaceConfig)


class TabletopCamera(Node):
    """The node `tabletop_camera`; `finished` is true once duration_s is over.

    Raises ConfigError, or one of rclpy's InvalidParameter…Exceptions, when a parameter does not
    fit.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__('tabletop_camera', **options)
        self.config = config = _declare(self)
        self.finished = False
        self._pace = Pace(gap_s=config.pace.gap_s)
        self._episode = simulate(config.seed, HORIZON_S, self._pace)
        self._renderer = Renderer(self._episode, config.size_px)
        # World time (ns) that is over, and the clock's time when it was 0; None while it stands.
        self._elapsed_ns = 0
        self._origin_ns: int | None = None
        self._starts_itself = config.wait_for_subscriber or not config.start_paused

        self._image = self._sensor_publisher(Image, 'image')
        self._info = self._sensor_publisher(CameraInfo, 'camera_info')
        self._truth = self.create_publisher(String, '~/truth', TRUTH_DEPTH)
        self._pinhole = pinhole(config.size_px)
        self.create_service(SetBool, '~/set_running', self._on_set_running)
        self.create_timer(1.0 / config.rate_hz, self._on_timer)
        waits = '' if not config.start_paused else (
            '; waiting for a subscriber' if config.wait_for_subscriber else
            '; waiting for ~/set_running')
        self.get_logger().info(f'world {config.seed}: {config.size_px}×{config.size_px} px at '
                               f'{config.rate_hz:g} Hz on {self._image.topic_name}{waits}')
        if 3 * config.size_px ** 2 > SHARED_MEMORY_BYTES and \
                self._image.qos_profile.reliability != ReliabilityPolicy.RELIABLE:
            self.get_logger().warning(
                f'pictures of {config.size_px} px may get lost on their way; make both ends '
                f'reliable (qos_overrides.{self._image.topic_name}.publisher.reliability:='
                'reliable) or lower size_px to 416')

    def _sensor_publisher(self, kind: type, topic: str) -> Publisher:
        # rclpy writes overrides into the profile it is given, so each publisher has its own.
        profile = QoSProfile(depth=5, reliability=ReliabilityPolicy.BEST_EFFORT)
        return self.create_publisher(
            kind, topic, profile,
            qos_overriding_options=QoSOverridingOptions.with_default_policies())

    def _on_timer(self) -> None:
        now_ns = self.get_clock().now().nanoseconds
        if self._origin_ns is None:
            if not self._starts_itself or (
                    self.config.start_paused and self._image.get_subscription_count() == 0):
                return
            self._origin_ns = now_ns - self._elapsed_ns
        if now_ns - self._origin_ns < self._elapsed_ns:
            # The clock was set back, as a replay does that starts over; the world goes on.
            self._origin_ns = now_ns - self._elapsed_ns
        self._elapsed_ns = now_ns - self._origin_ns
        t_s = round(self._elapsed_ns / NS_PER_MS) / 1_000
        if 0 < self.config.duration_s < t_s:
            self.finished = True
            return
        self._publish(now_ns, t_s)

    def _publish(self, stamp_ns: int, t_s: float) -> None:
        episode = self._world_until(t_s)
        info = self._pinhole
        info.header.stamp = to_time(stamp_ns)
        info.header.frame_id = self.config.frame_id
        if self._image.get_subscription_count() > 0:
            self._image.publish(image_message(self._renderer.frame(t_s), info.header))
        self._info.publish(info)
        truth = {'stamp_ns': stamp_ns, 'seed': self.config.seed, 'gap_s': self._pace.gap_s,
                 **truth_at(episode, t_s).to_json()}
        self._truth.publish(String(data=json.dumps(truth)))

    def _world_until(self, t_s: float) -> Episode:
        """The world, simulated beyond t_s; a longer simulation begins like a shorter one."""
        if t_s + LONGEST_EVENT_S > self._episode.duration_s:
            self._episode = simulate(self.config.seed, 2 * self._episode.duration_s, self._pace)
            self._renderer.episode = self._episode
        return self._episode

    def _on_set_running(self, request: SetBool.Request,
                        response: SetBool.Response) -> SetBool.Response:
        self._starts_itself = False
        if not request.data:
            self._origin_ns = None
        elif self._origin_ns is None:
            self._origin_ns = self.get_clock().now().nanoseconds - self._elapsed_ns
        response.success = True
        response.message = (f'the world {"runs" if request.data else "stands"} at '
                            f'{self._elapsed_ns / NS_PER_S:.1f} s')
        return response


def image_message(frame: np.ndarray, header: Any) -> Image:
    """uint8 [H, W, 3] RGB → sensor_msgs/Image."""
    height, width = frame.shape[:2]
    message = Image(header=header, height=height, width=width, encoding='rgb8', step=3 * width)
    # An array is taken as it is; of bytes, rclpy checks every single one.
    message.data = array.array('B', frame.tobytes())
    return message


def pinhole(size_px: int) -> CameraInfo:
    """Intrinsics of an ideal camera with FIELD_OF_VIEW_DEG, without its header."""
    focal_px = size_px / 2 / math.tan(math.radians(FIELD_OF_VIEW_DEG / 2))
    middle_px = (size_px - 1) / 2
    return CameraInfo(
        height=size_px, width=size_px, distortion_model='plumb_bob', d=[0.0] * 5,
        k=[focal_px, 0.0, middle_px, 0.0, focal_px, middle_px, 0.0, 0.0, 1.0],
        r=[1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0],
        p=[focal_px, 0.0, middle_px, 0.0, 0.0, focal_px, middle_px, 0.0, 0.0, 0.0, 1.0, 0.0])


def main(argv: Sequence[str] | None = None) -> int:
    """Run the camera until a signal comes or duration_s is over; returns the exit code."""
    rclpy.init(args=list(sys.argv if argv is None else argv),
               signal_handler_options=SignalHandlerOptions.NO)
    stop = threading.Event()
    before = {number: signal.signal(number, lambda *_: stop.set())
              for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        try:
            node = TabletopCamera()
        except (ConfigError, InvalidParameterTypeException,
                InvalidParameterValueException) as error:
            print(f'tabletop_camera: {error}', file=sys.stderr)
            return BAD_PARAMETER
        executor = SingleThreadedExecutor()
        executor.add_node(node)
        try:
            while not (stop.is_set() or node.finished):
                executor.spin_once(timeout_sec=POLL_S)
        except ExternalShutdownException:
            pass
        finally:
            executor.shutdown(timeout_sec=1.0)
            node.destroy_node()
        return OK
    finally:
        rclpy.try_shutdown()
        for number, handler in before.items():
            signal.signal(number, handler)


def _declare(node: Node) -> TabletopConfig:
    """Declare every parameter on the node and read it."""
    values = {entry.name: entry.check(node.declare_parameter(
        entry.name, entry.default, descriptor(entry)).value) for entry in settings(TabletopConfig)}
    pace = PaceConfig(gap_s=values.pop('pace.gap_s'))
    return TabletopConfig(**values, pace=pace)


if __name__ == '__main__':
    sys.exit(main())
