"""Whether a frame shows much else than the segment so far: a cut for one camera.

In: the watched frames of one camera, in order, and when a segment begins. Out: yes or no. It
knows no stamps, no clock and no lengths (`video.segmentation` does), so the same frames always
give the same cuts.

A frame becomes a grey thumbnail of 16 × 16; its change is the root mean square of the difference
from the mean thumbnail of the segment so far, after the median difference is taken off: a lamp
is no event. Change is much when it is above `FACTOR` times the camera's own usual change, the
median of its last `USUAL_FRAMES` changes. So a camera over a busy street cuts when something
larger happens, and one over an empty room when somebody enters; below `LEAST_LEVELS` grey levels
it is noise.

    change    1 1 1 1 9 2 1 1 …  empty room, somebody enters and stays     cut at 9 (usual: 1)
              6 5 7 6 6 8 5 6 …  busy street                               no cut    (usual: 6)
"""

from __future__ import annotations

import statistics
from collections import deque

import numpy as np
from PIL import Image

THUMBNAIL_PX = 16
LEAST_LEVELS = 3.0
FACTOR = 2.0
USUAL_FRAMES = 30
# Rows or columns of the picture that a thumbnail looks at, at least; the rest is skipped.
_LOOKED_AT_PX = 96


class SceneCut:
    """Compares each frame with the segment so far."""

    def __init__(self) -> None:
        self._thumbnail = np.zeros((THUMBNAIL_PX, THUMBNAIL_PX), np.float32)         # [16, 16]
        self._mean = self._thumbnail
        self._frames = 0
        self._changes: deque[float] = deque(maxlen=USUAL_FRAMES)

    def sees(self, image: np.ndarray) -> bool:
        """Whether the next frame, uint8 [H, W, 3], shows much else than the segment so far."""
        self._thumbnail = thumbnail(image)                                           # [16, 16]
        if not self._frames:
            return False
        change = difference(self._thumbnail, self._mean)
        usual = statistics.median(self._changes) if self._changes else 0.0
        self._changes.append(change)
        self._frames += 1
        self._mean = self._mean + (self._thumbnail - self._mean) / self._frames      # [16, 16]
        return change > max(LEAST_LEVELS, FACTOR * usual)

    def begin(self) -> None:
        """The frame seen last is the first of a segment."""
        self._mean, self._frames = self._thumbnail, 1


def thumbnail(image: np.ndarray) -> np.ndarray:
    """float32 [16, 16], grey levels, of a uint8 [H, W, 3]."""
    step = max(1, min(image.shape[:2]) // _LOOKED_AT_PX)
    grey = Image.fromarray(np.ascontiguousarray(image[::step, ::step])).convert('L')
    small = grey.resize((THUMBNAIL_PX, THUMBNAIL_PX), Image.Resampling.BOX)
    return np.asarray(small, np.float32)


def difference(one: np.ndarray, other: np.ndarray) -> float:
    """Root mean square of the difference of two thumbnails, in grey levels, but for the light."""
    apart = one - other                                                              # [16, 16]
    return float(np.sqrt(np.mean((apart - np.median(apart)) ** 2)))
