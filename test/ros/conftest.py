"""Nodes as real processes, and a bag of real video, for the tests that talk over DDS."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parent / 'node_program.py'
ROOT = Path(__file__).parents[2]
START_S = 90.0
STOP_S = 30.0


class NodeProcess:
    """A node in a process of its own; its output is kept line by line."""

    def __init__(self, env: dict[str, str], parameters: dict[str, object],
                 scripted_s: float | None, remap: dict[str, str], endless: bool) -> None:
        command = [sys.executable, str(PROGRAM)]
        if scripted_s is not None:
            command += ['--scripted', str(scripted_s)]
        if endless:
            command.append('--endless')
        command.append('--ros-args')
        for name, value in parameters.items():
            command += ['-p', f'{name}:={value}']
        for name, target in remap.items():
            command += ['-r', f'{name}:={target}']
        path = os.pathsep.join([str(ROOT), *filter(None, [env.get('PYTHONPATH')])])
        self.process = subprocess.Popen(
            command, env={**env, 'PYTHONPATH': path, 'RCUTILS_COLORIZED_OUTPUT': '0'}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)
        self.lines: list[str] = []
        self._new: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def output(self) -> str:
        return '\n'.join(self.lines)

    def wait_for_line(self, part: str, timeout_s: float = 20.0) -> str:
        """The first line with `part`, already written or to come."""
        end_s = time.monotonic() + timeout_s
        while True:
            for line in list(self.lines):
                if part in line:
                    return line
            try:
                self._new.get(timeout=max(end_s - time.monotonic(), 0.001))
            except queue.Empty:
                pytest.fail(f'no line with {part!r} within {timeout_s} s in:\n{self.output}')

    def wait(self) -> int:
        """The exit code of a node that ends by itself."""
        code = self.process.wait(START_S)
        self._reader.join(5.0)
        return code

    def stop(self, number: int = signal.SIGINT) -> dict[str, object]:
        """Send a signal; what the program said at its end (exit code, threads left)."""
        self.process.send_signal(number)
        assert self.process.wait(STOP_S) == 0, self.output
        self._reader.join(5.0)
        return json.loads(self.lines[-1])

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(STOP_S)
        self._reader.join(5.0)

    def _read(self) -> None:
        with self.process.stdout:
            for line in self.process.stdout:
                self.lines.append(line.rstrip())
                self._new.put(line)


@pytest.fixture
def start_node(ros_env: dict[str, str]) -> Iterator[Callable[..., NodeProcess]]:
    """start_node(parameters, scripted_s=None, …) → NodeProcess; all end with the test."""
    started = []

    def start(parameters: dict[str, object] | None = None, scripted_s: float | None = None,
              remap: dict[str, str] | None = None, endless: bool = False) -> NodeProcess:
        # Loss-free images and a quick status: these tests count frames.
        values = {'model': 'tiny-random', 'image_reliability': 'reliable',
                  'image_queue_depth': 32, 'status_rate_hz': 50.0, **(parameters or {})}
        started.append(NodeProcess(ros_env, values, scripted_s, remap or {}, endless))
        return started[-1]

    yield start
    for node in started:
        node.kill()


@pytest.fixture(scope='session')
def bikes_bag(sample_videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten seconds of real video at 10 frames per second, recorded on /image."""
    from tww_ros.replay.bag import write_bag_from_video
    bag = tmp_path_factory.mktemp('bags') / 'bikes'
    write_bag_from_video(sample_videos / 'bikes.mp4', bag, fps=10.0)
    return bag
