"""The launch file, launched: its arguments become parameters and remappings of the programs."""

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
PROGRAMS = ('tww_node', 'tabletop_camera')
# Stands in for both: keeps its command line, with the parameter files read.
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
    """An installed tww_ros whose programs only tell how they were called."""
    for name in PROGRAMS:
        program = tmp_path / 'lib/tww_ros' / name
        program.parent.mkdir(parents=True, exist_ok=True)
        program.write_text(PROGRAM.format(python=sys.executable, out=str(called(tmp_path, name))))
        program.chmod(0o755)
    index = tmp_path / 'share/ament_index/resource_index/packages/tww_ros'
    index.parent.mkdir(parents=True)
    index.touch()
    (tmp_path / 'share/tww_ros').mkdir()
    (tmp_path / 'share/tww_ros/config').symlink_to(ROOT / 'config')
    monkeypatch.setenv('AMENT_PREFIX_PATH',
                       os.pathsep.join([str(tmp_path), os.environ['AMENT_PREFIX_PATH']]))
    return tmp_path


def called(prefix: Path, program: str) -> Path:
    return prefix / f'{program}.json'


def run(prefix: Path, *arguments: str, program: str = 'tww_node') -> Launched:
    from launch.actions import IncludeLaunchDescription
    from launch.launch_description_sources import PythonLaunchDescriptionSource
    service = launch.LaunchService(noninteractive=True)
    service.include_launch_description(launch.LaunchDescription([IncludeLaunchDescription(
        PythonLaunchDescriptionSource(str(LAUNCH_FILE)),
        launch_arguments=[tuple(argument.split(':=')) for argument in arguments])]))
    assert service.run() == 0
    return Launched(*json.loads(called(prefix, program).read_text()))


def test_without_arguments(prefix: Path) -> None:
    node = run(prefix)
    assert node.parameters['model'] == 'tiny-random'
    assert node.parameters['use_sim_time'] is False
    assert not any(part.startswith('image:=') for part in node.line)
    assert 'tww:=info' in node.line
    assert not called(prefix, 'tabletop_camera').exists()


def test_arguments_win_over_the_file(prefix: Path) -> None:
    node = run(prefix, 'model:=/data/qwen', 'cameras:=front, rear', 'quantization:=nf4',
               'image:=/camera/image_raw', 'use_sim_time:=true', 'namespace:=robot',
               'log_level:=debug', 'params_file:=replay.yaml')
    got = node.parameters
    assert got['model'] == '/data/qwen' and list(got['cameras']) == ['front', 'rear']
    assert got['quantization'] == 'nf4' and got['use_sim_time'] is True
    assert got['image_reliability'] == 'reliable'
    assert 'image:=/camera/image_raw' in node.line and '__ns:=/robot' in node.line
    assert 'robot.tww:=debug' in node.line


def test_unknown_params_file(prefix: Path) -> None:
    with pytest.raises(AssertionError):
        run(prefix, 'params_file:=none.yaml')
    assert not called(prefix, 'tww_node').exists()


@pytest.mark.parametrize('arguments, image', [
    ((), None), (('image:=/above/image_raw',), '/above/image_raw'),
    (('cameras:=front, rear', 'use_sim_time:=true', 'namespace:=robot'), 'front/image'),
])
def test_tabletop_publishes_what_the_node_watches(prefix: Path, arguments: tuple[str, ...],
                                                  image: str | None) -> None:
    camera = run(prefix, 'tabletop:=true', *arguments, program='tabletop_camera')
    assert called(prefix, 'tww_node').exists()
    remapped = [part for part in camera.line if part.startswith('image:=')]
    assert remapped == ([f'image:={image}'] if image else [])
    assert camera.parameters == {'use_sim_time': 'use_sim_time:=true' in arguments}
    assert ('__ns:=/robot' in camera.line) == ('namespace:=robot' in arguments)
