"""One temporal patch of frames → the rows that Qwen3-VL's vision tower takes.

In: one or two uint8 images [H, W, 3]. Out: `Pixels`, float32 rows in the stock order. It knows
nothing of time, of cameras or of the model; the constants of the checkpoint (patch 16, merge 2,
mean = std = 0.5) are arguments. Only numpy and Pillow: the stock video processor needs
torchvision.

The result is bit-equal to `Qwen2VLImageProcessorPil` for a repeated frame, and follows
`Qwen3VLVideoProcessor.patchify` for two different ones. Letters: m = merge_size, p = patch_size,
t = temporal_patch_size, h = grid_h // m, w = grid_w // m (merged cells), C = 3 colours. A uint8
image has 256 values, so rescale and normalise are one table, looked up after the patches are in
order: everything before that moves bytes instead of floats.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from tww_ros.errors import FrameError

MAX_ASPECT = 200


@dataclass(frozen=True, eq=False)
class Pixels:
    """values: float32 [grid_h * grid_w, C * t * p * p]; rows of one merged cell follow each other.

    grid_h, grid_w: patches along each side.
    """

    values: np.ndarray
    grid_h: int
    grid_w: int


def target_size(height: int, width: int, *, factor: int = 32, min_pixels: int,
                max_pixels: int) -> tuple[int, int]:
    """(height, width) in px to resize to: multiples of factor, about the same aspect ratio.

    The area is within [min_pixels, max_pixels] where that is possible. Same numbers as
    `smart_resize` of transformers' qwen2_vl, Python's round-half-to-even included.
    Raises FrameError for an empty image and for one side more than 200 times the other.
    """
    if height < 1 or width < 1:
        raise FrameError(f'expected an image of at least 1×1 px, got {width}×{height}; check the '
                         'camera driver')
    if max(height, width) / min(height, width) > MAX_ASPECT:
        raise FrameError(f'expected sides within 1:{MAX_ASPECT} of each other, got '
                         f'{width}×{height} px; crop the image first')
    out_h = round(height / factor) * factor
    out_w = round(width / factor) * factor
    if out_h * out_w > max_pixels:
        shrink = math.sqrt((height * width) / max_pixels)
        out_h = max(factor, math.floor(height / shrink / factor) * factor)
        out_w = max(factor, math.floor(width / shrink / factor) * factor)
    elif out_h * out_w < min_pixels:
        enlarge = math.sqrt(min_pixels / (height * width))
        out_h = math.ceil(height * enlarge / factor) * factor
        out_w = math.ceil(width * enlarge / factor) * factor
    return out_h, out_w


def to_pixels(frames: Sequence[np.ndarray], *, patch_size: int = 16, merge_size: int = 2,
              temporal_patch_size: int = 2, min_pixels: int, max_pixels: int, mean: float = 0.5,
              std: float = 0.5) -> Pixels:
    """Resize (bicubic), rescale to 0..1, normalise and cut one temporal patch of frames.

    frames: 1 to temporal_patch_size uint8 images [H, W, 3] of one size; the last one is repeated
    when there are fewer. Raises FrameError when they do not fit that description.
    """
    if not 1 <= len(frames) <= temporal_patch_size:
        raise FrameError(f'expected 1 to {temporal_patch_size} frames for one temporal patch, got '
                         f'{len(frames)}; group them with video.segmentation first')
    shape = frames[0].shape
    for frame in frames:
        if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
            raise FrameError(f'expected uint8 images of shape [H, W, 3], got {frame.dtype} '
                             f'{list(frame.shape)}; convert them to RGB first')
        if frame.shape != shape:
            raise FrameError(f'expected frames of one size in a temporal patch, got {list(shape)} '
                             f'and {list(frame.shape)}; close the segment when the size changes')
    size = target_size(shape[0], shape[1], factor=patch_size * merge_size, min_pixels=min_pixels,
                       max_pixels=max_pixels)
    resized = [_resize(frames[0], size)]                                # each [h·m·p, w·m·p, C]
    for before, frame in itertools.pairwise(frames):
        same = frame is before or np.array_equal(frame, before)
        resized.append(resized[-1] if same else _resize(frame, size))

    grid_h, grid_w = size[0] // patch_size, size[1] // patch_size
    cells = (grid_h // merge_size, grid_w // merge_size, merge_size, merge_size)
    patches = np.empty((*cells, 3, temporal_patch_size, patch_size, patch_size), np.uint8)
    for index in range(temporal_patch_size):
        image = resized[min(index, len(resized) - 1)]
        image = image.reshape(cells[0], merge_size, patch_size,
                              cells[1], merge_size, patch_size, 3)        # [h, m, p, w, m, p, C]
        image = image.transpose(0, 3, 1, 4, 6, 2, 5)                      # [h, w, m, m, C, p, p]
        patches[:, :, :, :, :, index] = image
    rows = patches.reshape(grid_h * grid_w, -1)                         # [grid_h·grid_w, C·t·p·p]
    return Pixels(_levels(mean, std)[rows], grid_h, grid_w)


def _resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    if image.shape[:2] == size:
        return image
    # Pillow, not OpenCV: its bicubic filter widens when shrinking, and the checkpoints saw that.
    resized = Image.fromarray(image).resize((size[1], size[0]), Image.Resampling.BICUBIC)
    return np.asarray(resized)


@functools.lru_cache(maxsize=8)
def _levels(mean: float, std: float) -> np.ndarray:
    """float32 [256]: what each byte becomes, with the stock processor's roundings."""
    unit = (np.arange(256, dtype=np.float64) * (1 / 255)).astype(np.float32)
    return (unit - np.float32(mean)) / np.float32(std)
