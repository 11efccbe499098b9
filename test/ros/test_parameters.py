"""Every setting is a ROS parameter with description and range; bad values end with a reason."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import rclpy
import yaml
from rclpy.node import Node
from rclpy.parameter import Parameter

from tww_ros.config import EngineConfig, NodeConfig, settings
from tww_ros.errors import ConfigError
from tww_ros.node.parameters import declare_parameters

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
        assert about.description == entry.help and about.read_only
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


def test_a_running_node_does_not_change_its_settings(context: rclpy.Context) -> None:
    node = node_with(context, {})
    declare_parameters(node)
    result, = node.set_parameters([Parameter('watch.sample_fps', value=1.0)])
    assert not result.successful
    assert node.get_parameter('watch.sample_fps').value == 2.0
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
