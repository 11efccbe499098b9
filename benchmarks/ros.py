"""The node as a robot runs it: images, CPU, questions, and a service that has nothing to do.

    scripts/bench ros --quick --json FILE                          some five minutes on two cores
    scripts/bench ros --model qwen3vl-2b-random --quantization nf4 --json FILE

`tww_node` in a process of its own, each camera a driver process (640×480 rgb8, 30 Hz, sensor-data
QoS), DDS on this machine in a domain of its own. First with one camera, then with two (1_camera_…,
2_cameras_…):

    image_to_memory     publish call → in memory, of the second image of each temporal patch (the
                        first one waits for it by design): its header stamp against the stamp of
                        the first ~/status, at 100 Hz, that tells of it; so up to 10 ms too long
    arrival_to_memory   of that, from the node's queue on, as the node itself tells
    node_cores          CPU seconds of the node ÷ seconds, ~/status at its usual rate
    published, received, lost, watched, skipped, dropped
                        images: lost between publisher and node; left out by the sampler; dropped
                        by the node because it could not keep up. Counters of the node, exact
    default_transport_… the same without config/fastdds_large_images.xml on the cameras

With one camera also, while images come:

    service             get_parameters of the node, called 25 times a second at random moments:
                        idle (no images), watching, answering (one question after another) and
                        in a burst
    burst               100 calls of ~/ask at once: all are answered or refused with BUSY
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from _camera import tabletop
from _models import BIG, EMBEDDED, MOST_NOTE_TOKENS, SMALL, arguments, save_random
from _report import Report, median, percentile
from _ros_measure import (
    ASK_S,
    Asked,
    Asker,
    Cameras,
    Cpu,
    Observer,
    burst,
    entries,
    for_seconds,
)

from tww_interfaces.msg import MemoryStatus
from tww_ros.model.saving import save_checkpoint
from tww_ros.node.client import TwwClient
from tww_ros.node.demo_processes import process, program, wait_until_ready
from tww_ros.node.domain import own_domain
from tww_ros.training.embedded import untrained
from tww_ros.types import NS_PER_S

WIDTH_PX, HEIGHT_PX, FPS = 640, 480, 30.0
PICTURES = 30
# Two images a segment, as the embedded model was trained, but twice as many a second.
PARAMETERS = {'watch.sample_fps': 2.0, 'watch.segment_s': 0.75}
FAST_STATUS_HZ, STATUS_HZ = 100.0, 5.0
QUESTION = 'Where is the red cup?'
ANSWER_TOKENS, BURST_TOKENS, IN_FLIGHT = 64, 16, 100
DRAIN_S = 60.0
# So much of the cameras' time is not measured: processes that start, and the end.
MARGIN_S = 2.0
CAMERAS = {'1_camera': ('camera',), '2_cameras': ('front', 'rear')}
FATES = ('watched', 'skipped', 'dropped', 'rejected')


@dataclass(frozen=True)
class Plan:
    """Seconds of each part, and bursts."""

    idle_s: float
    default_s: float
    latency_s: float
    cpu_s: float
    answering_s: float
    bursts: int


FULL = Plan(idle_s=60, default_s=60, latency_s=300, cpu_s=60, answering_s=120, bursts=20)
QUICK = Plan(idle_s=10, default_s=10, latency_s=40, cpu_s=15, answering_s=20, bursts=4)


@dataclass(frozen=True)
class Running:
    """A node, the programs that look at it, and what its cameras show. pid: of the node."""

    client: TwwClient
    observer: Observer
    pid: int
    topics: Sequence[str]
    pictures: Path

    def cameras(self, seconds: float, profile: bool = True) -> Cameras:
        """Drivers for all topics."""
        return Cameras(self.topics, self.pictures, FPS, seconds, profile)


def main(argv: Sequence[str]) -> int:
    """Run the benchmark; returns the exit code."""
    options, report = arguments('ros', argv), Report('ros')
    with tempfile.TemporaryDirectory() as folder, own_domain() as variables:
        os.environ.update(variables)
        weights, parameters = model_parameters(options, Path(folder))
        described = measure(report, QUICK if options.quick else FULL, parameters, Path(folder))
    # Not the temporary folder that random weights came from.
    described = described.replace(parameters['model'], weights)
    if options.device == 'cpu' or not torch.cuda.is_available():
        report.target('service_ms_p99_answering', '<=', 50.0)
    for name in CAMERAS:
        report.target(f'{name}_lost', '==', 0)
        report.target(f'{name}_dropped', '==', 0)
    for name in ('burst_failed', 'answering_failed'):
        report.target(name, '==', 0)
    print(f'weights: {weights}; {described}')
    code = report.finish(options.json)
    if options.json is not None:
        told = json.loads(options.json.read_text())
        told |= {'weights': weights, 'model': described, 'quick': options.quick}
        options.json.write_text(json.dumps(told, indent=2) + '\n')
    return code


def model_parameters(options: argparse.Namespace, folder: Path) -> tuple[str, dict[str, Any]]:
    """Whose weights they are, and the parameters of the node that follow from --model."""
    name, checkpoint = options.model, folder / 'model'
    weights, given = name, {**PARAMETERS, 'quantization': options.quantization,
                            'device': options.device}
    if name == 'embedded' and not (EMBEDDED / 'config.json').is_file():
        save_checkpoint(untrained(), checkpoint)
        name, weights = str(checkpoint), 'embedded-untrained'
    elif name == BIG:
        save_random(checkpoint)
        name = str(checkpoint)
    elif name == 'tiny-random':
        given |= SMALL
    if weights in ('embedded-untrained', BIG, 'tiny-random'):
        given['note.max_new_tokens'] = MOST_NOTE_TOKENS
    return weights, {**given, 'model': name}


def measure(report: Report, plan: Plan, parameters: Mapping[str, Any], folder: Path) -> str:
    """All parts, one node after the other; the node's line about its model."""
    pictures = folder / 'pictures.npy'
    np.save(pictures, np.stack([cv2.resize(picture, (WIDTH_PX, HEIGHT_PX))
                                for picture in tabletop(HEIGHT_PX, PICTURES)]))
    for name, cameras in CAMERAS.items():
        topics = ['/image'] if len(cameras) == 1 else [f'/{camera}/image' for camera in cameras]
        given = {**parameters, 'cameras': f'[{",".join(cameras)}]', 'status_rate_hz': STATUS_HZ}
        with running(report, f'{name}_node_exit_code', given, topics, pictures) as node:
            described = node.client.status().description
            if len(cameras) == 1:
                measure_idle(report, node, plan.idle_s)
            measure_images(report, node, name, plan)
            if len(cameras) == 1:
                measure_answering(report, node, plan.answering_s)
                measure_bursts(report, node, plan.bursts)
                report.add('service_answering_to_idle',
                           report.metrics['service_ms_p99_answering']
                           / report.metrics['service_ms_p99_idle'])
    return described


@contextmanager
def running(report: Report, exit_name: str, parameters: Mapping[str, Any], topics: Sequence[str],
            pictures: Path) -> Iterator[Running]:
    """A node that is ready, for a `with` block; its exit code is reported."""
    with tempfile.TemporaryFile('w+') as log:
        try:
            with process(program('main', parameters), log) as node, TwwClient() as client:
                wait_until_ready(client, node)
                with Observer() as observer:
                    yield Running(client, observer, node.pid, topics, pictures)
        except BaseException:
            log.seek(0)
            print(log.read())
            raise
    report.add(exit_name, node.returncode)


def settled(client: TwwClient) -> MemoryStatus:
    """The counters once nothing waits any more."""
    client.wait_for(lambda status: not status.frames_waiting and not status.notes_waiting
                    and not status.answers_active, DRAIN_S)
    return client.get_status()


def add_spread(report: Report, name: str, seconds: Sequence[float], *of: str) -> None:
    """Median, p99 and largest, in ms; of: endings of the names."""
    for part, value in (('p50', median(seconds)), ('p99', percentile(seconds, 0.99)),
                        ('max', max(seconds))):
        report.add('_'.join((name, part, *of)), 1e3 * value)


# Parts

def measure_idle(report: Report, node: Running, seconds: float) -> None:
    """No images, no questions."""
    add_spread(report, 'service_ms', node.observer.service_s(for_seconds(seconds)), 'idle')
    cpu = Cpu(node.pid)
    time.sleep(seconds)
    report.add('node_cores_idle', cpu.cores())


def measure_images(report: Report, node: Running, name: str, plan: Plan) -> None:
    """Images only: without and with the profile, latency, then CPU."""
    default = node.cameras(plan.default_s, profile=False)
    with counted(report, node, f'{name}_default_transport', default):
        pass
    node.observer.set_parameter('status_rate_hz', FAST_STATUS_HZ)
    mark = node.observer.mark()
    with counted(report, node, name, node.cameras(plan.latency_s)):
        pass
    node.observer.set_parameter('status_rate_hz', STATUS_HZ)
    seen = entries(node.observer.since(mark))
    report.add(f'{name}_patches_timed', len(seen))
    add_spread(report, f'{name}_image_to_memory_ms',
               [(each.stamp_ns - each.newest_ns) / NS_PER_S for each in seen])
    add_spread(report, f'{name}_arrival_to_memory_ms', [each.lag_s for each in seen])
    with node.cameras(plan.cpu_s + 2 * MARGIN_S) as cameras:
        time.sleep(MARGIN_S)
        cpu = Cpu(node.pid)
        time.sleep(plan.cpu_s)
        report.add(f'{name}_node_cores', cpu.cores())
        cameras.published()


@contextmanager
def counted(report: Report, node: Running, name: str, cameras: Cameras) -> Iterator[None]:
    """Cameras for a `with` block, to their end; where each of their images went."""
    before = settled(node.client)
    with cameras:
        yield
        stamps = cameras.published()
    after = settled(node.client)
    published = sum(map(len, stamps))
    received = after.images_received - before.images_received
    report.add(f'{name}_published_fps', sum(
        (len(each) - 1) / (each[-1] - each[0]) for each in stamps) / len(stamps) * NS_PER_S)
    report.add(f'{name}_published', published)
    report.add(f'{name}_received', received)
    report.add(f'{name}_lost', published - received)
    for fate in FATES:
        field = f'frames_{fate}'
        report.add(f'{name}_{fate}', getattr(after, field) - getattr(before, field))


def measure_answering(report: Report, node: Running, seconds: float) -> None:
    """The parameter service with images, then with questions as well; no image may be dropped."""
    with counted(report, node, 'answering_images', node.cameras(2 * seconds + 2 * MARGIN_S)):
        time.sleep(MARGIN_S)
        add_spread(report, 'service_ms', node.observer.service_s(for_seconds(seconds)),
                   'watching')
        cpu = Cpu(node.pid)
        with Asker(node.client, QUESTION, ANSWER_TOKENS) as asker:
            took_s = node.observer.service_s(for_seconds(seconds))
            cores = cpu.cores()
    add_spread(report, 'service_ms', took_s, 'answering')
    report.add('service_calls_answering', len(took_s))
    report.add('answering_node_cores', cores)
    report.add('answering_answers', asker.answers)
    report.add('answering_failed', len(asker.failed))
    report.add('answering_ms_per_answer', 1e3 * asker.busy_s / max(1, asker.answers))


def measure_bursts(report: Report, node: Running, bursts: int) -> None:
    """Many questions at once, again and again, while images come."""
    asked: list[Asked] = []
    took_s: list[float] = []
    # Cameras that would publish for longer than it takes; they are ended with the block.
    with node.cameras((ASK_S + MARGIN_S) * bursts):
        for _ in range(bursts):
            time.sleep(MARGIN_S)
            worker = threading.Thread(target=lambda: asked.extend(
                burst(node.client, IN_FLIGHT, QUESTION, BURST_TOKENS)))
            worker.start()
            took_s += node.observer.service_s(worker.is_alive)
            worker.join()
    report.add('burst_asked', IN_FLIGHT * bursts)
    for end in ('answered', 'busy', 'failed'):
        seconds = [each.seconds for each in asked if each.end == end]
        report.add(f'burst_{end}', len(seconds))
        if seconds:
            add_spread(report, f'burst_{end}_ms', seconds)
    add_spread(report, 'service_ms', took_s, 'burst')
