"""Thumbnails: a frame as a JPEG of a few kilobytes, for memories on disk and pages about them.

In: an image. Out: JPEG bytes, at most as many as asked for. It knows nothing of stores.
"""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

SIDE_PX, MOST_BYTES = 160, 3_072
_QUALITIES = (80, 65, 50, 35)
_LEAST_PX = 16


def encode_thumbnail(image: np.ndarray | Image.Image, *, side_px: int = SIDE_PX,
                     most_bytes: int = MOST_BYTES) -> bytes:
    """The image (uint8 [H, W, 3], RGB) at most side_px high and wide; coarser, then smaller, until
    it has at most most_bytes."""
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    image = image.convert('RGB')
    while True:
        small = image.copy()
        small.thumbnail((side_px, side_px))
        for quality in _QUALITIES:
            data = io.BytesIO()
            small.save(data, 'JPEG', quality=quality, optimize=True)
            if data.tell() <= most_bytes or side_px <= _LEAST_PX:
                return data.getvalue()
        side_px = side_px * 3 // 4
