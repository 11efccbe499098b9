"""What a lifecycle manager and a person at a terminal do, for the tests."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState, GetState
from rcl_interfaces.msg import Parameter as Message
from rcl_interfaces.srv import GetParameters, SetParameters
from rclpy.parameter import Parameter
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rosgraph_msgs.msg import Clock

from tww_ros.node.conversions import to_time
from tww_ros.node.spinning import SpinningNode
from tww_ros.node.waiting import wait

WAIT_S = 60.0
NUMBERS = {'configure': Transition.TRANSITION_CONFIGURE,
           'activate': Transition.TRANSITION_ACTIVATE,
           'deactivate': Transition.TRANSITION_DEACTIVATE,
           'cleanup': Transition.TRANSITION_CLEANUP}


class Manager:
    """Calls the services of /tww that every managed node has, and publishes /clock."""

    def __init__(self) -> None:
        self._spinning = SpinningNode('manager')
        self.node = self._spinning.node
        self._clients: dict[str, Any] = {}
        self._clock = self.node.create_publisher(
            Clock, '/clock', QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE))
        self._spinning.start()

    def __enter__(self) -> Manager:
        return self

    def __exit__(self, *_: object) -> None:
        self._spinning.close()

    def call(self, kind: Any, name: str, **fields: Any) -> Any:
        """A service of the node; the reply."""
        return wait(self.start(kind, name, **fields), WAIT_S, name)

    def start(self, kind: Any, name: str, **fields: Any) -> Any:
        """The same without waiting."""
        if name not in self._clients:
            self._clients[name] = self.node.create_client(kind, f'/tww/{name}')
            assert self._clients[name].wait_for_service(WAIT_S), name
        return self._spinning.call(self._clients[name].call_async, kind.Request(**fields))

    def change(self, *names: str) -> bool:
        """Transitions, as `ros2 lifecycle set` asks for them; whether all succeeded."""
        return all(self.call(ChangeState, 'change_state', transition=_transition(name)).success
                   for name in names)

    def start_change(self, name: str) -> Any:
        """The same without waiting; a future."""
        return self.start(ChangeState, 'change_state', transition=_transition(name))

    def state(self) -> str:
        """As `ros2 lifecycle get`."""
        return self.call(GetState, 'get_state').current_state.label

    def set_parameter(self, name: str, value: Any) -> str:
        """As `ros2 param set`; the reason when it was refused."""
        request = [Parameter(name, value=value).to_parameter_msg()]
        result, = self.call(SetParameters, 'set_parameters', parameters=request).results
        assert result.successful != bool(result.reason)
        return result.reason

    def get_parameter(self, name: str) -> Any:
        """As `ros2 param get`."""
        value, = self.call(GetParameters, 'get_parameters', names=[name]).values
        return Parameter.from_parameter_msg(Message(name=name, value=value)).value

    def set_clock(self, t_s: float) -> None:
        """Publish /clock once."""
        until(lambda: self._clock.get_subscription_count(), 'nobody follows /clock')
        self._clock.publish(Clock(clock=to_time(round(t_s * 1e9))))


def until(holds: Callable[[], Any], otherwise: str) -> None:
    """Wait until it holds."""
    end_s = time.monotonic() + WAIT_S
    while not holds():
        assert time.monotonic() < end_s, otherwise
        threading.Event().wait(0.02)


def _transition(name: str) -> Transition:
    # `shutdown` has another number in each state, and one label.
    if name == 'shutdown':
        return Transition(label=name)
    return Transition(id=NUMBERS[name])
