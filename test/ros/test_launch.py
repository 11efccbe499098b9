"""Launched: the arguments of launch files become parameters and remappings of the programs."""

from __future__ import annotations

import json
import os
import re
import runpy
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

launch = pytest.importorskip('launch')
pytest.importorskip('launch_ros')

ROOT = Path(__file__).parents[2]
PROGRAMS = ('tww_node', 'tabletop_camera', 'tww')
# Stands in for all: keeps its command line, with the parameter files read.
PROGRAM = """#!{python}
import json, sys
files = {{a: open(a).read() for f, a in zip(sys.argv, sys.argv[1:]) if f == '--params-file'}}
spaces = [a[6:].rstrip('/') for a in sys.argv if a.startswith('__ns:=')] or ['']
json.dump([sys.argv[1:], files], open({out!r}.format(spaces[0].replace('/', '_')), 'w'))
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
        program.write_text(PROGRAM.format(python=sys.executable,
                                          out=str(called(tmp_path, name, '{}'))))
        program.chmod(0o755)
    index = tmp_path / 'share/ament_index/resource_index/packages/tww_ros'
    index.parent.mkdir(parents=True)
    index.touch()
    (tmp_path / 'share/tww_ros').mkdir()
    (tmp_path / 'share/tww_ros/config').symlink_to(ROOT / 'config')
    monkeypatch.setenv('AMENT_PREFIX_PATH',
                       os.pathsep.join([str(tmp_path), os.environ['AMENT_PREFIX_PATH']]))
    return tmp_path


def called(prefix: Path, program: str, namespace: str = '') -> Path:
    return prefix / f'{program}{namespace}.json'


def include(*arguments: str, file: str = 'bringup') -> Any:
    from launch.actions import IncludeLaunchDescription
    from launch.launch_description_sources import PythonLaunchDescriptionSource
    return IncludeLaunchDescription(
        PythonLaunchDescriptionSource(str(ROOT / 'launch' / f'{file}.launch.py')),
        launch_arguments=[tuple(argument.split(':=')) for argument in arguments])


def start(*actions: Any) -> None:
    service = launch.LaunchService(noninteractive=True)
    service.include_launch_description(launch.LaunchDescription(actions))
    assert service.run() == 0


def told(prefix: Path, program: str, namespace: str = '') -> Launched:
    return Launched(*json.loads(called(prefix, program, namespace).read_text()))


def run(prefix: Path, *arguments: str, program: str = 'tww_node',
        file: str = 'bringup') -> Launched:
    start(include(*arguments, file=file))
    namespaces = [text.removeprefix('namespace:=') for text in arguments
                  if text.startswith('namespace:=')]
    return told(prefix, program, f'_{namespaces[0]}' if namespaces else '')


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
               'log_level:=debug', 'params_file:=replay.yaml', 'memory_dir:=/data/memory',
               'pose_topic:=/odom', 'pose_type:=odometry', 'autostart:=false', 'dtype:=float16')
    got = node.parameters
    assert got['model'] == '/data/qwen' and list(got['cameras']) == ['front', 'rear']
    assert got['quantization'] == 'nf4' and got['use_sim_time'] is True
    assert got['image_reliability'] == 'reliable' and got['dtype'] == 'float16'
    assert got['memory.folder'] == '/data/memory' and got['autostart'] is False
    assert (got['pose_topic'], got['pose_type']) == ('/odom', 'odometry')
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
    assert called(prefix, 'tww_node', '_robot' * ('namespace:=robot' in arguments)).exists()
    remapped = [part for part in camera.line if part.startswith('image:=')]
    assert remapped == ([f'image:={image}'] if image else [])
    assert camera.parameters == {'use_sim_time': 'use_sim_time:=true' in arguments}
    assert ('__ns:=/robot' in camera.line) == ('namespace:=robot' in arguments)


def test_preset_by_its_name(prefix: Path) -> None:
    node = run(prefix, 'params_file:=jetson_orin_nano_8gb')
    assert node.parameters['model'] == 'Qwen/Qwen3-VL-2B-Instruct'
    assert node.parameters['memory.host_bytes'] == 0


def test_several_robots_by_namespace(prefix: Path) -> None:
    from launch.actions import GroupAction
    start(*(GroupAction([include(f'namespace:={robot}', f'memory_dir:=/data/{robot}')],
                        forwarding=False) for robot in ('robot1', 'robot2')))
    for robot in ('robot1', 'robot2'):
        node = told(prefix, 'tww_node', f'_{robot}')
        assert node.parameters['memory.folder'] == f'/data/{robot}'
        assert f'{robot}.tww:=info' in node.line


def test_demo_watches_the_table(prefix: Path) -> None:
    node = run(prefix, 'namespace:=lab', file='demo')
    assert node.parameters['model'] == 'embedded'
    assert node.parameters['memory.device_bytes'] == 67_108_864
    assert called(prefix, 'tabletop_camera', '_lab').exists()


def test_hint_of_the_demo_names_what_is_there() -> None:
    context = launch.LaunchContext()
    context.launch_configurations['namespace'] = 'lab'
    hint, = runpy.run_path(str(ROOT / 'launch/demo.launch.py'))['hint'](context)
    text = launch.utilities.perform_substitutions(context, hint.msg)
    assert 'ros2 service call /lab/tww/ask tww_interfaces/srv/Ask' in text
    assert Path(re.search(r'open the layout (\S+)', text)[1]).is_file()


@pytest.mark.parametrize('arguments, words', [
    ((), 'replay street --rate 1.0 --wait 600 --node /tww'),
    (('rate:=0', 'loop:=true', 'namespace:=lab', 'wait:=5'),
     'replay street --as-fast-as-possible --loop --wait 5 --node /lab/tww'),
])
def test_replay_starts_the_node_and_the_bag(prefix: Path, arguments: tuple[str, ...],
                                            words: str) -> None:
    node = run(prefix, 'bag:=street', 'model:=tiny-random', *arguments, file='replay')
    assert node.parameters['use_sim_time'] is True
    assert node.parameters['image_reliability'] == 'reliable'
    assert ' '.join(told(prefix, 'tww').line) == words
