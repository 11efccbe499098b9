"""BagMemory: a bag watched by an engine in this process, up to the moment of each question.

    with BagMemory('bags/door', load_model('embedded')) as memory:
        print(memory.ask('Is the door open?', at_s=12.5, choices=('yes', 'no')).text)

In: a bag, a model, settings; questions in the order of their times. Out: Answers. Times are
seconds of the bag: when a message was received, from the bag's first message on, as `ros2 bag
play` and `tww replay` count them. Nothing is dropped, and the engine takes deterministic steps:
the same bag and the same questions give the same answers, byte for byte, on one machine. It needs
no ROS.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from concurrent.futures import TimeoutError as FutureTimeoutError
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tww_ros.config import EngineConfig
from tww_ros.errors import AnswerTimeoutError, ConfigError, ReplayError
from tww_ros.replay.bag_frames import BagFrames
from tww_ros.types import NS_PER_S, Answer, Evidence, Question

if TYPE_CHECKING:
    from tww_ros.model.protocol import StepModel


class BagMemory:
    """A context manager. engine: the running engine; frames: the bag's cameras and times.

    settings: engine settings by dotted name, over those the model was trained with. cameras:
    camera → topic; by default every image topic. timeout_s: for each wait on the engine.
    """

    def __init__(self, bag: str | Path, model: StepModel,
                 settings: Mapping[str, Any] | None = None,
                 cameras: Mapping[str, str] | None = None, timeout_s: float = 600.0) -> None:
        from tww_ros.engine.engine import Engine
        if (settings or {}).get('memory.folder'):
            raise ConfigError('memory.folder: expected none, because what the folder holds would '
                              'change the answers; leave it out')
        self.frames = BagFrames(bag, cameras)
        self.engine = Engine(model, EngineConfig.from_flat(
            {**model.settings, **(settings or {}), 'step.deterministic': True}))
        self._timeout_s = timeout_s
        self._coming = iter(self.frames)
        self._next = next(self._coming, None)
        self._asked_ns = self.frames.info.start_ns
        # When each frame that was watched was received: evidence is told in seconds of the bag.
        self._received_ns: dict[tuple[str, int], int] = {}

    def __enter__(self) -> BagMemory:
        self.engine.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the engine and close the bag. Idempotent."""
        self.engine.close()
        self._coming.close()

    def ask(self, text: str, at_s: float | None = None, *, at_ns: int | None = None,
            **options: Any) -> Answer:
        """Watch up to a moment of the bag, and ask; pictures received at exactly that time count.

        at_s: seconds of the bag; at_ns: the same as an absolute time; neither = at the end.
        options: further fields of Question. Raises ReplayError when the time lies outside the bag
        or before that of an earlier question; the engine's own errors pass through.
        """
        question = Question(text=text, **options)
        self.watch(self._moment(at_s, at_ns))
        if not self.engine.drain(timeout_s=self._timeout_s):
            raise ReplayError(f'memory was not ready within {self._timeout_s:g} s of {text!r}; '
                              'use a smaller model, fewer frames or more time')
        try:
            return self.engine.ask(question).result(timeout=self._timeout_s)
        except FutureTimeoutError as error:
            raise AnswerTimeoutError(f'no answer to {text!r} within {self._timeout_s:g} s; ask '
                                     'for fewer tokens or give it more time') from error

    def watch(self, until_ns: int) -> None:
        """Feed what was received up to an absolute time of the bag."""
        while self._next is not None and self._next[0] <= until_ns:
            t_ns, frame = self._next
            if not self.engine.feed(frame, timeout_s=self._timeout_s):
                raise ReplayError(
                    f'the engine took no frame at {self.seconds(t_ns):.2f} s within '
                    f'{self._timeout_s:g} s; see its last error: '
                    f'{self.engine.stats().last_error or "none"}')
            self._received_ns[frame.camera, frame.stamp_ns] = t_ns
            self._next = next(self._coming, None)

    def seconds(self, t_ns: int) -> float:
        """An absolute time of the bag in seconds from its start."""
        return (t_ns - self.frames.info.start_ns) / NS_PER_S

    def span_s(self, told: Evidence) -> tuple[float, float]:
        """When a segment of evidence (or a note) was received, in seconds of the bag."""
        return tuple(self.seconds(self._received_ns[told.camera, stamp_ns])
                     for stamp_ns in (told.start_ns, told.end_ns))

    def received_s(self, stamp_ns: int) -> float:
        """When the frame of that header stamp was received; the last one, if several have it."""
        return max(self.seconds(t_ns) for (_, stamp), t_ns in self._received_ns.items()
                   if stamp == stamp_ns)

    def _moment(self, at_s: float | None, at_ns: int | None) -> int:
        info = self.frames.info
        if at_s is not None and at_ns is not None:
            raise ReplayError(f'expected at_s or at_ns, got both ({at_s:g} s, {at_ns} ns)')
        moment_ns = info.end_ns
        if at_s is not None:
            if not math.isfinite(at_s) or at_s < 0 or at_s > info.duration_s:
                raise ReplayError(f'{info.path}: expected a time within the bag (0 to '
                                  f'{info.duration_s:g} s), got {at_s:g} s')
            moment_ns = info.start_ns + round(at_s * NS_PER_S)
        elif at_ns is not None:
            moment_ns = at_ns
            if not info.start_ns <= at_ns <= info.end_ns:
                raise ReplayError(f'{info.path}: expected a time within the bag ({info.start_ns} '
                                  f'to {info.end_ns} ns), got {at_ns} ns')
        if moment_ns < self._asked_ns:
            raise ReplayError(
                f'{info.path}: expected questions in the order of their times, got one at '
                f'{self.seconds(moment_ns):g} s after one at {self.seconds(self._asked_ns):g} s; '
                'ask it first, or watch the bag anew')
        self._asked_ns = moment_ns
        return moment_ns
