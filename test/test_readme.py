"""What the README says is there, and its example runs as it stands."""

import re
import shlex
from pathlib import Path

import numpy as np

import tww_ros
from tww_ros import Engine, config
from tww_ros.cli import build_parser
from tww_ros.engine.pending import PendingAnswer
from tww_ros.engine.standing import PendingWatch

ROOT = Path(__file__).parents[1]
README = (ROOT / 'README.md').read_text(encoding='utf-8')


def test_python_example_runs(capsys):
    example, = re.findall(r'```python\n(.*?)```', README, re.S)
    image = np.random.default_rng(0).integers(0, 255, (120, 160, 3), dtype=np.uint8)
    exec(compile(example, 'README.md', 'exec'), {'rgb': image})
    assert capsys.readouterr().out.rstrip().endswith('0 [0]')                   # as_of, evidence


def test_links_and_named_files_exist():
    links = re.findall(r'\]\((?!http)([^)]+)\)', README)
    assert links
    tree, = re.findall(r'```\n(launch/.*?)```', README, re.S)
    named = re.findall(r'^( *)(\S+/|\S+\.py)(?: (\S+/))?', tree, re.M)
    folders = [('tww_ros/' if indent else '') + name for indent, name, _ in named]
    scripts = re.findall(r'scripts/(\w+)', README)
    for path in [*links, *folders, *(f'scripts/{name}' for name in scripts)]:
        assert (ROOT / path).exists(), path


def test_every_folder_of_the_package_is_in_the_tree():
    folders = {path.parent.name for path in (ROOT / 'tww_ros').glob('*/__init__.py')}
    assert folders == set(re.findall(r'^  (\w+)/ ', README, re.M))


def test_named_calls_exist():
    for name in re.findall(r'`engine\.(\w+)\(', README):
        assert callable(getattr(Engine, name)), name
    for call, made in (('ask(question)', PendingAnswer), ('watch(watch_question)', PendingWatch)):
        row = README[README.index(f'`engine.{call}`'):].splitlines()[0]
        for name in re.findall(r'`(\w+)\(', row.split(made.__name__)[1]):
            assert callable(getattr(made, name)), name
    assert f'State of {tww_ros.__version__.rsplit(".", 1)[0]}' in README
    known = {entry.name for part in (config.EngineConfig, config.NodeConfig)
             for entry in config.settings(part)}
    text = ''.join(path.read_text(encoding='utf-8') for path in [*(ROOT / 'docs').glob('*.md')])
    sections = '|'.join({name.split('.')[0] for name in known if '.' in name})
    for name in re.findall(rf'`((?:{sections})\.\w+)`', text + README):
        assert name in known, name


def test_every_service_and_action_is_in_the_table():
    interfaces = [path.stem for kind in ('srv', 'action')
                  for path in (ROOT / 'tww_interfaces' / kind).iterdir()]
    offered = {re.sub(r'(?<!^)(?=[A-Z])', '_', name).lower() for name in interfaces}
    named = set(re.findall(r'`~/(\w+)`', README))
    assert offered <= named
    files = (ROOT / 'tww_ros' / 'node').glob('*.py')
    code = ''.join(path.read_text(encoding='utf-8') for path in files)
    # Those of every managed node are rclpy's.
    for name in named - {'change_state', 'get_state'}:
        assert re.search(rf"'(~/)?{name}'", code), name


def test_commands_can_be_typed():
    lines = re.findall(r'^(?:scripts/run )?(tww .*)', README, re.M)
    assert len(lines) >= 10
    for line in lines:
        words = shlex.split(line.split('  #')[0])
        build_parser().parse_args(words[1:])


def test_launch_files_presets_and_their_arguments_exist():
    files = set(re.findall(r'`(\w+\.launch\.py)`', README))
    assert files == {path.name for path in (ROOT / 'launch').glob('*.launch.py')}
    declared = ''.join((ROOT / 'launch' / name).read_text(encoding='utf-8') for name in files)
    for name in re.findall(r'(?<![./~])\b(\w+):=', README):
        assert f"'{name}'" in declared, name
    told = README[README.index('Presets ('):].split('.')[0]
    presets = set(re.findall(r'`(\w+)`', told))
    assert presets == {path.stem for path in (ROOT / 'config').glob('*.yaml')} - {'tww'}
