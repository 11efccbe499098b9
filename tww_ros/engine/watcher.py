"""Watcher: from camera frames to vision tokens, in its own thread.

In: frames and marks (a question, a drain) in the order in which they arrive, through one bounded
queue. Out: items in the reasoner's inbox. When the queue is full the oldest frame is dropped and
counted; marks are never dropped. A mark closes the open segments when it is reached, so a question
sees every frame that arrived before it.

With nothing else to do it encodes the open segments' odd frames ahead, as the patches that a
question would make of them, and has them read ahead.

It runs the vision tower and never the language model.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import deque
from dataclasses import dataclass

import numpy as np
from PIL import Image

from tww_ros.config import EngineConfig
from tww_ros.engine.counters import Counters
from tww_ros.engine.cpu import limit_threads
from tww_ros.engine.pending import PendingAnswer
from tww_ros.engine.reader import CloseItem, PatchItem
from tww_ros.engine.reasoner import DrainItem, QuestionItem, Reasoner
from tww_ros.memory.thumbnail import SIDE_PX
from tww_ros.model.protocol import StepModel
from tww_ros.model.run import VisionTokens
from tww_ros.types import NS_PER_S, Frame, LateFrame
from tww_ros.video.pixels import Pixels, to_pixels
from tww_ros.video.segmentation import Event, FrameIntake, Patch, PatchReady, SegmentKey
from tww_ros.video.token_drop import TokenDrop

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class JumpItem:
    """The clock that the stamps are of went back to now_ns."""

    now_ns: int


@dataclass(frozen=True)
class RateItem:
    """So many frames per second of each camera from now on."""

    sample_fps: float


Mark = QuestionItem | DrainItem | JumpItem | RateItem
# A patch waits for the first token of an answer for so long at most.
ANSWER_PAUSE_S = 0.05


@dataclass(frozen=True, eq=False)
class _Arrived:
    frame: Frame | LateFrame
    at_s: float


@dataclass(frozen=True)
class _Silent:
    """Cameras from which nothing came for so long that their open segments should close."""

    cameras: list[str]


class _Look:
    """A patch, its pixels and vision tokens; None = not encoded, or it failed."""

    def __init__(self, patch: PatchReady) -> None:
        self.patch = patch
        self.pixels: Pixels | None = None
        self.vision: VisionTokens | None = None

    @property
    def frames(self) -> tuple[Frame, ...]:
        return self.patch.patch.frames


class Watcher:
    """Samples, cuts and encodes frames."""

    def __init__(self, model: StepModel, reasoner: Reasoner, config: EngineConfig,
                 counters: Counters) -> None:
        self._model = model
        self._reasoner = reasoner
        self._config = config
        self._counters = counters
        self._intake = FrameIntake(config.watch, model.temporal_patch_size)
        self._queue: deque[_Arrived | Mark] = deque()
        self._frames = 0
        self._changed = threading.Condition()
        self._stopping = False
        self._pushed_s = 0.0
        self._arrived_s: dict[str, float] = {}
        self._zero_ns: dict[int, int] = {}
        self._pictured: dict[str, SegmentKey] = {}
        # By camera, of the frames that do not yet fill a patch.
        self._ahead: dict[str, _Look] = {}
        self._drop = TokenDrop(config.watch, patch_size=model.patch_size,
                               merge_size=model.merge_size)
        # The newest question that was passed on, until what came behind it is looked at.
        self._asked: PendingAnswer | None = None
        self._thread = threading.Thread(target=self._loop, name='tww-watcher', daemon=True)

    # Other threads

    def start(self) -> None:
        """Begin watching."""
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the loop runs."""
        return self._thread.is_alive() and not self._stopping

    @property
    def epoch(self) -> int:
        """Number of the present epoch."""
        return self._intake.clock.epoch

    @property
    def cameras(self) -> frozenset[str]:
        """Cameras that have sent a frame."""
        with self._changed:
            return frozenset(self._arrived_s)

    def resume(self, epoch: int, zero_ns: int, newest_ns: dict[str, int]) -> None:
        """Go on in an epoch that began before this start; newest_ns: last stamp by camera."""
        self._intake.clock.resume(epoch, zero_ns, newest_ns)
        with self._changed:
            self._arrived_s = dict.fromkeys(newest_ns, time.monotonic())

    def push(self, frame: Frame | LateFrame) -> bool:
        """Take a frame; never blocks, drops the oldest when full. False when stopped."""
        with self._changed:
            if self._stopping:
                return False
            if self._frames >= self._config.watch.queue_frames:
                oldest = next(item for item in self._queue if isinstance(item, _Arrived))
                self._queue.remove(oldest)
                self._frames -= 1
                self._counters.add(frames_dropped=1)
            self._enqueue(frame)
            return True

    def feed(self, frame: Frame, timeout_s: float) -> bool:
        """Take a frame as soon as there is room; False when there was none in time, or stopped."""
        with self._changed:
            room = self._changed.wait_for(
                lambda: self._stopping or self._frames < self._config.watch.queue_frames,
                timeout_s)
            if not room or self._stopping:
                return False
            self._enqueue(frame)
            return True

    def mark(self, mark: Mark) -> None:
        """Put a mark behind the frames that have arrived."""
        with self._changed:
            self._queue.append(mark)
            self._changed.notify_all()

    def stop(self) -> None:
        """Let the thread end after the frame under way."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()

    def join(self, timeout_s: float) -> bool:
        """Wait for the thread's end; False when it did not come."""
        if self._thread.ident is not None:
            self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _enqueue(self, frame: Frame | LateFrame) -> None:
        now_s = time.monotonic()
        self._queue.append(_Arrived(frame, now_s))
        self._frames += 1
        self._arrived_s[frame.camera] = now_s
        self._counters.add(frames_received=1)
        self._changed.notify_all()

    # The loop

    def _loop(self) -> None:
        log.debug('watcher started')
        try:
            limit_threads(self._model.device, self._config.step.cpu_threads)
            self._watch_on()
        except Exception as error:
            self._report('the watcher ended; no frame will be watched any more', error)

    def _watch_on(self) -> None:
        while True:
            item = self._next()
            if self._stopping:
                return
            try:
                if isinstance(item, _Silent):
                    for camera in item.cameras:
                        self._send(self._intake.close('idle', camera))
                elif isinstance(item, _Arrived):
                    self._watch(item)
                elif isinstance(item, _Look):
                    self._let_answer_begin()
                    # As a patch it is tried again, and reported.
                    with contextlib.suppress(Exception):
                        self._encode(item)
                        self._read_ahead(item)
                else:
                    self._pass(item)
            except Exception as error:
                self._report('a frame could not be watched', error)
                # Whoever waits hears of what could be watched.
                if isinstance(item, QuestionItem):
                    self._reasoner.put(QuestionItem(item.pending, self.epoch))
                elif isinstance(item, DrainItem):
                    self._reasoner.put(item)

    def _next(self) -> _Arrived | Mark | _Silent | _Look | None:
        """The next thing to do; None when stopping."""
        with self._changed:
            while not self._stopping:
                silent, wait_s = self._silent()
                if silent:
                    return _Silent(silent)
                if self._queue:
                    item = self._queue.popleft()
                    if isinstance(item, _Arrived):
                        self._frames -= 1
                        self._changed.notify_all()
                    return item
                if ahead := self._look_ahead():
                    return ahead
                self._changed.wait(wait_s)
            return None

    def _look_ahead(self) -> _Look | None:
        """Frames that a question would make a patch of, not encoded yet; each is tried once."""
        if self._config.step.deterministic or not self._config.watch.look_ahead:
            return None
        for camera, segmenter in self._intake.segmenters.items():
            waiting = tuple(segmenter.open.waiting) if segmenter.open is not None else ()
            known = self._ahead.get(camera)
            if waiting and (known is None or known.frames != waiting):
                look = _Look(PatchReady(segmenter.open.key, Patch(waiting)))
                self._ahead[camera] = look
                return look
        return None

    def _silent(self) -> tuple[list[str], float | None]:
        """Cameras whose open segment should close now, and seconds until the next one should.

        Per camera: one that goes on must not keep the last segment of one that went dark.
        """
        if self._config.step.deterministic:
            return [], None
        now_s, idle_s = time.monotonic(), self._config.watch.idle_close_s
        left_s = {camera: self._arrived_s[camera] + idle_s - now_s
                  for camera, segmenter in self._intake.segmenters.items()
                  if segmenter.open is not None}
        due = {camera for camera, left in left_s.items() if left <= 0}
        if due:
            # What has arrived and still waits here belongs to the segment.
            due -= {item.frame.camera for item in self._queue if isinstance(item, _Arrived)}
        return sorted(due), min(left_s.values(), default=None)

    def _watch(self, arrived: _Arrived) -> None:
        self._pushed_s = arrived.at_s
        epoch = self.epoch
        taken = self._intake.add(arrived.frame)
        if self.epoch != epoch:
            log.warning('camera %r: the stamps jumped back to %.3f s: a new epoch begins, and '
                        'questions do not see what was before', arrived.frame.camera,
                        arrived.frame.stamp_ns / NS_PER_S)
        clock = self._intake.clock
        if clock.t0_ns is not None:
            self._zero_ns.setdefault(clock.epoch, clock.t0_ns)
        self._zero_ns.pop(clock.epoch - 2, None)
        if taken.verdict == 'skipped':
            self._counters.add(frames_skipped=1)
        elif taken.verdict == 'rejected':
            self._counters.add(frames_rejected=1)
        self._send(taken.events)

    def _pass(self, mark: Mark) -> None:
        if isinstance(mark, RateItem):
            self._intake.set_sample_fps(mark.sample_fps)
            return
        if isinstance(mark, JumpItem):
            self._send(self._intake.jump(mark.now_ns))
            return
        if isinstance(mark, DrainItem):
            self._send(self._intake.close('flush'))
        elif mark.pending.done():
            return
        else:
            self._asked = None
            for camera in mark.pending.question.cameras or (None,):
                self._send(self._intake.close('question', camera))
            mark = QuestionItem(mark.pending, self._intake.clock.epoch)
            self._asked = mark.pending
        self._reasoner.put(mark)

    def _let_answer_begin(self) -> None:
        """On the CPU, where both threads share the cores: what came behind a question waits a
        little for its first token, once; not with another question behind it."""
        asked, self._asked = self._asked, None
        if asked is None or self._model.device.type != 'cpu' or self._config.step.deterministic:
            return
        with self._changed:
            if any(isinstance(item, QuestionItem) for item in self._queue):
                return
        self._reasoner.wait_for_token(asked, ANSWER_PAUSE_S)

    def _send(self, events: list[Event]) -> None:
        for event in events:
            if not isinstance(event, PatchReady):
                self._reasoner.put(CloseItem(event.segment_key, event.closed_by))
                continue
            frames = event.patch.frames
            self._let_answer_begin()
            look = self._ahead.pop(event.segment_key.camera, None)
            try:
                if look is None or look.frames != frames or look.vision is None:
                    look = _Look(event)
                    self._encode(look)
                keep = self._keep(event, look.pixels)
            except Exception as error:
                # What changed in it was not seen: the next patch is kept whole.
                self._drop.forget(event.segment_key.camera)
                self._counters.add(frames_rejected=len(frames))
                self._report(f'camera {frames[0].camera!r}: a patch could not be encoded', error)
                continue
            if not self._reasoner.wait_for_room():
                return
            self._reasoner.put(self._item(look, self._picture(event), keep))

    def _item(self, look: _Look, picture: np.ndarray | None = None,
              keep: np.ndarray | None = None, ahead: bool = False) -> PatchItem:
        key, frames = look.patch.segment_key, look.frames
        # A jump back sends the old epoch's odd last frame when the clock is in the new one.
        zero_ns = self._zero_ns[key.epoch]
        time_ns = max(0, look.patch.patch.stamp_ns - zero_ns)
        pose = next((frame.pose for frame in reversed(frames) if frame.pose), None)
        return PatchItem(key, time_ns / NS_PER_S, frames[0].stamp_ns, frames[-1].stamp_ns,
                         len(frames), look.vision, pose, self._pushed_s, zero_ns, picture, keep,
                         ahead)

    def _read_ahead(self, look: _Look) -> None:
        """Not where only the tokens that tell something new are read: they are not known yet."""
        watch = self._config.watch
        if not (watch.drop_threshold and watch.drop_unread):
            self._reasoner.put(self._item(look, ahead=True))

    def _encode(self, look: _Look) -> None:
        pixels = to_pixels(
            [frame.image for frame in look.frames], patch_size=self._model.patch_size,
            merge_size=self._model.merge_size,
            temporal_patch_size=self._model.temporal_patch_size,
            min_pixels=self._config.watch.min_pixels, max_pixels=self._config.watch.max_pixels)
        look.pixels, look.vision = pixels, self._model.encode_patch(pixels)

    def _keep(self, event: PatchReady, pixels: Pixels) -> np.ndarray | None:
        """bool [V]: the vision tokens that tell something new; None = all, nothing is dropped."""
        if not self._config.watch.drop_threshold:
            return None
        keep = self._drop.keep(pixels, camera=event.segment_key.camera,
                               epoch=event.segment_key.epoch, stamp_ns=event.patch.stamp_ns)
        self._counters.add(tokens_seen=len(keep), tokens_dropped=int((~keep).sum()))
        return keep

    def _picture(self, event: PatchReady) -> np.ndarray | None:
        """A small copy of a segment's first frame, if memory is written to a folder."""
        key = event.segment_key
        if not self._config.memory.folder or self._pictured.get(key.camera) == key:
            return None
        self._pictured[key.camera] = key
        picture = Image.fromarray(event.patch.frames[0].image)
        picture.thumbnail((SIDE_PX, SIDE_PX))
        return np.asarray(picture)

    def _report(self, what: str, error: Exception) -> None:
        self._counters.last_error = f'{what}: {type(error).__name__}: {error}'
        log.error('%s', self._counters.last_error, exc_info=error)
