"""SIGINT and SIGTERM: exit code 0, no thread left, and open questions are told."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tww_ros.errors import EngineClosedError
from tww_ros.node.bag_publisher import publish_bag
from tww_ros.node.client import TwwClient
from tww_ros.replay.bag import read_bag

CLEAN = {'code': 0, 'threads': ['MainThread']}


@pytest.mark.timeout(180)
@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_signal_in_the_middle_of_everything(start_node: Callable, bikes_bag: Path,
                                            number: int) -> None:
    """While frames arrive, one answer is written and another waits: both callers hear of it."""
    node = start_node({'watch.sample_fps': 10.0, 'answer.max_new_tokens': 8_192}, scripted_s=0.01)
    with TwwClient() as client, ThreadPoolExecutor() as pool:
        client.wait_until_ready(90.0)
        publish_bag(list(read_bag(bikes_bag))[:10], rate=20.0)
        asked = pool.submit(client.ask, 'a long one', max_new_tokens=8_000)
        stream = client.query('another long one', session='b', max_new_tokens=8_000)
        client.wait_for(lambda status: status.answers_active + status.answers_waiting == 2, 30.0)
        assert node.stop(number) == CLEAN
        with pytest.raises(EngineClosedError):
            asked.result(20.0)
        with pytest.raises(EngineClosedError):
            stream.result(20.0)


@pytest.mark.timeout(120)
def test_signal_while_idle_and_while_loading(start_node: Callable) -> None:
    # Too little time to load in: the thread is inside torch when the process ends.
    loading = start_node({'shutdown_timeout_s': 0.1})
    loading.wait_for_line('loading tiny-random', 60.0)
    loading.process.send_signal(signal.SIGINT)
    assert loading.wait() == 0, loading.output
    assert 'leaving without it' in loading.output
    idle = start_node(scripted_s=0.0)
    idle.wait_for_line('ready: watching and answering', 90.0)
    assert idle.stop() == CLEAN


@pytest.mark.timeout(120)
def test_the_program_itself(ros_env: dict[str, str]) -> None:
    """tww_node as a user starts it, without the wrapper of the other tests."""
    process = subprocess.Popen(
        [sys.executable, '-m', 'tww_ros.node.main'], env=ros_env, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        with TwwClient() as client:
            client.wait_until_ready(90.0)
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=30)
        assert process.returncode == 0, output
        assert 'Traceback' not in output
    finally:
        process.kill()
        process.wait(10)
