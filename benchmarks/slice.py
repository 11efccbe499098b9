"""The first vertical slice in numbers, with the tiny model on this machine: no targets yet.

In one process, idle and ingesting in turn: first-token time, tokens per second, the longest time
between two frames entering memory while an answer runs, frames per second into memory as fast as
possible. Then over DDS, with a node process of its own: from a camera's publish call to the frame
being in memory, drops.

The frames are a real video's. first-token time: question accepted → first answer token.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from _camera import Camera, Film
from _report import Report, arguments, median, percentile

from tww_ros import Engine, EngineConfig, Frame, Question, load_model
from tww_ros.node.domain import own_domain
from tww_ros.replay.video import read_video
from tww_ros.types import NS_PER_S, Answer

FPS = 10.0
ANSWER_TOKENS = 64
SETTINGS = {'watch.sample_fps': FPS, 'watch.segment_s': 2.0, 'watch.max_pixels': 50_176}


def main(argv: Sequence[str]) -> int:
    """Run the benchmark; returns the exit code."""
    options = arguments('slice', argv)
    report = Report('slice')
    clip = list(read_video(sample_video(), fps=FPS))
    repeats = 5 if options.quick else 15
    measure_answers(report, clip, repeats)
    for notes in (True, False):
        measure_ingest(report, clip, frames=150 if options.quick else 600, notes=notes)
    with own_domain() as variables:
        os.environ.update(variables)
        measure_dds(report, clip, frames=100 if options.quick else 600)
    return report.finish(options.json)


def sample_video() -> Path:
    """The real video that scripts/setup brings."""
    return Path(os.environ['TWW_SAMPLE_VIDEOS']) / 'bikes.mp4'


def film_of(clip: list[Frame]) -> Film:
    """The clip again and again."""
    return Film([frame.image for frame in clip])


def measure_answers(report: Report, clip: list[Frame], repeats: int) -> None:
    """Idle and ingesting in turn: the same questions, the same memory growing under both."""
    results: dict[str, list] = {'idle': [], 'ingesting': []}
    gaps: list[float] = []
    with Engine(load_model('tiny-random'), EngineConfig.from_flat(SETTINGS)) as engine:
        film = film_of(clip)
        for _ in range(40):
            engine.feed(film.next(1 / FPS))
        engine.drain()
        engine.ask(Question('warm up')).result(60)
        for number in range(repeats):
            engine.drain()
            results['idle'].append(ask(engine, f'idle {number}'))
            with Camera(engine, film, FPS), MemoryWatch(engine) as watch:
                time.sleep(0.5)
                watch.on = True
                results['ingesting'].append(ask(engine, f'busy {number}'))
                watch.on = False
            gaps += watch.gaps_s
        stats = engine.stats()
    for state, answers in results.items():
        report.add(f'first_token_ms_{state}', 1e3 * median([a.first_token_s for a in answers]))
        report.add(f'answer_tokens_per_s_{state}', median(
            [(a.completion_tokens - 1) / (a.total_s - a.first_token_s) for a in answers]))
    report.add('overlap_cost_first_token_ratio', median(
        [busy.first_token_s / idle.first_token_s
         for idle, busy in zip(results['idle'], results['ingesting'], strict=True)]))
    report.add('ingest_gap_ms_while_answering', 1e3 * max(gaps, default=0.0))
    report.add('frames_dropped_while_answering', stats.frames_dropped)
    report.add('memory_tokens_attended', median([a.reused_tokens for a in results['idle']]))


def ask(engine: Engine, session: str) -> Answer:
    """One question of its own session, and the whole answer."""
    question = Question('what is in the picture?', session=session, max_new_tokens=ANSWER_TOKENS)
    return engine.ask(question).result(120)


class MemoryWatch:
    """Sees frames enter memory while `on`; a thread that looks every 2 ms."""

    def __init__(self, engine: Engine) -> None:
        self.gaps_s: list[float] = []
        self.on = False
        self._engine = engine
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> MemoryWatch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        seen, since_s = 0, None
        while not self._stop.wait(0.002):
            newest, now_s = self._engine.stats().newest_ns, time.monotonic()
            if not self.on:
                since_s = None
            elif newest != seen:
                if since_s is not None:
                    self.gaps_s.append(now_s - since_s)
                since_s = now_s
            seen = newest


def measure_ingest(report: Report, clip: list[Frame], frames: int, notes: bool) -> None:
    """As fast as possible: frames per second into memory."""
    config = EngineConfig.from_flat({**SETTINGS, 'note.enabled': notes, 'note.backlog': 10_000})
    with Engine(load_model('tiny-random'), config) as engine:
        film = film_of(clip)
        started_s = time.monotonic()
        for _ in range(frames):
            engine.feed(film.next(1 / FPS), timeout_s=120)
        engine.drain(600)
        seconds = time.monotonic() - started_s
        stats = engine.stats()
    name = 'with_notes' if notes else 'without_notes'
    report.add(f'frames_per_s_into_memory_{name}', stats.frames_watched / seconds)
    if notes:
        report.add('kv_bytes_per_token', stats.memory_bytes / stats.memory_tokens)


def measure_dds(report: Report, clip: list[Frame], frames: int) -> None:
    """A node in its own process, a camera here: publish → in memory, as ~/status tells at 100 Hz.

    The header stamp is the time of the publish call. Only the second frame of each temporal patch
    counts: the first one waits for it by design.
    """
    parameters = {**SETTINGS, 'model': 'tiny-random', 'image_reliability': 'reliable',
                  'status_rate_hz': 100.0}
    command = [sys.executable, '-m', 'tww_ros.node.main', '--ros-args']
    for name, value in parameters.items():
        command += ['-p', f'{name}:={value}']
    with tempfile.TemporaryFile() as log:
        node = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        try:
            # Here, so that the rest of the benchmark needs no ROS.
            from tww_ros.node.client import TwwClient
            with TwwClient() as client:
                client.wait_until_ready(120)
                delays, status = publish(client, clip, frames)
        finally:
            node.send_signal(signal.SIGINT)
            node.wait(30)
    report.add('dds_image_to_memory_ms_p50', 1e3 * median(delays))
    report.add('dds_image_to_memory_ms_p99', 1e3 * percentile(delays, 0.99))
    report.add('dds_frames_published', frames)
    report.add('dds_frames_received', status.frames_received)
    report.add('dds_frames_dropped', status.frames_dropped)
    report.add('node_exit_code', node.returncode)


def publish(client: Any, clip: list[Frame], frames: int) -> tuple[list[float], Any]:
    """Publish at 10 fps; seconds from each patch's last image to memory, and the last status."""
    import rclpy
    from rclpy.qos import DurabilityPolicy, QoSProfile
    from sensor_msgs.msg import Image

    from tww_interfaces.msg import MemoryStatus
    seen_s: dict[int, float] = {}

    def on_status(status: MemoryStatus) -> None:
        seen_s.setdefault(status.newest.sec * NS_PER_S + status.newest.nanosec, time.time())

    context = rclpy.Context()
    rclpy.init(context=context)
    node = rclpy.create_node('bench_camera', context=context)
    executor = rclpy.executors.SingleThreadedExecutor(context=context)
    executor.add_node(node)
    camera = node.create_publisher(Image, '/image', 10)
    node.create_subscription(MemoryStatus, '/tww/status', on_status,
                             QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL))
    end_s = time.monotonic() + 30
    while not camera.get_subscription_count() and time.monotonic() < end_s:
        executor.spin_once(timeout_sec=0.1)
    published, due_s = [], time.monotonic()
    for number in range(frames):
        while (left_s := due_s - time.monotonic()) > 0:
            executor.spin_once(timeout_sec=left_s)
        image = clip[number % len(clip)].image
        stamp_ns = time.time_ns()
        height, width, _ = image.shape
        message = Image(height=height, width=width, encoding='rgb8', step=width * 3)
        message.header.stamp.sec, message.header.stamp.nanosec = divmod(stamp_ns, NS_PER_S)
        message.data = array('B', image.tobytes())
        camera.publish(message)
        published.append(stamp_ns)
        due_s += 1 / FPS
    end_s = time.monotonic() + 5
    while time.monotonic() < end_s:
        executor.spin_once(timeout_sec=0.05)
    status = client.wait_for(lambda s: s.frames_waiting <= 1, 30)
    executor.shutdown()
    node.destroy_node()
    rclpy.shutdown(context=context)
    return [seen_s[stamp] - stamp / NS_PER_S for stamp in published if stamp in seen_s], status
