"""Camera and node in two network namespaces, joined by a link that loses packets.

docs/across_machines.md has more of these rows. Needs root, `ip`, and `tc netem` or `iptables`.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tww_ros.replay.bag import write_bag_from_video

ROOT = Path(__file__).resolve().parents[2]
PROFILE = ROOT / 'config' / 'fastdds_small_messages.xml'
# Fast DDS 3, from Kilted on, tells of the older name on every start.
PROFILE_VARIABLE = ('FASTRTPS' if os.environ.get('ROS_DISTRO') in ('humble', 'iron', 'jazzy')
                    else 'FASTDDS') + '_DEFAULT_PROFILES_FILE'
LOSS = 0.05
IMAGES = 40
# Waits for the node, tells so, and at the next line on stdin prints how many images it received.
COUNT = """
import sys, time
from tww_ros.node.client import TwwClient
with TwwClient() as client:
    client.wait_until_ready(60.0)
    print('ready', flush=True)
    sys.stdin.readline()
    time.sleep(1.0)
    print(client.status().images_received)
"""


def shell(line: str) -> subprocess.CompletedProcess:
    return subprocess.run(line, shell=True, capture_output=True, text=True, timeout=20)


def lose(space: str, device: str) -> bool:
    """Lose LOSS of all packets that arrive there; False where no tool can."""
    iptables = shutil.which('iptables-legacy') or shutil.which('iptables')
    return any(shell(f'ip netns exec {space} {rule}').returncode == 0 for rule in (
        f'tc qdisc add dev {device} root netem loss {LOSS:%}',
        f'{iptables} -t raw -A PREROUTING -i {device} -m statistic --mode random '
        f'--probability {LOSS} -j DROP'))


@pytest.fixture
def spaces() -> Iterator[tuple[str, str]]:
    """Two namespaces that can reach each other, with loss both ways."""
    name = uuid.uuid4().hex[:6]
    robot, desk = f'tww-r-{name}', f'tww-d-{name}'
    made = shell(f'ip netns add {robot} && ip netns add {desk} && ip link add r{name} '
                 f'netns {robot} type veth peer name d{name} netns {desk}')
    try:
        if made.returncode:
            pytest.skip(f'network namespaces are not allowed here: {made.stderr.strip()}')
        for number, (space, device) in enumerate(((robot, f'r{name}'), (desk, f'd{name}')), 1):
            ready = shell(f'ip -n {space} addr add 10.77.0.{number}/24 dev {device} && '
                          f'ip -n {space} link set lo up && ip -n {space} link set {device} up && '
                          f'ip -n {space} route add 224.0.0.0/4 dev {device}')
            assert ready.returncode == 0, ready.stderr
            if not lose(space, device):
                pytest.skip('neither tc netem nor iptables can lose packets here')
        yield robot, desk
    finally:
        shell(f'ip netns del {robot}; ip netns del {desk}')


@pytest.fixture
def start(ros_env: dict[str, str]) -> Iterator[Callable[..., subprocess.Popen]]:
    """start(namespace, variables, program, …) → a process with its pipes."""
    started: list[subprocess.Popen] = []

    def run(space: str, variables: dict[str, str], *command: object) -> subprocess.Popen:
        path = os.pathsep.join([str(ROOT), os.environ.get('PYTHONPATH', '')])
        started.append(subprocess.Popen(
            ['ip', 'netns', 'exec', space, sys.executable, *map(str, command)],
            env={**ros_env, 'PYTHONPATH': path, 'ROS_AUTOMATIC_DISCOVERY_RANGE': 'SUBNET',
                 **variables},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
        return started[-1]

    yield run
    for process in started:
        with process:
            process.kill()


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which('ip') is None, reason='needs root and ip')
@pytest.mark.parametrize('reliability, variables, least, most', [
    # Of 22 packets of an image, one is lost in two of three images.
    ('best_effort', {'FASTDDS_BUILTIN_TRANSPORTS': 'UDPv4'}, 0, IMAGES * 3 // 4),
    ('reliable', {PROFILE_VARIABLE: str(PROFILE)}, IMAGES, IMAGES),
])
def test_images_over_a_lossy_link(spaces: tuple[str, str], start: Callable, sample_videos: Path,
                                  tmp_path: Path, reliability: str, variables: dict[str, str],
                                  least: int, most: int) -> None:
    robot, desk = spaces
    write_bag_from_video(sample_videos / 'bikes.mp4', tmp_path / 'bag', compressed='jpeg',
                         fps=10.0, max_seconds=IMAGES / 10, progress=False)
    node = start(desk, variables, ROOT / 'test/ros/node_program.py', '--scripted', '0',
                 '--ros-args', '-p', f'image_reliability:={reliability}', '-p',
                 'image_transport:=compressed')
    count = start(desk, variables, '-c', COUNT)
    assert count.stdout.readline() == 'ready\n'
    camera = start(robot, variables, '-m', 'tww_ros.cli', 'replay', tmp_path / 'bag', '--node',
                   '/nobody', '--wait', '20')
    assert camera.wait(60) == 0
    received = int(count.communicate('now\n', timeout=30)[0])
    assert least <= received <= most
    node.send_signal(signal.SIGINT)
    assert node.wait(30) == 0
