"""The table's surface: wood, cloth or stone in a muted tint, with nine softly marked fields.

In: a seed and a size in pixels. Out: an RGB picture. It knows nothing of things, hands and time.

All tints are of middle lightness and low saturation, so that each of the eight colours stands out.
"""

from __future__ import annotations

import functools

import cv2
import numpy as np

from tww_ros.world.scene import PLACE_XY

STYLES = ('wood', 'cloth', 'stone')
_TINTS = {
    'wood': ((142, 122, 102), (128, 114, 100), (150, 134, 116), (122, 106, 94)),
    'cloth': ((122, 130, 120), (116, 122, 132), (136, 126, 120), (126, 120, 128)),
    'stone': ((130, 130, 128), (142, 136, 126), (120, 124, 128), (132, 124, 122)),
}


# So many tables there are; episodes share them, which makes drawing a new episode quick.
TABLES = 512


@functools.lru_cache(maxsize=TABLES)
def surface(seed: int, size_px: int, margin_px: int, style: str | None = None) -> np.ndarray:
    """uint8 [n, n, 3] with n = size_px + 2 * margin_px; the margin goes on around the picture.

    style: one of STYLES; by default the seed decides. Not to be written to.
    """
    rng = np.random.default_rng([seed % TABLES, 1])
    chosen = STYLES[rng.integers(len(STYLES))]
    style = style or chosen
    tints = _TINTS[style]
    tint = np.array(tints[rng.integers(len(tints))], np.float32)
    n = size_px + 2 * margin_px
    grain = {'wood': _wood, 'cloth': _cloth, 'stone': _stone}[style](rng, n)        # [n, n]
    image = tint * (1 + grain[..., None])                                           # [n, n, 3]
    image *= 1 + 0.16 * _fields(rng, size_px, margin_px)[..., None]
    # Lamps light one side of a table a little more than the other.
    axis = np.linspace(-1, 1, n, dtype=np.float32)
    slope = rng.uniform(-0.05, 0.05, 2)
    image *= (1 + slope[0] * axis[None, :] + slope[1] * axis[:, None])[..., None]
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


def _noise(rng: np.random.Generator, n: int, rows: int, columns: int) -> np.ndarray:
    """float32 [n, n]: random values on a grid of rows × columns, smooth between."""
    coarse = rng.standard_normal((rows, columns)).astype(np.float32)
    return cv2.resize(coarse, (n, n), interpolation=cv2.INTER_CUBIC)


def _wood(rng: np.random.Generator, n: int) -> np.ndarray:
    planks = int(rng.integers(3, 6))
    axis = np.arange(n, dtype=np.float32) / n
    rows = np.minimum((axis * planks).astype(int), planks - 1)
    warp = _noise(rng, n, 5, 3) * 0.25
    lines = np.sin(axis[:, None] * 55 + warp * 14 + rows[:, None] * 1.7)
    grain = 0.035 * lines + 0.03 * _noise(rng, n, 96, 5) + 0.02 * _noise(rng, n, 160, 12)
    grain += rng.uniform(-0.045, 0.045, planks).astype(np.float32)[rows][:, None]
    seam = np.abs((axis * planks) % 1.0 - 0.5) > 0.5 - 0.006 * planks
    grain[seam] -= 0.16
    return grain


def _cloth(rng: np.random.Generator, n: int) -> np.ndarray:
    steps = np.arange(n)
    period = max(4, n // 90)
    weave = ((steps[:, None] // (period // 2) + steps[None, :] // (period // 2)) % 2) - 0.5
    return (0.05 * weave + 0.025 * _noise(rng, n, 120, 120)
            + 0.03 * _noise(rng, n, 4, 4)).astype(np.float32)


def _stone(rng: np.random.Generator, n: int) -> np.ndarray:
    veins = np.abs(_noise(rng, n, 5, 5) + 0.4 * _noise(rng, n, 14, 14))
    return (0.045 * _noise(rng, n, 6, 6) + 0.04 * _noise(rng, n, 20, 20)
            + 0.03 * _noise(rng, n, 110, 110) - 0.07 * np.exp(-(veins / 0.05) ** 2))


def _fields(rng: np.random.Generator, size_px: int, margin_px: int) -> np.ndarray:
    """float32 [n, n]: how much lighter the fields are; round or rounded by seed."""
    n = size_px + 2 * margin_px
    half = 0.148 * size_px
    corner = half if rng.random() < 0.5 else 0.05 * size_px
    axis = np.arange(n, dtype=np.float32) + 0.5 - margin_px
    inside = np.zeros((n, n), np.float32)
    for x, y in PLACE_XY:
        dx = np.maximum(np.abs(axis - x * size_px) - (half - corner), 0)[None, :]
        dy = np.maximum(np.abs(axis - y * size_px) - (half - corner), 0)[:, None]
        distance = corner - np.hypot(dx, dy)
        line = np.exp(-((distance - 0.006 * size_px) / (0.005 * size_px)) ** 2)
        inside += 0.5 * np.clip(distance / (0.006 * size_px), 0, 1) + 0.9 * line
    return inside
