"""Which frames of a camera are watched: `sample_fps` of them, chosen by their header stamps.

In: stamps (ns) of one camera, in order. Out: yes or no. It knows no images, no clock of this
machine and no other camera, so the same stamps always give the same choice.

    period 500 ms    due:   0         500        1000      (a grid from the first stamp: no drift)
    camera 10 fps    seen:  0 100 … 400 500 600 … 1000
                     kept:  0           500        1000      (the frame nearest to each due time)

A frame is nearest when it comes less than half a camera interval before the due time; the
interval is the median of the last few, because one lost or late frame must not change it. So a
camera whose own rate equals `sample_fps` keeps all its frames although its stamps jitter around
the grid: a plain `stamp >= due` would lose every frame that comes 1 ns early.
"""

from __future__ import annotations

import statistics
from collections import deque

from tww_ros.errors import ConfigError
from tww_ros.types import NS_PER_S

_INTERVALS = 9


class FrameSampler:
    """Takes about `sample_fps` frames per second of one camera."""

    def __init__(self, sample_fps: float) -> None:
        self._period_ns = _period_ns(sample_fps)
        self.reset()

    def change(self, sample_fps: float) -> None:
        """Take so many from now on; the grid begins anew at the last frame seen."""
        self._period_ns = _period_ns(sample_fps)
        if self._first_ns is not None:
            self._first_ns, self._slot = self._last_ns, 1

    def reset(self) -> None:
        """Forget everything; the next frame starts a new grid and is accepted."""
        self._first_ns: int | None = None
        self._last_ns = 0
        self._slot = 0
        self._intervals: deque[int] = deque(maxlen=_INTERVALS)

    def accept(self, stamp_ns: int) -> bool:
        """Whether to watch the frame with this stamp; never when the stamp does not advance."""
        if self._first_ns is None:
            self._first_ns = self._last_ns = stamp_ns
            self._slot = 1
            return True
        interval_ns = stamp_ns - self._last_ns
        if interval_ns <= 0:
            return False
        self._last_ns = stamp_ns
        self._intervals.append(interval_ns)
        early_ns = min(statistics.median(self._intervals), self._period_ns) / 2
        elapsed_ns = stamp_ns - self._first_ns + early_ns
        if elapsed_ns < self._slot * self._period_ns:
            return False
        self._slot = max(self._slot, int(elapsed_ns // self._period_ns)) + 1
        return True


def _period_ns(sample_fps: float) -> float:
    if not sample_fps > 0:
        raise ConfigError(f'sample_fps must be above 0, got {sample_fps!r}')
    return NS_PER_S / sample_fps
