"""ROS parameters of the node: made from the settings tree, so that each setting exists once.

Out: EngineConfig and NodeConfig, validated. Every parameter has a description and a range where
there is one. ROS checks ranges and types; choices, and what must fit together, are checked by the
settings themselves.

A parameter may be set at any time; what happens then is in its setting (`config.CHANGES`):

    live        applied at once
    configure   applied by the next configure; refused, with what to do, while the node is
                configured, because a model or an engine cannot take it over
    start       read-only
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from rcl_interfaces.msg import (
    FloatingPointRange,
    IntegerRange,
    ParameterDescriptor,
    SetParametersResult,
)
from rclpy.exceptions import InvalidParameterTypeException, InvalidParameterValueException
from rclpy.node import Node
from rclpy.parameter import Parameter

from tww_ros.config import EngineConfig, NodeConfig, Setting, settings
from tww_ros.errors import ConfigError, ModelError
from tww_ros.model.marks import local_marks

ONE_CAMERA = ('camera',)
CAMERA_NAME = re.compile(r'[A-Za-z][A-Za-z0-9_]*')
CAMERAS_HELP = ('names of the cameras; each is subscribed to on <name>/image, and the default '
                '["camera"] on image')
NODE = {entry.name: entry for entry in settings(NodeConfig)}
ENGINE = {entry.name: entry for entry in settings(EngineConfig)}


@dataclass
class Parameters:
    """All parameters of the node as they are in effect; changed in place."""

    node: NodeConfig
    engine: EngineConfig
    cameras: tuple[str, ...]

    def topic(self, camera: str) -> str:
        """The relative topic of a camera: `image` for the default one, else `<camera>/image`."""
        return 'image' if self.cameras == ONE_CAMERA else f'{camera}/image'


class NodeParameters:
    """Declares the parameters on a node, reads them, and guards them in between.

    locked: whether the node is configured. on_live(name, value) is called when a live parameter
    has been set. Raises ConfigError when one does not fit.
    """

    def __init__(self, node: Node, on_live: Callable[[str, Any], None]) -> None:
        self.locked = False
        self._node = node
        self._on_live = on_live
        # Those with a value of their own; the others follow the model.
        self._given = set(node._parameter_overrides)
        self._following = False
        self.current = declare_parameters(node)
        node.add_on_set_parameters_callback(self._on_set)

    def read(self) -> Parameters:
        """Bring `current` up to date."""
        values = {name: self._node.get_parameter(name).value
                  for name in ('cameras', *NODE, *ENGINE)}
        entries = _engine_entries(values['model'], len(values['cameras']))
        changed = {entry.name: entry.default for entry in entries
                   if entry.name not in self._given and values[entry.name] != entry.default}
        made = _parameters({**values, **changed})
        self._following = True
        try:
            self._node.set_parameters([Parameter(name, value=value)
                                       for name, value in changed.items()])
        finally:
            self._following = False
        self.current.node, self.current.engine = made.node, made.engine
        self.current.cameras = made.cameras
        return self.current

    def _on_set(self, changes: list[Parameter]) -> SetParametersResult:
        ours = {change.name: change.value for change in changes
                if change.name in NODE or change.name in ENGINE or change.name == 'cameras'}
        if self._following or not ours:
            return SetParametersResult(successful=True)
        try:
            self._check(ours)
        except ConfigError as error:
            return SetParametersResult(successful=False, reason=str(error))
        self._given.update(ours)
        for name, value in ours.items():
            if _changes(name) == 'live':
                self._apply(name, value)
        return SetParametersResult(successful=True)

    def _check(self, changes: dict[str, Any]) -> None:
        fixed = [name for name in changes if self.locked and _changes(name) == 'configure']
        if fixed:
            name = self._node.get_fully_qualified_name()
            raise ConfigError(
                f'{", ".join(fixed)}: cannot be changed while the node is configured; `ros2 '
                f'lifecycle set {name} deactivate` and `cleanup`, set it, then `configure` and '
                '`activate`')
        present = {name: self._node.get_parameter(name).value
                   for name in ('cameras', *NODE, *ENGINE)}
        _parameters({**present, **changes})

    def _apply(self, name: str, value: Any) -> None:
        now = self.current
        if name in NODE:
            now.node = replace(now.node, **{name: value})
        else:
            now.engine = EngineConfig.from_flat({**now.engine.to_flat(), name: value})
        self._on_live(name, value)


def declare_parameters(node: Node) -> Parameters:
    """Declare every parameter on a node and read it; ConfigError when one does not fit.

    The defaults of the engine's parameters are those that the model was trained with.
    """
    about = ParameterDescriptor(name='cameras', description=CAMERAS_HELP)
    try:
        cameras = node.declare_parameter('cameras', list(ONE_CAMERA), about).value
    except InvalidParameterTypeException as error:
        raise ConfigError(f'parameter cameras: expected a list of strings such as [front, rear] '
                          f'({error})') from error
    values = {'cameras': cameras}
    values.update((entry.name, _declare(node, entry)) for entry in NODE.values())
    values.update((entry.name, _declare(node, entry))
                  for entry in _engine_entries(values['model'], len(cameras)))
    _warn_of_unknown(node)
    return _parameters(values)


def descriptor(entry: Setting) -> ParameterDescriptor:
    """Description, range and choices of a setting as ROS tools show them."""
    made = ParameterDescriptor(name=entry.name, description=entry.help,
                               read_only=entry.change == 'start')
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


def _engine_entries(model: str, cameras: int) -> Iterable[Setting]:
    """The engine's settings with the defaults that fit this model and so many cameras."""
    try:
        trained_with = local_marks(model).settings
    except ModelError as error:
        raise ConfigError(f'parameter model: {error}') from error
    for entry in ENGINE.values():
        default = trained_with.get(entry.name, entry.default)
        if entry.name == 'watch.label_cameras':
            # With one camera there is nothing to tell apart.
            default = cameras > 1
        yield replace(entry, default=default)


def _parameters(values: dict[str, Any]) -> Parameters:
    """Checked; ConfigError names what does not fit."""
    try:
        return Parameters(NodeConfig(**{name: values[name] for name in NODE}),
                          EngineConfig.from_flat({name: values[name] for name in ENGINE}),
                          _cameras(values['cameras']))
    except ConfigError as error:
        raise ConfigError(f'parameter {error}') from error


def _cameras(names: list[str]) -> tuple[str, ...]:
    if not names or len(set(names)) != len(names):
        raise ConfigError(f'cameras: expected one or more different names, got {list(names)}')
    for name in names:
        if not CAMERA_NAME.fullmatch(name):
            raise ConfigError(f'cameras: {name!r} cannot be part of a topic; expected a letter, '
                              'then letters, digits and underscores')
    return tuple(names)


def _changes(name: str) -> str:
    entry = NODE.get(name) or ENGINE.get(name)
    return entry.change if entry else 'configure'


def _declare(node: Node, entry: Setting) -> Any:
    try:
        return node.declare_parameter(entry.name, entry.default, descriptor(entry)).value
    except InvalidParameterTypeException as error:
        hint = '; write 2.0, not 2' if entry.type is float else ''
        raise ConfigError(f'parameter {entry.name}: expected {entry.type.__name__}, got another '
                          f'type ({error}){hint}') from error
    except InvalidParameterValueException as error:
        raise ConfigError(f'parameter {entry.name}: expected {entry.low:g} to {entry.high:g} '
                          f'({error})') from error


def _warn_of_unknown(node: Node) -> None:
    """Tell of given parameters that do not exist; ROS passes over a misspelt one in silence."""
    for name in node._parameter_overrides:
        # QoS overrides are declared with their topics, later.
        if node.has_parameter(name) or name.startswith('qos_overrides.'):
            continue
        close = difflib.get_close_matches(name, [*NODE, *ENGINE, 'cameras'], 1)
        hint = f'; did you mean {close[0]}?' if close else '; docs/settings.md lists all'
        node.get_logger().warning(f'parameter {name} is unknown and has no effect{hint}')
