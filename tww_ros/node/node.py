"""TwwNode: the ROS side of the engine. Images in; notes, status and answers out.

    <camera>/image ─→ convert ─→ Engine.push          (never blocks; the engine drops and counts)
    ~/ask, ~/query ─→ Engine.ask ─→ await ─→ answer   (questions.py)
    engine's thread ─→ Bell ─→ ~/notes                ~/status, /diagnostics: steady timers

A managed node: configure loads the model and opens memory, activate watches and answers,
deactivate stops both and keeps memory, cleanup frees it. With `autostart` it does the first two by
itself. Questions and services answer in every state, if only with NOT_ACTIVE: all callbacks run in
one executor and are short, and what takes long is done in threads and awaited (lifecycle.py,
engine_room.py). The node does not know how the engine works and never touches the model.
"""

from __future__ import annotations

import time
import traceback
from collections import Counter
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray
from lifecycle_msgs.msg import Transition
from rclpy.lifecycle import LifecycleState, TransitionCallbackReturn
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy

from tww_interfaces.msg import MemoryStatus, SegmentNote
from tww_ros.errors import BusyError, ConfigError, EngineClosedError, TwwError
from tww_ros.node.cameras import Cameras
from tww_ros.node.compat import Bell, on_clock_back, set_period, steady_timer
from tww_ros.node.conversions import note_message, ros_string
from tww_ros.node.diagnostics import Diagnostics
from tww_ros.node.engine_room import EngineRoom, LoadModel
from tww_ros.node.lifecycle import FAILURE, SUCCESS, ManagedNode
from tww_ros.node.parameters import NodeParameters
from tww_ros.node.questions import Questions
from tww_ros.node.services import Services
from tww_ros.node.status import status_message
from tww_ros.node.throttle import Throttle
from tww_ros.node.watches import Watches
from tww_ros.types import NS_PER_S, Frame

DIAGNOSTICS_PERIOD_S = 1.0
COMPLAINT_PERIOD_S = 10.0
LOADING_TOLD_S = 10.0
NOTES_KEPT = 100


class TwwNode(ManagedNode):
    """The node `tww`. With `autostart` it begins to load when it is spun.

    load: makes the model from the parameters; tests give one that makes a ScriptedModel.
    Raises ConfigError when a parameter does not fit. `failure` says why the model could not be
    loaded; the node then stays up, unconfigured, and refuses questions. When that was autostart,
    `failed_to_start` is set, and its owner decides to end.
    """

    _servers: tuple[Questions | Watches, ...] = ()

    def __init__(self, load: LoadModel | None = None, **options: Any) -> None:
        super().__init__('tww', **options)
        self._settings = NodeParameters(self, self._on_live)
        self.parameters = self._settings.current
        self.failure = ''
        self.failed_to_start = False
        node = self.parameters.node
        self._state = MemoryStatus.LOADING if node.autostart else MemoryStatus.UNCONFIGURED
        self._told_error = ''
        self._loading_told_s = 0.0
        self._complaints = Throttle(COMPLAINT_PERIOD_S)
        self._bell = Bell(self, on_error=self._on_callback_error)
        self.room = EngineRoom(self._bell, self.get_logger(), self.parameters, load,
                               self._publish_note)

        latched = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE,
                             durability=DurabilityPolicy.TRANSIENT_LOCAL)
        kept = QoSProfile(depth=NOTES_KEPT, reliability=ReliabilityPolicy.RELIABLE,
                          durability=DurabilityPolicy.TRANSIENT_LOCAL)
        self._notes = self.create_publisher(SegmentNote, '~/notes', kept)
        self._status = self.create_publisher(MemoryStatus, '~/status', latched)
        self._diagnostics_topic = self.create_publisher(DiagnosticArray, '/diagnostics', 10)
        self._diagnostics = Diagnostics(self.get_fully_qualified_name().lstrip('/'))

        self._images: Counter[str] = Counter()
        self.cameras = self._make_cameras()
        self._questions = Questions(self, self._bell, self.parameters, self._asked_engine)
        self._watches = Watches(self, self._bell, self.parameters, self._asked_engine)
        self._servers = self._questions, self._watches
        Services(self, self._bell)
        self._publish_status()
        self._status_timer = steady_timer(self, 1.0 / node.status_rate_hz, self._publish_status)
        steady_timer(self, DIAGNOSTICS_PERIOD_S, self._publish_diagnostics)
        steady_timer(self, DIAGNOSTICS_PERIOD_S, self.room.measure)
        self._clock_jumps = on_clock_back(self, self._on_clock_back)
        if node.autostart:
            self._bell.call(lambda: self.executor.create_task(self._autostart))

    @property
    def questions_active(self) -> int:
        """Questions and watches whose result has not been sent yet."""
        return self._questions.active + self._watches.active

    def running_engine(self) -> Any:
        """The engine of a configured node; EngineClosedError when there is none."""
        if self.room.engine is None:
            reason = {
                MemoryStatus.UNCONFIGURED: 'the node is not configured; `ros2 lifecycle set '
                f'{self.get_fully_qualified_name()} configure`, then activate',
                MemoryStatus.LOADING: 'the model is being loaded; wait until ~/status says ACTIVE',
                MemoryStatus.FAILED: f'the model could not be loaded: {self.failure}',
            }.get(self._state, 'the node is shutting down')
            raise EngineClosedError(reason)
        return self.room.engine

    def close_engine(self) -> bool:
        """Stop watching and answering; questions under way end with NOT_ACTIVE. Idempotent.

        Blocks until the threads are joined, so call it with the executor not spinning, then let
        the executor spin until questions_active is 0: those refusals have to be sent. False when a
        thread is still loading or writing.
        """
        if self._state != MemoryStatus.FAILED:
            self._state = MemoryStatus.CLOSED
        ended = self.room.close_now()
        if not ended:
            self.get_logger().warning('a model is still being loaded, or memory written; leaving '
                                      'without it')
        self._publish_status()
        return ended

    def destroy_node(self) -> None:
        """Destroy the node and its action servers, also when a parameter did not fit."""
        for server in self._servers:
            server.close()
        super().destroy_node()

    # lifecycle ----------------------------------------------------------------------------------

    async def change_state(self, transition_id: int) -> bool:
        """As ManagedNode, and ~/status tells of it at once."""
        succeeded = await super().change_state(transition_id)
        self._publish_status()
        return succeeded

    async def _autostart(self) -> None:
        # Not by its own method: nobody needs to know that it was inactive for a moment.
        started = (await super().change_state(Transition.TRANSITION_CONFIGURE)
                   and await super().change_state(Transition.TRANSITION_ACTIVATE))
        self.failed_to_start = not started and self._state != MemoryStatus.CLOSED
        self._publish_status()

    async def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Read the parameters, load the model, open memory."""
        self.failure = ''
        self._state = MemoryStatus.LOADING
        self._settings.locked = True
        started_s = self._loading_told_s = time.monotonic()
        try:
            self._settings.read()
            self._renew_cameras()
            node = self.parameters.node
            self.get_logger().info(f'loading {node.model} (quantization {node.quantization}, '
                                   f'device {node.device})')
            self._publish_status()
            await self.room.open()
        except Exception as error:
            self._on_load_failed(error)
        else:
            self._state = MemoryStatus.INACTIVE
            self.get_logger().info(f'configured after {time.monotonic() - started_s:.1f} s: '
                                   f'{self.room.engine.model.describe()}')
            return SUCCESS
        # Only now: while it is handled, the error holds the frames that hold the model.
        await self.room.close()
        return FAILURE

    async def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Watch and answer; FAILURE, and the model stays, when that is not possible."""
        if self.room.problem:
            self.get_logger().error(self._ended())
            return FAILURE
        try:
            self.cameras.open()
        except ConfigError as error:
            self.cameras.close()
            self.get_logger().error(f'not activated: {error}')
            return FAILURE
        self._state = MemoryStatus.ACTIVE
        self.get_logger().info('ready: watching and answering')
        return SUCCESS

    async def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Neither watch nor answer; memory stays, and what was seen is still noted."""
        self.cameras.close()
        self._state = MemoryStatus.INACTIVE
        self.room.engine.end_questions('the node was deactivated before the answer was complete')
        self.get_logger().info('inactive: neither watching nor answering, memory is kept')
        return SUCCESS

    async def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Free the model and memory; what is in memory.folder comes back with configure."""
        await self._clean_up(MemoryStatus.UNCONFIGURED)
        return SUCCESS

    async def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """The same, for good."""
        await self._clean_up(MemoryStatus.CLOSED)
        return SUCCESS

    async def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """After a fault in one of the above: begin anew."""
        await self._clean_up(MemoryStatus.FAILED)
        return SUCCESS

    def on_fault(self, error: Exception) -> None:
        """A transition raised."""
        self.failure = _reason(error)
        self._on_callback_error(error)

    async def _clean_up(self, state: int) -> None:
        self.cameras.close()
        self._state = state
        await self.room.close()
        self._settings.locked = False
        self.get_logger().info('model and memory are freed')

    def _on_load_failed(self, error: Exception) -> None:
        # Not the error itself, which holds the frames of what failed, and the model in them.
        self.failure = _reason(error)
        self._settings.locked = False
        if self._state == MemoryStatus.CLOSED:
            return
        self._state = MemoryStatus.FAILED
        detail = self.failure
        if not isinstance(error, TwwError):
            detail = ''.join(traceback.format_exception(error))
        self.get_logger().fatal(f'the model could not be loaded: {detail}')

    # parameters and time ------------------------------------------------------------------------

    def _on_live(self, name: str, value: Any) -> None:
        if name == 'status_rate_hz':
            set_period(self._status_timer, 1.0 / value)
        elif name == 'feedback_period_s':
            self._questions.set_feedback_period(value)
        elif name == 'watch.sample_fps' and self.room.engine is not None:
            self.room.engine.set_sample_fps(value)

    def _on_clock_back(self, now_ns: int, back_ns: int) -> None:
        self.get_logger().warning(
            f'the clock went back by {back_ns / NS_PER_S:.3f} s to {now_ns / NS_PER_S:.3f} s: '
            'questions do not see what was before')
        if self.room.engine is not None:
            self.room.engine.clock_went_back(now_ns)

    # cameras and questions ----------------------------------------------------------------------

    def _make_cameras(self) -> Cameras:
        return Cameras(self, self.parameters, self._take, self._complain, self._on_callback_error)

    def _renew_cameras(self) -> None:
        """Cameras as the parameters are now, with the counters that go on."""
        made = self._make_cameras()
        made.watching = self.cameras.watching
        self._images = Counter(self._image_counts())
        self.cameras = made

    def _image_counts(self) -> dict[str, int]:
        return {what: self._images[what] + getattr(self.cameras, what)
                for what in ('received', 'rejected', 'ignored')}

    def _take(self, frame: Frame) -> bool:
        return self.room.engine is not None and self.room.engine.push(frame)

    def _asked_engine(self) -> Any:
        engine = self.running_engine()
        if self.room.problem:
            raise EngineClosedError(self._ended())
        if self._state != MemoryStatus.ACTIVE:
            raise EngineClosedError('the node is not active; `ros2 lifecycle set '
                                    f'{self.get_fully_qualified_name()} activate`')
        if self.room.replacing:
            raise BusyError('another memory is being loaded; ask again when that is done')
        return engine

    def _ended(self) -> str:
        return (f'the engine has ended: {self.room.problem}; `ros2 lifecycle set '
                f'{self.get_fully_qualified_name()} deactivate`, then cleanup, configure and '
                'activate, begin anew')

    # topics -------------------------------------------------------------------------------------

    def _publish_note(self, note: Any) -> None:
        self._notes.publish(note_message(note))

    def _publish_status(self) -> None:
        status = self.status()
        self._status.publish(status)
        error = status.last_error
        # The status keeps the last error for good; the log tells of it when it is new.
        if self.room.engine is not None and error != self._told_error:
            self._told_error = error
            if error:
                self._complain(f'the engine reports: {error}')
        now_s = time.monotonic()
        if (self.lifecycle_state == 'configuring'
                and now_s - self._loading_told_s > LOADING_TOLD_S):
            self._loading_told_s = now_s
            self.get_logger().info(f'loading: {self.room.progress.value:.0%}')

    def status(self) -> MemoryStatus:
        """The present state."""
        problem = self.room.problem
        message = status_message(MemoryStatus.FAILED if problem else self._state, self.parameters,
                                 self.room, self._image_counts())
        message.stamp = self.get_clock().now().to_msg()
        message.ingest_enabled = self.cameras.watching
        if problem or self.failure:
            message.last_error = ros_string(problem or self.failure)
        return message

    def _publish_diagnostics(self) -> None:
        cameras = self.cameras.states()
        for camera in cameras:
            if camera.complaint():
                self._complain(camera.complaint())
        self._diagnostics_topic.publish(
            self._diagnostics.report(self.status(), cameras, self.room.engines))

    def _complain(self, text: str) -> None:
        text = self._complaints.admit(text)
        if text:
            self.get_logger().warning(text)

    def _on_callback_error(self, error: BaseException) -> None:
        text = self._complaints.admit(f'internal error: {type(error).__name__}: {error}')
        if text:
            trace = ''.join(traceback.format_exception(error))
            self.get_logger().error(f'{text}; please report this with the lines below\n{trace}')


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, TwwError) else f'{type(error).__name__}: {error}'
