"""What the README says is there, and its example runs as it stands."""

import re
from pathlib import Path

import numpy as np

import tww_ros
from tww_ros import Engine, config
from tww_ros.engine.pending import PendingAnswer

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
    row = README[README.index('`engine.ask(question)`'):].splitlines()[0]
    for name in re.findall(r'`(\w+)\(', row.split('PendingAnswer')[1]):
        assert callable(getattr(PendingAnswer, name)), name
    assert f'State of {tww_ros.__version__.rsplit(".", 1)[0]}' in README
    known = {entry.name for part in (config.EngineConfig, config.NodeConfig)
             for entry in config.settings(part)}
    text = ''.join(path.read_text(encoding='utf-8') for path in [*(ROOT / 'docs').glob('*.md')])
    sections = '|'.join({name.split('.')[0] for name in known if '.' in name})
    for name in re.findall(rf'`((?:{sections})\.\w+)`', text + README):
        assert name in known, name
