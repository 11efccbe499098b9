"""Bell: what another thread rings reaches the executor, also when nothing else wakes it."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Iterator

import pytest
import rclpy
from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.task import Future
from std_srvs.srv import Trigger

from tww_ros.node.compat import Bell


@pytest.fixture
def node(ros_env: dict[str, str]) -> Iterator[Node]:
    context = rclpy.Context()
    rclpy.init(context=context)
    # Nothing else in it may wake the executor: no parameter services, no timers.
    made = Node('quiet', context=context, start_parameter_services=False)
    yield made
    rclpy.try_shutdown(context=context)


def spin(node: Node) -> threading.Thread:
    executor = SingleThreadedExecutor(context=node.context)
    executor.add_node(node)

    def run() -> None:
        try:
            executor.spin()
        except ExternalShutdownException:
            return

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread


def test_an_awaited_result_arrives_without_any_other_event(node: Node) -> None:
    """With executor.create_task(future.set_result, ...) this waits for ever."""
    bell = Bell(node, on_error=pytest.fail)

    async def answer(request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        future = Future()
        threading.Timer(0.05, bell.finish, (future, 'from another thread')).start()
        response.message = await future
        response.success = True
        return response

    node.create_service(Trigger, 'slow', answer, callback_group=ReentrantCallbackGroup())
    spin(node)
    context = rclpy.Context()
    rclpy.init(context=context)
    caller = Node('caller', context=context)
    client = caller.create_client(Trigger, 'slow')
    executor = SingleThreadedExecutor(context=context)
    executor.add_node(caller)
    try:
        assert client.wait_for_service(20.0)
        for _ in range(5):
            reply = client.call_async(Trigger.Request())
            executor.spin_until_future_complete(reply, 20.0)
            assert reply.done() and reply.result().message == 'from another thread'
    finally:
        rclpy.try_shutdown(context=context)


def test_calls_keep_their_order_and_survive_a_fault(node: Node) -> None:
    errors: list[BaseException] = []
    called: list[int] = []
    done = threading.Event()
    bell = Bell(node, on_error=errors.append)
    # Before there is an executor: done when there is one.
    bell.call(called.append, 0)
    spin(node)
    bell.call(lambda: 1 / 0)
    for number in range(1, 100):
        bell.call(called.append, number)
    bell.call(done.set)
    assert done.wait(20.0)
    assert called == list(range(100))
    assert [type(error) for error in errors] == [ZeroDivisionError]


def test_work_that_fails_leaves_nothing_behind(node: Node) -> None:
    """Without the collector of garbage: a model of many gigabytes cannot wait for it."""
    bell = Bell(node, on_error=pytest.fail)
    made: list[weakref.ref] = []

    class Model:
        """Something large."""

    def load() -> None:
        model = Model()
        made.append(weakref.ref(model))
        raise ValueError('no')

    async def try_it() -> str:
        try:
            await bell.work(load)
        except ValueError:
            return 'failed'

    executor = SingleThreadedExecutor(context=node.context)
    executor.add_node(node)
    gc.disable()
    try:
        task = executor.create_task(try_it)
        executor.spin_until_future_complete(task, 20.0)
        assert task.result() == 'failed' and made[0]() is None
    finally:
        gc.enable()
        executor.shutdown(timeout_sec=1.0)
