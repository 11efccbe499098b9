"""TwwNode: the ROS side of the engine. Images in; notes, status and answers out.

    <camera>/image ─→ convert ─→ Engine.push          (never blocks; the engine drops and counts)
    ~/ask, ~/query ─→ Engine.ask ─→ await ─→ answer   (questions.py)
    engine's thread ─→ Bell ─→ ~/notes                ~/status, /diagnostics: steady timers

The model is loaded in a thread of its own, so that parameters, status and services answer from the
first moment; questions are refused with NOT_ACTIVE until it is there. All callbacks run in the
executor and are short. The node does not know how the engine works and never touches the model.
"""

from __future__ import annotations

import sys
import threading
import time
import traceback
from collections.abc import Callable
from functools import partial
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray
from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from std_srvs.srv import SetBool

from tww_interfaces.msg import MemoryStatus, SegmentNote
from tww_interfaces.srv import CloseSession, ListSegments
from tww_ros.config import NodeConfig
from tww_ros.errors import (
    EngineClosedError,
    ModelError,
    TwwError,
    UnknownCameraError,
)
from tww_ros.node.cameras import Cameras
from tww_ros.node.compat import Bell, steady_timer
from tww_ros.node.conversions import (
    DEFAULT_SESSION,
    fill_error,
    note_message,
    segment_message,
    to_duration,
    to_time,
    window_from,
)
from tww_ros.node.diagnostics import Diagnostics
from tww_ros.node.parameters import Parameters, declare_parameters
from tww_ros.node.questions import Questions
from tww_ros.node.throttle import Throttle
from tww_ros.types import EngineStats, Frame

DIAGNOSTICS_PERIOD_S = 1.0
COMPLAINT_PERIOD_S = 10.0
NOTES_KEPT = 100

LoadModel = Callable[[NodeConfig], Any]


class TwwNode(Node):
    """The node `tww`. Loading starts in the constructor; close_engine() ends its threads.

    load: makes the model from the parameters; tests give one that makes a ScriptedModel.
    Raises ConfigError when a parameter does not fit. `failure` holds the error when the model
    could not be loaded; the node then stays up and refuses questions, and its owner decides to
    end.
    """

    def __init__(self, load: LoadModel | None = None, **options: Any) -> None:
        super().__init__('tww', **options)
        self._load_model = load or load_checkpoint
        self.parameters: Parameters = declare_parameters(self)
        self.failure: Exception | None = None
        self._engine: Any = None
        self._state = MemoryStatus.LOADING
        self._told_error = ''
        self._complaints = Throttle(COMPLAINT_PERIOD_S)
        self._bell = Bell(self, on_error=self._on_callback_error)

        latched = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE,
                             durability=DurabilityPolicy.TRANSIENT_LOCAL)
        kept = QoSProfile(depth=NOTES_KEPT, reliability=ReliabilityPolicy.RELIABLE,
                          durability=DurabilityPolicy.TRANSIENT_LOCAL)
        self._notes = self.create_publisher(SegmentNote, '~/notes', kept)
        self._status = self.create_publisher(MemoryStatus, '~/status', latched)
        self._diagnostics_topic = self.create_publisher(DiagnosticArray, '/diagnostics', 10)
        self._diagnostics = Diagnostics(self.get_fully_qualified_name().lstrip('/'))

        self._questions = Questions(self, self._bell, self.parameters, self._running_engine)
        group = ReentrantCallbackGroup()
        self.create_service(CloseSession, '~/close_session', self._on_close_session,
                            callback_group=group)
        self.create_service(ListSegments, '~/list_segments', self._on_list_segments,
                            callback_group=group)
        self.create_service(SetBool, '~/enable_ingest', self._on_enable_ingest,
                            callback_group=group)
        self._cameras = Cameras(self, self.parameters, self._take, self._complain,
                                self._on_callback_error)
        self._cameras.open()
        self._publish_status()
        steady_timer(self, 1.0 / self.parameters.node.status_rate_hz, self._publish_status)
        steady_timer(self, DIAGNOSTICS_PERIOD_S, self._publish_diagnostics)

        self._loader = threading.Thread(target=self._load, name='tww-loader', daemon=True)
        self._loader.start()

    @property
    def questions_active(self) -> int:
        """Questions whose answer has not been sent yet."""
        return self._questions.active

    @property
    def loading(self) -> bool:
        """Whether the thread that loads the model is at work."""
        return self._loader.is_alive()

    def close_engine(self) -> None:
        """Stop watching and answering; questions under way end with NOT_ACTIVE. Idempotent.

        Blocks until the threads are joined, so call it with the executor not spinning, then let
        the executor spin until questions_active is 0: those refusals have to be sent.
        """
        if self._state != MemoryStatus.FAILED:
            self._state = MemoryStatus.CLOSED
        self._loader.join(self.parameters.node.shutdown_timeout_s)
        if self._loader.is_alive():
            self.get_logger().warning('the model is still being loaded; leaving without it')
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.close(timeout_s=self.parameters.node.shutdown_timeout_s)
        self._publish_status()

    def destroy_node(self) -> None:
        """Destroy the node and its action server."""
        self._questions.close()
        super().destroy_node()

    # loading ------------------------------------------------------------------------------------

    def _load(self) -> None:
        started_s = time.monotonic()
        try:
            model = self._load_model(self.parameters.node)
            from tww_ros import Engine
            engine = Engine(model, self.parameters.engine,
                            on_note=partial(self._bell.call, self._publish_note))
            engine.start()
            self._bell.call(self._on_loaded, engine, time.monotonic() - started_s)
        except Exception as error:
            self._bell.call(self._on_load_failed, error)

    def _on_loaded(self, engine: Any, seconds: float) -> None:
        if self._state != MemoryStatus.LOADING:
            engine.close(timeout_s=self.parameters.node.shutdown_timeout_s)
            return
        self._engine = engine
        self._state = MemoryStatus.ACTIVE
        self.get_logger().info(f'ready after {seconds:.1f} s: {engine.model.describe()}')
        self._publish_status()

    def _on_load_failed(self, error: Exception) -> None:
        self.failure = error
        self._state = MemoryStatus.FAILED
        detail = str(error)
        if not isinstance(error, TwwError):
            detail = ''.join(traceback.format_exception(error))
        self.get_logger().fatal(f'the model could not be loaded: {detail}')
        self._publish_status()

    def _take(self, frame: Frame) -> bool:
        return self._engine is not None and self._engine.push(frame)

    def _running_engine(self) -> Any:
        if self._engine is None:
            reason = {
                MemoryStatus.LOADING: 'the model is being loaded; wait until ~/status says ACTIVE',
                MemoryStatus.FAILED: f'the model could not be loaded: {self.failure}',
            }.get(self._state, 'the node is shutting down')
            raise EngineClosedError(reason)
        return self._engine

    # services -----------------------------------------------------------------------------------

    def _on_enable_ingest(self, request: SetBool.Request,
                          response: SetBool.Response) -> SetBool.Response:
        self._cameras.watching = request.data
        response.success = True
        response.message = 'watching' if request.data else 'images are received and thrown away'
        self.get_logger().info(f'ingest: {response.message}')
        return response

    def _on_close_session(self, request: CloseSession.Request,
                          response: CloseSession.Response) -> CloseSession.Response:
        try:
            self._running_engine().close_session(request.session_id or DEFAULT_SESSION)
        except Exception as error:
            self._refuse(response, error)
        return response

    def _on_list_segments(self, request: ListSegments.Request,
                          response: ListSegments.Response) -> ListSegments.Response:
        try:
            engine = self._running_engine()
            for camera in request.cameras:
                if camera not in self.parameters.cameras:
                    raise UnknownCameraError(f'no camera {camera!r}; this node watches '
                                             f'{", ".join(self.parameters.cameras)}')
            window = window_from(request.window_start, request.window_end)
            found = [info for info in engine.memory.segments()
                     if (not request.cameras or info.camera in request.cameras)
                     and (window is None or (info.end_ns >= window[0]
                                             and info.start_ns <= window[1]))]
            if request.limit:
                found = found[-request.limit:]
            response.segments = [segment_message(info) for info in found]
        except Exception as error:
            self._refuse(response, error)
        return response

    def _refuse(self, response: Any, error: Exception) -> None:
        fill_error(response, error)
        if not isinstance(error, TwwError):
            self._on_callback_error(error)

    # topics -------------------------------------------------------------------------------------

    def _publish_note(self, note: Any) -> None:
        self._notes.publish(note_message(note))

    def _publish_status(self) -> None:
        self._last_status = self.status()
        self._status.publish(self._last_status)
        error = self._last_status.last_error
        # The status keeps the last error for good; the log tells of it when it is new.
        if self._engine is not None and error != self._told_error:
            self._told_error = error
            self._complain(f'the engine reports: {error}')

    def status(self) -> MemoryStatus:
        """The present state."""
        engine, node = self._engine, self.parameters.node
        message = MemoryStatus(
            stamp=self.get_clock().now().to_msg(), state=self._state,
            ingest_enabled=self._cameras.watching,
            model=node.model, device=node.device, quantization=node.quantization,
            positions=node.positions, images_received=self._cameras.received,
            images_rejected=self._cameras.rejected, images_ignored=self._cameras.ignored)
        if self.failure is not None:
            message.last_error = str(self.failure)
        if engine is None:
            return message
        message.description = engine.model.describe()
        message.positions = engine.model.scheme
        stats: EngineStats = engine.stats()
        for name in ('frames_received', 'frames_watched', 'frames_skipped', 'frames_dropped',
                     'frames_rejected', 'frames_waiting', 'epochs', 'segments', 'notes_written',
                     'notes_skipped', 'notes_waiting', 'answers_done', 'answers_failed',
                     'answers_cancelled', 'answers_active', 'answers_waiting', 'sessions',
                     'steps', 'step_tokens', 'memory_bytes', 'session_bytes', 'memory_tokens',
                     'last_error'):
            setattr(message, name, getattr(stats, name))
        message.newest = to_time(stats.newest_ns)
        message.ingest_lag = to_duration(stats.ingest_lag_s)
        return message

    def _publish_diagnostics(self) -> None:
        cameras = self._cameras.states()
        for camera in cameras:
            if camera.complaint():
                self._complain(camera.complaint())
        self._diagnostics_topic.publish(self._diagnostics.report(self._last_status, cameras))

    def _complain(self, text: str) -> None:
        text = self._complaints.admit(text)
        if text:
            self.get_logger().warning(text)

    def _on_callback_error(self, error: BaseException) -> None:
        text = self._complaints.admit(f'internal error: {type(error).__name__}: {error}')
        if text:
            trace = ''.join(traceback.format_exception(error))
            self.get_logger().error(f'{text}; please report this with the lines below\n{trace}')


def load_checkpoint(node: NodeConfig) -> Any:
    # Imported here: torch and transformers take seconds, and the node answers meanwhile.
    try:
        from tww_ros import load_model
    except ImportError as error:
        raise ModelError(f'{error}; expected torch, transformers and bitsandbytes in the Python '
                         f'that runs the node ({sys.executable}); install them there') from error
    return load_model(node.model, quantization=node.quantization, device=node.device,
                      dtype=node.dtype, positions=node.positions, prompts=node.prompts)
