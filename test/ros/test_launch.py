"""The launch file, launched: its arguments become parameters and remappings of tww_node."""

from __future__ import annotations

import json
import os
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

launch = pytest.importorskip('launch')
pytest.importorskip('launch_ros')

ROOT = Path(__file__).parents[2]
LAUNCH_FILE = ROOT / 'launch' / 'bringup.launch.py'
# Stands in for tww_node: keeps its command line, with the parameter files read.
PROGRAM = """#!{python}
import json, sys
files = {{a: open(a).read() for f, a in zip(sys.argv, sys.argv[1:]) if f == '--params-file'}}
json.dump([sys.argv[1:], files], open({out!r}, 'w'))
"""


class Launched:
    """The command line that launch made; parameters: all files together, later ones win."""

    def __init__(self, line: list[str], files: dict[str, str]) -> None:
        self.line = line
        self.parameters: dict[str, object] = {}
        for flag, value in pairwise(line):
            if flag == '--params-file':
                # launch_ros writes lists with a Python tag, which only the full loader reads.
                for section in yaml.full_load(files[value]).values():
                    self.parameters.update(section['ros__parameters'])


@pytest.fixture
def prefix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed tww_ros whose program only tells how it was called."""
    program = tmp_path / 'lib/tww_ros/tww_node'
    program.parent.mkdir(parents=True)
    program.write_text(PROGRAM.format(python=sys.executable, out=str(tmp_path / 'called.json')))
    program.chmod(0o755)
    index = tmp_path / 'share/ament_index/resource_index/packages/tww_ros'
    index.parent.mkdir(parents=True)
    index.touch()
    (tmp_path / 'share/tww_ros').mkdir()
    (tmp_path / 'share/tww_ros/config').symlink_to(ROOT / 'config')
    monkeypatch.setenv('AMENT_PREFIX_PATH',
                       os.pathsep.join([str(tmp_path), os.environ['AMENT_PREFIX_PATH']]))
    return tmp_path


def run(prefix: Path, *arguments: str) -> Launched:
    from launch.actions import IncludeLaunchDescription
    from launch.launch_description_sources import PythonLaunchDescriptionSource
    service = launch.LaunchService(noninteractive=True)
    service.include_launch_description(launch.LaunchDescription([IncludeLaunchDescription(
        PythonLaunchDescriptionSource(str(LAUNCH_FILE)),
        launch_arguments=[tuple(argument.split(':=')) for argument in arguments])]))
    assert service.run() == 0
    return Launched(*json.loads((prefix / 'called.json').read_text()))


def test_without_arguments(prefix: Path) -> None:
    called = run(prefix)
    assert called.parameters['model'] == 'tiny-random'
    assert called.parameters['use_sim_time'] is False
    assert not any(part.startswith('image:=') for part in called.line)
    assert 'tww:=info' in called.line


def test_arguments_win_over_the_file(prefix: Path) -> None:
    called = run(prefix, 'model:=/data/qwen', 'cameras:=front, rear', 'quantization:=nf4',
                 'image:=/camera/image_raw', 'use_sim_time:=true', 'namespace:=robot',
                 'log_level:=debug', 'params_file:=replay.yaml')
    got = called.parameters
    assert got['model'] == '/data/qwen' and list(got['cameras']) == ['front', 'rear']
    assert got['quantization'] == 'nf4' and got['use_sim_time'] is True
    assert got['image_reliability'] == 'reliable'
    assert 'image:=/camera/image_raw' in called.line and '__ns:=/robot' in called.line
    assert 'robot.tww:=debug' in called.line


def test_unknown_params_file(prefix: Path) -> None:
    with pytest.raises(AssertionError):
        run(prefix, 'params_file:=none.yaml')
    assert not (prefix / 'called.json').exists()
