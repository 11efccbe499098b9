"""Memory services over real DDS: saved, cleared, loaded, refused with a reason."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.parameter import Parameter
from ros.manager import Manager, until
from ros.robot import FOUND_S, Robot, S

from tww_interfaces.action import Query
from tww_interfaces.srv import SaveMemory
from tww_ros.errors import BusyError, StoreError, UnknownSessionError
from tww_ros.model.scripted import ScriptedModel
from tww_ros.node import services
from tww_ros.node.client import TwwClient
from tww_ros.node.node import TwwNode

SETTINGS = {'watch.sample_fps': 60.0, 'watch.segment_s': 1.0, 'watch.idle_close_s': 0.2,
            'answer.max_new_tokens': 8_192}


@pytest.mark.timeout(120)
def test_memory_goes_away_and_comes_back(start_node: Callable, tmp_path: Path) -> None:
    node = start_node(SETTINGS, scripted_s=0.005)
    saved, kept = tmp_path / 'saved', tmp_path / 'kept'
    with TwwClient() as client, Robot(odometry=False) as robot:
        client.wait_until_ready(90.0)
        robot.wait_until_watched()
        for second in range(10, 15):
            robot.see(second * S)
        client.wait_for(lambda s: s.notes_written == 5, FOUND_S)
        before = client.segments()
        assert [info.start_ns // S for info in before] == [10, 11, 12, 13, 14]

        assert client.save_memory(str(saved)) == str(saved)
        for folder, text in ((saved, 'expected a new'), ('/proc/tww', '/proc/tww'), ('', 'empty'),
                             ('~nobody_of_that_name/memory', 'home directory')):
            with pytest.raises(StoreError, match=text):
                client.save_memory(str(folder))
        # Those that ended before the third began.
        assert client.clear_memory(12 * S) == 2
        assert [info.start_ns // S for info in client.segments()] == [12, 13, 14]
        assert client.clear_memory() == 3 and client.segments() == []
        with pytest.raises(StoreError, match='no memory'):
            client.load_memory(str(tmp_path / 'nothing'))

        robot.see(20 * S)
        client.wait_for(lambda s: s.notes_written == 6, FOUND_S)
        client.ask('now?', session='a')
        stream = client.query('a long one', max_new_tokens=8_000)
        client.wait_for(lambda s: s.answers_active == 1, FOUND_S)
        with pytest.raises(BusyError, match='1 questions are being answered'):
            client.load_memory(str(saved))
        # Saving is not in the way of an answer.
        assert client.save_memory(str(kept)) == str(kept)
        assert client.get_status().answers_active == 1 and stream.cancel()
        assert stream.response().error_code == Query.Result.CANCELLED

        answered = client.get_status()
        assert client.load_memory(str(saved)) == 5
        assert [(info.id, info.start_ns, info.end_ns, info.note) for info in client.segments()
                ] == [(info.id, info.start_ns, info.end_ns, info.note) for info in before]
        loaded = client.get_status()
        assert loaded.frames_watched == answered.frames_watched == 6
        assert loaded.answers_done == answered.answers_done and loaded.steps >= answered.steps
        # Its sessions are those of another engine.
        with pytest.raises(UnknownSessionError):
            client.close_session('a')
        answer = client.ask('and now?')
        assert answer.as_of_ns == 14 * S and answer.text == 'You asked: and now?'
        # Watching goes on behind it, and into that folder, which is now in use.
        robot.see(30 * S)
        client.wait_for(lambda s: s.segments == 6 and s.disk_bytes > 0 and s.device_bytes > 0,
                        FOUND_S)
        with pytest.raises(StoreError, match='in use'):
            client.load_memory(str(saved))
        assert client.load_memory(str(kept)) == 1
        assert client.load_memory(str(saved)) == 6
    assert node.stop() == {'code': 0, 'threads': ['MainThread']}
    assert 'Traceback' not in node.output


@pytest.mark.timeout(60)
def test_a_slow_disk_keeps_nobody_waiting(ros_env: dict[str, str], tmp_path: Path,
                                          monkeypatch: pytest.MonkeyPatch) -> None:
    """While memory is saved, all else answers, and what would change memory is refused."""
    context = rclpy.Context()
    rclpy.init(context=context)
    node = TwwNode(lambda _: ScriptedModel(), context=context,
                   parameter_overrides=[Parameter('status_rate_hz', value=50.0)])
    executor = SingleThreadedExecutor(context=context)
    executor.add_node(node)
    ending = threading.Event()

    def spin() -> None:
        while not ending.is_set():
            executor.spin_once(timeout_sec=0.05)

    thread = threading.Thread(target=spin)
    thread.start()
    try:
        with TwwClient() as client, Manager() as manager:
            client.wait_until_ready(60.0)
            disk, memory = threading.Event(), node.room.engine.memory
            with monkeypatch.context() as patch:
                # Its folder is behind a network that hangs.
                patch.setattr(services, '_folder', lambda name: disk.wait(FOUND_S) and Path(name))
                saving = manager.start(SaveMemory, 'save_memory', folder=str(tmp_path / 'zero'))
                until(lambda: node._bell.working, 'not looking for the folder')
                assert client.get_status().state == 3 and not saving.done()
                disk.set()
                assert saving.result(FOUND_S).error_code == 0
            disk.clear()
            save = memory.save
            memory.save = lambda folder: (disk.wait(FOUND_S), save(folder))
            saving = manager.start(SaveMemory, 'save_memory', folder=str(tmp_path / 'one'))
            until(lambda: node.room._doing, 'not saving')
            for call in (lambda: client.save_memory(str(tmp_path / 'two')), client.clear_memory,
                         lambda: client.load_memory(str(tmp_path / 'three'))):
                with pytest.raises(BusyError, match='memory is being saved'):
                    call()
            assert client.segments() == [] and client.get_status().state == 3
            assert manager.get_parameter('status_rate_hz') == 50.0
            # Cleaning up waits for it, and for nothing else.
            assert manager.change('deactivate')
            cleaning = manager.start_change('cleanup')
            until(lambda: manager.state() == 'cleaningup', 'not cleaning up')
            assert not cleaning.done() and not saving.done()
            disk.set()
            assert saving.result(FOUND_S).error_code == 0
            assert cleaning.result(FOUND_S).success and manager.state() == 'unconfigured'
            assert (tmp_path / 'one').is_dir()
    finally:
        ending.set()
        thread.join()
        assert node.close_engine()
        executor.shutdown(timeout_sec=1.0)
        node.destroy_node()
        rclpy.try_shutdown(context=context)
