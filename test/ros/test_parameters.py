"""Every setting is a ROS parameter with description and range; bad values end with a reason."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import rclpy
import yaml
from rclpy.node import Node
from rclpy.parameter import Parameter

from tww_ros.config import EngineConfig, NodeConfig, settings
from tww_ros.errors import ConfigError
from tww_ros.node.parameters import NodeParameters, declare_parameters

CONFIG = Path(__file__).parents[2] / 'config'


@pytest.fixture
def context(ros_env: dict[str, str]) -> Iterator[rclpy.Context]:
    made = rclpy.Context()
    rclpy.init(context=made)
    yield made
    rclpy.try_shutdown(context=made)


def node_with(context: rclpy.Context, values: dict[str, object]) -> Node:
    overrides = [Parameter(name, value=value) for name, value in values.items()]
    return Node('tww', context=context, parameter_overrides=overrides)


def test_defaults_and_descriptors(context: rclpy.Context) -> None:
    node = node_with(context, {})
    parameters = declare_parameters(node)
    assert parameters.engine == EngineConfig()
    assert parameters.node == NodeConfig()
    assert parameters.cameras == ('camera',)
    for entry in [*settings(NodeConfig), *settings(EngineConfig)]:
        about = node.describe_parameter(entry.name)
        assert about.description == entry.help
        assert about.read_only == (entry.change == 'start')
        assert node.get_parameter(entry.name).value == entry.default
        ranges = [*about.integer_range, *about.floating_point_range]
        if entry.low is None:
            assert not ranges
        else:
            assert (ranges[0].from_value, ranges[0].to_value) == (entry.low, entry.high)
        for choice in entry.choices:
            assert str(choice) in about.additional_constraints
    node.destroy_node()


def test_given_values_arrive(context: rclpy.Context) -> None:
    node = node_with(context, {'watch.sample_fps': 7.5, 'answer.max_waiting': 3,
                               'step.deterministic': True, 'cameras': ['front', 'rear']})
    parameters = declare_parameters(node)
    assert parameters.engine.watch.sample_fps == 7.5
    assert parameters.engine.answer.max_waiting == 3
    assert parameters.engine.step.deterministic
    assert [parameters.topic(name) for name in parameters.cameras] == ['front/image', 'rear/image']
    node.destroy_node()


def test_a_misspelt_name_is_told(context: rclpy.Context, capfd: pytest.CaptureFixture) -> None:
    declare_parameters(node_with(context, {
        'wach.sample_fps': 3.0, 'zzz': 1, 'note.enabled': False, 'use_sim_time': True,
        'qos_overrides./image.subscription.depth': 3}))
    told = [line for line in capfd.readouterr().err.splitlines() if '[WARN]' in line]
    assert len(told) == 2
    assert 'wach.sample_fps is unknown' in told[0] and 'mean watch.sample_fps?' in told[0]
    assert 'zzz is unknown' in told[1] and 'docs/settings.md' in told[1]


def test_a_configured_node_takes_what_it_can(context: rclpy.Context) -> None:
    node = node_with(context, {})
    told: list[tuple[str, object]] = []
    parameters = NodeParameters(node, lambda name, value: told.append((name, value)))
    parameters.locked = True

    def set_to(name: str, value: object) -> str:
        result, = node.set_parameters([Parameter(name, value=value)])
        assert result.successful == (node.get_parameter(name).value == value)
        return result.reason

    assert 'ros2 lifecycle set /tww deactivate' in set_to('watch.segment_s', 1.0)
    assert 'cameras' in set_to('cameras', ['front'])
    assert 'read-only' in set_to('result_timeout_s', 5)
    # One that may change does not bring along one that may not.
    result = node.set_parameters_atomically([
        Parameter('watch.sample_fps', value=9.0), Parameter('model', value='embedded')])
    assert not result.successful and 'model' in result.reason and not told
    assert set_to('watch.sample_fps', 1.5) == '' and set_to('status_rate_hz', 2.0) == ''
    assert told == [('watch.sample_fps', 1.5), ('status_rate_hz', 2.0)]
    assert parameters.current.engine.watch.sample_fps == 1.5
    assert parameters.current.node.status_rate_hz == 2.0
    assert 'range' in set_to('status_rate_hz', 0.0)
    node.destroy_node()


def test_a_node_that_is_not_configured_takes_what_fits_together(context: rclpy.Context,
                                                                tmp_path: Path) -> None:
    """Settings that nobody gave follow the model; those that somebody set stay."""
    node = node_with(context, {'note.max_new_tokens': 7})
    parameters = NodeParameters(node, lambda name, value: None)
    held = parameters.current
    (tmp_path / 'tww.json').write_text(json.dumps({'settings': {
        'note.max_new_tokens': 9, 'watch.segment_s': 3.0, 'watch.sample_fps': 5.0}}))

    def set_to(name: str, value: object) -> str:
        result, = node.set_parameters([Parameter(name, value=value)])
        return result.reason

    assert 'above watch.max_pixels' in set_to('watch.min_pixels', 300_000)
    assert 'expected one of none, int8, nf4' in set_to('quantization', 'int3')
    assert 'different names' in set_to('cameras', ['front', 'front'])
    assert set_to('model', str(tmp_path)) == set_to('watch.sample_fps', 2.0) == ''
    assert set_to('cameras', ['front', 'rear']) == ''
    # What is in effect is what was configured last.
    assert held.node.model == 'tiny-random' and held.cameras == ('camera',)
    assert parameters.read() is held
    assert held.node.model == str(tmp_path) and held.cameras == ('front', 'rear')
    assert held.engine.note.max_new_tokens == 7
    assert held.engine.watch.sample_fps == 2.0 and held.engine.watch.segment_s == 3.0
    assert held.engine.watch.label_cameras
    assert node.get_parameter('watch.segment_s').value == 3.0
    set_to('model', 'tiny-random')
    assert parameters.read().engine.watch.segment_s == 4.0
    (tmp_path / 'tww.json').write_text('[]')
    set_to('model', str(tmp_path))
    with pytest.raises(ConfigError, match='model'):
        parameters.read()
    assert held.node.model == 'tiny-random'
    node.destroy_node()


@pytest.mark.parametrize(('name', 'value', 'text'), [
    ('watch.sample_fps', 1000.0, 'expected 0.05 to 60'),
    ('watch.sample_fps', 2, 'write 2.0, not 2'),
    ('watch.queue_frames', 0, 'expected 1 to 10000'),
    ('quantization', 'int3', 'expected one of none, int8, nf4'),
    ('image_transport', 'theora', 'expected one of raw, compressed'),
    ('step.attention', 'magic', 'expected one of'),
    ('cameras', 'front', 'expected a list of strings'),
    ('cameras', ['front', 'front'], 'different names'),
    ('cameras', ['front/left'], 'cannot be part of a topic'),
    ('watch.min_pixels', 300_000, 'is above watch.max_pixels'),
])
def test_bad_value(context: rclpy.Context, name: str, value: object, text: str) -> None:
    node = node_with(context, {name: value})
    with pytest.raises(ConfigError, match=text) as caught:
        declare_parameters(node)
    assert name in str(caught.value)
    node.destroy_node()


def preset(name: str) -> dict[str, object]:
    return yaml.safe_load((CONFIG / name).read_text())['/**']['ros__parameters']


@pytest.mark.parametrize('name', sorted(file.name for file in CONFIG.glob('*.yaml')))
def test_preset_is_valid(context: rclpy.Context, name: str) -> None:
    values = preset(name)
    node = node_with(context, values)
    parameters = declare_parameters(node)
    got = {**vars(parameters.node), **parameters.engine.to_flat(),
           'cameras': list(parameters.cameras)}
    assert {key: got[key] for key in values} == values
    node.destroy_node()


def test_tww_yaml_shows_the_defaults() -> None:
    defaults = {entry.name: entry.default
                for entry in [*settings(NodeConfig), *settings(EngineConfig)]}
    defaults['cameras'] = ['camera']
    values = preset('tww.yaml')
    assert values == {name: defaults[name] for name in values}
