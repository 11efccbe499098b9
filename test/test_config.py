"""Records, settings and errors: what is accepted, what is refused, and in which words."""

import dataclasses
import importlib
import math
import subprocess
import sys

import numpy as np
import pytest

from tww_ros import errors
from tww_ros.config import (
    EngineConfig,
    MemoryConfig,
    NoteConfig,
    WatchConfig,
    setting,
    settings,
)
from tww_ros.errors import ConfigError, FrameError, QuestionError, TwwError
from tww_ros.types import EngineStats, Frame, Question

IMAGE = np.zeros((4, 6, 3), np.uint8)


# Settings

def test_every_setting_has_help_a_unit_of_range_and_a_default_within_it():
    found = list(settings(EngineConfig))
    assert len(found) == len({entry.name for entry in found}) > 20
    for entry in found:
        assert entry.help and entry.help[0].islower() and not entry.help.endswith('.')
        assert type(entry.default) is entry.type
        if entry.type in (int, float):
            assert entry.low is not None and entry.low <= entry.default <= entry.high
        elif entry.type is str:
            assert not entry.choices or entry.default in entry.choices
        section, key = entry.name.split('.')
        assert getattr(getattr(EngineConfig(), section), key) == entry.default


def test_flat_names_and_back():
    config = EngineConfig.from_flat({'watch.sample_fps': 0.5, 'note.enabled': False,
                                     'step.attention': 'eager'})
    assert config.watch == WatchConfig(sample_fps=0.5)
    assert config.note == NoteConfig(enabled=False)
    assert config.memory == MemoryConfig()
    assert EngineConfig.from_flat(config.to_flat()) == config
    assert list(config.to_flat()) == [entry.name for entry in settings(EngineConfig)]


def test_whole_numbers_are_floats_where_floats_are_expected():
    assert type(WatchConfig(sample_fps=3).sample_fps) is float


@pytest.mark.parametrize('values, message', [
    ({'watch.sample_fps': 0.0}, r'^watch\.sample_fps: expected 0\.05 to 60, got 0\.0'),
    ({'watch.sample_fps': math.nan}, r'^watch\.sample_fps: expected'),
    ({'watch.sample_fps': '2'}, r"^watch\.sample_fps: expected float, got str '2'"),
    ({'watch.queue_frames': 2.0}, r'^watch\.queue_frames: expected int, got float'),
    ({'watch.queue_frames': True}, r'^watch\.queue_frames: expected int, got bool'),
    ({'watch.queue_frames': 10_001}, r'^watch\.queue_frames: expected 1 to 10000, got 10001'),
    ({'note.enabled': 1}, r'^note\.enabled: expected bool, got int'),
    ({'step.attention': 'fast'}, r'^step\.attention: expected one of auto, .*fast'),
    ({'watch.speed': 1.0}, r"^unknown setting 'watch\.speed'; known: "),
    ({'sample_fps': 1.0}, r'^unknown setting'),
    ({'watch.min_pixels': 400_000}, r'watch\.min_pixels \(400000\) is above watch\.max_pixels'),
])
def test_bad_settings_are_refused_by_name(values, message):
    with pytest.raises(ConfigError, match=message):
        EngineConfig.from_flat(values)


@pytest.mark.parametrize('edge', ['low', 'high'])
def test_both_ends_of_every_range_are_allowed(edge):
    for entry in settings(EngineConfig):
        if entry.low is not None:
            limit = entry.type(getattr(entry, edge))
            assert entry.check(limit) == limit
            beyond = limit - 1 if edge == 'low' else limit * 2 + 1
            with pytest.raises(ConfigError, match=entry.name):
                entry.check(beyond)


def test_settings_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        WatchConfig().sample_fps = 1.0
    assert setting(1, 'help').metadata['choices'] == ()


# Records

@pytest.mark.parametrize('image, message', [
    (IMAGE.tolist(), 'expected a numpy array, got list'),
    (IMAGE.astype(np.float32), r'uint8 image .* got float32 \[4, 6, 3\]'),
    (IMAGE[..., 0], r'got uint8 \[4, 6\]'),
    (np.zeros((4, 6, 4), np.uint8), r'got uint8 \[4, 6, 4\]'),
    (np.zeros((0, 6, 3), np.uint8), 'empty'),
    (np.zeros((4, 0, 3), np.uint8), 'empty'),
])
def test_bad_images(image, message):
    with pytest.raises(FrameError, match=message) as caught:
        Frame(0, 'front', image)
    assert "'front'" in str(caught.value)


@pytest.mark.parametrize('stamp', [-1, 1.5, '0', None])
def test_bad_stamps(stamp):
    with pytest.raises(FrameError, match='stamp'):
        Frame(stamp, 'front', IMAGE)


def test_frame_takes_numpy_stamps_and_does_not_copy():
    frame = Frame(np.int64(5), 'front', IMAGE)
    assert frame.image is IMAGE and frame.stamp_ns == 5


@pytest.mark.parametrize('options, message', [
    ({'text': ''}, 'empty'), ({'text': ' \n'}, 'empty'),
    ({'max_new_tokens': 0}, 'max_new_tokens must be ≥ 1, got 0'),
    ({'timeout_s': -1.0}, 'timeout_s'), ({'timeout_s': math.nan}, 'timeout_s'),
    ({'window': (5, 4)}, 'starts at 5 ns, after its end at 4 ns'),
    ({'choices': ('yes',)}, 'at least two'), ({'choices': ('yes', ' ')}, 'a choice is empty'),
    ({'choices': ('yes', 'yes')}, 'differ'),
])
def test_bad_questions(options, message):
    with pytest.raises(QuestionError, match=message):
        Question(**{'text': 'what?', **options})


def test_question_keeps_lists_as_tuples():
    question = Question('what?', cameras=['a'], choices=['x', 'y'], window=(3, 3))
    assert question.cameras == ('a',) and question.choices == ('x', 'y')
    assert hash(question) == hash(Question('what?', cameras=('a',), choices=('x', 'y'),
                                           window=(3, 3)))


def test_stats_start_at_zero():
    assert all(not value for value in dataclasses.asdict(EngineStats()).values())


# Errors

def test_one_tree_and_its_drawing_is_complete():
    classes = [value for value in vars(errors).values() if isinstance(value, type)]
    assert all(issubclass(cls, TwwError) for cls in classes)
    drawing = errors.__doc__
    for cls in classes:
        assert f'{cls.__name__} ' in drawing or f'{cls.__name__}\n' in drawing
        assert cls.__doc__


def test_importing_the_package_loads_neither_torch_nor_ros():
    code = ('import sys, tww_ros, tww_ros.cli, tww_ros.video.segmentation, tww_ros.replay.bag\n'
            'heavy = {"torch", "transformers", "rclpy", "av", "rosbags"} & set(sys.modules)\n'
            'print(sorted(heavy))\n'
            'assert tww_ros.__version__ and not hasattr(tww_ros, "nonsense")')
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True,
                          timeout=60, check=True)
    assert done.stdout.strip() == '[]'


def test_public_names_exist():
    package = importlib.import_module('tww_ros')
    light = [name for name in package.__all__ if name not in ('Engine', 'load_model')]
    assert all(getattr(package, name) for name in light)
