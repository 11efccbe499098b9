"""docs/planners.md: its examples, and the behaviour with a stand-in navigation, over real DDS."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from ros.robot import FOUND_S, Robot

from tww_ros.client import TwwClient, WatchStream
from tww_ros.node.examples.look_and_go import TopicNavigator, look_for
from tww_ros.types import Pose

ROOT = Path(__file__).parents[2]
BENCH = Pose('map', (3.0, 4.0, 0.0), (0.0, 0.0, 0.6, 0.8))
SHELF = Pose('map', (-2.0, 1.0, 0.0))


@pytest.fixture
def navigation(ros_env: dict[str, str]) -> Iterator[subprocess.Popen]:
    """The stand-in, at 10 m/s."""
    process = subprocess.Popen(
        [sys.executable, '-m', 'tww_ros.node.examples.pretend_navigation', '--speed-m-s', '10'],
        cwd=ROOT, env=ros_env, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT)
    yield process
    process.kill()
    process.wait()


@pytest.mark.timeout(180)
def test_goes_where_the_thing_was_last_seen(
        start_node: Callable, navigation: subprocess.Popen, ros_env: dict[str, str]) -> None:
    start_node({'watch.segment_s': 1.0, 'watch.max_pixels': 4_096, 'pose_topic': 'odom',
                'watch.sample_fps': 4.0}, scripted_s=0.0)
    navigator = TopicNavigator()
    with TwwClient() as client, Robot(odometry=False) as robot:
        client.wait_until_ready(90.0)
        robot.wait_until_watched()
        robot.stare()
        for place in (BENCH, SHELF):
            assert navigator.go_to(place, FOUND_S)
            wait_for_segment(client, place)
        run = subprocess.run(
            [sys.executable, '-m', 'tww_ros.node.examples.look_and_go', 'mug {yes}',
             '--look-s', '20', '--places', '8'],
            cwd=ROOT, env=ros_env, text=True, capture_output=True, timeout=90)
        assert run.returncode == 0, run.stdout + run.stderr
        assert 'found it, with probability 1.00' in run.stdout
        first = re.search(r'going to (\S+), (\S+) in map', run.stdout)
        x, y = float(first[1]), float(first[2])
        newest = client.segments(limit=1)[-1]
        assert newest.pose.position_m[:2] == pytest.approx((x, y), abs=0.3)

        # What is nowhere is looked for in several places, and not found.
        visited = []

        def go_to(pose: Pose) -> bool:
            visited.append(pose)
            return len(visited) != 1 and navigator.go_to(pose, FOUND_S)

        assert look_for(client, 'ghost {no}', go_to, most_places=2, look_s=1.0) is None
        assert len(visited) == 2
    navigator.close()


def wait_for_segment(client: TwwClient, place: Pose) -> None:
    """Until a segment was seen at that place."""
    end_s = time.monotonic() + FOUND_S
    while not any(segment.pose is not None
                  and segment.pose.position_m == pytest.approx(place.position_m, abs=0.05)
                  for segment in client.segments()):
        assert time.monotonic() < end_s, f'no segment at {place} within {FOUND_S} s'
        time.sleep(0.1)


@pytest.mark.timeout(120)
def test_the_examples_of_the_page_run(
        start_node: Callable, capsys: pytest.CaptureFixture[str]) -> None:
    page = (ROOT / 'docs' / 'planners.md').read_text(encoding='utf-8')
    blocks = re.findall(r'```python\n(.*?)```', page, re.S)
    # The last one needs Nav2.
    assert [('nav2' in block, 'asyncio' in block) for block in blocks] == [
        (False, False), (False, True), (True, False)]
    compile(blocks[2], 'planners.md', 'exec')
    start_node({'watch.segment_s': 1.0, 'watch.max_pixels': 4_096}, scripted_s=0.0)
    with TwwClient() as client, Robot(odometry=False) as robot:
        client.wait_until_ready(90.0)
        robot.wait_until_watched()
        robot.stare()
        client.wait_for(lambda status: status.segments >= 1, FOUND_S)
        for block, script in zip(blocks[:2], ({'is gone.': 'is gone. {not yet|it is so now}',
                                              'open or shut?': 'open or shut? {open}'}, {}),
                                 strict=True):
            for text, answered in script.items():
                assert text in block
                block = block.replace(text, answered)
            exec(compile(block, 'planners.md', 'exec'), {'__name__': 'planners'})
    printed = capsys.readouterr().out
    assert 'the door is open\nno 0.0\nyes 1.0\nyes 1.0\ngone at ' in printed
    assert 'You asked: What is on the left? You asked: What is on the right?' in printed
    table = page[page.index('| call'):page.index('## Standing')]
    for name in re.findall(r'`(\w+)\(', table) + re.findall(r'`(\w+_async)`', table):
        assert hasattr(TwwClient, name) or hasattr(WatchStream, name), name
