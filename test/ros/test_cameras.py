"""Cameras and the pose topic over real DDS: what does not match is told with its fix, pictures may
change in every way, and evidence says where the robot was."""

from __future__ import annotations

import array
import itertools
import struct
import threading
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import rclpy
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from nav_msgs.msg import Odometry
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.serialization import serialize_message
from ros.manager import until
from sensor_msgs.msg import CompressedImage, Image

from tww_interfaces.srv import Ask
from tww_ros.errors import ConfigError, FrameError
from tww_ros.node.client import TwwClient
from tww_ros.node.conversions import from_time, to_time
from tww_ros.node.listener import Listener, stamp_ns
from tww_ros.types import NS_PER_S

START_NS = 1_700_000_000 * NS_PER_S
WAIT_S = 20.0
# name → level, message and values of an entry of /diagnostics
Report = dict[str, tuple[bytes, str, dict[str, str]]]


class Robot:
    """The other side: drivers that publish, and a reader of /diagnostics."""

    def __init__(self) -> None:
        self._context = rclpy.Context()
        rclpy.init(args=[], context=self._context)
        self.node = Node('driver', namespace='/robot', context=self._context)
        self.reports: list[Report] = []
        self._changed = threading.Condition()
        self.node.create_subscription(DiagnosticArray, '/diagnostics', self._on_report, 10)
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self.node)
        self._thread = threading.Thread(target=self._spin, daemon=True)
        self._thread.start()

    def driver(self, topic: str, kind: type = Image, reliable: bool = True) -> object:
        reliability = ReliabilityPolicy.RELIABLE if reliable else ReliabilityPolicy.BEST_EFFORT
        return self.node.create_publisher(kind, topic, QoSProfile(depth=50,
                                                                  reliability=reliability))

    def wait_for(self, good: Callable[[Report], bool]) -> Report:
        """The first report that is good, from now on."""
        with self._changed:
            seen = len(self.reports)
            if not self._changed.wait_for(
                    lambda: any(good(report) for report in self.reports[seen:]), WAIT_S):
                pytest.fail(f'not in /diagnostics; the last was {self.reports[-1:]}')
            return next(report for report in self.reports[seen:] if good(report))

    def close(self) -> None:
        rclpy.try_shutdown(context=self._context)
        self._thread.join(5.0)

    def _on_report(self, message: DiagnosticArray) -> None:
        report = {each.name: (each.level, each.message,
                              {entry.key: entry.value for entry in each.values})
                  for each in message.status}
        with self._changed:
            self.reports.append(report)
            self._changed.notify_all()

    def _spin(self) -> None:
        try:
            self._executor.spin()
        except ExternalShutdownException:
            return


@pytest.fixture
def robot(ros_env: dict[str, str]) -> Iterator[Robot]:
    made = Robot()
    yield made
    made.close()


def image(t_s: float, width: int = 64, height: int = 48, encoding: str = 'rgb8',
          pixel_bytes: int = 3) -> Image:
    data = np.full(width * height * pixel_bytes, 99, np.uint8)
    made = Image(height=height, width=width, encoding=encoding, step=width * pixel_bytes,
                 data=array.array('B', data.tobytes()))
    made.header.stamp = to_time(START_NS + round(t_s * NS_PER_S))
    return made


def wait_for_subscriber(publisher: object) -> None:
    end_s = time.monotonic() + WAIT_S
    while not publisher.get_subscription_count():
        assert time.monotonic() < end_s, 'nobody subscribed'
        time.sleep(0.02)


def told(report: Report, name: str) -> str:
    return report[f'tww: {name}'][1]


@pytest.mark.parametrize('big_endian', [False, True])
def test_stamp_without_deserializing(big_endian: bool) -> None:
    message = image(1.25)
    message.header.frame_id = 'camera_link'
    data = bytes(serialize_message(message))
    if big_endian:
        stamp = message.header.stamp
        data = bytes([0, 0, 0, 0]) + struct.pack('>iI', stamp.sec, stamp.nanosec) + data[12:]
    assert stamp_ns(data, 'image') == START_NS + 1_250_000_000
    with pytest.raises(FrameError, match='got 11 bytes'):
        stamp_ns(data[:11], 'image')


@pytest.mark.timeout(60)
def test_each_mismatch_names_its_fix(robot: Robot) -> None:
    robot.driver('best', reliable=False)
    robot.driver('good')
    robot.driver('jpeg', CompressedImage)
    types = {Image: '', CompressedImage: ''}

    def state(topic: str) -> object:
        listener = Listener(robot.node, 'camera', 'front', topic, Image, print, types, depth=5,
                            reliability='reliable', setting='image_reliability')
        listener.open()
        try:
            end_s = time.monotonic() + WAIT_S
            while time.monotonic() < end_s:
                got = listener.state()
                if got.publishers or got.mismatch or got.elsewhere:
                    return got
                time.sleep(0.02)
            pytest.fail(f'nothing was discovered on {topic}')
        finally:
            listener.close()

    assert 'set image_reliability to best_effort' in state('best').mismatch
    assert '/robot/driver offers best_effort' in state('best').mismatch
    assert state('good').mismatch == '' and state('good').publishers == 1
    assert set(state('nothing').elsewhere) == {'/robot/best', '/robot/good', '/robot/jpeg'}


@pytest.mark.timeout(60)
def test_the_name_of_a_topic(robot: Robot) -> None:
    """Remapped once, known without the subscription, and refused when there can be none."""
    robot.driver('/right')
    node = Node('swapped', context=robot.node.context,
                cli_args=['--ros-args', '-r', '/left:=/right', '-r', '/right:=/left'])
    listener = Listener(node, 'camera', 'left', '/left', Image, print, {Image: ''}, depth=5)
    assert listener.topic == '/right'
    listener.open()
    until(lambda: listener.state().publishers == 1, 'the driver was not found')
    assert listener.state().topic == '/right'
    with pytest.raises(ConfigError, match='pose_topic'):
        Listener(node, 'pose', 'pose', '9 lives', Odometry, print, {Odometry: ''}, depth=5)
    listener.close()
    node.destroy_node()
    # The watcher's thread may still ask.
    assert listener.topic == '/right'


@pytest.mark.timeout(120)
def test_silence_is_explained_within_two_reports(start_node: Callable, robot: Robot) -> None:
    """Four cameras: no publisher, QoS that does not match by an override, a wrong type, and one
    that works; the two that can be mended then work too."""
    rear = robot.driver('/rear/image', reliable=False)
    robot.driver('/side/image', CompressedImage)
    left = robot.driver('/left/image', reliable=False)
    start_node({'cameras': '[front, rear, side, left]', 'image_reliability': 'best_effort',
                'pose_topic': 'odom', 'pose_type': 'pose',
                'qos_overrides./rear/image.subscription.reliability': 'reliable'},
               scripted_s=0.0)
    robot.driver('/odom', Odometry)
    with TwwClient() as client:
        client.wait_until_ready(90.0)
        wait_for_subscriber(left)
        left.publish(image(1.0))
        report = robot.wait_for(lambda report: 'no publisher' in told(report, 'camera front'))
        active = [each for each in robot.reports if 'scripted' in told(each, 'model')]
        assert active.index(report) <= 1
        assert told(report, 'camera front').startswith('/front/image: no publisher; remap it to')
        assert '/left/image' in told(report, 'camera front')
        assert ('set qos_overrides./rear/image.subscription.reliability to best_effort'
                in told(report, 'camera rear'))
        assert 'set image_transport to compressed' in told(report, 'camera side')
        assert 'set pose_type to odometry' in told(report, 'pose')
        assert {report[f'tww: camera {name}'][0] for name in ('front', 'rear', 'side')} == {
            DiagnosticStatus.WARN}
        assert report['tww: camera left'][0] == DiagnosticStatus.OK
        assert {name for name in report if name.startswith('tww: ')} == {
            f'tww: {part}' for part in (
                'camera front', 'camera rear', 'camera side', 'camera left', 'pose', 'ingest',
                'memory', 'model', 'queries', 'time')}

        # What the fix says, done on the other side.
        robot.node.destroy_publisher(rear)
        front, rear = robot.driver('/front/image'), robot.driver('/rear/image')
        wait_for_subscriber(front)
        wait_for_subscriber(rear)

        seconds = itertools.count(1.0, 0.1)

        def mended(report: Report) -> bool:
            # An image of a publisher that the node has not found yet is lost.
            for publisher in (front, rear):
                publisher.publish(image(next(seconds)))
            return all(report[f'tww: camera {name}'][0] == DiagnosticStatus.OK
                       for name in ('front', 'rear'))

        robot.wait_for(mended)
        assert client.get_status().images_received >= 3


@pytest.mark.timeout(120)
def test_pictures_may_change(start_node: Callable, robot: Robot) -> None:
    """Encoding and size from image to image; then a flood of which the sampler wants little."""
    camera = robot.driver('/image')
    node = start_node({'watch.sample_fps': 10.0}, scripted_s=0.0)
    encodings = {'rgb8': 3, 'bgr8': 3, 'rgba8': 4, 'bgra8': 4, 'mono8': 1, 'mono16': 2,
                 'bayer_rggb8': 1, 'yuv422': 2, 'yuv422_yuy2': 2}
    with TwwClient() as client:
        client.wait_until_ready(90.0)
        wait_for_subscriber(camera)
        for number, (encoding, size) in enumerate(encodings.items()):
            camera.publish(image(number * 0.1, 64 + 32 * (number % 3), 48, encoding, size))
        seen = client.wait_for(
            lambda status: status.frames_watched + status.frames_rejected == len(encodings),
            WAIT_S)
        assert seen.frames_rejected == 0, node.output
        assert client.ask('what?').as_of_ns == START_NS + 800_000_000

        # 30 images in 0.3 s, all malformed: only those that are wanted are looked at.
        for number in range(30):
            camera.publish(image(10.0 + number * 0.01, encoding='hologram'))
        seen = client.wait_for(lambda status: status.frames_received == len(encodings) + 30
                               and not status.frames_waiting, WAIT_S)
        assert (seen.frames_rejected, seen.frames_skipped) == (3, 27)
        assert seen.images_rejected == 0
        report = robot.wait_for(
            lambda report: report['tww: camera camera'][0] == DiagnosticStatus.WARN)
        assert "unknown encoding 'hologram'" in told(report, 'camera camera')


def odometry(t_s: float, x_m: float) -> Odometry:
    made = Odometry()
    made.header.frame_id = 'odom'
    made.header.stamp = to_time(START_NS + round(t_s * NS_PER_S))
    made.pose.pose.position.x, made.pose.pose.position.y = x_m, -2.0
    made.pose.pose.orientation.z, made.pose.pose.orientation.w = 0.6, 0.8
    return made


@pytest.mark.timeout(120)
def test_evidence_says_where(start_node: Callable, robot: Robot) -> None:
    """x = 10 t: segment [10, 10.9] s was seen last at 108.9 m; where no pose was near, none is."""
    camera, odom = robot.driver('/image'), robot.driver('/base/odom', Odometry)
    start_node({'watch.sample_fps': 10.0, 'watch.segment_s': 1.0, 'pose_topic': 'odom',
                'pose_tolerance_s': 0.1, 'note.enabled': False}, remap={'odom': '/base/odom'})
    with TwwClient() as client:
        client.wait_until_ready(90.0)
        wait_for_subscriber(camera)
        wait_for_subscriber(odom)
        sent = 0

        def drive(start_s: float, images: int, offset_m: float, posed: bool = True) -> None:
            """Odometry 10 ms before the stamp of each image, then the images."""
            nonlocal sent
            for number in range(images if posed else 0):
                t_s = start_s + number * 0.1 - 0.01
                odom.publish(odometry(t_s, offset_m + 10 * t_s))
                sent += 1
            robot.wait_for(lambda report: report['tww: pose'][2]['messages'] == str(sent))
            watched = client.status().frames_watched + images
            for number in range(images):
                camera.publish(image(start_s + number * 0.1))
            client.wait_for(lambda status: status.frames_watched == watched, WAIT_S)

        drive(10.0, 20, offset_m=0.0)
        drive(20.0, 5, offset_m=0.0, posed=False)
        response = client._call(client._ask, Ask.Request(question='where?', max_new_tokens=2),
                                WAIT_S)
        assert response.error_code == Ask.Response.NONE
        refs = {round((from_time(ref.start) - START_NS) / NS_PER_S, 1): ref
                for ref in response.evidence}
        assert sorted(refs) == [10.0, 11.0, 20.0]
        for start_s, x_m in ((10.0, 108.9), (11.0, 118.9)):
            goal = refs[start_s].pose
            assert refs[start_s].has_pose and goal.header.frame_id == 'odom'
            assert from_time(goal.header.stamp) == from_time(refs[start_s].end)
            assert goal.pose.position.x == pytest.approx(x_m)
            assert (goal.pose.position.y, goal.pose.position.z) == (-2.0, 0.0)
            assert (goal.pose.orientation.z, goal.pose.orientation.w) == pytest.approx((0.6, 0.8))
        assert not refs[20.0].has_pose

        # Back to 10 s, elsewhere: what was known of the first time does not count any more.
        drive(10.0, 10, offset_m=1_000.0)
        evidence, = client.ask('and now?', max_new_tokens=2).evidence
        assert evidence.pose.position_m[0] == pytest.approx(1_108.9)
        assert [info.pose is not None for info in client.segments()] == [True, True, False, True]
        report = robot.wait_for(lambda report: 'epoch 2 has begun' in told(report, 'time'))
        assert report['tww: time'][0] == DiagnosticStatus.WARN
