"""What all tests share: ROS that stays on this machine, sample videos, and no downloads of models.

Everything in test/ros is marked `ros` and runs last. Without rclpy that folder is left out, and
the header of the run says so; `scripts/test` always has rclpy.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tww_ros.node.domain import own_domain

ROS_TESTS = Path(__file__).parent / 'ros'
HAS_ROS = importlib.util.find_spec('rclpy') is not None

os.environ['HF_HUB_OFFLINE'] = '1'
# Tests use models so small that more threads in a step cost time, and much on a busy machine.
os.environ.setdefault('OMP_NUM_THREADS', '1')
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
    with own_domain() as variables:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        yield dict(os.environ)


@pytest.fixture(scope='session')
def sample_videos() -> Path:
    """The folder with bikes.mp4 (10 s), bigbuckbunny.mp4 (5 s) and carphone_pristine.mp4 (4 s)."""
    folder = os.environ.get('TWW_SAMPLE_VIDEOS')
    if not folder or not Path(folder, 'bikes.mp4').is_file():
        pytest.fail('expected the sample videos in $TWW_SAMPLE_VIDEOS, got '
                    f'{folder!r}; run the tests through scripts/test')
    return Path(folder)
