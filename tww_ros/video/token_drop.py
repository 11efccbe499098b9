"""Which vision tokens of a temporal patch tell something new: one yes or no for each place.

In: the `Pixels` of one temporal patch with its camera, epoch and stamp, in order. Out: bool
[rows * columns], in the order of the merged vision tokens; True = keep. It needs no model and
decides when the patch is watched; what is done with the mask, and when, is the caller's.

A place is one merged vision token, a cell of patch_size * merge_size px. It is kept when

- it looks different from the *last kept* cell at that place. Never from the last frame: what
  drifts slowly would vanish;
- it was not kept for `drop_refresh_s`: so no place of a memory is older than that;
- most of the picture changed: then the camera moves, or the scene is another one, and nothing is
  lost.

Another resolution, camera or epoch starts anew with everything kept.

What "different" means. A cell is cut into blocks of 4 × 4 px, and block means are compared, frame
by frame and colour by colour. A block differs when it lies further than `drop_threshold` outside
of what its neighbourhood of 3 × 3 blocks held before, or its old value outside of what the
neighbourhood holds now. A cell differs when `LEAST_BLOCKS` of its 64 do:

    last kept     now           block by block          with the neighbourhood
    . . . # #     . . # # #     two differ              none: the camera shook by 4 px
    . . . # #     . . # # #

    . . . . .     . . # # .     four differ             four: something was put down
    . . . . .     . . # # .     (and back)              (and back: taken)

Means over blocks forget the sensor's noise; the neighbourhood forgives a mounted camera that
shakes; counting blocks instead of averaging the cell sees small things. Before all that a cell's
mean difference is taken off, up to half the threshold: the light may change by so much. Cosines
of vision features (tried with the embedded model's tower) lose many changes before they drop as
much.

Letters: h, w = rows and columns of cells; B = blocks along a cell; K = 3 colours of each frame.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tww_ros.config import WatchConfig
from tww_ros.types import NS_PER_S
from tww_ros.video.pixels import Pixels

# Blocks along a patch of the vision tower (16 px), and how many in a cell must differ.
PATCH_BLOCKS = 4
LEAST_BLOCKS = 4
# Black to white in steps of block means: int16 halves the time of float32, to a 16th of a level.
_STEPS = 4096
# With more of the picture changed than this, all of it is kept.
MOST = 0.5


@dataclass
class _LastKept:
    """One camera's kept cells. blocks: int16 [K, h·B, w·B]; kept_ns: int64 [h, w]."""

    epoch: int
    blocks: np.ndarray
    kept_ns: np.ndarray


class TokenDrop:
    """Decides for each place of each patch; counts what it has seen and kept, in tokens.

    With `drop_threshold` 0 everything is kept. full_range: how far black and white lie apart in
    `Pixels.values` (1 / std). Not for several threads at once.
    """

    def __init__(self, config: WatchConfig, *, patch_size: int = 16, merge_size: int = 2,
                 full_range: float = 2.0) -> None:
        self.seen = 0
        self.kept = 0
        self._threshold = round(config.drop_threshold * _STEPS)
        self._light = self._threshold // 2
        self._refresh_ns = round(config.drop_refresh_s * NS_PER_S)
        self._merge = merge_size
        self._cell_blocks = merge_size * PATCH_BLOCKS
        # Along one side: pixel → its block, each row of a block weighing the same.
        block = np.arange(patch_size) * PATCH_BLOCKS // patch_size                          # [p]
        side = (block[:, None] == np.arange(PATCH_BLOCKS)) / np.bincount(block)    # [p, blocks]
        pool = np.kron(side, side) * (_STEPS / full_range)                     # [p·p, blocks²]
        self._pool = pool.astype(np.float32)
        self._last: dict[str, _LastKept] = {}

    @property
    def dropped_share(self) -> float:
        """Dropped ÷ seen, 0 to 1."""
        return 1 - self.kept / self.seen if self.seen else 0.0

    def keep(self, pixels: Pixels, *, camera: str, epoch: int, stamp_ns: int) -> np.ndarray:
        """bool [h * w]: which vision tokens of this patch to keep."""
        shape = (pixels.grid_h // self._merge, pixels.grid_w // self._merge)
        if self._threshold:
            keep = self._keep(self._block_means(pixels), shape, camera, epoch, stamp_ns)  # [h, w]
        else:
            keep = np.ones(shape, bool)                                                   # [h, w]
        self.seen += keep.size
        self.kept += int(keep.sum())
        return keep.ravel()

    def forget(self, camera: str) -> None:
        """Start anew: the camera's last patch was lost."""
        self._last.pop(camera, None)

    def _keep(self, blocks: np.ndarray, shape: tuple[int, int], camera: str, epoch: int,
              stamp_ns: int) -> np.ndarray:
        last = self._last.get(camera)
        if last is None or last.epoch != epoch or last.blocks.shape != blocks.shape:
            self._last[camera] = _LastKept(epoch, blocks, np.full(shape, stamp_ns))
            return np.ones(shape, bool)                                                   # [h, w]
        keep = self._differs(blocks, last.blocks)                                         # [h, w]
        keep |= keep.mean() > MOST
        keep |= stamp_ns - last.kept_ns >= self._refresh_ns
        last.kept_ns[keep] = stamp_ns
        np.copyto(self._by_cell(last.blocks), self._by_cell(blocks),
                  where=keep[:, None, :, None])
        return keep

    def _block_means(self, pixels: Pixels) -> np.ndarray:
        """int16 [K, h·B, w·B]: the picture in blocks."""
        m, b = self._merge, PATCH_BLOCKS
        h, w = pixels.grid_h // m, pixels.grid_w // m
        means = pixels.values.reshape(-1, self._pool.shape[0]) @ self._pool   # [h·w·m·m·K, b·b]
        means = np.rint(means, out=means).astype(np.int16)
        means = means.reshape(h, w, m, m, -1, b, b).transpose(4, 0, 2, 5, 1, 3, 6)
        return means.reshape(-1, h * m * b, w * m * b)       # [K, h, m, b, w, m, b] as a picture

    def _differs(self, now: np.ndarray, before: np.ndarray) -> np.ndarray:
        """bool [h, w]: which cells of [K, h·B, w·B] do not look like before."""
        light = self._by_cell(now - before).mean(2, keepdims=True).mean(4, keepdims=True)
        light = light.clip(-self._light, self._light).astype(np.int16)  # [K, h, 1, w, 1]
        now = (self._by_cell(now) - light).reshape(now.shape)            # [K, h·B, w·B]
        outside = _outside(now, before) > self._threshold                # [h·B, w·B]
        outside |= _outside(before, now) > self._threshold
        return self._by_cell(outside).sum((1, 3)) >= LEAST_BLOCKS        # [h, w]

    def _by_cell(self, blocks: np.ndarray) -> np.ndarray:
        """[…, h·B, w·B] → […, h, B, w, B], a view."""
        *rest, rows, columns = blocks.shape
        size = self._cell_blocks
        return blocks.reshape(*rest, rows // size, size, columns // size, size)


def _outside(values: np.ndarray, others: np.ndarray) -> np.ndarray:
    """int16 [H, W]: how far [K, H, W] lies outside of the others' 3 × 3 neighbourhoods."""
    above = values - _around(others, np.maximum)                         # [K, H, W]
    below = _around(others, np.minimum) - values                         # [K, H, W]
    return np.maximum(above, below, out=above).max(0)                    # [H, W]


def _around(values: np.ndarray, extreme: np.ufunc) -> np.ndarray:
    """[K, H, W]: the extreme value of each block and its eight neighbours."""
    rows = values.copy()                                                 # [K, H, W]
    extreme(rows[:, 1:], values[:, :-1], out=rows[:, 1:])
    extreme(rows[:, :-1], values[:, 1:], out=rows[:, :-1])
    around = rows.copy()                                                 # [K, H, W]
    extreme(around[:, :, 1:], rows[:, :, :-1], out=around[:, :, 1:])
    extreme(around[:, :, :-1], rows[:, :, 1:], out=around[:, :, :-1])
    return around
