"""What all tests share: ROS that stays on this machine, sample videos, and no downloads of models.

Everything in test/ros is marked `ros` and runs last. Without rclpy that folder is left out, and
the header of the run says so; `scripts/test` always has rclpy.
"""

from __future__ import annotations

import fcntl
import importlib.util
import os
import random
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROS_TESTS = Path(__file__).parent / 'ros'
HAS_ROS = importlib.util.find_spec('rclpy') is not None
# Higher domains use UDP ports from which Linux also gives ports to other programs.
MAX_DOMAIN_ID = 101

os.environ['HF_HUB_OFFLINE'] = '1'
# In importlib mode pytest puts nothing on the path; this is for `from reference import …`.
sys.path.append(str(Path(__file__).parent))
collect_ignore = [] if HAS_ROS else ['ros']


def pytest_report_header() -> str | None:
    return None if HAS_ROS else 'test/ros is left out: no rclpy here; scripts/test runs it too'


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if ROS_TESTS in item.path.parents:
            item.add_marker('ros')
    items.sort(key=lambda item: item.get_closest_marker('ros') is not None)


@pytest.fixture
def ros_env(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """The environment for processes of one test: DDS on this machine only, in a domain of its own.

    os.environ is the same while the test runs, so rclpy.init() in the test joins that domain.
    """
    ids = random.sample(range(1, MAX_DOMAIN_ID + 1), MAX_DOMAIN_ID)
    for domain_id in ids:
        lock = open(Path(tempfile.gettempdir(), f'tww_ros_domain_{domain_id}.lock'), 'a')
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            lock.close()
    else:
        pytest.fail(f'all {MAX_DOMAIN_ID} ROS domains are in use by other test runs; end some')
    with lock:
        monkeypatch.setenv('ROS_DOMAIN_ID', str(domain_id))
        monkeypatch.setenv('ROS_AUTOMATIC_DISCOVERY_RANGE', 'LOCALHOST')
        if os.environ.get('ROS_DISTRO') == 'humble':
            # Humble knows only this older setting; newer distributions warn about it.
            monkeypatch.setenv('ROS_LOCALHOST_ONLY', '1')
        yield dict(os.environ)


@pytest.fixture(scope='session')
def sample_videos() -> Path:
    """The folder with bikes.mp4 (10 s), bigbuckbunny.mp4 (5 s) and carphone_pristine.mp4 (4 s)."""
    folder = os.environ.get('TWW_SAMPLE_VIDEOS')
    if not folder or not Path(folder, 'bikes.mp4').is_file():
        pytest.fail('expected the sample videos in $TWW_SAMPLE_VIDEOS, got '
                    f'{folder!r}; run the tests through scripts/test')
    return Path(folder)
