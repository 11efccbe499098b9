"""What a human reads on /diagnostics."""

import pytest
import rclpy
from builtin_interfaces.msg import Duration
from diagnostic_msgs.msg import DiagnosticStatus
from rclpy.executors import SingleThreadedExecutor

from tww_interfaces.msg import MemoryStatus
from tww_ros.model.scripted import ScriptedModel
from tww_ros.node import node as node_module
from tww_ros.node.diagnostics import DISCOVERY_S, SHOWN_S, STALE_S, Diagnostics, TopicState

OK, WARN, ERROR = DiagnosticStatus.OK, DiagnosticStatus.WARN, DiagnosticStatus.ERROR


def camera(name: str = 'front', **changes: object) -> TopicState:
    return TopicState(**{'kind': 'camera', 'name': name, 'topic': f'/{name}/image', 'messages': 9,
                         'silent_s': 0.1, 'publishers': 1, 'rate_hz': 29.97, **changes})


@pytest.mark.parametrize(('changes', 'text'), [
    ({}, ''),
    ({'silent_s': DISCOVERY_S - 0.1, 'publishers': 0}, ''),
    ({'silent_s': DISCOVERY_S, 'publishers': 0}, 'no publisher; start the driver'),
    ({'silent_s': 60.0, 'publishers': 0, 'subscribed': False}, ''),
    ({'silent_s': DISCOVERY_S, 'publishers': 0, 'mismatch': 'do this'}, 'do this'),
    # One that does not fit does no harm beside one that does.
    ({'silent_s': DISCOVERY_S, 'mismatch': 'do this'}, ''),
    ({'silent_s': DISCOVERY_S, 'publishers': 0, 'elsewhere': ('/a', '/b/compressed')},
     'remap it to where there is one: /a, /b/compressed (set image_transport to compressed'),
    ({'silent_s': STALE_S, 'messages': 0}, '1 publishers and no message yet'),
    ({'silent_s': STALE_S}, 'no message for more than 5 s'),
])
def test_complaint(changes: dict, text: str) -> None:
    state = camera(**changes)
    assert text in state.complaint()
    assert bool(text) == bool(state.complaint())
    if text not in ('', 'do this'):
        assert state.complaint().startswith('/front/image: ')


class Reader:
    """Reports one status after another, at times of its own, and reads the entries."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self._diagnostics = Diagnostics('tww', clock=lambda: self.now_s)

    def __call__(self, *states: TopicState, engine: int = 0, **values: object) -> dict:
        self.now_s += 1.0
        status = MemoryStatus(**{'state': MemoryStatus.ACTIVE, 'ingest_enabled': True,
                                 'description': 'a model', **values})
        array = self._diagnostics.report(status, list(states), engine)
        assert {line.hardware_id for line in array.status} == {'tww'}
        self.values = {line.name: {entry.key: entry.value for entry in line.values}
                       for line in array.status}
        return {line.name.removeprefix('tww: '): (line.level, line.message)
                for line in array.status}


def test_names_and_levels_when_all_is_well() -> None:
    read = Reader()
    report = read(camera(), camera('rear'), camera(kind='pose', name='pose'), frames_watched=2)
    assert list(report) == ['model', 'ingest', 'memory', 'queries', 'time', 'camera front',
                            'camera rear', 'pose']
    assert {level for level, _ in report.values()} == {OK}
    assert report['model'][1] == 'a model'
    assert report['ingest'][1] == 'watching, 2.0 frames per second'
    assert report['camera front'][1] == '30.0 messages per second'
    assert read.values['tww: camera front']['topic'] == '/front/image'


def test_states_of_the_model() -> None:
    read = Reader()
    for state, expected in {
        MemoryStatus.UNCONFIGURED: (WARN, 'no model is loaded; configure the node'),
        MemoryStatus.LOADING: (WARN, 'loading the model (25%)'),
        MemoryStatus.INACTIVE: (OK, 'loaded and inactive: nothing is watched or answered'),
        MemoryStatus.CLOSED: (WARN, 'shutting down'),
        MemoryStatus.FAILED: (ERROR, 'no checkpoint'),
    }.items():
        report = read(state=state, loading_progress=0.25, last_error='no checkpoint')
        assert report['model'] == expected
        assert report['ingest'] == (OK, 'not watching: the node is not active')
    assert read(ingest_enabled=False)['ingest'] == (OK, 'ingest is disabled')


@pytest.mark.parametrize(('quantization', 'state', 'expected'), [
    ('none', MemoryStatus.ACTIVE, 'not 4-bit'), ('int8', MemoryStatus.ACTIVE, 'not 4-bit'),
    ('nf4', MemoryStatus.ACTIVE, 'passed'), ('nf4', MemoryStatus.INACTIVE, 'passed'),
    ('nf4', MemoryStatus.LOADING, 'not passed'), ('nf4', MemoryStatus.FAILED, 'not passed'),
])
def test_self_test(quantization: str, state: int, expected: str) -> None:
    read = Reader()
    read(quantization=quantization, state=state)
    assert read.values['tww: model']['4-bit self-test'] == expected


@pytest.mark.parametrize(('part', 'counter', 'text'), [
    ('ingest', 'frames_dropped', '4 frames dropped since the last time'),
    ('ingest', 'frames_rejected', '4 images rejected since the last time'),
    ('ingest', 'images_rejected', '4 images rejected since the last time'),
    ('memory', 'notes_skipped', '4 segments got no note since the last time'),
    ('queries', 'answers_failed', '4 questions failed or ran out of time'),
])
def test_losses_are_told_while_they_happen(part: str, counter: str, text: str) -> None:
    read = Reader()
    assert read(**{counter: 3})[part][0] == WARN
    assert read(**{counter: 3})[part][0] == OK
    level, message = read(**{counter: 7})[part]
    assert level == WARN and message.startswith(text)
    others = read(**{counter: 8})
    assert [name for name, (level, _) in others.items() if level != OK] == [part]


def test_lag_is_told_while_frames_wait() -> None:
    behind = {'ingest_lag': Duration(sec=7, nanosec=500_000_000)}
    assert Reader()(frames_waiting=9, **behind)['ingest'] == (
        WARN, 'memory is 7.5 s behind the cameras; lower watch.sample_fps or watch.max_pixels')
    assert Reader()(**behind)['ingest'][0] == OK


def test_jumps_and_errors_are_shown_for_a_while() -> None:
    read = Reader()
    # A memory that was taken up again has its epochs behind it.
    read(state=MemoryStatus.LOADING)
    assert read(epochs=3)['time'][0] == OK
    report = read(epochs=4, last_error='the disk is full')
    assert report['time'][0] == WARN and 'epoch 4 has begun' in report['time'][1]
    assert report['memory'] == (WARN, 'the disk is full')
    read.now_s += SHOWN_S - 3.0
    assert read(epochs=4, last_error='the disk is full')['time'][0] == WARN
    read.now_s += 3.0
    report = read(epochs=4, last_error='the disk is full')
    assert report['time'][0] == report['memory'][0] == OK
    assert read.values['tww: memory']['last error'] == 'the disk is full'


def test_another_memory_has_epochs_of_its_own() -> None:
    read = Reader()
    assert read(epochs=1, engine=1)['time'][0] == OK
    assert read(epochs=3, engine=2)['time'][0] == OK
    assert read(epochs=4, engine=2)['time'][0] == WARN


def test_a_silent_camera_is_named_and_a_malformed_image_told() -> None:
    read = Reader()
    report = read(camera(), camera('rear', silent_s=60.0), camera('side', malformed='no colours'),
                  camera('left', subscribed=False, messages=0, publishers=0))
    assert report['camera front'][0] == report['camera left'][0] == OK
    assert report['camera rear'][0] == WARN and '/rear/image' in report['camera rear'][1]
    assert report['camera side'] == (WARN, 'no colours')


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
        while node.status().state != MemoryStatus.ACTIVE:
            executor.spin_once(timeout_sec=0.1)
        for error, times in (('no room', 3), ('no paper', 2)):
            node.room.engine._counters.last_error = error
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
