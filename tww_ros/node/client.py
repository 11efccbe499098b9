"""TwwClient: ask a running node from Python, without callbacks or spinning.

    with TwwClient() as client:
        client.wait_until_ready(timeout_s=60)
        print(client.ask('What is on the table?').text)
        for text in client.query('And now?', session='a'):
            print(text, end='', flush=True)
        if client.choose('Is the door open?', Door) is Door.OPEN: …
        client.watch('Tell me when the red cup is gone.', timeout_s=600).result()

It returns the same records and raises the same errors as the engine does in one process. It spins
its own node in a thread of its own context, so it can be used beside any other ROS code and from
several threads. Every call has a time limit, and a twin for asyncio whose name ends in `_async`:

    answer = await client.ask_async('What is on the table?')
    async for text in await client.query_async('And now?'): …
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import deque
from collections.abc import Sequence
from enum import Enum
from functools import partial
from typing import Any, TypeVar

from rclpy.action import ActionClient
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from std_srvs.srv import SetBool

from tww_interfaces.action import Query, Watch
from tww_interfaces.msg import MemoryStatus, SegmentNote
from tww_interfaces.srv import (
    Ask,
    ClearMemory,
    CloseSession,
    GetStatus,
    ListSegments,
    LoadMemory,
    SaveMemory,
)
from tww_ros.errors import AnswerTimeoutError, EngineClosedError
from tww_ros.node.conversions import (
    answer_from,
    error_from_code,
    fill_question,
    fill_watch,
    note_from,
    segment_from,
    to_time,
)
from tww_ros.node.qos import ACTION_CLIENT, MANY
from tww_ros.node.spinning import SpinningNode, is_there
from tww_ros.node.streams import GRACE_S, REPLY_S, QueryStream, WatchStream
from tww_ros.node.waiting import wait, wait_async
from tww_ros.types import Answer, Note, Question, SegmentInfo, WatchQuestion

DISCOVERY_S = 10.0
NOTES_KEPT = 1_000
# Disks may be slow, and memory large.
MEMORY_S = 120.0

Choice = TypeVar('Choice', bound=Enum)
# Texts, or an Enum class: see choice_texts().
Choices = Sequence[str] | type[Enum]


class TwwClient:
    """Calls to the node `node` (its full name). Close it, or use it in `with`."""

    def __init__(self, node: str = '/tww', domain_id: int | None = None) -> None:
        name = self._target = '/' + node.strip('/')
        self._spinning = SpinningNode('tww_client', domain_id)
        own = self._spinning.node
        self._ask, self._close_session, self._list_segments, self._enable_ingest = (
            own.create_client(kind, f'{name}/{service}', qos_profile=MANY) for kind, service in (
                (Ask, 'ask'), (CloseSession, 'close_session'), (ListSegments, 'list_segments'),
                (SetBool, 'enable_ingest')))
        self._save_memory, self._load_memory, self._clear_memory, self._get_status = (
            own.create_client(kind, f'{name}/{service}') for kind, service in (
                (SaveMemory, 'save_memory'), (LoadMemory, 'load_memory'),
                (ClearMemory, 'clear_memory'), (GetStatus, 'get_status')))
        self._query = ActionClient(own, Query, f'{name}/query', **ACTION_CLIENT)
        self._watch = ActionClient(own, Watch, f'{name}/watch', **ACTION_CLIENT)
        self._status: MemoryStatus | None = None
        self._notes: deque[Note] = deque(maxlen=NOTES_KEPT)
        self._changed = threading.Condition()
        latched = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE,
                             durability=DurabilityPolicy.TRANSIENT_LOCAL)
        kept = QoSProfile(depth=100, reliability=ReliabilityPolicy.RELIABLE,
                          durability=DurabilityPolicy.TRANSIENT_LOCAL)
        own.create_subscription(MemoryStatus, f'{name}/status', self._on_status, latched)
        own.create_subscription(SegmentNote, f'{name}/notes', self._on_note, kept)
        self._spinning.start()

    def __enter__(self) -> TwwClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop spinning and leave ROS; who still waits gets EngineClosedError. Idempotent."""
        self._spinning.close(self._query.destroy, self._watch.destroy)

    # questions ----------------------------------------------------------------------------------

    def ask(self, question: str | Question, session: str = 'default', choices: Choices = (),
            timeout_s: float = 60.0, **options: Any) -> Answer:
        """Ask and wait. options: further fields of Question (cameras, window, max_new_tokens).

        choices: texts, or an Enum class (see choice_texts). Raises what the engine raises:
        QuestionError and its kin, AnswerTimeoutError, ...
        """
        return _answer(self._call(*self._asking(question, session, choices, timeout_s, options)))

    async def ask_async(self, question: str | Question, session: str = 'default',
                        choices: Choices = (), timeout_s: float = 60.0, **options: Any) -> Answer:
        """As ask()."""
        return _answer(await self._call_async(
            *self._asking(question, session, choices, timeout_s, options)))

    def choose(self, question: str, choices: type[Choice], session: str = 'default',
               timeout_s: float = 60.0, **options: Any) -> Choice:
        """Ask a question whose answer is a member of an Enum class."""
        return chosen(self.ask(question, session, choices, timeout_s, **options), choices)

    async def choose_async(self, question: str, choices: type[Choice], session: str = 'default',
                           timeout_s: float = 60.0, **options: Any) -> Choice:
        """As choose()."""
        return chosen(await self.ask_async(question, session, choices, timeout_s, **options),
                      choices)

    def query(self, question: str | Question, session: str = 'default', choices: Choices = (),
              timeout_s: float = 60.0, **options: Any) -> QueryStream:
        """Ask and read along: iterate the stream for its text, cancel it, take its result."""
        self._find(self._query)
        stream = self._querying(question, session, choices, timeout_s, options)
        stream.start()
        return stream

    async def query_async(self, question: str | Question, session: str = 'default',
                          choices: Choices = (), timeout_s: float = 60.0,
                          **options: Any) -> QueryStream:
        """As query(); `async for` over the stream, `await stream.result_async()`."""
        await self._find_async(self._query)
        stream = self._querying(question, session, choices, timeout_s, options)
        await stream.start_async()
        return stream

    def watch(self, question: str | WatchQuestion, choices: Choices = (),
              expected: str | Enum = '', timeout_s: float = 600.0,
              **options: Any) -> WatchStream:
        """A standing question: iterate the stream for its checks, take its result when it holds.

        options: further fields of WatchQuestion (cameras, threshold, confirmations). timeout_s 0:
        watch for ever, and wait for ever.
        """
        self._find(self._watch)
        stream = self._watching(question, choices, expected, timeout_s, options)
        stream.start()
        return stream

    async def watch_async(self, question: str | WatchQuestion, choices: Choices = (),
                          expected: str | Enum = '', timeout_s: float = 600.0,
                          **options: Any) -> WatchStream:
        """As watch()."""
        await self._find_async(self._watch)
        stream = self._watching(question, choices, expected, timeout_s, options)
        await stream.start_async()
        return stream

    def close_session(self, session: str = 'default', timeout_s: float = REPLY_S) -> None:
        """Forget the rounds of a session; UnknownSessionError when there is none."""
        request = CloseSession.Request(session_id=session)
        _check(self._call(self._close_session, request, timeout_s))

    # memory and state ---------------------------------------------------------------------------

    def segments(self, cameras: Sequence[str] = (), window: tuple[int, int] | None = None,
                 limit: int = 0, timeout_s: float = REPLY_S) -> list[SegmentInfo]:
        """What is in memory, oldest first."""
        request = ListSegments.Request(cameras=list(cameras), limit=limit)
        if window is not None:
            request.window_start, request.window_end = (to_time(max(edge, 1)) for edge in window)
        response = _check(self._call(self._list_segments, request, timeout_s))
        return [segment_from(message) for message in response.segments]

    def save_memory(self, folder: str, timeout_s: float = MEMORY_S) -> str:
        """Write all of memory to a new folder of the node's machine; the folder's full path."""
        request = SaveMemory.Request(folder=folder)
        return _check(self._call(self._save_memory, request, timeout_s)).folder

    async def save_memory_async(self, folder: str, timeout_s: float = MEMORY_S) -> str:
        """As save_memory()."""
        request = SaveMemory.Request(folder=folder)
        return _check(await self._call_async(self._save_memory, request, timeout_s)).folder

    def load_memory(self, folder: str, timeout_s: float = MEMORY_S) -> int:
        """Go on with the memory in a folder of the node's machine; how many segments that is."""
        request = LoadMemory.Request(folder=folder)
        return _check(self._call(self._load_memory, request, timeout_s)).segments

    async def load_memory_async(self, folder: str, timeout_s: float = MEMORY_S) -> int:
        """As load_memory()."""
        request = LoadMemory.Request(folder=folder)
        return _check(await self._call_async(self._load_memory, request, timeout_s)).segments

    def clear_memory(self, before_ns: int = 0, timeout_s: float = MEMORY_S) -> int:
        """Forget segments that ended before then, 0 = all; how many that were."""
        request = ClearMemory.Request(before=to_time(before_ns))
        return _check(self._call(self._clear_memory, request, timeout_s)).segments

    async def clear_memory_async(self, before_ns: int = 0, timeout_s: float = MEMORY_S) -> int:
        """As clear_memory()."""
        request = ClearMemory.Request(before=to_time(before_ns))
        return _check(await self._call_async(self._clear_memory, request, timeout_s)).segments

    def enable_ingest(self, enabled: bool, timeout_s: float = REPLY_S) -> None:
        """Go on watching, or throw images away."""
        self._call(self._enable_ingest, SetBool.Request(data=enabled), timeout_s)

    def notes(self) -> list[Note]:
        """Notes received since this client started, and the last 100 before."""
        with self._changed:
            return list(self._notes)

    def get_status(self, timeout_s: float = REPLY_S) -> MemoryStatus:
        """The status as it is now."""
        return self._call(self._get_status, GetStatus.Request(), timeout_s).status

    async def get_status_async(self, timeout_s: float = REPLY_S) -> MemoryStatus:
        """As get_status()."""
        return (await self._call_async(self._get_status, GetStatus.Request(), timeout_s)).status

    def status(self, timeout_s: float = DISCOVERY_S) -> MemoryStatus:
        """The newest status that was published; waits for the first one."""
        return self.wait_for(lambda status: True, timeout_s)

    def wait_until_ready(self, timeout_s: float = 60.0) -> MemoryStatus:
        """Until the node is active; EngineClosedError when it cannot become so."""
        ends = (MemoryStatus.ACTIVE, MemoryStatus.FAILED, MemoryStatus.CLOSED)
        status = self.wait_for(lambda status: status.state in ends, timeout_s)
        if status.state != MemoryStatus.ACTIVE:
            raise EngineClosedError(f'{self._target}: {status.last_error or "shutting down"}')
        return status

    async def wait_until_ready_async(self, timeout_s: float = 60.0) -> MemoryStatus:
        """As wait_until_ready()."""
        return await asyncio.to_thread(self.wait_until_ready, timeout_s)

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

    def _asking(self, question: str | Question, session: str, choices: Choices, timeout_s: float,
                options: dict[str, Any]) -> tuple[Any, Ask.Request, float]:
        asked = _question(question, session, choices, timeout_s, options)
        request = Ask.Request()
        fill_question(request, asked)
        return self._ask, request, asked.timeout_s

    def _querying(self, question: str | Question, session: str, choices: Choices,
                  timeout_s: float, options: dict[str, Any]) -> QueryStream:
        asked = _question(question, session, choices, timeout_s, options)
        goal = Query.Goal()
        fill_question(goal, asked)
        return QueryStream(self._spinning, self._query, goal, asked.timeout_s)

    def _watching(self, question: str | WatchQuestion, choices: Choices, expected: str | Enum,
                  timeout_s: float, options: dict[str, Any]) -> WatchStream:
        if not isinstance(question, WatchQuestion):
            question = WatchQuestion(question, choices=choice_texts(choices),
                                     expected=choice_text(expected), timeout_s=timeout_s,
                                     **options)
        goal = Watch.Goal()
        fill_watch(goal, question)
        return WatchStream(self._spinning, self._watch, goal, question.timeout_s)

    def _call(self, client: Any, request: Any, timeout_s: float) -> Any:
        self._find(client)
        future = client.call_async(request)
        try:
            return wait(self._spinning.share(future), _limit_s(timeout_s), client.srv_name,
                        partial(is_there, client))
        finally:
            client.remove_pending_request(future)

    async def _call_async(self, client: Any, request: Any, timeout_s: float) -> Any:
        await self._find_async(client)
        future = client.call_async(request)
        try:
            return await wait_async(self._spinning.share(future), _limit_s(timeout_s),
                                    client.srv_name, partial(is_there, client))
        finally:
            client.remove_pending_request(future)

    def _find(self, client: Any) -> None:
        """Wait until the node is there; EngineClosedError when it does not come."""
        action = isinstance(client, ActionClient)
        # Unless it is closed meanwhile.
        with contextlib.suppress(RuntimeError):
            (client.wait_for_server if action else client.wait_for_service)(DISCOVERY_S)
        if not is_there(client):
            name = client._action_name if action else client.srv_name
            raise EngineClosedError(
                f'{name}: no such service or action within {DISCOVERY_S:g} s; start the node '
                f'{self._target}, and check ROS_DOMAIN_ID')

    async def _find_async(self, client: Any) -> None:
        if not is_there(client):
            await asyncio.to_thread(self._find, client)

    def _on_status(self, status: MemoryStatus) -> None:
        with self._changed:
            self._status = status
            self._changed.notify_all()

    def _on_note(self, message: SegmentNote) -> None:
        with self._changed:
            self._notes.append(note_from(message))
            self._changed.notify_all()


def choice_text(choice: str | Enum) -> str:
    """The text of a choice; of a member its value if that is a text, else its name in words."""
    if not isinstance(choice, Enum):
        return choice
    return choice.value if isinstance(choice.value, str) else choice.name.lower().replace('_', ' ')


def choice_texts(choices: Choices) -> tuple[str, ...]:
    """The texts of all choices, in order."""
    return tuple(map(choice_text, choices))


def chosen(answer: Answer, choices: type[Choice]) -> Choice:
    """The member that an answer means, of the class that was given as choices."""
    return next(member for member in choices if choice_text(member) == answer.text)


def _question(question: str | Question, session: str, choices: Choices, timeout_s: float,
              options: dict[str, Any]) -> Question:
    if isinstance(question, Question):
        return question
    return Question(question, session=session, choices=choice_texts(choices),
                    timeout_s=timeout_s, **options)


def _limit_s(timeout_s: float) -> float | None:
    # With no limit of its own a question may wait for ever, but a node that has gone may not.
    return timeout_s + GRACE_S if timeout_s else None


def _check(response: Any) -> Any:
    if response.error_code:
        raise error_from_code(response.error_code, response.error_msg)
    return response


def _answer(response: Any) -> Answer:
    return answer_from(_check(response))
