"""Watched frames → temporal patches in segments, per camera; epochs when stamps jump back.

In: frames in the order they arrived. Out: events, in the order in which memory must see them:

    PatchReady(key, patch) … PatchReady(key, patch), SegmentClosed(key, closed_by)

A key that was not seen before opens a segment; at most one segment per camera is open. This
module computes no pixels, holds no thread and reads no clock.

    camera 2 fps, segment_s 2.0      0.0 0.5 | 1.0 1.5 ‖ 2.0 2.5 | 3.0 ?  ← close('question')
                                     patch     patch     patch     patch of one frame

A segment is closed *before* the frame that would make it span `segment_s`, so that no segment is
ever longer, whatever the gap. With `segment_by: scene` it is also closed before a frame that shows
much else than the segment so far (`video.scene`), once it spans `segment_min_s`. The model reads
temporal patches of two frames; an odd last frame becomes a patch of one and the pixels repeat it,
as the stock processor does.

Epochs: header stamps go back when a bag loops or a simulation restarts. Going back by at most
`back_jump_s` is disorder (the frame is rejected); by more, a new epoch for all cameras. Who knows
of the clock behind the stamps says when it goes back (`jump`): then there is no doubt, however
little it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from tww_ros.config import WatchConfig
from tww_ros.types import NS_PER_S, Frame, LateFrame
from tww_ros.video.sampling import FrameSampler
from tww_ros.video.scene import SceneCut

CLOSED_BY = ('time', 'scene', 'question', 'resolution', 'epoch', 'idle', 'flush')
TEMPORAL_PATCH_SIZE = 2
# A stamp may be so much ahead of what is known of its clock, which ticks.
AHEAD_NS = 100_000_000


class SegmentKey(NamedTuple):
    """Names one segment: index counts the camera's segments since start, over all epochs."""

    camera: str
    epoch: int
    index: int


@dataclass(frozen=True)
class Patch:
    """1 to temporal_patch_size consecutive frames of one camera and one resolution."""

    frames: tuple[Frame, ...]

    @property
    def stamp_ns(self) -> int:
        """Mean of first and last stamp: Qwen3-VL's timestamp of a temporal patch, in ns."""
        return (int(self.frames[0].stamp_ns) + int(self.frames[-1].stamp_ns)) // 2


@dataclass(frozen=True)
class PatchReady:
    """The next patch of a segment; the first one opens it."""

    segment_key: SegmentKey
    patch: Patch


@dataclass(frozen=True)
class SegmentClosed:
    """Nothing more comes for this segment. closed_by: one of CLOSED_BY."""

    segment_key: SegmentKey
    closed_by: str


Event = PatchReady | SegmentClosed


@dataclass
class OpenSegment:
    """The segment that is growing. waiting: frames that do not yet fill a patch."""

    key: SegmentKey
    start_ns: int
    end_ns: int
    shape: tuple[int, ...]
    frames: int = 0
    waiting: list[Frame] = field(default_factory=list)


class Segmenter:
    """Cuts the frames of one camera into segments and patches; stamps advance within an epoch.

    segment_min_s: cut at scene changes too, but no segment shorter than this; None = only by time.
    """

    def __init__(self, camera: str, segment_s: float,
                 temporal_patch_size: int = TEMPORAL_PATCH_SIZE,
                 segment_min_s: float | None = None) -> None:
        self.camera = camera
        self.open: OpenSegment | None = None
        self._segment_ns = round(segment_s * NS_PER_S)
        self._patch_frames = temporal_patch_size
        self._scene = None if segment_min_s is None else SceneCut()
        self._segment_min_ns = round((segment_min_s or 0.0) * NS_PER_S)
        self._count = 0

    def add(self, frame: Frame, epoch: int = 0) -> list[Event]:
        """Take one watched frame; returns what memory must see now, perhaps nothing."""
        events = self.close(reason) if (reason := self._must_close(frame, epoch)) else []
        if self.open is None:
            key = SegmentKey(self.camera, epoch, self._count)
            self.open = OpenSegment(key, frame.stamp_ns, frame.stamp_ns, frame.image.shape)
            self._count += 1
            if self._scene is not None:
                self._scene.begin()
        segment = self.open
        segment.end_ns = frame.stamp_ns
        segment.frames += 1
        segment.waiting.append(frame)
        if len(segment.waiting) == self._patch_frames:
            events.append(self._take_patch(segment))
        return events

    def close(self, closed_by: str) -> list[Event]:
        """Close the open segment, its odd last frames first; no events when none is open."""
        if closed_by not in CLOSED_BY:
            raise ValueError(f'expected closed_by to be one of {CLOSED_BY}, got {closed_by!r}')
        segment, self.open = self.open, None
        if segment is None:
            return []
        events: list[Event] = [self._take_patch(segment)] if segment.waiting else []
        return [*events, SegmentClosed(segment.key, closed_by)]

    def _must_close(self, frame: Frame, epoch: int) -> str:
        # Every frame is looked at, whether a cut would be allowed or not.
        other_scene = self._scene is not None and self._scene.sees(frame.image)
        segment = self.open
        if segment is None:
            return ''
        if epoch != segment.key.epoch:
            return 'epoch'
        if frame.image.shape != segment.shape:
            return 'resolution'
        span_ns = frame.stamp_ns - segment.start_ns
        if span_ns >= self._segment_ns:
            return 'time'
        return 'scene' if other_scene and span_ns >= self._segment_min_ns else ''

    @staticmethod
    def _take_patch(segment: OpenSegment) -> PatchReady:
        patch = Patch(tuple(segment.waiting))
        segment.waiting.clear()
        return PatchReady(segment.key, patch)


class EpochClock:
    """Decides whether a stamp is in order, late, or the start of a new epoch; one for all cameras.

    epoch: 0, 1, 2, …; t0_ns: first stamp of the present epoch, None before the first frame.
    Order is judged per camera, because cameras have different delays.
    """

    def __init__(self, back_jump_s: float) -> None:
        self.epoch = 0
        self.t0_ns: int | None = None
        self._back_jump_ns = round(back_jump_s * NS_PER_S)
        self._last_ns: dict[str, int] = {}
        self._last_of_old_epoch_ns: dict[str, int] = {}
        self._newest_ns = 0

    def resume(self, epoch: int, t0_ns: int, last_ns: Mapping[str, int]) -> None:
        """Go on where another clock stood; last_ns: by camera."""
        self.epoch, self.t0_ns, self._last_ns = epoch, t0_ns, dict(last_ns)
        self._newest_ns = max(last_ns.values(), default=t0_ns)

    def observe(self, camera: str, stamp_ns: int) -> str:
        """'in_order', 'late' (reject the frame) or 'new_epoch' (the frame is its first)."""
        last_ns = self._last_ns.get(camera)
        verdict = 'in_order'
        if last_ns is not None and stamp_ns <= last_ns:
            if last_ns - stamp_ns <= self._back_jump_ns:
                return 'late'
            verdict = 'new_epoch'
            self._begin_epoch()
        elif last_ns is None and self._is_straggler(camera, stamp_ns):
            return 'late'
        if self.t0_ns is None:
            self.t0_ns = self._newest_ns = stamp_ns
        self._last_ns[camera] = stamp_ns
        self._newest_ns = max(self._newest_ns, stamp_ns)
        return verdict

    def jump(self, now_ns: int) -> bool:
        """The clock behind the stamps went back to now_ns; whether a new epoch begins by it.

        Not when the stamps have gone back already, nor before the first frame.
        """
        if self.t0_ns is None or self._newest_ns - now_ns <= AHEAD_NS:
            return False
        self._begin_epoch()
        return True

    def seconds(self, stamp_ns: int) -> float:
        """Seconds since the epoch began; 0 for another camera's stamp from just before it."""
        return 0.0 if self.t0_ns is None else max(0, stamp_ns - self.t0_ns) / NS_PER_S

    def _begin_epoch(self) -> None:
        self.epoch += 1
        self.t0_ns = None
        self._last_of_old_epoch_ns, self._last_ns = self._last_ns, {}

    def _is_straggler(self, camera: str, stamp_ns: int) -> bool:
        # When a bag loops, the first camera that jumps back starts the new epoch while the other
        # one's last frames are still under way. Taken at face value, such a frame would make that
        # camera's own jump start one more epoch.
        old_ns = self._last_of_old_epoch_ns.get(camera)
        if old_ns is not None and self.t0_ns is None:
            # The clock has gone back, and no stamp yet.
            return 0 < stamp_ns - old_ns <= self._back_jump_ns
        return (old_ns is not None and abs(stamp_ns - old_ns) <= self._back_jump_ns
                and stamp_ns - self._newest_ns > self._back_jump_ns)


class Intake(NamedTuple):
    """What became of one frame: 'watched', 'skipped' (sampler), 'rejected' (order, no image)."""

    verdict: str
    events: list[Event]


class FrameIntake:
    """All cameras: order check → sampler → segmenter. Not thread-safe; one thread calls it."""

    def __init__(self, config: WatchConfig,
                 temporal_patch_size: int = TEMPORAL_PATCH_SIZE) -> None:
        self.clock = EpochClock(config.back_jump_s)
        self.segmenters: dict[str, Segmenter] = {}
        self._samplers: dict[str, FrameSampler] = {}
        self._config = config
        self._sample_fps = config.sample_fps
        self._patch_frames = temporal_patch_size

    def add(self, frame: Frame | LateFrame) -> Intake:
        """Take one frame as it arrived; a late one is read when the sampler wants it."""
        order = self.clock.observe(frame.camera, frame.stamp_ns)
        if order == 'late':
            return Intake('rejected', [])
        events: list[Event] = []
        if order == 'new_epoch':
            events += self._end_epoch()
        if frame.camera not in self.segmenters:
            self._samplers[frame.camera] = FrameSampler(self._sample_fps)
            self.segmenters[frame.camera] = Segmenter(
                frame.camera, self._config.segment_s, self._patch_frames,
                self._config.segment_min_s if self._config.segment_by == 'scene' else None)
        if not self._samplers[frame.camera].accept(frame.stamp_ns):
            return Intake('skipped', events)
        if isinstance(frame, LateFrame):
            frame = frame.read()
            if frame is None:
                return Intake('rejected', events)
        events += self.segmenters[frame.camera].add(frame, self.clock.epoch)
        return Intake('watched', events)

    def jump(self, now_ns: int) -> list[Event]:
        """The clock behind the stamps went back to now_ns."""
        return self._end_epoch() if self.clock.jump(now_ns) else []

    def set_sample_fps(self, sample_fps: float) -> None:
        """Watch so many frames per second of each camera from now on."""
        self._sample_fps = sample_fps
        for sampler in self._samplers.values():
            sampler.change(sample_fps)

    def _end_epoch(self) -> list[Event]:
        for sampler in self._samplers.values():
            sampler.reset()
        return self.close('epoch')

    def close(self, closed_by: str, camera: str | None = None) -> list[Event]:
        """Close the open segments of all cameras (or of one), the one opened first going first."""
        segmenters = [s for s in self.segmenters.values()
                      if s.open is not None and camera in (None, s.camera)]
        segmenters.sort(key=lambda s: s.open.start_ns)
        return [event for segmenter in segmenters for event in segmenter.close(closed_by)]
