"""The simulated camera as a real process: pictures, intrinsics, truth, pauses, ends."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from itertools import pairwise

import numpy as np
import pytest
import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import String
from std_srvs.srv import SetBool

from tww_ros.node.conversions import from_time
from tww_ros.types import NS_PER_S
from tww_ros.video.encodings import image_to_rgb
from tww_ros.world.render import Renderer
from tww_ros.world.table import PLACES, TEST_SEEDS, Pace, simulate

START_S = 40.0
SEED = TEST_SEEDS.start + 5
SMALL = {'size_px': 96, 'seed': SEED, 'pace.gap_s': 0.2}


class Listener:
    """A node in this process that keeps what it hears, by topic."""

    def __init__(self) -> None:
        self._context = rclpy.Context()
        rclpy.init(args=[], context=self._context)
        self.node = Node('listener', context=self._context)
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self.node)
        self.images: list[Image] = []
        self.infos: list[CameraInfo] = []
        self.truths: list[dict] = []
        self.node.create_subscription(CameraInfo, 'camera_info', self.infos.append,
                                      qos_profile_sensor_data)
        self.node.create_subscription(
            String, 'tabletop_camera/truth', lambda got: self.truths.append(json.loads(got.data)),
            50)

    def watch(self) -> None:
        """Subscribe to the images too."""
        self.node.create_subscription(Image, 'image', self.images.append, qos_profile_sensor_data)

    def spin_until(self, done: Callable[[], bool], timeout_s: float = START_S) -> None:
        end_s = time.monotonic() + timeout_s
        while not done():
            assert time.monotonic() < end_s, 'timed out'
            self._executor.spin_once(timeout_sec=0.05)

    def spin_for(self, seconds: float) -> None:
        end_s = time.monotonic() + seconds
        while time.monotonic() < end_s:
            self._executor.spin_once(timeout_sec=0.05)

    def set_running(self, running: bool) -> SetBool.Response:
        client = self.node.create_client(SetBool, 'tabletop_camera/set_running')
        assert client.wait_for_service(START_S)
        future = client.call_async(SetBool.Request(data=running))
        self.spin_until(future.done)
        return future.result()

    def close(self) -> None:
        self._executor.shutdown(timeout_sec=1.0)
        self.node.destroy_node()
        rclpy.try_shutdown(context=self._context)


@pytest.fixture
def listener(ros_env: dict[str, str]) -> Iterator[Listener]:
    made = Listener()
    yield made
    made.close()


class Camera:
    """tabletop_camera in a process of its own."""

    def __init__(self, env: dict[str, str], parameters: dict[str, object]) -> None:
        arguments = [part for name, value in parameters.items()
                     for part in ('-p', f'{name}:={value}')]
        self.process = subprocess.Popen(
            [sys.executable, '-m', 'tww_ros.node.tabletop_camera', '--ros-args', *arguments],
            env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            start_new_session=True)
        # Read all the time, so that the process never waits for its pipe.
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def end(self, timeout_s: float = 20.0) -> tuple[int, str]:
        """(exit code, output) once it has ended."""
        code = self.process.wait(timeout_s)
        self._reader.join(5.0)
        return code, ''.join(self.lines)

    def _read(self) -> None:
        with self.process.stdout:
            self.lines.extend(self.process.stdout)


@pytest.fixture
def start_camera(ros_env: dict[str, str]) -> Iterator[Callable[..., Camera]]:
    started = []

    def start(**parameters: object) -> Camera:
        started.append(Camera(ros_env, {**SMALL, **parameters}))
        return started[-1]

    yield start
    for camera in started:
        camera.process.kill()
        camera.end()


def table_by_hand(t_s: float) -> dict[str, str | None]:
    """What stands where at t_s, from the list of events alone."""
    episode = simulate(SEED, 120.0, Pace(gap_s=SMALL['pace.gap_s']))
    places = {name: thing and thing.name
              for name, thing in zip(PLACES, episode.initial.things, strict=True)}
    for event in episode.events:
        if event.end_s > t_s:
            break
        if event.from_place is not None:
            places[PLACES[event.from_place]] = event.other and event.other.name
        if event.kind not in ('cover', 'uncover'):
            places[PLACES[event.place]] = None if event.kind == 'take' else event.thing.name
    return places


@pytest.mark.timeout(120)
def test_pictures_intrinsics_and_truth_belong_together(
        listener: Listener, start_camera: Callable[..., Camera]) -> None:
    listener.watch()
    # It stands still until this process listens, so nothing of the world is missed.
    camera = start_camera(start_paused=True, frame_id='above', rate_hz=20.0)
    listener.spin_until(lambda: listener.truths and listener.truths[-1]['t_s'] > 8.0)

    stamps_ns = [from_time(image.header.stamp) for image in listener.images]
    truths = {truth['stamp_ns']: truth for truth in listener.truths}
    world_s = listener.truths[-1]['t_s'] - listener.truths[0]['t_s']
    # About one in 50 ms; a busy machine may lose some, none come from elsewhere.
    assert 20 * world_s / 3 <= len(stamps_ns) <= 20 * world_s + 10
    assert all(before < after for before, after in pairwise(stamps_ns))
    assert abs(time.time() - stamps_ns[-1] / NS_PER_S) < START_S
    assert listener.truths[0]['t_s'] < 4.0

    renderer = Renderer(simulate(SEED, 60.0, Pace(gap_s=SMALL['pace.gap_s'])), 96)
    known = [image for image in listener.images if from_time(image.header.stamp) in truths]
    assert len(known) > 10
    for image in known:
        truth = truths[from_time(image.header.stamp)]
        assert (image.width, image.height, image.encoding, image.step) == (96, 96, 'rgb8', 288)
        assert image.header.frame_id == 'above'
        assert np.array_equal(image_to_rgb(image, 'image'), renderer.frame(truth['t_s']))
        assert truth['seed'] == SEED
        assert {name: at['thing'] for name, at in truth['state'].items()} == \
            table_by_hand(truth['t_s'])
    assert any(truth['event'] for truth in listener.truths)
    # World time is the time of the stamps.
    first, last = listener.truths[0], listener.truths[-1]
    assert abs(last['t_s'] - first['t_s'] - (last['stamp_ns'] - first['stamp_ns']) / 1e9) < 0.002

    infos = {from_time(info.header.stamp): info for info in listener.infos}
    matched = [infos[stamp_ns] for stamp_ns in stamps_ns if stamp_ns in infos]
    assert matched
    for info in matched:
        assert (info.width, info.height, info.header.frame_id) == (96, 96, 'above')
        assert list(info.k) == list(info.p[0:3]) + list(info.p[4:7]) + list(info.p[8:11])
        # 60 degrees from the left edge to the right one.
        assert 2 * math.degrees(math.atan(48 / info.k[0])) == pytest.approx(60.0)
        assert info.k[2] == info.k[5] == 47.5
    camera.process.send_signal(signal.SIGTERM)
    code, output = camera.end()
    assert code == 0 and 'Traceback' not in output, output


@pytest.mark.timeout(120)
def test_it_waits_for_its_subscriber_and_can_be_paused(
        listener: Listener, start_camera: Callable[..., Camera]) -> None:
    camera = start_camera(start_paused=True, rate_hz=30.0)
    listener.spin_until(lambda: listener.node.count_publishers('image') == 1)
    listener.spin_for(1.0)
    assert not listener.truths and not listener.infos
    listener.watch()
    listener.spin_until(lambda: len(listener.images) > 5)
    assert listener.set_running(False).success
    listener.spin_for(0.5)
    before = listener.truths[-1]
    listener.spin_for(1.0)
    assert listener.truths[-1] == before
    assert listener.set_running(True).success
    listener.spin_until(lambda: listener.truths[-1] != before)
    after = next(truth for truth in listener.truths if truth['stamp_ns'] > before['stamp_ns'])
    # It went on where it stood, although more than a second has passed.
    assert after['stamp_ns'] - before['stamp_ns'] > 1e9
    assert 0 < after['t_s'] - before['t_s'] < 0.8
    camera.process.send_signal(signal.SIGINT)
    assert camera.end()[0] == 0


@pytest.mark.timeout(120)
def test_without_wait_for_subscriber_only_the_service_starts_it(
        listener: Listener, start_camera: Callable[..., Camera]) -> None:
    start_camera(start_paused=True, wait_for_subscriber=False)
    listener.watch()
    listener.spin_until(lambda: listener.node.count_publishers('image') == 1)
    listener.spin_for(1.0)
    assert not listener.truths
    listener.set_running(True)
    listener.spin_until(lambda: listener.images and listener.truths)


@pytest.mark.timeout(120)
def test_it_ends_after_its_duration(
        listener: Listener, start_camera: Callable[..., Camera]) -> None:
    camera = start_camera(duration_s=3.0, rate_hz=20.0, start_paused=True)
    listener.watch()
    listener.spin_until(lambda: camera.process.poll() is not None)
    assert camera.end()[0] == 0
    listener.spin_for(0.2)
    assert 1.0 < max(truth['t_s'] for truth in listener.truths) <= 3.0


@pytest.mark.timeout(120)
@pytest.mark.parametrize('parameters, part', [
    ({'rate_hz': 1000.0}, 'rate_hz'), ({'size_px': 8}, 'size_px'), ({'seed': -1}, 'seed'),
    ({'rate_hz': 10}, 'rate_hz'), ({'start_paused': 3}, 'start_paused'),
])
def test_parameters_that_do_not_fit(start_camera: Callable[..., Camera],
                                    parameters: dict[str, object], part: str) -> None:
    code, output = start_camera(**parameters).end(START_S)
    assert code == 2 and 'tabletop_camera: ' in output and part in output, output
    assert 'Traceback' not in output


@pytest.mark.timeout(120)
def test_signal_while_paused(start_camera: Callable[..., Camera]) -> None:
    camera = start_camera(start_paused=True, wait_for_subscriber=False)
    end_s = time.monotonic() + START_S
    while not any('waiting for ~/set_running' in line for line in camera.lines):
        assert time.monotonic() < end_s
        time.sleep(0.05)
    camera.process.send_signal(signal.SIGTERM)
    assert camera.end()[0] == 0


@pytest.mark.timeout(120)
def test_pictures_too_large_for_best_effort_are_told_of(
        start_camera: Callable[..., Camera]) -> None:
    cases = [({'size_px': 416}, False), ({'size_px': 480}, True),
             ({'size_px': 480, 'qos_overrides./image.publisher.reliability': 'reliable'}, False)]
    for parameters, warns in cases:
        code, output = start_camera(duration_s=0.2, **parameters).end(START_S)
        assert code == 0 and ('may get lost' in output) == warns, output


def test_the_world_goes_on_beyond_what_is_simulated_at_first(
        ros_env: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    from tww_ros.node import tabletop_camera
    monkeypatch.setattr(tabletop_camera, 'HORIZON_S', 30.0)
    context = rclpy.Context()
    rclpy.init(args=[], context=context)
    try:
        node = tabletop_camera.TabletopCamera(context=context)
        whole = simulate(TEST_SEEDS.start, 400.0)
        for t_s in (1.0, 25.0, 31.0, 70.0, 130.0, 239.9):
            episode = node._world_until(t_s)
            assert episode.state_at(t_s) == whole.state_at(t_s)
            assert episode.event_at(t_s) == whole.event_at(t_s)
            assert node._renderer.episode is episode
        node.destroy_node()
    finally:
        rclpy.try_shutdown(context=context)
