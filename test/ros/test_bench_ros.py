"""What `scripts/bench ros` computes, on made-up statuses, and the profile that it recommends."""

from __future__ import annotations

import importlib
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
FULL_HD_BYTES = 1920 * 1080 * 3
MS = 10 ** 6


@pytest.fixture
def measure(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / 'benchmarks'))
    return importlib.import_module('_ros_measure')


def test_a_patch_counts_once_and_a_single_image_not_at_all(measure):
    """Stamps in ms: pairs end at 500 and 1,500; the image of 2,000 stays alone; 3,000 is a pair
    of which two statuses tell."""
    rows = ((10, 0, 40), (540, 500, 42), (550, 500, 42), (1_530, 1_500, 44), (2_510, 2_000, 45),
            (3_020, 3_000, 47), (3_030, 3_000, 47))
    seen = [measure.Seen(stamp * MS, newest * MS, 0.01, watched)
            for stamp, newest, watched in rows]
    delays = [(each.stamp_ns - each.newest_ns) // MS for each in measure.entries(seen)]
    assert delays == [40, 30, 20]
    assert measure.entries(seen[:1]) == []


def test_cpu_counts_the_cores_of_a_process(measure, monkeypatch):
    """Three CPU seconds in two seconds are one core and a half."""
    moments = iter(((100.0, 7.0), (102.0, 10.0)))
    monkeypatch.setattr(measure.Cpu, '_now', lambda self: next(moments))
    assert measure.Cpu(1).cores() == pytest.approx(1.5)


def test_a_camera_sends_the_picture_as_it_is(measure):
    camera = importlib.import_module('_ros_camera')
    picture = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
    message = camera.image_message(picture)
    assert (message.height, message.width, message.step) == (4, 6, 18)
    assert message.encoding == 'rgb8' and message.data.tobytes() == picture.tobytes()


def test_profile_holds_large_images_and_its_variable_is_that_of_the_distribution(
        measure, monkeypatch):
    tree = ElementTree.parse(measure.PROFILE)
    names = {'dds': 'http://www.eprosima.com'}
    sizes = [int(each.text) for each in tree.iterfind('.//dds:segment_size', names)]
    assert sizes and min(sizes) >= 4 * FULL_HD_BYTES
    assert measure.PROFILE.name in (ROOT / 'docs/ros.md').read_text()
    for distro, name in (('jazzy', 'FASTRTPS'), ('kilted', 'FASTDDS')):
        monkeypatch.setenv('ROS_DISTRO', distro)
        assert list(measure.profile_variables()) == [f'{name}_DEFAULT_PROFILES_FILE']
