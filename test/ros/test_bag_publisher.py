"""Recorded messages on live topics: order, stamps, /clock, remapping, flow control, refusals."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import rclpy
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.qos import QoSProfile
from rclpy.serialization import serialize_message
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import Image
from std_msgs.msg import String

from tww_ros.errors import ReplayError
from tww_ros.node.bag_publisher import publish_bag
from tww_ros.node.client import TwwClient
from tww_ros.node.conversions import from_time
from tww_ros.replay.bag import read_bag
from tww_ros.types import NS_PER_S

START_NS = 1_700_000_000 * NS_PER_S


@dataclass
class Recorded:
    """What a bag yields."""

    t_ns: int
    topic: str
    msgtype: str
    data: bytes


def text(number: int, t_s: float, topic: str = '/words') -> Recorded:
    return Recorded(START_NS + round(t_s * NS_PER_S), topic, 'std_msgs/msg/String',
                    serialize_message(String(data=str(number))))


class Listener:
    """Subscribes and keeps (topic, value) in the order of arrival."""

    def __init__(self, topics: dict[str, type]) -> None:
        self._context = rclpy.Context()
        rclpy.init(context=self._context)
        self._node = rclpy.create_node('listener', context=self._context)
        self.heard: list[tuple[str, Any]] = []
        for topic, kind in topics.items():
            self._node.create_subscription(
                kind, topic, lambda message, topic=topic: self.heard.append((topic, message)),
                QoSProfile(depth=1_000))
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self._node)
        self._thread = threading.Thread(target=self._spin, daemon=True)
        self._thread.start()

    def values(self, topic: str) -> list[Any]:
        return [message for name, message in self.heard if name == topic]

    def wait_for(self, count: int, topic: str) -> list[Any]:
        for _ in range(400):
            if len(self.values(topic)) >= count:
                return self.values(topic)
            time.sleep(0.025)
        pytest.fail(f'{len(self.values(topic))} of {count} messages arrived on {topic}')

    def _spin(self) -> None:
        try:
            self._executor.spin()
        except ExternalShutdownException:
            return

    def close(self) -> None:
        rclpy.try_shutdown(context=self._context)
        self._thread.join(10.0)
        self._node.destroy_node()


@pytest.fixture
def listen(ros_env: dict[str, str]) -> Iterator[Callable[[dict[str, type]], Listener]]:
    made: list[Listener] = []

    def make(topics: dict[str, type]) -> Listener:
        made.append(Listener(topics))
        return made[-1]

    yield make
    for listener in made:
        listener.close()


def test_every_message_in_order_with_a_clock(listen: Callable) -> None:
    listener = listen({'/clock': Clock, '/said': String})
    messages = [text(number, 0.05 * number) for number in range(20)] + [text(20, 2.0)]
    report = publish_bag(messages, rate=10.0, remap={'/words': '/said'})
    assert [message.data for message in listener.wait_for(21, '/said')] == [
        str(number) for number in range(21)]
    assert (report.messages, report.images, report.loops, report.lost) == (21, 0, 1, 0)
    # Nobody waits for those who follow /clock: the first tick may have gone by.
    ticks = [from_time(message.clock) for message in listener.wait_for(20 + 10, '/clock')]
    assert ticks == sorted(ticks)
    assert {message.t_ns for message in messages[1:]} <= set(ticks)
    assert max(after - before for before, after in pairwise(ticks)) <= NS_PER_S // 10


def test_arguments_of_the_program_are_not_for_ros(listen: Callable,
                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    listener = listen({'/said': String})
    # rcl refuses this rule when it is given it.
    monkeypatch.setattr(sys, 'argv', ['tww', '--ros-args', '-r', '/words:='])
    publish_bag([text(0, 0.0)], remap={'/words': '/said'})
    assert listener.wait_for(1, '/said')[0].data == '0'
    with TwwClient():
        pass


def test_rate_decides_the_pace(listen: Callable) -> None:
    listen({'/words': String})
    messages = [text(number, 0.1 * number) for number in range(6)]
    slow = publish_bag(messages, rate=1.0, clock=False)
    quick = publish_bag(messages, rate=50.0, clock=False)
    assert slow.seconds >= 0.5 and quick.seconds < slow.seconds


def test_loop_starts_over(listen: Callable) -> None:
    listener = listen({'/words': String})
    messages = [text(number, 0.01 * number) for number in range(3)]

    class Stop(Exception):
        """Ends the loop, as Ctrl-C would."""

    class Bag:
        read = 0

        def __iter__(self) -> Iterator[Recorded]:
            self.read += 1
            # Once to see that it can be read again, twice to publish it. What is on its way when
            # the publisher goes is lost, so all is heard before.
            if self.read > 3:
                listener.wait_for(6, '/words')
                raise Stop
            return iter(messages)

    with pytest.raises(Stop):
        publish_bag(Bag(), rate=10.0, loop=True, topics={'/words': 'std_msgs/msg/String'})
    values = [message.data for message in listener.wait_for(6, '/words')]
    assert values == ['0', '1', '2', '0', '1', '2']


def test_unknown_types_are_left_out_and_named(listen: Callable) -> None:
    listener = listen({'/words': String})
    messages = [text(0, 0.0), Recorded(START_NS, '/arm', 'no_such_msgs/msg/Arm', b'x')]
    report = publish_bag(messages)
    assert report.skipped_topics == ('/arm',) and report.topics == ('/words',)
    assert listener.wait_for(1, '/words')[0].data == '0'
    with pytest.raises(ReplayError, match='nothing to publish'):
        publish_bag(messages[1:])


@pytest.mark.parametrize(('options', 'reason'), [
    ({'wait_for_subscribers_s': 0.3}, 'nobody subscribed to /words within 0.3 s'),
    ({'rate': 0.0, 'wait_for_subscribers_s': 0.0}, '/tww/status, and nobody publishes it'),
    ({'rate': -1.0}, 'expected a rate ≥ 0'),
    ({'rate': float('nan')}, 'expected a rate ≥ 0'),
    ({'window': 0}, 'expected a window of at least 1'),
    ({'remap': {'/wrods': '/said'}}, 'cannot remap /wrods'),
])
def test_refusals(ros_env: dict[str, str], options: dict[str, Any], reason: str) -> None:
    with pytest.raises(ReplayError, match=reason):
        publish_bag([text(0, 0.0)], **options)


def test_messages_that_can_be_read_once(ros_env: dict[str, str]) -> None:
    with pytest.raises(ReplayError, match='can be read again'):
        publish_bag(iter([text(0, 0.0)]), loop=True)
    with pytest.raises(ReplayError, match='expected topics='):
        publish_bag(iter([text(0, 0.0)]))


@pytest.mark.timeout(180)
def test_as_fast_as_the_node_takes_it(start_node: Callable, bikes_bag: Path) -> None:
    """Rate 0 with a queue of four and a slow model: nothing is dropped, nothing is lost."""
    node = start_node({'watch.sample_fps': 60.0, 'watch.queue_frames': 4,
                       'step.read_ahead_patches': 1, 'use_sim_time': True}, scripted_s=0.01)
    with TwwClient() as client:
        report = publish_bag(read_bag(bikes_bag), rate=0.0, window=3)
        assert (report.images, report.lost) == (100, 0)
        status = client.wait_for(lambda status: status.frames_watched == 100, 30.0)
        assert status.frames_dropped == status.images_rejected == status.images_ignored == 0
        # The node follows the recorded time.
        assert abs(from_time(status.stamp) - from_time(status.newest)) < NS_PER_S
    node.stop()


@pytest.mark.timeout(120)
def test_node_that_goes_away(start_node: Callable, bikes_bag: Path) -> None:
    node = start_node({'watch.sample_fps': 60.0}, scripted_s=0.2)
    with TwwClient() as client:
        client.wait_until_ready(90.0)
        with ThreadPoolExecutor() as pool:
            replay = pool.submit(publish_bag, read_bag(bikes_bag), rate=0.0)
            client.wait_for(lambda status: status.images_received >= 1, 60.0)
            node.process.kill()
            with pytest.raises(ReplayError, match='has been silent'):
                replay.result(60.0)


@pytest.mark.timeout(120)
def test_node_without_a_model(start_node: Callable, bikes_bag: Path, ros_env: dict) -> None:
    """The replay waits while the model is loading, and says why when that fails."""
    start_node({'model': '/no/such/checkpoint'})
    with pytest.raises(ReplayError, match='the node failed: no checkpoint at'):
        publish_bag(read_bag(bikes_bag), wait_for_subscribers_s=60.0)


def test_image_bytes_arrive_unchanged(listen: Callable, bikes_bag: Path) -> None:
    listener = listen({'/image': Image})
    recorded = list(read_bag(bikes_bag))[:3]
    publish_bag(recorded, rate=10.0)
    for message, sent in zip(listener.wait_for(3, '/image'), recorded, strict=True):
        assert from_time(message.header.stamp) == sent.t_ns
        assert bytes(message.data) in sent.data
