"""ROS parameters of the node: made from the settings tree, so that each setting exists once.

Out: EngineConfig and NodeConfig, validated. Every parameter has a description, a range where there
is one, and is read-only (a running engine does not change its settings in this version). ROS
checks ranges and types when a parameter is declared; choices are checked by the settings
themselves.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor
from rclpy.exceptions import InvalidParameterTypeException, InvalidParameterValueException
from rclpy.node import Node

from tww_ros.config import EngineConfig, Setting, setting, settings
from tww_ros.errors import ConfigError

ONE_CAMERA = ('camera',)
CAMERA_NAME = re.compile(r'[A-Za-z][A-Za-z0-9_]*')
CAMERAS_HELP = ('names of the cameras; each is subscribed to on <name>/image, and the default '
                '["camera"] on image')


@dataclass(frozen=True)
class NodeConfig:
    """Settings of the node itself, but the list of cameras."""

    model: str = setting('tiny-random', 'checkpoint directory, hub id, "embedded", or '
                                        '"tiny-random" (random weights: its words mean nothing)')
    quantization: str = setting('none', 'of the weights', choices=('none', 'int8', 'nf4'))
    device: str = setting('auto', 'where the model runs: auto, cpu, cuda, cuda:1, ...')
    dtype: str = setting('auto', 'of the weights; auto: bfloat16 on CUDA, float32 on the CPU',
                         choices=('auto', 'float32', 'bfloat16', 'float16'))
    positions: str = setting('auto', 'position scheme; auto: as the checkpoint was trained',
                             choices=('auto', 'continuous', 'decoupled'))
    prompts: str = setting('auto', 'prompts; auto: as the checkpoint was trained',
                           choices=('auto', 'stock', 'tww'))
    image_transport: str = setting('raw', 'compressed: subscribe to <topic>/compressed',
                                   choices=('raw', 'compressed'))
    image_reliability: str = setting('best_effort', 'QoS of the image subscriptions; best_effort '
                                                    'matches every publisher, reliable loses '
                                                    'nothing',
                                     choices=('best_effort', 'reliable'))
    image_queue_depth: int = setting(10, 'image messages waiting for the node, per camera',
                                     low=1, high=1_000)
    status_rate_hz: float = setting(5.0, 'how often ~/status is published', low=0.1, high=100.0)
    feedback_period_s: float = setting(0.08, 'text of a running answer is collected for this long '
                                             'before it is sent as feedback', low=0.01, high=5.0)
    result_timeout_s: int = setting(300, 'the result of a finished action is kept for this long',
                                    low=1, high=86_400)
    shutdown_timeout_s: float = setting(3.0, 'running answers and threads get this long to end',
                                        low=0.1, high=60.0)


@dataclass(frozen=True)
class Parameters:
    """All parameters of the node."""

    node: NodeConfig
    engine: EngineConfig
    cameras: tuple[str, ...]

    def topic(self, camera: str) -> str:
        """The relative topic of a camera: `image` for the default one, else `<camera>/image`."""
        return 'image' if self.cameras == ONE_CAMERA else f'{camera}/image'


def declare_parameters(node: Node) -> Parameters:
    """Declare every parameter on a node and read it; ConfigError when one does not fit."""
    own = {entry.name: _declare(node, entry) for entry in settings(NodeConfig)}
    engine = {entry.name: _declare(node, entry) for entry in settings(EngineConfig)}
    return Parameters(NodeConfig(**own), EngineConfig.from_flat(engine), _cameras(node))


def descriptor(entry: Setting) -> ParameterDescriptor:
    """Description, range and choices of a setting as ROS tools show them."""
    made = ParameterDescriptor(name=entry.name, description=entry.help, read_only=True)
    if entry.choices:
        made.additional_constraints = f'one of {", ".join(entry.choices)}'
    if entry.low is not None and entry.type is int:
        # Step 0: any value between.
        made.integer_range = [IntegerRange(from_value=int(entry.low), to_value=int(entry.high),
                                           step=0)]
    if entry.low is not None and entry.type is float:
        made.floating_point_range = [FloatingPointRange(from_value=float(entry.low),
                                                        to_value=float(entry.high), step=0.0)]
    return made


def _declare(node: Node, entry: Setting) -> Any:
    try:
        value = node.declare_parameter(entry.name, entry.default, descriptor(entry)).value
    except InvalidParameterTypeException as error:
        hint = '; write 2.0, not 2' if entry.type is float else ''
        raise ConfigError(f'parameter {entry.name}: expected {entry.type.__name__}, got another '
                          f'type ({error}){hint}') from error
    except InvalidParameterValueException as error:
        raise ConfigError(f'parameter {entry.name}: expected {entry.low:g} to {entry.high:g} '
                          f'({error})') from error
    try:
        return entry.check(value)
    except ConfigError as error:
        raise ConfigError(f'parameter {error}') from error


def _cameras(node: Node) -> tuple[str, ...]:
    about = ParameterDescriptor(name='cameras', description=CAMERAS_HELP, read_only=True)
    try:
        names = tuple(node.declare_parameter('cameras', list(ONE_CAMERA), about).value)
    except InvalidParameterTypeException as error:
        raise ConfigError(f'parameter cameras: expected a list of strings such as [front, rear] '
                          f'({error})') from error
    if not names or len(set(names)) != len(names):
        raise ConfigError(f'parameter cameras: expected one or more different names, got '
                          f'{list(names)}')
    for name in names:
        if not CAMERA_NAME.fullmatch(name):
            raise ConfigError(f'parameter cameras: {name!r} cannot be part of a topic; expected a '
                              'letter, then letters, digits and underscores')
    return names
