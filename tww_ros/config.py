"""One validated tree of settings; each setting exists once, here.

The ROS parameters, the command-line flags and the table in the docs are all made from
`settings()`. A setting's dotted name (`watch.sample_fps`) is its ROS parameter name. Units are in
the names. Raises ConfigError with the name, the value, the allowed range and what to do.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from tww_ros.errors import ConfigError

# When a ROS parameter that is set on a running node takes effect.
CHANGES = {'configure': 'next configure', 'live': 'at once', 'start': 'restart'}


def setting(default: Any, help: str, *, low: float | None = None, high: float | None = None,
            choices: tuple[Any, ...] = (), change: str = 'configure') -> Any:
    """A dataclass field with its description, inclusive range and choices; change: of CHANGES."""
    meta = {'help': help, 'low': low, 'high': high, 'choices': choices, 'change': change}
    return field(default=default, metadata=meta)


@dataclass(frozen=True)
class Setting:
    """One row of the settings table."""

    name: str
    type: type
    default: Any
    help: str
    low: float | None
    high: float | None
    choices: tuple[Any, ...]
    change: str

    def check(self, value: Any) -> Any:
        """The value converted to this setting's type; ConfigError when it does not fit."""
        if self.type is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if type(value) is not self.type:
            raise ConfigError(f'{self.name}: expected {self.type.__name__}, got '
                              f'{type(value).__name__} {value!r}')
        if self.choices and value not in self.choices:
            raise ConfigError(f'{self.name}: expected one of '
                              f'{", ".join(map(str, self.choices))}, '
                              f'got {value!r}')
        if self.low is not None and not self.low <= value <= self.high:
            raise ConfigError(f'{self.name}: expected {self.low:g} to {self.high:g}, '
                              f'got {value!r}')
        return value


class _Checked:
    """Checks every field of a section against its own metadata."""

    def __post_init__(self) -> None:
        for entry in settings(type(self)):
            object.__setattr__(self, entry.name, entry.check(getattr(self, entry.name)))


@dataclass(frozen=True)
class WatchConfig(_Checked):
    """Frame → segment → pixels."""

    sample_fps: float = setting(
        2.0, 'frames per second taken from each camera; the rest is skipped', low=0.05, high=60.0,
        change='live')
    segment_s: float = setting(
        4.0, 'a segment is closed when it spans this many seconds', low=0.1, high=600.0)
    segment_by: str = setting(
        'time', 'scene: a segment is also closed when the picture changes much against what it '
                'holds; segment_s is then the longest', choices=('time', 'scene'))
    segment_min_s: float = setting(
        2.0, 'with segment_by scene: the picture closes no segment before it spans this many '
             'seconds', low=0.0, high=600.0)
    queue_frames: int = setting(
        64, 'frames waiting for the watcher; when full the oldest is dropped', low=1, high=10_000)
    min_pixels: int = setting(
        4_096, 'images are enlarged to at least this many pixels', low=1_024, high=16_777_216)
    max_pixels: int = setting(
        200_704, 'images are shrunk to at most this many pixels (448×448)',
        low=1_024, high=16_777_216)
    label_cameras: bool = setting(
        False, 'write the camera name before each segment (with several cameras the node does so '
               'by default)')
    back_jump_s: float = setting(
        1.0, 'a stamp that goes back by more than this starts a new epoch; by less, the frame is '
             'rejected as out of order',
        low=0.0, high=3_600.0)
    idle_close_s: float = setting(
        2.0, 'an open segment is closed when its camera is silent for this long (wall time; not '
             'in deterministic mode)',
        low=0.1, high=3_600.0)
    look_ahead: bool = setting(
        True, 'with nothing else to do, frames that do not yet fill a patch are encoded and read '
              'as if a question came now, which then begins to be answered sooner; costs up to '
              'one more picture for each patch')
    drop_threshold: float = setting(
        0.0, 'a vision token is dropped when its part of the picture differs by less than this '
             'from the last one kept there, as a share of black to white; 0 = keep all, 0.08 for '
             'cameras that stand still',
        low=0.0, high=1.0)
    drop_unread: bool = setting(
        False, 'dropped tokens are not even read, which saves computing; otherwise they leave '
               'memory when their segment is no longer among the newest (memory.recent_tokens)')
    drop_refresh_s: float = setting(
        60.0, 'each place of the picture is kept at least this often, however little it changes',
        low=0.0, high=86_400.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.segment_by == 'scene' and self.segment_min_s > self.segment_s:
            raise ConfigError(f'segment_min_s: expected at most segment_s ({self.segment_s:g}), '
                              f'got {self.segment_min_s:g}; lower it or raise segment_s')


@dataclass(frozen=True)
class MemoryConfig(_Checked):
    """What is kept, where, and what the next answer attends to.

    Tiers, each with its own budget, oldest segments first: device → quantized → host → disk → only
    the note. A tier whose budget is 0 is left out.
    """

    device_bytes: int = setting(
        1_073_741_824, 'budget for KV in full precision on the device: recent segments and notes',
        low=65_536, high=1 << 40)
    kv_bits: int = setting(
        3, 'bits of a quantized key or value; 16 = not quantized', low=2, high=16,
        choices=(16, 8, 4, 3, 2))
    quantized_bytes: int = setting(
        1_073_741_824, 'budget for quantized KV on the device', low=0, high=1 << 40)
    host_bytes: int = setting(
        2_147_483_648, 'budget for KV in the host\'s memory', low=0, high=1 << 40)
    folder: str = setting('', 'folder of the memory on disk; empty = nothing is written')
    disk_bytes: int = setting(
        34_359_738_368, 'budget for the folder; beyond it the oldest KV there is removed',
        low=0, high=1 << 44)
    resident_tokens: int = setting(
        8_192, 'an answer attends to at most this many source tokens', low=16, high=1_048_576)
    recent_tokens: int = setting(
        4_096, 'of these, for the newest segments; the rest is for segments that the question '
               'is about', low=0, high=1_048_576)
    resident_note_tokens: int = setting(
        2_048, 'an answer attends to at most this many note tokens, newest notes and those that '
               'the question is about', low=0, high=1_048_576)
    retrieved_segments: int = setting(
        8, 'segments, and notes, that are looked up for a question when not all fit; 0 = none',
        low=0, high=1_000)
    read_window_tokens: int = setting(
        4_096, 'while reading, a segment attends to the header and to at most this many tokens '
               'of segments before it',
        low=0, high=1_048_576)
    max_segments: int = setting(
        100_000, 'records of segments (stamps, note) kept; beyond it the oldest is forgotten',
        low=1, high=10_000_000)


@dataclass(frozen=True)
class NoteConfig(_Checked):
    """One note per segment."""

    enabled: bool = setting(True, 'write a note about every segment')
    max_new_tokens: int = setting(48, 'longest note, in tokens', low=1, high=1_024)
    window_tokens: int = setting(
        4_096, 'a note attends to at most this many source tokens, newest segments first',
        low=0, high=1_048_576)
    episode_notes: int = setting(
        16, 'notes that are summed up in one episode when not all fit into a view '
            '(memory.resident_note_tokens); 0 = never', low=0, high=1_000)
    episode_max_new_tokens: int = setting(96, 'longest episode, in tokens', low=1, high=4_096)
    backlog: int = setting(
        16, 'segments waiting for their note; beyond it the oldest gets none (counted)',
        low=1, high=10_000)


@dataclass(frozen=True)
class AnswerConfig(_Checked):
    """Questions, sessions and answers."""

    max_new_tokens: int = setting(
        256, 'upper limit of a question\'s own max_new_tokens', low=1, high=8_192)
    max_question_tokens: int = setting(
        2_048, 'longest question with its choices, in tokens', low=8, high=131_072)
    max_waiting: int = setting(
        64, 'questions waiting or running; one more is refused as busy', low=1, high=10_000)
    max_watches: int = setting(
        32, 'standing questions; one more is refused as busy', low=0, high=10_000)
    reason_choices: bool = setting(
        True, 'prompts that reason do so before choosing among choices, too; false: choose at '
              'once, which is quicker')
    max_sessions: int = setting(
        64, 'sessions kept; beyond it the one idle for longest is forgotten', low=1, high=10_000)
    sessions_bytes: int = setting(
        536_870_912, 'budget for KV of the rounds of all sessions; beyond it the one idle for '
                     'longest loses its oldest', low=65_536, high=1 << 40)
    session_tokens: int = setting(
        4_096, 'tokens of earlier rounds that a session keeps; beyond it its oldest round is '
               'forgotten',
        low=0, high=1_048_576)


@dataclass(frozen=True)
class StepConfig(_Checked):
    """The packed step."""

    chunk_tokens: int = setting(
        256, 'tokens of reading (or of a question) that one step takes at most',
        low=1, high=65_536)
    tokens: int = setting(
        0, 'tokens of all spans that one step takes at most, 16 or more; 0 = measured at start-up '
           '(512 if it is not)', low=0, high=65_536)
    token_ms: float = setting(
        0.0, 'so long at most passes between two tokens of an answer while watching goes on, as '
             'far as the machine can; 0 = measured at start-up', low=0.0, high=60_000.0)
    measure: bool = setting(
        True, 'steps of several sizes are timed at start-up (about a second, not in deterministic '
              'mode), so that reading and decoding share steps or take turns as is cheaper; '
              'without, they share them')
    read_ahead_patches: int = setting(
        16, 'encoded temporal patches waiting to be read; when full the watcher waits',
        low=1, high=10_000)
    attention: str = setting(
        'auto', 'attention backend; auto: the quickest here, timed in the first step (with '
                'step.deterministic one that is not timed)',
        choices=('auto', 'eager', 'grouped', 'fused', 'triton'))
    cpu_threads: int = setting(0, 'on the CPU: torch threads of the watcher and of the reasoner, '
                                  'each; 0 = half of the cores', low=0, high=1_024)
    deterministic: bool = setting(
        False, 'one job a step, so that results do not depend on timing, bit for bit; slower')

    def __post_init__(self) -> None:
        super().__post_init__()
        if 0 < self.tokens < 16:
            raise ConfigError(f'tokens: expected 0 or 16 to 65536, got {self.tokens}; with fewer, '
                              'answers, reading and a note do not fit into one step')


@dataclass(frozen=True)
class EngineConfig:
    """All settings of the engine."""

    watch: WatchConfig = field(default_factory=WatchConfig)
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    note: NoteConfig = field(default_factory=NoteConfig)
    answer: AnswerConfig = field(default_factory=AnswerConfig)
    step: StepConfig = field(default_factory=StepConfig)

    def __post_init__(self) -> None:
        if self.watch.min_pixels > self.watch.max_pixels:
            raise ConfigError(f'watch.min_pixels ({self.watch.min_pixels}) is above '
                              f'watch.max_pixels ({self.watch.max_pixels}); lower the first or '
                              'raise the second')

    @classmethod
    def from_flat(cls, values: Mapping[str, Any]) -> EngineConfig:
        """EngineConfig from dotted names, e.g. {'watch.sample_fps': 1.0}; the rest is default."""
        known = {entry.name for entry in settings(cls)}
        for name in values:
            if name not in known:
                raise ConfigError(f'unknown setting {name!r}; known: {", ".join(sorted(known))}')
        sections: dict[str, dict[str, Any]] = {}
        for name, value in values.items():
            section, key = name.split('.')
            sections.setdefault(section, {})[key] = value
        try:
            return cls(**{name: _section_types(cls)[name](**part)
                          for name, part in sections.items()})
        except ConfigError as error:
            # A section checks its own fields and does not know its own name.
            field_name = str(error).split(':', 1)[0]
            full = [name for name in values if name.endswith('.' + field_name)]
            message = f'{full[0].rsplit(".", 1)[0]}.{error}' if full else str(error)
            raise ConfigError(message) from None

    def to_flat(self) -> dict[str, Any]:
        """Every setting by its dotted name."""
        return {f'{section}.{key}': value for section, part in dataclasses.asdict(self).items()
                for key, value in part.items()}


@dataclass(frozen=True)
class NodeConfig(_Checked):
    """Settings of the ROS node itself, but the list of cameras; the engine knows none of them."""

    autostart: bool = setting(
        True, 'the node configures and activates itself; false: it waits for ~/change_state, as '
              'managed nodes do', change='start')
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
    pose_topic: str = setting('', 'topic that says where the robot is, so that evidence says '
                                  'where something was seen; empty = none')
    pose_type: str = setting('odometry', 'of its messages: nav_msgs/Odometry, '
                                         'geometry_msgs/PoseStamped or PoseWithCovarianceStamped',
                             choices=('odometry', 'pose', 'pose_with_covariance'))
    pose_tolerance_s: float = setting(0.5, 'a frame takes the pose with the nearest stamp, if it '
                                           'is no farther away than this', low=0.001, high=60.0)
    status_rate_hz: float = setting(5.0, 'how often ~/status is published', low=0.1, high=100.0,
                                    change='live')
    feedback_period_s: float = setting(0.08, 'text of a running answer is collected for this long '
                                             'before it is sent as feedback', low=0.01, high=5.0,
                                       change='live')
    result_timeout_s: int = setting(300, 'the result of a finished action is kept for this long',
                                    low=1, high=86_400, change='start')
    shutdown_timeout_s: float = setting(3.0, 'running answers and threads get this long to end',
                                        low=0.1, high=60.0, change='live')


def settings(config: type) -> Iterator[Setting]:
    """Every setting of a section, or of the whole tree with dotted names."""
    types = typing.get_type_hints(config)
    for entry in dataclasses.fields(config):
        kind = types[entry.name]
        if dataclasses.is_dataclass(kind):
            for inner in settings(kind):
                yield dataclasses.replace(inner, name=f'{entry.name}.{inner.name}')
        else:
            yield Setting(entry.name, kind, entry.default, **entry.metadata)


def _section_types(config: type) -> dict[str, type]:
    return {name: kind for name, kind in typing.get_type_hints(config).items()
            if dataclasses.is_dataclass(kind)}
