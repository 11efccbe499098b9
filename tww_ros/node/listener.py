"""One subscription to stamped sensor messages that can tell how it does.

In: a topic and a message type. Out: the serialized bytes of each message, and a TopicState: how
often messages come, and why none do, with what to do about it. Messages are not deserialized here:
most images are left out by the sampler, and their stamp is all that is needed for that.

What does not match is read from the graph and not from QoS events: an event says that there once
was a mismatch, not whether there is one now, nor whose it is.
"""

from __future__ import annotations

import struct
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.node import Node
from rclpy.qos import (
    HistoryPolicy,
    QoSCompatibility,
    QoSProfile,
    ReliabilityPolicy,
    qos_check_compatible,
)
from rclpy.qos_overriding_options import QoSOverridingOptions

from tww_ros.errors import ConfigError, FrameError
from tww_ros.node.diagnostics import STALE_S, TopicState
from tww_ros.types import NS_PER_S

RATE_S = 5.0
MOMENTS_KEPT = 512
TOPICS_TOLD = 4
STAMP_END = 12


class Listener:
    """Subscribes between open() and close().

    types: message type → what to set so that it is the expected one; `kind` is among them.
    reliability: 'reliable' or 'best_effort'; setting: the parameter it comes from, if any.
    Raises ConfigError when there can be no such topic. `topic`: its full name, after remapping; to
    be read from any thread.
    """

    def __init__(self, node: Node, role: str, name: str, topic: str, kind: type,
                 take: Callable[[bytes], None], types: dict[type, str], *, depth: int,
                 reliability: str = 'best_effort', setting: str = '') -> None:
        self.malformed = ''
        self._node = node
        self._role, self._name = role, name
        self.kind = kind
        self._wanted_topic = topic
        try:
            self.topic = node.resolve_topic_name(topic)
        except RuntimeError as error:
            raise ConfigError(
                f'{role} {name!r}: expected a topic such as odom or /robot/odom, got {topic!r} '
                f'({error}); check cameras, pose_topic and remappings') from error
        self._take = take
        self._fixes = {_type_name(each): fix for each, fix in types.items()}
        self._depth, self._reliability, self._setting = depth, reliability, setting
        self._subscription: Any = None
        self._messages = 0
        self._opened_s = self._malformed_s = time.monotonic()
        self._moments: deque[float] = deque(maxlen=MOMENTS_KEPT)

    @property
    def messages(self) -> int:
        """Messages received since the start."""
        return self._messages

    def open(self) -> None:
        """Subscribe. Idempotent. ConfigError when its QoS overrides do not fit."""
        if self._subscription is not None:
            return
        self._opened_s = time.monotonic()
        self._moments.clear()
        reliability = (ReliabilityPolicy.RELIABLE if self._reliability == 'reliable'
                       else ReliabilityPolicy.BEST_EFFORT)
        try:
            self._subscription = self._node.create_subscription(
                self.kind, self._wanted_topic, self._on_message,
                QoSProfile(depth=self._depth, history=HistoryPolicy.KEEP_LAST,
                           reliability=reliability),
                callback_group=MutuallyExclusiveCallbackGroup(), raw=True,
                qos_overriding_options=QoSOverridingOptions.with_default_policies())
        except Exception as error:  # rclpy has a kind of its own for each value that is none
            raise ConfigError(
                f'{self.topic}: cannot be subscribed to: {error}; correct the parameters '
                f'{self._override("*")}, and start the node again') from error
        self._node.get_logger().info(
            f'{self._role} {self._name!r}: {self.topic} ({_type_name(self.kind)}, '
            f'{self._subscription.qos_profile.reliability.name.lower()})')

    def close(self) -> None:
        """Unsubscribe. Idempotent."""
        subscription, self._subscription = self._subscription, None
        if subscription is not None:
            self._node.destroy_subscription(subscription)

    def tell_malformed(self, text: str) -> None:
        """A message was refused; thread-safe."""
        self.malformed, self._malformed_s = text, time.monotonic()

    def state(self) -> TopicState:
        """How it does now."""
        now_s = time.monotonic()
        recent = [moment for moment in list(self._moments) if now_s - moment <= RATE_S]
        rate_hz = (len(recent) - 1) / (recent[-1] - recent[0]) if len(recent) > 1 else 0.0
        silent_s = now_s - (self._moments[-1] if self._moments else self._opened_s)
        matching, mismatch = self._publishers()
        return TopicState(
            kind=self._role, name=self._name, topic=self.topic, messages=self._messages,
            silent_s=silent_s, publishers=matching, rate_hz=rate_hz,
            subscribed=self._subscription is not None, mismatch=mismatch,
            elsewhere=() if matching or mismatch else self._elsewhere(),
            malformed=self.malformed if now_s - self._malformed_s < STALE_S else '')

    def _on_message(self, data: bytes) -> None:
        self._messages += 1
        self._moments.append(time.monotonic())
        self._take(data)

    def _publishers(self) -> tuple[int, str]:
        """How many match, and what keeps the first of the others from it."""
        if self._subscription is None:
            return 0, ''
        matching, mismatch = 0, ''
        topic, expected = self.topic, _type_name(self.kind)
        asked = self._subscription.qos_profile
        # It remaps what it is given, as a subscription does.
        for info in self._node.get_publishers_info_by_topic(self._wanted_topic):
            who = f'{info.node_namespace.rstrip("/")}/{info.node_name}'
            if info.topic_type != expected:
                fix = self._fixes.get(info.topic_type, 'give another topic')
                mismatch = mismatch or (f'{topic}: {who} publishes {info.topic_type} there, '
                                        f'expected {expected}; {fix}')
                continue
            compatibility, reason = qos_check_compatible(info.qos_profile, asked)
            if compatibility != QoSCompatibility.ERROR:
                matching += 1
            elif asked.reliability == ReliabilityPolicy.RELIABLE:
                mismatch = mismatch or (
                    f'{topic}: incompatible QoS: {who} offers best_effort and this node asks for '
                    f'reliable, so nothing comes; set {self._reliability_setting()} to '
                    'best_effort, or let the driver publish reliable')
            else:
                mismatch = mismatch or f'{topic}: incompatible QoS of {who}: {reason}'
        return matching, mismatch

    def _reliability_setting(self) -> str:
        return (self._setting if self._reliability == 'reliable'
                else self._override('reliability'))

    def _override(self, policy: str) -> str:
        return f'qos_overrides.{self.topic}.subscription.{policy}'

    def _elsewhere(self) -> tuple[str, ...]:
        """Other topics on which such messages are published."""
        own = self.topic
        found = [name for name, types in self._node.get_topic_names_and_types()
                 if name != own and self._fixes.keys() & set(types)
                 and self._node.count_publishers(name)]
        return tuple(sorted(found)[:TOPICS_TOLD])


def stamp_ns(data: bytes, topic: str) -> int:
    """Header stamp of a serialized message that begins with a header; the rest is not read."""
    if len(data) < STAMP_END:
        raise FrameError(f'{topic}: expected a message with a header, got {len(data)} bytes; '
                         'check that publisher and node have the same message types')
    # CDR: four bytes of encapsulation (odd: little endian), then int32 sec and uint32 nanosec.
    seconds, nanoseconds = struct.unpack_from('<iI' if data[1] & 1 else '>iI', data, 4)
    return seconds * NS_PER_S + nanoseconds


def _type_name(kind: type) -> str:
    return f'{kind.__module__.split(".")[0]}/msg/{kind.__name__}'
