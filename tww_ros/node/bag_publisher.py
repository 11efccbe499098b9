"""Recorded messages → live topics, in real time, faster, or as fast as the node takes them.

In: messages in recorded order (`tww_ros.replay.bag.read_bag`, or anything with its four fields),
still in CDR bytes; they are published as they are, never decoded. Out: a PublishReport.

    rate > 0     message t is published at start + (t - t0) / rate
    rate = 0     the next image is published when fewer than `window` are on their way: published
                 here and not yet taken from the queue of the node, as its ~/status says

/clock is published before every message and at least every 0.1 s of recorded time, so that nodes
with use_sim_time see a smooth clock. Publishers are reliable: they match every subscriber, but a
best-effort one may still lose images. It has a ROS context of its own, so any process may call it.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import rclpy
from rclpy.duration import Duration
from rclpy.executors import SingleThreadedExecutor
from rclpy.publisher import Publisher
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rosgraph_msgs.msg import Clock

from tww_interfaces.msg import MemoryStatus
from tww_ros.errors import ReplayError
from tww_ros.node.conversions import to_time
from tww_ros.types import NS_PER_S

IMAGE_TYPES = ('sensor_msgs/msg/Image', 'sensor_msgs/msg/CompressedImage')
CLOCK_STEP_NS = NS_PER_S // 10
PUBLISHER_DEPTH = 32
# No progress for this long with images on their way: a best-effort subscriber has lost them.
LOST_AFTER_S = 3.0
ACKNOWLEDGE_S = 5.0


class RecordedMessage(Protocol):
    """One message of a bag; data: CDR bytes, or a ROS message."""

    t_ns: int
    topic: str
    msgtype: str
    data: Any


@dataclass(frozen=True)
class PublishReport:
    """What was published; lost: images that no subscriber ever took (best effort), rate 0 only."""

    messages: int
    images: int
    loops: int
    seconds: float
    topics: tuple[str, ...]
    skipped_topics: tuple[str, ...]
    lost: int = 0


def publish_bag(messages: Iterable[RecordedMessage], *, rate: float = 1.0, loop: bool = False,
                clock: bool = True, remap: Mapping[str, str] | None = None,
                flow_node: str = 'tww', wait_for_subscribers_s: float = 10.0,
                progress: bool = False, topics: Mapping[str, str] | None = None,
                window: int = 8) -> PublishReport:
    """Publish recorded messages and return when the last one was delivered.

    rate: times real time; 0 = as fast as the node `flow_node` takes them.
    loop: start over at the end, for ever (end it with Ctrl-C); stamps jump back, as in ros2 bag.
    remap: recorded topic → topic to publish on.
    wait_for_subscribers_s: nothing is published before a subscriber has matched and the flow node,
        when there is one, has loaded its model; 0 = do not wait.
    topics: topic → type; needed only when `messages` can be iterated once and is no bag.
    window: images on their way at rate 0; not above the node's image_queue_depth.
    Raises ReplayError when nobody listens, when a rate is negative, or when the node goes away.
    """
    if not rate >= 0:
        raise ReplayError(f'expected a rate ≥ 0 (0 = as fast as the node takes it), got {rate}')
    if window < 1:
        raise ReplayError(f'expected a window of at least 1 image, got {window}')
    if loop and iter(messages) is messages:
        raise ReplayError('loop needs messages that can be read again, got an iterator that ends; '
                          'pass the bag itself')
    kinds = dict(topics) if topics is not None else _topics_of(messages)
    context = rclpy.Context()
    # `tww replay --topic-map /a:=/b` is not an argument for rcl, which would warn about it.
    rclpy.init(args=[], context=context)
    try:
        session = _Session(context, kinds, dict(remap or {}), clock, flow_node, window)
        try:
            session.wait_until_heard(wait_for_subscribers_s, needs_flow=rate == 0)
            return session.run(messages, rate, loop, progress)
        finally:
            session.close()
    finally:
        rclpy.try_shutdown(context=context)


class _Session:
    """Publishers, the clock and the flow control of one publish_bag call."""

    def __init__(self, context: rclpy.Context, kinds: dict[str, str], remap: dict[str, str],
                 clock: bool, flow_node: str, window: int) -> None:
        if unknown := sorted(set(remap) - set(kinds)):
            raise ReplayError(f'cannot remap {", ".join(unknown)}: expected topics of the bag '
                              f'({", ".join(sorted(kinds))})')
        self._node = rclpy.create_node(
            'tww_replay', context=context, enable_rosout=False, use_global_arguments=False,
            start_parameter_services=False)
        self._executor = SingleThreadedExecutor(context=context)
        self._executor.add_node(self._node)
        self._window = window
        self._publishers: dict[str, Publisher] = {}
        self._images: set[str] = set()
        self.skipped: list[str] = []
        for topic, kind in kinds.items():
            message_type = _message_type(kind)
            if message_type is None or topic == '/clock':
                self.skipped.append(topic)
                continue
            self._publishers[topic] = self._node.create_publisher(
                message_type, remap.get(topic, topic), _qos(topic))
            if kind in IMAGE_TYPES:
                self._images.add(topic)
        # Ticks follow each other quickly at high rates: a busy subscriber must not lose any.
        self._clock = self._node.create_publisher(Clock, '/clock', 100) if clock else None
        self._clock_ns: int | None = None
        self._status: MemoryStatus | None = None
        self._status_topic = f'/{flow_node.strip("/")}/status'
        self._status_s = 0.0
        self._node.create_subscription(
            MemoryStatus, self._status_topic, self._on_status,
            QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE,
                       durability=DurabilityPolicy.TRANSIENT_LOCAL))
        self._taken_before = 0
        self._sent_images = 0
        self._lost = 0

    def close(self) -> None:
        self._executor.shutdown(timeout_sec=1.0)
        self._node.destroy_node()

    def wait_until_heard(self, timeout_s: float, needs_flow: bool) -> None:
        """Until an image topic (any topic, when there is none) has a subscriber that is ready."""
        awaited = self._images or set(self._publishers)
        if not awaited:
            raise ReplayError(f'nothing to publish: none of the topics {sorted(self.skipped)} '
                              'has a message type that is installed here')
        end_s = time.monotonic() + timeout_s
        while True:
            heard = any(self._publishers[topic].get_subscription_count() for topic in awaited)
            if self._status is not None and self._status.state == MemoryStatus.FAILED:
                raise ReplayError(f'the node failed: {self._status.last_error}')
            loading = (self._status is not None and self._status.state == MemoryStatus.LOADING
                       and time.monotonic() - self._status_s < LOST_AFTER_S)
            # A status on its way may say that the model is not there yet.
            unheard = self._status is None and (
                needs_flow or self._node.count_publishers(self._status_topic) > 0)
            if heard and not loading and not unheard:
                break
            # A node that says that it is loading its model is worth waiting for.
            if time.monotonic() >= end_s and not loading:
                if timeout_s > 0 and not heard:
                    names = ', '.join(sorted(self._publishers[topic].topic_name
                                             for topic in awaited))
                    raise ReplayError(
                        f'nobody subscribed to {names} within {timeout_s:g} s; start the node '
                        'first, check ROS_DOMAIN_ID, or remap the topics to those it listens to')
                if needs_flow and self._status is None:
                    raise ReplayError(
                        f'rate 0 follows {self._status_topic}, and nobody publishes it; start the '
                        'node, name it with flow_node, or give a rate')
                break
            self._spin(0.05)
        self._taken_before = self._taken()

    def run(self, messages: Iterable[RecordedMessage], rate: float, loop: bool,
            progress: bool) -> PublishReport:
        started_s = time.monotonic()
        sent, loops = 0, 0
        while True:
            start_s, first_ns = time.monotonic(), None
            for message in _shown(messages, progress):
                publisher = self._publishers.get(message.topic)
                if publisher is None:
                    continue
                if first_ns is None:
                    first_ns = self._clock_ns = message.t_ns
                self._advance(message.t_ns, first_ns, start_s, rate)
                if rate == 0 and message.topic in self._images:
                    self._wait_for_room(self._window)
                self._tick(message.t_ns)
                publisher.publish(message.data)
                sent += 1
                self._sent_images += message.topic in self._images
            loops += 1
            if not loop or first_ns is None:
                break
        if rate == 0:
            self._wait_for_room(1)
        seconds = time.monotonic() - started_s
        for publisher in self._publishers.values():
            publisher.wait_for_all_acked(Duration(seconds=ACKNOWLEDGE_S))
        return PublishReport(
            messages=sent, images=self._sent_images, loops=loops,
            seconds=seconds, topics=tuple(sorted(self._publishers)),
            skipped_topics=tuple(sorted(self.skipped)), lost=self._lost)

    def _advance(self, t_ns: int, first_ns: int, start_s: float, rate: float) -> None:
        """Let recorded time run to t_ns, with /clock on the way."""
        while self._clock is not None and t_ns - self._clock_ns > CLOCK_STEP_NS:
            self._sleep_until(self._clock_ns + CLOCK_STEP_NS, first_ns, start_s, rate)
            self._tick(self._clock_ns + CLOCK_STEP_NS)
        self._sleep_until(t_ns, first_ns, start_s, rate)

    def _sleep_until(self, t_ns: int, first_ns: int, start_s: float, rate: float) -> None:
        if rate == 0:
            self._spin(0.0)
            return
        end_s = start_s + (t_ns - first_ns) / NS_PER_S / rate
        while (left_s := end_s - time.monotonic()) > 0:
            self._spin(left_s)

    def _tick(self, t_ns: int) -> None:
        self._clock_ns = t_ns
        if self._clock is not None:
            self._clock.publish(Clock(clock=to_time(t_ns)))

    def _wait_for_room(self, window: int) -> None:
        """Until fewer than `window` images are on their way."""
        progress_s, before = time.monotonic(), self._taken()
        while self._under_way() >= window:
            self._spin(0.05)
            now_s = time.monotonic()
            if self._taken() != before:
                progress_s, before = now_s, self._taken()
            if now_s - progress_s < LOST_AFTER_S:
                continue
            if now_s - self._status_s > LOST_AFTER_S:
                raise ReplayError(f'{self._status_topic} has been silent for {LOST_AFTER_S:g} s; '
                                  'the node has ended or hangs')
            if self._status.frames_waiting == 0:
                # The node is idle, so what it has not received will never arrive.
                self._lost += self._under_way()
                self._taken_before -= self._under_way()

    def _under_way(self) -> int:
        return self._sent_images - (self._taken() - self._taken_before)

    def _taken(self) -> int:
        """Images that the node has received and is done with."""
        status = self._status
        return 0 if status is None else status.images_received - status.frames_waiting

    def _on_status(self, status: MemoryStatus) -> None:
        self._status, self._status_s = status, time.monotonic()

    def _spin(self, seconds: float) -> None:
        self._executor.spin_once(timeout_sec=seconds)


def _topics_of(messages: Iterable[RecordedMessage]) -> dict[str, str]:
    """Topic → type of a bag (it knows them), or of anything that can be iterated again."""
    if (info := getattr(messages, 'info', None)) is not None:
        chosen = set(messages.topics)
        return {topic.name: topic.msgtype for topic in info.topics if topic.name in chosen}
    if iter(messages) is messages:
        raise ReplayError('expected topics={topic: type} for messages that can be read only once')
    return {message.topic: message.msgtype for message in messages}


def _message_type(name: str) -> Any:
    """'sensor_msgs/msg/Image' → its class; None when that package is not installed."""
    package, _, kind = name.partition('/msg/')
    try:
        return getattr(importlib.import_module(f'{package}.msg'), kind, None)
    except ImportError:
        return None


def _qos(topic: str) -> QoSProfile:
    static = topic.endswith('tf_static')
    return QoSProfile(
        depth=PUBLISHER_DEPTH, reliability=ReliabilityPolicy.RELIABLE,
        durability=DurabilityPolicy.TRANSIENT_LOCAL if static else DurabilityPolicy.VOLATILE)


def _shown(messages: Iterable[RecordedMessage], progress: bool) -> Iterator[RecordedMessage]:
    if not progress:
        yield from messages
        return
    from tqdm import tqdm
    info = getattr(messages, 'info', None)
    yield from tqdm(messages, total=info.messages if info is not None else None, unit='msg',
                    desc='replay', disable=None)
