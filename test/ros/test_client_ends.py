"""TwwClient when the other side is at fault: no reply, no word of a failure, too late, or gone."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
from rclpy.action import ActionServer, CancelResponse, GoalResponse
from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.task import Future as RosFuture
from ros.manager import until
from ros.robot import FOUND_S

from tww_interfaces.action import Query, Watch
from tww_interfaces.srv import Ask
from tww_ros.client import TwwClient
from tww_ros.errors import AnswerTimeoutError, EngineClosedError, TwwError
from tww_ros.node.spinning import SpinningNode


class Server:
    """Serves /fake/ask, query and watch, and never replies; with `fails` goals are aborted.

    begin: called before a goal is taken.
    """

    def __init__(self, fails: bool = False, begin: Callable[[], Any] = lambda: None) -> None:
        self.taken = 0
        self.cancelled = threading.Event()
        self._fails, self._begin = fails, begin
        self._spinning = SpinningNode('server')
        node, group = self._spinning.node, ReentrantCallbackGroup()
        self._servers = [ActionServer(
            node, kind, f'/fake/{name}', execute_callback=self._executing(kind),
            goal_callback=self._on_goal, cancel_callback=self._on_cancel, callback_group=group)
            for kind, name in ((Query, 'query'), (Watch, 'watch'))]
        node.create_service(Ask, '/fake/ask', self._never, callback_group=group)
        self._spinning.start()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._spinning.close(*(server.destroy for server in self._servers))

    def _executing(self, kind: Any) -> Callable[..., Any]:
        async def execute(goal: object) -> object:
            if not self._fails:
                await self._never()
            # The goal was not said to have succeeded.
            return kind.Result()
        return execute

    async def _never(self, *_: object) -> None:
        self.taken += 1
        await RosFuture()

    def _on_goal(self, goal: object) -> GoalResponse:
        self._begin()
        return GoalResponse.ACCEPT

    def _on_cancel(self, goal: object) -> CancelResponse:
        self.cancelled.set()
        return CancelResponse.ACCEPT


def waiting(server: Server, client: TwwClient, pool: ThreadPoolExecutor) -> list[Future]:
    """Callers without a time limit, of every kind; the server has heard of all."""
    stream = client.watch('now?', timeout_s=0.0)
    calls = [pool.submit(client.ask, 'now?', timeout_s=0.0), pool.submit(stream.result),
             pool.submit(lambda: asyncio.run(client.ask_async('now?', timeout_s=0.0))),
             pool.submit(lambda: asyncio.run(stream.result_async()))]
    until(lambda: server.taken == 3, 'the calls were not heard of')
    return calls


@pytest.mark.timeout(60)
def test_a_goal_that_failed_without_a_word_is_no_answer(ros_env: dict[str, str]) -> None:
    with Server(fails=True), TwwClient('/fake') as client:
        stream = client.query('now?')
        with pytest.raises(TwwError, match='aborted'):
            stream.result(FOUND_S)
        with pytest.raises(TwwError, match='aborted'):
            asyncio.run(client.watch('now?').result_async(FOUND_S))
        assert stream.response().error_code == 0


@pytest.mark.timeout(60)
def test_close_ends_every_wait(ros_env: dict[str, str]) -> None:
    with Server() as server, ThreadPoolExecutor() as pool:
        client = TwwClient('/fake')
        calls = waiting(server, client, pool)
        client.close()
        for call in calls:
            with pytest.raises(EngineClosedError, match='client was closed'):
                call.result(FOUND_S)
        with pytest.raises(EngineClosedError):
            client.ask('now?')


@pytest.mark.timeout(60)
def test_a_node_that_goes_is_missed(ros_env: dict[str, str],
                                    monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr('tww_ros.node.waiting.LOOK_S', 0.1)
    monkeypatch.setattr('tww_ros.node.waiting.GONE_S', 0.3)
    with Server() as server, TwwClient('/fake') as client, ThreadPoolExecutor() as pool:
        calls = waiting(server, client, pool)
        # As long as it is there it is waited for.
        threading.Event().wait(0.6)
        assert not any(call.done() for call in calls)
        server.close()
        for call in calls:
            with pytest.raises(EngineClosedError, match='has gone'):
                call.result(FOUND_S)


@pytest.mark.timeout(60)
def test_a_goal_that_is_taken_too_late_is_cancelled(ros_env: dict[str, str],
                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr('tww_ros.node.streams.REPLY_S', 0.2)
    gate = threading.Event()
    with Server(begin=lambda: gate.wait(FOUND_S)) as server, TwwClient('/fake') as client:
        with pytest.raises(AnswerTimeoutError, match='query'):
            client.query('now?', timeout_s=0.0)
        gate.set()
        assert server.cancelled.wait(FOUND_S)
