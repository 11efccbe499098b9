"""What is measured of a running node from outside it.

In: ROS in a domain of the benchmark's own, where a node `/tww` runs. Out: seconds and counts. It
starts no node and judges nothing. All waits are bounded.

    Cameras     driver processes: how many images they published, and when
    Observer    ~/status as it comes, and how long the node's parameter service takes
    Asker       one question after another, from a thread
    burst       many questions at once
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import random
import select
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from rcl_interfaces.srv import GetParameters, SetParameters
from rclpy.parameter import Parameter
from rclpy.qos import QoSProfile, ReliabilityPolicy

from tww_interfaces.msg import MemoryStatus
from tww_ros.errors import BusyError, ReplayError, TwwError
from tww_ros.node.client import TwwClient
from tww_ros.node.spinning import SpinningNode
from tww_ros.node.waiting import shared, wait
from tww_ros.types import NS_PER_S

ROOT = Path(__file__).resolve().parents[1]
PROFILE = ROOT / 'config' / 'fastdds_large_images.xml'
CAMERA = Path(__file__).with_name('_ros_camera.py')
START_S = 60.0
# A reply that has not come after so long counts as one that took so long.
LATE_S = 10.0
PROBES_PER_S = 25.0
ASK_S = 240.0
_numbers = itertools.count()


# Cameras

def profile_variables() -> dict[str, str]:
    """The profile for large images, for Fast DDS of this distribution; others pass it by."""
    older = os.environ.get('ROS_DISTRO') in ('humble', 'iron', 'jazzy')
    return {f'{"FASTRTPS" if older else "FASTDDS"}_DEFAULT_PROFILES_FILE': str(PROFILE)}


class Cameras:
    """A driver process per topic for a `with` block, which begins when all publish.

    published() waits for their end.
    """

    def __init__(self, topics: Sequence[str], pictures: Path, fps: float, seconds: float,
                 profile: bool) -> None:
        variables = {**os.environ, **(profile_variables() if profile else {})}
        self._seconds = seconds
        self._processes = [subprocess.Popen(
            [sys.executable, str(CAMERA), topic, str(pictures), str(fps), str(seconds)],
            env=variables, text=True, stdout=subprocess.PIPE) for topic in topics]

    def __enter__(self) -> Cameras:
        try:
            for process in self._processes:
                ready, _, _ = select.select([process.stdout], [], [], START_S)
                if not ready or process.stdout.readline().strip() != 'publishing':
                    raise ReplayError(f'{" ".join(process.args)}: did not begin to publish within '
                                      f'{START_S:g} s; is the node active, in this domain?')
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            if process.poll() is None:
                process.kill()
            process.wait(START_S)
            process.stdout.close()

    def published(self) -> list[list[int]]:
        """Stamps in ns, camera by camera."""
        lines = [process.communicate(timeout=self._seconds + START_S)[0]
                 for process in self._processes]
        return [json.loads(line)['stamps_ns'] for line in lines]


# Status and the parameter service

@dataclass(frozen=True)
class Seen:
    """One ~/status. newest_ns: stamp of the newest frame in memory. lag_s: how long that took from
    its arrival at the node. watched: frames that entered memory so far."""

    stamp_ns: int
    newest_ns: int
    lag_s: float
    watched: int


def entries(seen: Sequence[Seen]) -> list[Seen]:
    """Of a row of statuses those that are the first to tell of a new patch of two frames.

    A frame without a second one is left out: it waits for the next segment, or until its camera
    has been silent for long, and that is by design.
    """
    return [after for before, after in itertools.pairwise(seen)
            if after.newest_ns > before.newest_ns and (after.watched - before.watched) % 2 == 0]


class Observer:
    """Hears ~/status and calls the parameter services, in a thread of its own."""

    def __init__(self, node: str = '/tww') -> None:
        self._seen: list[Seen] = []
        self._rng = random.Random(0)
        self._spinning = SpinningNode('bench_observer')
        own = self._spinning.node
        self._get = own.create_client(GetParameters, f'{node}/get_parameters')
        self._set = own.create_client(SetParameters, f'{node}/set_parameters')
        own.create_subscription(MemoryStatus, f'{node}/status', self._on_status,
                                QoSProfile(depth=1_000, reliability=ReliabilityPolicy.RELIABLE))
        self._spinning.start()
        for client in (self._get, self._set):
            if not client.wait_for_service(START_S):
                raise ReplayError(f'{client.srv_name}: not there after {START_S:g} s')

    def __enter__(self) -> Observer:
        return self

    def __exit__(self, *_: object) -> None:
        self._spinning.close()

    def mark(self) -> int:
        """A place in the row of statuses, for since()."""
        return len(self._seen)

    def since(self, mark: int) -> list[Seen]:
        """Statuses from there on."""
        return self._seen[mark:]

    def set_parameter(self, name: str, value: Any) -> None:
        """Of the node, live."""
        request = SetParameters.Request(parameters=[Parameter(name, value=value)
                                                    .to_parameter_msg()])
        result, = wait(shared(self._set.call_async(request)), LATE_S, self._set.srv_name).results
        if not result.successful:
            raise ReplayError(f'{name}={value}: {result.reason}')

    def service_s(self, more: Callable[[], bool]) -> list[float]:
        """Seconds from each call of get_parameters to its reply, while more() holds.

        Calls go out at their own moments, whether earlier ones have been answered or not: a
        node that stands still for a second keeps all callers of that second waiting.
        """
        request = GetParameters.Request(names=['watch.sample_fps'])
        sent_s: list[float] = []
        took_s: dict[int, float] = {}
        futures = []
        while more():
            number = len(sent_s)
            sent_s.append(time.monotonic())
            future = self._get.call_async(request)
            future.add_done_callback(
                lambda _, number=number: took_s.setdefault(
                    number, time.monotonic() - sent_s[number]))
            futures.append(future)
            time.sleep(self._rng.uniform(0.5, 1.5) / PROBES_PER_S)
        end_s = time.monotonic() + LATE_S
        while len(took_s) < len(sent_s) and time.monotonic() < end_s:
            time.sleep(0.01)
        for future in futures:
            self._get.remove_pending_request(future)
        return [took_s.get(number, LATE_S) for number in range(len(sent_s))]

    def _on_status(self, status: MemoryStatus) -> None:
        self._seen.append(Seen(
            status.stamp.sec * NS_PER_S + status.stamp.nanosec,
            status.newest.sec * NS_PER_S + status.newest.nanosec,
            status.ingest_lag.sec + status.ingest_lag.nanosec / NS_PER_S,
            status.frames_watched))


def for_seconds(seconds: float) -> Callable[[], bool]:
    """True for so long from now on."""
    end_s = time.monotonic() + seconds
    return lambda: time.monotonic() < end_s


class Cpu:
    """Cores that a process keeps busy, from here to cores()."""

    def __init__(self, pid: int) -> None:
        self._process = psutil.Process(pid)
        self._begin = self._now()

    def cores(self) -> float:
        """On average since the start."""
        wall_s, busy_s = (now - then for now, then in zip(self._now(), self._begin, strict=True))
        return busy_s / wall_s

    def _now(self) -> tuple[float, float]:
        times = self._process.cpu_times()
        return time.monotonic(), times.user + times.system


# Questions

class Asker:
    """One question after another, each of its own session, for a `with` block.

    answers: how many; busy_s: how long one was under way; failed: what went wrong.
    """

    def __init__(self, client: TwwClient, question: str, tokens: int) -> None:
        self.answers, self.busy_s = 0, 0.0
        self.failed: list[TwwError] = []
        self._client = client
        self._question, self._tokens = question, tokens
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._ask)

    def __enter__(self) -> Asker:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _ask(self) -> None:
        while not self._stop.is_set():
            begin_s = time.monotonic()
            try:
                self._client.ask(self._question, session=f'row {next(_numbers)}',
                                 timeout_s=ASK_S, max_new_tokens=self._tokens)
                self.answers += 1
            except TwwError as error:
                self.failed.append(error)
            self.busy_s += time.monotonic() - begin_s


@dataclass(frozen=True)
class Asked:
    """How one question of a burst ended ('answered', 'busy' or 'failed'), and after how long."""

    end: str
    seconds: float


def burst(client: TwwClient, count: int, question: str, tokens: int) -> list[Asked]:
    """Ask so many questions at once and wait for all."""
    async def one() -> Asked:
        begin_s, end = time.monotonic(), 'answered'
        try:
            await client.ask_async(question, session=f'burst {next(_numbers)}', timeout_s=ASK_S,
                                   max_new_tokens=tokens)
        except BusyError:
            end = 'busy'
        except TwwError as error:
            print(f'burst: {type(error).__name__}: {error}', file=sys.stderr)
            end = 'failed'
        return Asked(end, time.monotonic() - begin_s)

    async def all_of_them() -> list[Asked]:
        return await asyncio.gather(*(one() for _ in range(count)))

    return asyncio.run(all_of_them())
