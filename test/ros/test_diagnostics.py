"""What a human reads on /diagnostics."""

import pytest
import rclpy
from diagnostic_msgs.msg import DiagnosticStatus
from rclpy.executors import SingleThreadedExecutor

from tww_interfaces.msg import MemoryStatus
from tww_ros.model.scripted import ScriptedModel
from tww_ros.node import node as node_module
from tww_ros.node.diagnostics import STALE_S, CameraState, Diagnostics

FRONT = CameraState('front', '/front/image', images=9, silent_s=0.1, publishers=1)


@pytest.mark.parametrize(('camera', 'text'), [
    (FRONT, ''),
    (CameraState('front', '/front/image', 0, STALE_S, 0), 'no publisher; check the topic name'),
    (CameraState('front', '/front/image', 0, STALE_S, 1), 'check QoS'),
    (CameraState('front', '/front/image', 9, STALE_S, 1), 'no image for more than 5 s'),
])
def test_complaint(camera: CameraState, text: str) -> None:
    assert text in camera.complaint()
    assert bool(text) == bool(camera.complaint())


def test_levels() -> None:
    diagnostics = Diagnostics('tww')

    def report(**values: object) -> tuple[bytes, str]:
        status = MemoryStatus(**{'state': MemoryStatus.ACTIVE, 'ingest_enabled': True, **values})
        line, = diagnostics.report(status, [FRONT]).status
        assert line.hardware_id == 'tww'
        return line.level, line.message

    assert report(state=MemoryStatus.LOADING) == (DiagnosticStatus.WARN, 'loading the model')
    assert report() == (DiagnosticStatus.OK, 'watching')
    assert report(ingest_enabled=False) == (DiagnosticStatus.OK, 'ingest is disabled')
    level, message = report(frames_dropped=4)
    assert level == DiagnosticStatus.WARN and message.startswith('4 frames dropped')
    assert report(frames_dropped=4)[0] == DiagnosticStatus.OK
    level, message = report(state=MemoryStatus.FAILED, last_error='no checkpoint')
    assert (level, message) == (DiagnosticStatus.ERROR, 'no checkpoint')


def test_silent_camera_is_named() -> None:
    silent = CameraState('rear', '/rear/image', 3, 60.0, 1)
    status = MemoryStatus(state=MemoryStatus.ACTIVE)
    line, = Diagnostics('tww').report(status, [FRONT, silent]).status
    assert line.level == DiagnosticStatus.WARN and '/rear/image' in line.message
    assert {entry.key: entry.value for entry in line.values}['rear: images'] == '3'


@pytest.mark.timeout(60)
def test_the_log_tells_of_an_error_once(ros_env: dict[str, str], monkeypatch: pytest.MonkeyPatch,
                                        capfd: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(node_module, 'COMPLAINT_PERIOD_S', 0.0)
    context = rclpy.Context()
    rclpy.init(args=[], context=context)
    node = node_module.TwwNode(lambda _: ScriptedModel(), context=context)
    executor = SingleThreadedExecutor(context=context)
    executor.add_node(node)
    try:
        while node.status().state == MemoryStatus.LOADING:
            executor.spin_once(timeout_sec=0.1)
        for error, times in (('no room', 3), ('no paper', 2)):
            node._engine._counters.last_error = error
            for _ in range(times):
                node._publish_status()
            assert node.status().last_error == error
        told = capfd.readouterr().err
        assert told.count('the engine reports: no room') == 1
        assert told.count('the engine reports: no paper') == 1
    finally:
        node.close_engine()
        executor.shutdown(timeout_sec=1.0)
        node.destroy_node()
        rclpy.try_shutdown(context=context)
