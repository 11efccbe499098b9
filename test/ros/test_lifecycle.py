"""The lifecycle over real DDS: every transition, again and again, and what answers meanwhile."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import psutil
import pytest
import rclpy
from lifecycle_msgs.msg import Transition
from rclpy.executors import SingleThreadedExecutor
from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.parameter import Parameter
from ros.manager import Manager, until
from ros.robot import FOUND_S, Robot, S

from tww_interfaces.msg import MemoryStatus
from tww_ros import Engine
from tww_ros.errors import EngineClosedError, NothingSeenError, StoreError
from tww_ros.model.scripted import ScriptedModel
from tww_ros.node.client import TwwClient
from tww_ros.node.engine_room import _give_back, _set_apart
from tww_ros.node.lifecycle import ERROR, FAILURE, SUCCESS, ManagedNode
from tww_ros.node.node import TwwNode

CYCLES = 20
CONFIGURE, ACTIVATE, DEACTIVATE, CLEANUP = (
    Transition.TRANSITION_CONFIGURE, Transition.TRANSITION_ACTIVATE,
    Transition.TRANSITION_DEACTIVATE, Transition.TRANSITION_CLEANUP)
MANAGED = {'autostart': False, 'watch.sample_fps': 60.0, 'watch.segment_s': 1.0,
           'watch.idle_close_s': 0.2}


def count(process: psutil.Process, manager: Manager) -> dict[str, int]:
    """What a leak would add to."""
    return {'threads': process.num_threads(), 'files': process.num_fds(),
            'subscribers': manager.node.count_subscribers('/image')}


@pytest.mark.timeout(180)
def test_every_transition_twenty_times(start_node: Callable, tmp_path: Path,
                                       record_property: Callable) -> None:
    """Threads, files and subscriptions are as many afterwards; memory comes back each time."""
    node = start_node({**MANAGED, 'memory.folder': str(tmp_path / 'memory')}, scripted_s=0.0)
    process = psutil.Process(node.process.pid)
    with TwwClient() as client, Manager() as manager, Robot(odometry=False) as robot:
        assert manager.state() == 'unconfigured'
        assert client.get_status().state == MemoryStatus.UNCONFIGURED
        for call in (lambda: client.ask('now?'), client.segments, client.query('now?').result,
                     lambda: client.save_memory(str(tmp_path / 'copy'))):
            with pytest.raises(EngineClosedError, match='ros2 lifecycle set /tww configure'):
                call()
        # Not from here.
        assert not manager.change('activate') and not manager.change('cleanup')
        counted, rss_bytes = [], []
        for cycle in range(CYCLES):
            assert manager.change('configure')
            status = client.wait_for(lambda s: s.state == MemoryStatus.INACTIVE, FOUND_S)
            assert status.loading_progress == 1.0 and len(client.segments()) == cycle
            assert manager.change('activate') and manager.state() == 'active'
            robot.wait_until_watched()
            robot.see((cycle + 1) * 10 * S)
            client.wait_for(lambda s, n=cycle + 1: s.notes_written == n, FOUND_S)
            if cycle in (0, CYCLES - 1):
                assert client.ask('now?').as_of_ns == (cycle + 1) * 10 * S
            assert manager.change('deactivate')
            until(lambda: not manager.node.count_subscribers('/image'), 'still subscribed')
            assert len(client.segments()) == cycle + 1
            assert manager.change('cleanup')
            status = client.wait_for(lambda s: s.state == MemoryStatus.UNCONFIGURED, FOUND_S)
            assert status.memory_bytes == status.segments == status.loading_progress == 0
            # Counters go on.
            assert status.frames_watched == status.images_received == cycle + 1
            counted.append(count(process, manager))
            rss_bytes.append(process.memory_info().rss)
        # The first cycle imports torch; a thread of it may still have been about to end.
        until(lambda: all(number <= counted[0][what] for what, number
                          in count(process, manager).items()), f'{counted}')
        record_property('rss_growth_bytes', rss_bytes[-1] - rss_bytes[0])
    assert node.stop() == {'code': 0, 'threads': ['MainThread']}


@pytest.mark.timeout(180)
def test_what_answers_meanwhile_and_what_is_told(start_node: Callable) -> None:
    """A slow load and a failed one, questions cut off, parameters, shutdown: one node."""
    node = start_node({**MANAGED, 'model': 'slow', 'answer.max_new_tokens': 8_192},
                      scripted_s=0.01)
    with (TwwClient() as client, Manager() as manager, Robot(odometry=False) as robot,
          ThreadPoolExecutor() as pool):
        assert manager.state() == 'unconfigured'
        loading = manager.start_change('configure')
        assert client.wait_for(lambda s: s.state == MemoryStatus.LOADING, FOUND_S)
        assert manager.state() == 'configuring'
        assert manager.get_parameter('model') == 'slow'
        assert client.get_status().loading_progress < 1.0
        with pytest.raises(EngineClosedError, match='the model is being loaded'):
            client.ask('now?')
        assert not manager.change('configure') and not manager.change('shutdown')
        assert 'ros2 lifecycle set /tww deactivate' in manager.set_parameter('model', 'x')
        assert not loading.done()
        assert loading.result(FOUND_S).success and manager.state() == 'inactive'
        with pytest.raises(EngineClosedError, match='ros2 lifecycle set /tww activate'):
            client.ask('now?')

        assert manager.change('activate')
        robot.wait_until_watched()
        robot.see(10 * S)
        client.wait_for(lambda s: s.frames_watched == 1, FOUND_S)
        asked = pool.submit(client.ask, 'a long one', max_new_tokens=8_000)
        stream = client.query('another long one', session='b', max_new_tokens=8_000)
        watch = client.watch('Is it {no}?', timeout_s=0.0)
        client.wait_for(lambda s: s.answers_active + s.answers_waiting == 2 and s.watches, FOUND_S)
        assert manager.change('deactivate')
        for result in (lambda: asked.result(FOUND_S), stream.result, watch.result):
            with pytest.raises(EngineClosedError, match='deactivated'):
                result()
        # It can be activated again, with another rate for its cameras.
        assert 'range' in manager.set_parameter('watch.sample_fps', 0.0)
        assert not manager.set_parameter('watch.sample_fps', 1.0)
        assert not manager.set_parameter('status_rate_hz', 20.0)
        assert not manager.set_parameter('feedback_period_s', 0.02)
        assert manager.change('activate')
        robot.wait_until_watched()
        before = client.get_status()
        # No more than wait for the node at once.
        for tenth in range(200, 221):
            robot.see(tenth * S // 10)
        after = client.wait_for(
            lambda s: s.frames_received == before.frames_received + 21 and not s.frames_waiting,
            FOUND_S)
        assert 2 <= after.frames_watched - before.frames_watched <= 4
        assert client.ask('hello').text == 'You asked: hello'

        assert manager.change('deactivate', 'cleanup')
        assert not manager.set_parameter('model', 'broken')
        assert not manager.change('configure') and manager.state() == 'unconfigured'
        assert '[FATAL]' in node.wait_for_line('expected a checkpoint that can be loaded')
        status = client.wait_for(lambda s: s.state == MemoryStatus.FAILED, FOUND_S)
        assert 'expected a checkpoint' in status.last_error
        with pytest.raises(EngineClosedError, match='could not be loaded: broken'):
            client.ask('now?')
        assert not manager.set_parameter('model', 'tiny-random')
        assert not manager.set_parameter('cameras', ['front', 'rear'])
        assert manager.change('configure', 'activate')
        assert not client.get_status().last_error
        until(lambda: manager.node.count_subscribers('/front/image') == 1
              == manager.node.count_subscribers('/rear/image'), 'not subscribed')
        assert manager.get_parameter('watch.label_cameras')
        with pytest.raises(NothingSeenError):
            client.ask('now?')
        assert manager.change('shutdown') and manager.state() == 'finalized'
        assert client.wait_for(lambda s: s.state == MemoryStatus.CLOSED, FOUND_S)
        with pytest.raises(EngineClosedError, match='shutting down'):
            client.ask('now?')
    assert node.stop() == {'code': 0, 'threads': ['MainThread']}
    assert 'internal error' not in node.output and 'Traceback' not in node.output


class Spun:
    """A node in this process and its executor; transitions by hand."""

    def __init__(self, make: Callable[..., ManagedNode]) -> None:
        self._context = rclpy.Context()
        rclpy.init(context=self._context)
        self.node = make(context=self._context)
        self.executor = SingleThreadedExecutor(context=self._context)
        self.executor.add_node(self.node)

    def run(self, function: Callable[..., object], *args: object) -> object:
        task = self.executor.create_task(function, *args)
        self.executor.spin_until_future_complete(task, timeout_sec=FOUND_S)
        return task.result()

    def change(self, *numbers: int) -> bool:
        return all(self.run(self.node.change_state, number) for number in numbers)

    def serve(self, call: Callable[[], object]) -> object:
        """What a call of another node returns."""
        with ThreadPoolExecutor() as pool:
            called = pool.submit(call)
            while not called.done():
                self.executor.spin_once(timeout_sec=0.05)
            return called.result()

    def close(self) -> None:
        self.executor.shutdown(timeout_sec=1.0)
        self.node.destroy_node()
        rclpy.try_shutdown(context=self._context)


@pytest.fixture
def spun(ros_env: dict[str, str]) -> Iterator[Callable[..., Spun]]:
    made: list[Spun] = []

    def make(kind: Callable[..., ManagedNode]) -> Spun:
        made.append(Spun(kind))
        return made[-1]

    yield make
    for each in made:
        each.close()


def managed(load: Callable[..., object] = lambda _: ScriptedModel(),
            parameters: dict[str, object] | None = None, **options: object) -> TwwNode:
    return TwwNode(load, parameter_overrides=[
        Parameter(name, value=value)
        for name, value in {'autostart': False, **(parameters or {})}.items()], **options)


@pytest.mark.timeout(60)
def test_cleanup_leaves_nobody_who_holds_the_model(spun: Callable) -> None:
    made = spun(managed)
    for _ in range(3):
        assert made.change(CONFIGURE)
        engine = weakref.ref(made.node.room.engine)
        model = weakref.ref(made.node.room.engine.model)
        assert made.change(ACTIVATE, DEACTIVATE, CLEANUP)
        assert engine() is None and model() is None


@pytest.mark.timeout(60)
def test_a_configure_that_fails_leaves_no_model(spun: Callable, tmp_path: Path) -> None:
    """However often; memory cannot be opened, after the model was loaded."""
    models: list[weakref.ref] = []

    def load(_: object) -> ScriptedModel:
        model = ScriptedModel()
        models.append(weakref.ref(model))
        return model

    (tmp_path / 'file').touch()
    made = spun(partial(managed, load, {'memory.folder': str(tmp_path / 'file')}))
    for count in range(1, CYCLES + 1):
        assert not made.change(CONFIGURE)
        assert len(models) == count and models[-1]() is None
    status = made.node.status()
    assert (status.state, status.loading_progress) == (MemoryStatus.FAILED, 0.0)
    assert str(tmp_path / 'file') in status.last_error == made.node.failure
    made.node.set_parameters([Parameter('memory.folder', value=''),
                              Parameter('pose_topic', value='9 lives')])
    assert not made.change(CONFIGURE)
    assert 'pose_topic' in made.node.failure
    # That is read by a timer, and what it raises would be raised every second.
    made.node._publish_diagnostics()
    made.node.set_parameters([Parameter('pose_topic', value='odom')])
    assert made.change(CONFIGURE) and made.node.status().last_error == ''
    assert made.change(CLEANUP)


@pytest.mark.timeout(60)
def test_an_engine_that_ends_by_itself(spun: Callable) -> None:
    broken, gate = threading.Event(), threading.Event()

    def before_step(_: object) -> None:
        gate.wait(FOUND_S)
        if broken.is_set():
            raise RuntimeError('no kernel for this device')

    broken.set()
    made = spun(partial(managed, lambda _: ScriptedModel(before_step=before_step)))
    with TwwClient() as client:
        # First after it was activated, in a step that had begun before; then at once.
        assert made.change(CONFIGURE, ACTIVATE)
        assert made.node.status().state == MemoryStatus.ACTIVE
        gate.set()
        until(lambda: made.node.room.problem, 'it goes on')
        status = made.node.status()
        assert status.state == MemoryStatus.FAILED and 'no kernel' in status.last_error
        with pytest.raises(EngineClosedError, match=r'no kernel.* deactivate`, then cleanup'):
            made.serve(lambda: client.ask('now?'))
        assert made.change(DEACTIVATE, CLEANUP, CONFIGURE)
        until(lambda: made.node.room.problem, 'it goes on')
        assert made.node.status().state == MemoryStatus.FAILED
        assert not made.change(ACTIVATE) and made.node.lifecycle_state == 'inactive'
        broken.clear()
        assert made.change(CLEANUP, CONFIGURE, ACTIVATE)
        with pytest.raises(NothingSeenError):
            made.serve(lambda: client.ask('now?'))
        assert made.node.status().state == MemoryStatus.ACTIVE
        assert made.change(DEACTIVATE, CLEANUP)


@pytest.mark.timeout(60)
def test_a_wrong_qos_override_leaves_the_model(spun: Callable,
                                               capfd: pytest.CaptureFixture) -> None:
    made = spun(partial(managed, parameters={
        'cameras': ['front', 'rear'],
        'qos_overrides./rear/image.subscription.reliability': 'sometimes'}))
    assert made.change(CONFIGURE)
    engine = made.node.room.engine
    assert not made.change(ACTIVATE) and made.node.lifecycle_state == 'inactive'
    assert made.node.room.engine is engine and engine.alive
    assert made.node.status().state == MemoryStatus.INACTIVE
    assert 'parameters qos_overrides./rear/image.subscription.' in capfd.readouterr().err
    # The one that fits is not left half open.
    assert not any(state.subscribed for state in made.node.cameras.states())
    assert made.change(CLEANUP)


@pytest.mark.timeout(60)
def test_two_engines_never_step_one_model(spun: Callable, tmp_path: Path) -> None:
    """A memory is loaded while the present engine is stuck in a step."""
    folder, gate = str(tmp_path / 'saved'), threading.Event()
    with Engine(ScriptedModel()) as engine:
        engine.memory.save(folder)
    made = spun(partial(managed, lambda _: ScriptedModel(before_step=lambda _: gate.wait(FOUND_S)),
                        {'shutdown_timeout_s': 0.1}))
    assert made.change(CONFIGURE)
    stuck = made.node.room.engine
    with pytest.raises(StoreError, match=r'not loaded: .* 0\.1 s.* shutdown_timeout_s'):
        made.run(made.node.room.replace, folder)
    status = made.node.status()
    assert status.state == MemoryStatus.FAILED and 'did not end in time' in status.last_error
    gate.set()
    until(lambda: stuck.close(FOUND_S), 'still stuck')
    # Nobody holds the folder, and it can be loaded now.
    assert made.run(made.node.room.replace, folder) == 0
    assert made.node.room.engine is not stuck and made.node.room.engines == 2
    assert made.node.status().state == MemoryStatus.INACTIVE
    assert made.change(CLEANUP)


@pytest.mark.timeout(60)
@pytest.mark.parametrize('names', [(), ('configure',), ('configure', 'activate')])
def test_shutdown_from_every_state(spun: Callable, names: tuple[str, ...]) -> None:
    made = spun(managed)
    for name in names:
        assert made.change(getattr(Transition, f'TRANSITION_{name.upper()}'))
    state = ('unconfigured', 'inactive', 'active')[len(names)]
    assert made.node.lifecycle_state == state
    assert made.change(getattr(Transition, f'TRANSITION_{state.upper()}_SHUTDOWN'))
    assert made.node.lifecycle_state == 'finalized'
    assert made.node.room.engine is None and made.node.close_engine()


@pytest.mark.timeout(60)
@pytest.mark.parametrize(('outcome', 'recovered', 'state'), [
    (SUCCESS, SUCCESS, 'inactive'), (FAILURE, SUCCESS, 'unconfigured'),
    (ERROR, SUCCESS, 'unconfigured'), (ERROR, FAILURE, 'finalized'),
    (RuntimeError, SUCCESS, 'unconfigured'),
])
def test_ends_of_a_transition(spun: Callable, outcome: object, recovered: object,
                              state: str) -> None:
    """As in https://design.ros2.org/articles/node_lifecycle.html."""
    class Made(ManagedNode):
        def __init__(self, **options: object) -> None:
            super().__init__('made', **options)
            self.handled = 0

        async def on_configure(self, state: object) -> TransitionCallbackReturn:
            if outcome is RuntimeError:
                raise RuntimeError('a fault')
            return outcome

        async def on_error(self, state: object) -> TransitionCallbackReturn:
            self.handled += 1
            return recovered

    made = spun(Made)
    assert made.change(Transition.TRANSITION_CONFIGURE) == (outcome == SUCCESS)
    assert made.node.lifecycle_state == state
    assert made.node.handled == (outcome not in (SUCCESS, FAILURE))
    if state == 'unconfigured':
        # And it can be tried again.
        made.change(Transition.TRANSITION_CONFIGURE)
        assert made.node.lifecycle_state == state


def test_what_a_model_is_made_of_is_looked_at_again_when_it_is_given_back() -> None:
    """The collector leaves it out meanwhile; it is full of cycles, and all of it goes."""
    class Part:
        pass

    part = Part()
    part.itself = part
    alive = weakref.ref(part)
    try:
        _set_apart()
        del part
        gc.collect()
        assert alive() is not None and gc.get_freeze_count() > 10_000
    finally:
        _give_back()
    assert alive() is None and gc.get_freeze_count() == 0
