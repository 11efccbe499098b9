"""Pictures of single things, of the cover and of hands, ready to be laid on the table.

In: what to draw and its size in pixels. Out: `Sprite`, colour already multiplied by its opacity,
and what it leaves of the background. It knows nothing of episodes and of time.

A thing is drawn three times as large and shrunk. Its shape gives a tone for every pixel (below 0
towards black, above 0 towards white) and a rim; only then its colour is put in, so that all
colours of a shape are shaded alike. Unit coordinates: -1..1 over the sprite, y to the front.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import cv2
import numpy as np

RGB = tuple[int, int, int]

COLOUR_RGB: dict[str, RGB] = {
    'red': (208, 22, 38), 'orange': (255, 128, 4), 'yellow': (252, 222, 36),
    'green': (28, 148, 58), 'blue': (28, 92, 222), 'purple': (160, 72, 208),
    'white': (246, 246, 246), 'black': (26, 26, 29)}
SKINS: tuple[RGB, ...] = ((241, 205, 178), (226, 178, 144), (196, 144, 108), (152, 104, 74),
                          (108, 74, 54))
SLEEVES: tuple[RGB, ...] = ((88, 108, 136), (106, 118, 98), (128, 92, 100), (92, 92, 100),
                            (150, 140, 128), (104, 134, 138), (122, 108, 142))
# The drawn part of a sprite; the rest is margin for soft edges.
BODY = 0.86
_FINER = 3
_SHADOW = 0.42
_HAND_LENGTH = 1.45
_HAND_WIDTH = 0.26
# From the sprite's upper end to the middle of the grip, and from there to the hand.
_GRIP = 0.02
_REACH = 0.034


@dataclass(frozen=True, eq=False)
class Sprite:
    """colour: uint8 [h, w, 3], multiplied by opacity. keep: uint8 [h, w, 3], 255 × (1 - opacity).

    shadow: uint8 [h, w, 3], what its shadow leaves of the light, or None.
    """

    colour: np.ndarray
    keep: np.ndarray
    shadow: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class _Shape:
    """alpha, tone, rim, inside: float32 [n, n]; inside is drawn white whatever the colour."""

    alpha: np.ndarray
    tone: np.ndarray
    rim: np.ndarray
    inside: np.ndarray


@functools.lru_cache(maxsize=6_000)
def thing_sprite(colour: str, shape: str, size_px: int, turn_deg: int = 0) -> Sprite:
    """A thing in a square sprite of size_px; its body is BODY of that wide."""
    drawn = _shape(shape, size_px, turn_deg)
    base = np.array(COLOUR_RGB[colour], np.float32)
    tone = drawn.tone[..., None]
    rgb = base * (1 + np.minimum(tone, 0)) + (255 - base) * np.maximum(tone, 0)
    if colour == 'black':
        rgb = base * (1 + np.minimum(tone, 0)) + (205 - base) * np.maximum(tone, 0) * 0.8
    inside = drawn.inside[..., None]
    rgb = rgb * (1 - inside) + 250 * (1 + np.minimum(tone, 0)) * inside
    edge = np.array((118, 118, 124), np.float32) if colour == 'black' else (
        np.array((122, 124, 130), np.float32) if colour == 'white' else base * 0.45)
    rim = drawn.rim[..., None]
    rgb = rgb * (1 - rim) + edge * rim
    return _finish(rgb, drawn.alpha, size_px)


@functools.lru_cache(maxsize=16)
def cover_sprite(size_px: int) -> Sprite:
    """The dome, in a square sprite of size_px."""
    x, y = _grid(size_px)
    r = np.hypot(x, y)
    alpha = (r < BODY).astype(np.float32)
    # Polished steel: bands of light around a knob.
    light = 150 + 42 * np.cos(np.clip(r / BODY, 0, 1) * 7.5) + 34 * (-x - y) * (r / BODY)
    light = np.where(r > BODY * 0.9, 96, light)
    light = np.where(r > BODY * 0.955, 70, light)
    knob = np.hypot(x, y + 0.02)
    light = np.where(knob < 0.19, 74, light)
    light = np.where(knob < 0.15, 190 - 420 * np.hypot(x + 0.04, y + 0.06), light)
    rgb = np.clip(light, 0, 255)[..., None] * np.array((0.96, 1.0, 1.05), np.float32)
    return _finish(rgb.astype(np.float32), alpha, size_px)


@functools.lru_cache(maxsize=512)
def hand_sprite(skin: int, sleeve: int, size_px: int, is_left: bool, is_closed: bool) -> Sprite:
    """Hand and arm, reaching up, for a picture of size_px.

    The sprite is [_HAND_LENGTH, _HAND_WIDTH] × size_px; the middle of the grip is at
    `hand_grip_px(size_px)` (x, y).
    """
    unit = size_px * _FINER
    shape = (round(_HAND_LENGTH * unit), round(_HAND_WIDTH * unit))
    grip_x, grip_y = (value * _FINER for value in hand_grip_px(size_px))
    thumb = 1 if is_left else -1

    def at(x: float, y: float) -> tuple[int, int]:
        """Pixel of a point relative to the grip's middle, in table units."""
        return round(grip_x + thumb * x * unit), round(grip_y + (_REACH + y) * unit)

    def bone(mask: np.ndarray, start: tuple[float, float], end: tuple[float, float],
             width: float) -> None:
        cv2.line(mask, at(*start), at(*end), 255, max(1, round(width * unit)), cv2.LINE_AA)

    rgb = np.zeros((*shape, 3), np.float32)
    alpha = np.zeros(shape, np.float32)

    def lay(mask: np.ndarray, colour: RGB, round_px: float) -> None:
        """Adds a part, lighter in its middle than at its edge."""
        left, top, wide, high = cv2.boundingRect(mask)
        window = np.s_[top:top + high, left:left + wide]
        part = mask[window].astype(np.float32) / 255
        solid = cv2.copyMakeBorder((part > 0.5).astype(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT)
        deep = cv2.distanceTransform(solid, cv2.DIST_L2, 3)[1:-1, 1:-1]
        light = 0.66 + 0.38 * np.sqrt(np.clip(deep / round_px, 0, 1))
        shade = np.array(colour, np.float32) * light[..., None]
        rgb[window] += (shade - rgb[window]) * part[..., None]
        alpha[window] = np.maximum(alpha[window], part)

    spread = 1.0 if is_closed else 1.35
    reach = 0.0 if is_closed else 0.012
    fingers = ((-0.036, 0.004), (-0.012, -0.012), (0.013, -0.010), (0.036, 0.008))
    arm = np.zeros(shape, np.uint8)
    bone(arm, (0.0, 0.17), (0.0, 0.30), 0.062)
    lay(arm, SKINS[skin], 0.028 * unit)
    palm = np.zeros(shape, np.uint8)
    cv2.ellipse(palm, at(0.0, 0.128), (round(0.052 * unit), round(0.056 * unit)), 0, 0, 360, 255,
                -1, cv2.LINE_AA)
    bone(palm, (0.038, 0.135), (0.066 * spread, 0.082), 0.030)
    bone(palm, (0.066 * spread, 0.082), (0.062 * spread, 0.045), 0.027)
    lay(palm, SKINS[skin], 0.022 * unit)
    for x, y in fingers:
        finger = np.zeros(shape, np.uint8)
        bone(finger, (x, 0.11), (x * spread, 0.03 + y - reach), 0.0245)
        lay(finger, SKINS[skin], 0.012 * unit)
        nail = np.zeros(shape, np.uint8)
        bone(nail, (x * spread, 0.027 + y - reach), (x * spread, 0.033 + y - reach), 0.011)
        lay(nail, tuple(min(255, value + 26) for value in SKINS[skin]), 0.003 * unit)
    cloth = np.zeros(shape, np.uint8)
    corners = [at(-0.044, 0.235), at(0.044, 0.235), at(0.06, 0.60), at(0.066, _HAND_LENGTH),
               at(-0.066, _HAND_LENGTH), at(-0.06, 0.60)]
    cv2.fillPoly(cloth, [np.array(corners, np.int32)], 255, cv2.LINE_AA)
    lay(cloth, SLEEVES[sleeve], 0.05 * unit)
    cuff = np.zeros(shape, np.uint8)
    bone(cuff, (-0.040, 0.238), (0.040, 0.238), 0.026)
    lay(cuff, tuple(min(255, round(value * 1.22)) for value in SLEEVES[sleeve]), 0.01 * unit)

    opacity = alpha + (1 - alpha) * cv2.GaussianBlur(alpha, (0, 0), 0.016 * unit) * _SHADOW
    size = (round(_HAND_WIDTH * size_px), round(_HAND_LENGTH * size_px))
    return Sprite(_bytes(rgb * alpha[..., None], size), _keep(opacity, size))


def hand_grip_px(size_px: int) -> tuple[float, float]:
    """(x, y) of the middle of the grip in a hand sprite."""
    return _HAND_WIDTH * size_px / 2, _GRIP * size_px


def _grid(size_px: int) -> tuple[np.ndarray, np.ndarray]:
    axis = (np.arange(size_px * _FINER, dtype=np.float32) + 0.5) * (2 / (size_px * _FINER)) - 1
    return np.meshgrid(axis, axis)


def _finish(rgb: np.ndarray, alpha: np.ndarray, size_px: int) -> Sprite:
    size = (size_px, size_px)
    blur = cv2.GaussianBlur(alpha, (0, 0), alpha.shape[0] * 0.035)
    return Sprite(_bytes(rgb * alpha[..., None], size), _keep(alpha, size),
                  _keep(blur * _SHADOW, size))


def _bytes(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    return np.clip(np.rint(small), 0, 255).astype(np.uint8)


def _keep(opacity: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return np.repeat(_bytes((1 - opacity) * 255, size)[..., None], 3, axis=2)


def _shape(shape: str, size_px: int, turn_deg: int) -> _Shape:
    x, y = _grid(size_px)
    # Points are in units of the body.
    drawn = _DRAWERS[shape](x / BODY, y / BODY)
    if not turn_deg:
        return drawn
    middle = (x.shape[0] - 1) / 2
    turn = cv2.getRotationMatrix2D((middle, middle), turn_deg, 1.0)
    return _Shape(*(cv2.warpAffine(plane, turn, plane.shape[::-1])
                    for plane in (drawn.alpha, drawn.tone, drawn.rim, drawn.inside)))


def _mask(x: np.ndarray, points: list[tuple[float, float]]) -> np.ndarray:
    """float32 [n, n] of a polygon in units of the body."""
    n = x.shape[0]
    mask = np.zeros((n, n), np.float32)
    pixels = [((px * BODY + 1) * n / 2 - 0.5, (py * BODY + 1) * n / 2 - 0.5) for px, py in points]
    fixed = np.rint(np.array(pixels) * 16).astype(np.int32)
    cv2.fillPoly(mask, [fixed], 1.0, cv2.LINE_8, 4)
    return mask


def _edge(alpha: np.ndarray, width: float = 0.045) -> np.ndarray:
    """The rim inside a silhouette, `width` of the sprite's half."""
    n = alpha.shape[0]
    deep = cv2.distanceTransform((alpha > 0.5).astype(np.uint8), cv2.DIST_L2, 5)
    return ((deep > 0) & (deep < width * n / 2)).astype(np.float32) * 0.85


def _ball(x: np.ndarray, y: np.ndarray) -> _Shape:
    r = np.hypot(x, y)
    alpha = (r < 0.95).astype(np.float32)
    z = np.sqrt(np.clip(1 - (r / 0.95) ** 2, 0, 1))
    light = (-0.45 * x - 0.55 * y) / 0.95 + 0.72 * z
    tone = np.clip((light - 0.62) * 0.75, -0.55, 0.16)
    spot = np.exp(-(((x + 0.32) / 0.17) ** 2 + ((y + 0.38) / 0.14) ** 2))
    return _Shape(alpha, tone + 0.8 * spot, _edge(alpha), np.zeros_like(alpha))


def _box(x: np.ndarray, y: np.ndarray) -> _Shape:
    angle = math.radians(14)
    u, v = x * math.cos(angle) + y * math.sin(angle), y * math.cos(angle) - x * math.sin(angle)
    alpha = (np.maximum(abs(u), abs(v)) < 0.77).astype(np.float32)
    lid = np.maximum(abs(u), abs(v)) < 0.56
    tone = np.where(lid, 0.14, np.where(abs(u) > abs(v), np.where(u < 0, -0.12, -0.34),
                                        np.where(v < 0, -0.05, -0.42)))
    line = (np.maximum(abs(u), abs(v)) < 0.60) & ~lid | lid & (abs(v) < 0.035)
    rim = np.maximum(_edge(alpha), line * 0.6).astype(np.float32)
    return _Shape(alpha, tone.astype(np.float32), rim, np.zeros_like(alpha))


def _cone(x: np.ndarray, y: np.ndarray) -> _Shape:
    body = _mask(x, [(-0.03, -1.0), (0.03, -1.0), (0.88, 0.68), (-0.88, 0.68)])
    base = ((x / 0.88) ** 2 + ((y - 0.66) / 0.30) ** 2 < 1).astype(np.float32)
    alpha = np.maximum(body, base)
    across = x / np.maximum(0.04, 0.88 * (y + 1.0) / 1.68)
    tone = np.clip(0.22 - 0.42 * abs(across + 0.35), -0.5, 0.22)
    return _Shape(alpha, tone.astype(np.float32), _edge(alpha), np.zeros_like(alpha))


def _star(x: np.ndarray, y: np.ndarray) -> _Shape:
    points = [((1.02 if k % 2 == 0 else 0.42) * math.sin(k * math.pi / 5),
               -(1.02 if k % 2 == 0 else 0.42) * math.cos(k * math.pi / 5) + 0.06)
              for k in range(10)]
    alpha = _mask(x, points)
    tone = np.zeros_like(alpha)
    for k in range(10):
        facet = _mask(x, [(0.0, 0.06), points[k], points[(k + 1) % 10]])
        tone[facet > 0.5] = 0.16 if k % 2 else -0.24
    return _Shape(alpha, tone, _edge(alpha, 0.04), np.zeros_like(alpha))


def _ring(x: np.ndarray, y: np.ndarray) -> _Shape:
    r = np.hypot(x, y)
    inner, outer = 0.54, 0.97
    alpha = ((r > inner) & (r < outer)).astype(np.float32)
    across = (r - (inner + outer) / 2) / ((outer - inner) / 2)
    toward = (-0.6 * x - 0.8 * y) / np.maximum(r, 1e-3)
    tone = np.clip(0.16 + 0.34 * across * toward - 0.38 * across ** 2, -0.5, 0.5)
    return _Shape(alpha, tone.astype(np.float32), _edge(alpha, 0.04), np.zeros_like(alpha))


def _cup(x: np.ndarray, y: np.ndarray) -> _Shape:
    middle, wide = -0.22, 0.66
    top = ((x - middle) / wide) ** 2 + ((y + 0.46) / 0.40) ** 2
    wall = _mask(x, [(middle - wide, -0.46), (middle + wide, -0.46), (middle + 0.52, 0.68),
                     (middle - 0.52, 0.68)])
    foot = ((x - middle) / 0.52) ** 2 + ((y - 0.66) / 0.28) ** 2 < 1
    body = np.maximum(np.maximum(wall, top < 1), foot).astype(np.float32)
    grip = np.hypot((x - 0.46) / 0.50, (y - 0.10) / 0.48)
    handle = ((grip < 1) & (grip > 0.50) & (x > 0.3)).astype(np.float32)
    alpha = np.maximum(body, handle)
    inside = (((x - middle) / (wide - 0.10)) ** 2 + ((y + 0.46) / 0.30) ** 2 < 1)
    tone = np.clip(0.16 - 0.42 * abs((x - middle) / wide + 0.35), -0.45, 0.16)
    tone = np.where(handle * (1 - body) > 0, -0.06, tone)
    tone = np.where((top < 1) & ~inside, 0.2, tone)
    tone = np.where(inside, -0.16 * np.clip((-0.30 - y) / 0.45, 0, 1), tone)
    rim = np.maximum(_edge(body, 0.04), _edge(np.where(body > 0, 0, handle), 0.04))
    line = inside & (((x - middle) / (wide - 0.14)) ** 2 + ((y + 0.46) / 0.26) ** 2 >= 1)
    rim = np.maximum(rim, line * 0.5).astype(np.float32)
    return _Shape(alpha, tone.astype(np.float32), rim, inside.astype(np.float32))


_DRAWERS = {'ball': _ball, 'box': _box, 'cone': _cone, 'star': _star, 'ring': _ring, 'cup': _cup}
