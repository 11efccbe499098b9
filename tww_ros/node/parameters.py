"""ROS parameters of the node: made from the settings tree, so that each setting exists once.

Out: EngineConfig and NodeConfig, validated. Every parameter has a description, a range where there
is one, and is read-only (a running engine does not change its settings in this version). ROS
checks ranges and types when a parameter is declared; choices are checked by the settings
themselves.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass, replace
from typing import Any

from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor
from rclpy.exceptions import InvalidParameterTypeException, InvalidParameterValueException
from rclpy.node import Node

from tww_ros.config import EngineConfig, NodeConfig, Setting, settings
from tww_ros.errors import ConfigError
from tww_ros.model.marks import local_marks

ONE_CAMERA = ('camera',)
CAMERA_NAME = re.compile(r'[A-Za-z][A-Za-z0-9_]*')
CAMERAS_HELP = ('names of the cameras; each is subscribed to on <name>/image, and the default '
                '["camera"] on image')


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
    """Declare every parameter on a node and read it; ConfigError when one does not fit.

    The defaults of the engine's parameters are those that the model was trained with.
    """
    cameras = _cameras(node)
    own = {entry.name: _declare(node, entry) for entry in settings(NodeConfig)}
    engine, trained_with = {}, local_marks(own['model']).settings
    for entry in settings(EngineConfig):
        entry = replace(entry, default=trained_with.get(entry.name, entry.default))
        if entry.name == 'watch.label_cameras':
            # With one camera there is nothing to tell apart.
            entry = replace(entry, default=len(cameras) > 1)
        engine[entry.name] = _declare(node, entry)
    _warn_of_unknown(node)
    return Parameters(NodeConfig(**own), EngineConfig.from_flat(engine), cameras)


def _warn_of_unknown(node: Node) -> None:
    """Tell of given parameters that do not exist; ROS passes over a misspelt one in silence."""
    known = [entry.name for kind in (NodeConfig, EngineConfig) for entry in settings(kind)]
    for name in node._parameter_overrides:
        # QoS overrides are declared with their topics, later.
        if node.has_parameter(name) or name.startswith('qos_overrides.'):
            continue
        close = difflib.get_close_matches(name, [*known, 'cameras'], 1)
        hint = f'; did you mean {close[0]}?' if close else '; docs/settings.md lists all'
        node.get_logger().warning(f'parameter {name} is unknown and has no effect{hint}')


def descriptor(entry: Setting) -> ParameterDescriptor:
    """Description, range and choices of a setting as ROS tools show them."""
    made = ParameterDescriptor(name=entry.name, description=entry.help, read_only=True)
    if entry.choices:
        made.additional_constraints = f'one of {", ".join(map(str, entry.choices))}'
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
