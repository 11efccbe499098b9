"""ManagedNode: a lifecycle node that goes on answering while a transition takes its time.

    ~/change_state ─→ state machine: configuring ─→ await on_configure() ─→ inactive ─→ response
                      meanwhile: ~/get_state, parameters, questions, topics, everything else

rclpy runs a transition inside the callback of ~/change_state. A model that takes a minute to load
would freeze parameters, sim time and every service of the node for that minute, with
MultiThreadedExecutor at least ~/get_state and all callbacks of that group, and each callback of
the node would have to be made safe against all others. So here that callback is a coroutine, like
those of the questions: what takes long runs in a thread and is awaited, in one single-threaded
executor. The state machine, its services and its transition events are rclpy's own.

A request that comes while a transition is under way is refused, as one that is not possible from
the present state.
"""

from __future__ import annotations

from typing import Any

from lifecycle_msgs.msg import State
from lifecycle_msgs.srv import ChangeState
from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.impl.implementation_singleton import rclpy_implementation as _rclpy
from rclpy.lifecycle import LifecycleNodeMixin, LifecycleState, TransitionCallbackReturn
from rclpy.node import Node

SUCCESS, FAILURE, ERROR = (TransitionCallbackReturn.SUCCESS, TransitionCallbackReturn.FAILURE,
                           TransitionCallbackReturn.ERROR)


class ManagedNode(LifecycleNodeMixin, Node):
    """Its on_configure, on_activate, … are coroutines.

    Use `await change_state(…)` in place of rclpy's trigger_… methods, which cannot await.
    """

    def __init__(self, name: str, **options: Any) -> None:
        Node.__init__(self, name, **options)
        # Reentrant: a transition under way must not keep ~/get_state out.
        LifecycleNodeMixin.__init__(self, callback_group=ReentrantCallbackGroup())
        self._service_change_state.callback = self._on_change_state
        self._transition = ''

    @property
    def lifecycle_state(self) -> str:
        """'unconfigured', 'configuring', 'inactive', …: as `ros2 lifecycle get` says."""
        return self._state_machine.current_state[1]

    async def change_state(self, transition_id: int) -> bool:
        """One transition, by its number in lifecycle_msgs/Transition; whether it succeeded."""
        before = LifecycleState(label=self.lifecycle_state,
                                state_id=self._state_machine.current_state[0])
        if self._transition:
            self.get_logger().warning(f'a change of state was refused: the node is '
                                      f'{self._transition}; try again when that is done')
            return False
        try:
            self._state_machine.trigger_transition_by_id(transition_id, True)
        except _rclpy.RCLError:
            self.get_logger().error(f'transition {transition_id} is not possible from state '
                                    f'{before.label!r}; see `ros2 lifecycle list`')
            return False
        self._transition = self.lifecycle_state
        try:
            outcome = await self._run(before)
            self._state_machine.trigger_transition_by_label(outcome.to_label(), True)
            if outcome == ERROR:
                handled = await self._run(before)
                self._state_machine.trigger_transition_by_label(handled.to_label(), True)
        finally:
            self._transition = ''
        return outcome == SUCCESS

    async def _run(self, before: LifecycleState) -> TransitionCallbackReturn:
        """The callback of the transition state that the machine is in now."""
        work = {
            State.TRANSITION_STATE_CONFIGURING: self.on_configure,
            State.TRANSITION_STATE_CLEANINGUP: self.on_cleanup,
            State.TRANSITION_STATE_ACTIVATING: self.on_activate,
            State.TRANSITION_STATE_DEACTIVATING: self.on_deactivate,
            State.TRANSITION_STATE_SHUTTINGDOWN: self.on_shutdown,
            State.TRANSITION_STATE_ERRORPROCESSING: self.on_error,
        }[self._state_machine.current_state[0]]
        try:
            return await work(before)
        except Exception as error:
            self.on_fault(error)
            return ERROR

    def on_fault(self, error: Exception) -> None:
        """Called when a transition raises, which it should not; on_error() comes next."""
        self.get_logger().error(f'internal error in a transition: {error!r}')

    async def _on_change_state(self, request: ChangeState.Request,
                               response: ChangeState.Response) -> ChangeState.Response:
        number = request.transition.id
        if request.transition.label:
            try:
                number = self._state_machine.get_transition_by_label(request.transition.label)
            except _rclpy.RCLError:
                self.get_logger().error(f'there is no transition {request.transition.label!r} '
                                        f'from state {self.lifecycle_state!r}')
                return response
        response.success = await self.change_state(number)
        return response
