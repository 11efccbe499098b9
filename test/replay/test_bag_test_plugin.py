"""The fixture `tww_bag`, as a robot's repository uses it: a test run of its own."""

import os
from pathlib import Path

import pytest

from tww_ros.replay.bag import write_bag_from_video

pytest_plugins = ['pytester']
pytest.importorskip('rosbags')
ROOT = Path(__file__).resolve().parents[2]
TESTS = """
import pytest
from tww_ros.errors import ModelError
from tww_ros.model.scripted import ScriptedModel

SETTINGS = {'watch.sample_fps': 10.0}

def test_door(tww_bag):
    memory = tww_bag('small', model=ScriptedModel(answer='open'), settings=SETTINGS)
    early = memory.ask('Is the door open?', at_s=0.5, choices=('open', 'closed'))
    assert early.text == 'open' and memory.received_s(early.as_of_ns) == 0.5
    assert memory.ask('And now?').text == 'open'

def test_two_at_once_and_a_wrong_answer(tww_bag):
    one, two = (tww_bag('small', model=ScriptedModel(answer=text)) for text in ('a', 'b'))
    assert one.ask('what?').text == 'a'
    assert two.ask('what?').text == 'a'

def test_named_models_are_loaded_once(tww_bag):
    one, two = (tww_bag('small', 'tiny-random', device='cpu') for _ in range(2))
    assert one.engine.model is two.engine.model

def test_unknown(tww_bag):
    with pytest.raises(ModelError, match='no checkpoint'):
        tww_bag('small', '/no/such/model')
"""


def test_fixture(video, pytester, monkeypatch):
    path = os.pathsep.join([str(ROOT), os.environ.get('PYTHONPATH', '')])
    monkeypatch.setenv('PYTHONPATH', path)
    write_bag_from_video(video, pytester.path / 'tests' / 'small', progress=False)
    (pytester.path / 'tests' / 'test_robot.py').write_text(TESTS)
    result = pytester.runpytest_subprocess('-p', 'tww_ros.replay.pytest_plugin', '-p',
                                           'no:cacheprovider', 'tests')
    result.assert_outcomes(passed=3, failed=1)
    result.stdout.fnmatch_lines(['*test_two_at_once_and_a_wrong_answer*'])
