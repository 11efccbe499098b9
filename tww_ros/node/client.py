"""TwwClient: ask a running node from Python, without callbacks or spinning.

    with TwwClient() as client:
        client.wait_until_ready(timeout_s=60)
        print(client.ask('What is on the table?').text)
        for text in client.query('And now?', session='a'):
            print(text, end='', flush=True)

It returns the same records and raises the same errors as the engine does in one process. It spins
its own node in a thread of its own context, so it can be used beside any other ROS code and from
several threads. Every call has a time limit.
"""

from __future__ import annotations

import queue
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import rclpy
from rclpy.action import ActionClient
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from std_srvs.srv import SetBool

from tww_interfaces.action import Query
from tww_interfaces.msg import MemoryStatus, SegmentNote
from tww_interfaces.srv import Ask, CloseSession, ListSegments
from tww_ros.errors import AnswerTimeoutError, EngineClosedError, QuestionError
from tww_ros.node.conversions import (
    answer_from,
    error_from_code,
    fill_question,
    note_from,
    segment_from,
    to_time,
)
from tww_ros.types import Answer, Note, Question, SegmentInfo

DISCOVERY_S = 10.0
# The node keeps the time limit of a question; a client waits this much longer to hear about it.
GRACE_S = 5.0
NOTES_KEPT = 1_000


class TwwClient:
    """Blocking calls to the node `node` (its full name). Close it, or use it in `with`."""

    def __init__(self, node: str = '/tww', domain_id: int | None = None) -> None:
        name = '/' + node.strip('/')
        self._context = rclpy.Context()
        # The arguments of the program that uses it are none of its business.
        rclpy.init(args=[], context=self._context, domain_id=domain_id)
        # A name of its own, and no /rosout: two clients in one process would share both.
        self._node = rclpy.create_node(
            f'tww_client_{uuid.uuid4().hex[:8]}', context=self._context, enable_rosout=False,
            use_global_arguments=False, start_parameter_services=False)
        self._target = name
        self._ask = self._node.create_client(Ask, f'{name}/ask')
        self._close_session = self._node.create_client(CloseSession, f'{name}/close_session')
        self._list_segments = self._node.create_client(ListSegments, f'{name}/list_segments')
        self._enable_ingest = self._node.create_client(SetBool, f'{name}/enable_ingest')
        self._query = ActionClient(self._node, Query, f'{name}/query')
        self._status: MemoryStatus | None = None
        self._notes: deque[Note] = deque(maxlen=NOTES_KEPT)
        self._changed = threading.Condition()
        latched = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE,
                             durability=DurabilityPolicy.TRANSIENT_LOCAL)
        kept = QoSProfile(depth=100, reliability=ReliabilityPolicy.RELIABLE,
                          durability=DurabilityPolicy.TRANSIENT_LOCAL)
        self._node.create_subscription(MemoryStatus, f'{name}/status', self._on_status, latched)
        self._node.create_subscription(SegmentNote, f'{name}/notes', self._on_note, kept)
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self._node)
        self._thread = threading.Thread(target=self._spin, name='tww-client', daemon=True)
        self._thread.start()

    def __enter__(self) -> TwwClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop spinning and leave ROS. Idempotent."""
        if not self._thread.is_alive():
            return
        rclpy.try_shutdown(context=self._context)
        self._thread.join(5.0)
        self._query.destroy()
        self._executor.shutdown(timeout_sec=1.0)
        self._node.destroy_node()

    # questions ----------------------------------------------------------------------------------

    def ask(self, question: str | Question, session: str = 'default',
            choices: Sequence[str] = (), timeout_s: float = 60.0, **options: Any) -> Answer:
        """Ask and wait. options: further fields of Question (cameras, window, max_new_tokens).

        Raises what the engine raises: QuestionError and its kin, AnswerTimeoutError, ...
        """
        asked = _question(question, session, choices, timeout_s, options)
        request = Ask.Request()
        fill_question(request, asked)
        return _answer(self._call(self._ask, request, asked.timeout_s))

    def query(self, question: str | Question, session: str = 'default',
              choices: Sequence[str] = (), timeout_s: float = 60.0,
              **options: Any) -> QueryStream:
        """Ask and read along: iterate the stream for its text, cancel it, take its result."""
        asked = _question(question, session, choices, timeout_s, options)
        goal = Query.Goal()
        fill_question(goal, asked)
        if not self._query.wait_for_server(DISCOVERY_S):
            raise self._absent('query')
        return QueryStream(self._in_executor, self._query, goal, asked.timeout_s)

    def close_session(self, session: str = 'default', timeout_s: float = 10.0) -> None:
        """Forget the rounds of a session; UnknownSessionError when there is none."""
        request = CloseSession.Request(session_id=session)
        _check(self._call(self._close_session, request, timeout_s))

    # memory and state ---------------------------------------------------------------------------

    def segments(self, cameras: Sequence[str] = (), window: tuple[int, int] | None = None,
                 limit: int = 0, timeout_s: float = 10.0) -> list[SegmentInfo]:
        """What is in memory, oldest first."""
        request = ListSegments.Request(cameras=list(cameras), limit=limit)
        if window is not None:
            request.window_start, request.window_end = (to_time(max(edge, 1)) for edge in window)
        response = _check(self._call(self._list_segments, request, timeout_s))
        return [segment_from(message) for message in response.segments]

    def enable_ingest(self, enabled: bool, timeout_s: float = 10.0) -> None:
        """Go on watching, or throw images away."""
        self._call(self._enable_ingest, SetBool.Request(data=enabled), timeout_s)

    def notes(self) -> list[Note]:
        """Notes received since this client started, and the last 100 before."""
        with self._changed:
            return list(self._notes)

    def status(self, timeout_s: float = DISCOVERY_S) -> MemoryStatus:
        """The newest status; waits for the first one."""
        return self.wait_for(lambda status: True, timeout_s)

    def wait_until_ready(self, timeout_s: float = 60.0) -> MemoryStatus:
        """Until the model is loaded; EngineClosedError when it cannot be."""
        status = self.wait_for(lambda status: status.state != MemoryStatus.LOADING, timeout_s)
        if status.state != MemoryStatus.ACTIVE:
            raise EngineClosedError(f'{self._target}: {status.last_error or "shutting down"}')
        return status

    def wait_for(self, condition: Any, timeout_s: float) -> MemoryStatus:
        """Until condition(status) holds; AnswerTimeoutError with the last status otherwise."""
        end_s = time.monotonic() + timeout_s
        with self._changed:
            while self._status is None or not condition(self._status):
                left_s = end_s - time.monotonic()
                if left_s <= 0:
                    raise AnswerTimeoutError(
                        f'{self._target}/status: waited {timeout_s:g} s; the last one was '
                        f'{self._status}; is the node running, with this ROS_DOMAIN_ID?')
                self._changed.wait(left_s)
            return self._status

    # inside -------------------------------------------------------------------------------------

    def _call(self, client: Any, request: Any, timeout_s: float) -> Any:
        if not client.wait_for_service(DISCOVERY_S):
            raise self._absent(client.srv_name)
        future = client.call_async(request)
        # With no limit of its own a question may wait for ever, but a node that has gone may not.
        return _wait(future, timeout_s + GRACE_S if timeout_s else None, client.srv_name)

    def _in_executor(self, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
        # Humble's ActionClient has no lock: a reply that is quicker than the caller would be lost.
        task = self._executor.create_task(function, *args, **options)
        return _wait(task, DISCOVERY_S, 'client')

    def _absent(self, name: str) -> EngineClosedError:
        return EngineClosedError(f'{name}: no such service or action within {DISCOVERY_S:g} s; '
                                 f'start the node {self._target}, and check ROS_DOMAIN_ID')

    def _on_status(self, status: MemoryStatus) -> None:
        with self._changed:
            self._status = status
            self._changed.notify_all()

    def _on_note(self, message: SegmentNote) -> None:
        with self._changed:
            self._notes.append(note_from(message))
            self._changed.notify_all()

    def _spin(self) -> None:
        while self._context.ok():
            try:
                self._executor.spin_once(timeout_sec=0.5)
            except ExternalShutdownException:
                return
            except Exception:
                # The future of the call that failed holds it for the caller.
                continue


class QueryStream:
    """One action goal: iterate it for the text, cancel() it, result() gives the Answer."""

    def __init__(self, run: Callable[..., Any], client: ActionClient, goal: Query.Goal,
                 timeout_s: float) -> None:
        self._run = run
        self._deltas: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._limit_s = timeout_s + GRACE_S if timeout_s else None
        self.queue_positions: list[int] = []
        sent = run(client.send_goal_async, goal, feedback_callback=self._on_feedback)
        self._handle = _wait(sent, DISCOVERY_S, 'query')
        if not self._handle.accepted:
            raise QuestionError('the node rejected the question without saying why')
        self._future = run(self._handle.get_result_async)
        self._future.add_done_callback(lambda _: self._deltas.put(None))

    def __iter__(self) -> Iterator[str]:
        """Pieces of text until the answer is complete; what fails is raised by result()."""
        try:
            while (delta := self._deltas.get(timeout=self._limit_s)) is not None:
                if delta:
                    yield delta
            # Who iterates once more gets no text, and does not wait for it either.
            self._deltas.put(None)
        except queue.Empty:
            raise AnswerTimeoutError(f'query: no text for {self._limit_s:g} s; has the node ended?'
                                     ) from None

    def result(self, timeout_s: float | None = None) -> Answer:
        """The whole answer, or the error that ended it."""
        return _answer(self.response(timeout_s))

    def response(self, timeout_s: float | None = None) -> Query.Result:
        """The result message as it came, error or not."""
        return _wait(self._future, timeout_s or self._limit_s, 'query').result

    def cancel(self, timeout_s: float = DISCOVERY_S) -> bool:
        """Ask the node to stop; True when it agreed, False when the answer was complete."""
        response = _wait(self._run(self._handle.cancel_goal_async), timeout_s, 'query')
        return bool(response.goals_canceling)

    def _on_feedback(self, message: Any) -> None:
        self.queue_positions.append(message.feedback.queue_position)
        self._deltas.put(message.feedback.text_delta)


def _question(question: str | Question, session: str, choices: Sequence[str], timeout_s: float,
              options: dict[str, Any]) -> Question:
    if isinstance(question, Question):
        return question
    return Question(question, session=session, choices=tuple(choices), timeout_s=timeout_s,
                    **options)


def _wait(future: Any, timeout_s: float | None, what: str) -> Any:
    """The result of an rclpy future that another thread completes."""
    done = threading.Event()
    future.add_done_callback(lambda _: done.set())
    if not done.wait(timeout_s):
        raise AnswerTimeoutError(f'{what}: no reply within {timeout_s:g} s; has the node ended?')
    return future.result()


def _check(response: Any) -> Any:
    if response.error_code:
        raise error_from_code(response.error_code, response.error_msg)
    return response


def _answer(response: Any) -> Answer:
    return answer_from(_check(response))
