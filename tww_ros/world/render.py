"""Pictures of an Episode, as a slightly unsteady camera above the table takes them.

In: an Episode, a size and a time. Out: an RGB frame. It knows nothing of words or messages.

Every frame is a function of (episode, size_px, time in ms) alone; what is kept between calls only
saves time. The table with all that stands on it is composed once per state; a frame is a copy of
it, hands, one affine warp (the camera's jitter), one multiplication (the light) and noise from
tiles made beforehand. That order keeps a frame of 192 px far below a millisecond.
"""

from __future__ import annotations

import functools
import math
import random
from collections import OrderedDict

import cv2
import numpy as np

from tww_ros.world import sprites
from tww_ros.world.scene import COVER_RADIUS, PLACE_XY, THING_RADIUS, Cover, Hand, scene_at
from tww_ros.world.sprites import Sprite
from tww_ros.world.surface import TABLES, surface
from tww_ros.world.table import Episode, TableState, Thing

# The camera's jitter, at most: shift as a share of the width, turn, change of scale.
SHIFT = 0.012
TURN_DEG = 1.0
ZOOM = 0.01
# Drawn around the picture so that the jitter never shows an edge.
_MARGIN = 0.05
# Light within ±_SLOW; every _LAMP_S seconds somebody may switch a lamp, which takes _SWITCH_S.
_SLOW = 0.05
_LAMP_S = 60.0
_LAMP_SHARE = 0.3
_SWITCH_S = 0.25
_NOISE_SIGMAS = (2.0, 2.8, 3.6)
_NOISE_SPARE_PX = 64
_STATES_KEPT = 8


class Renderer:
    """Draws one episode at one size. Not for several threads at once."""

    def __init__(self, episode: Episode, size_px: int = 480, style: str | None = None) -> None:
        """style: one of surface.STYLES; by default the seed decides."""
        self.episode = episode
        self.size_px = size_px
        self._margin_px = math.ceil(_MARGIN * size_px)
        self._table = surface(episode.seed % TABLES, size_px, self._margin_px, style)
        rng = random.Random(f'look:{episode.seed}')
        # (size in px, turn in degrees) of each thing's sprite, decided when it is first drawn
        self._look_of: dict[Thing, tuple[int, int]] = {}
        self._skin = rng.randrange(len(sprites.SKINS))
        self._sleeve = rng.randrange(len(sprites.SLEEVES))
        self._noise = _noise_tiles(size_px, rng.choice(_NOISE_SIGMAS))
        self._walks = [_Walk(rng) for _ in range(4)]
        self._light = _Light(episode.seed, rng)
        self._composed: OrderedDict[TableState, np.ndarray] = OrderedDict()

    def frame(self, t_s: float) -> np.ndarray:
        """uint8 [size_px, size_px, 3], RGB, at t_s (rounded to a millisecond)."""
        t_ms = round(t_s * 1000)
        t_s = t_ms / 1000
        scene = scene_at(self.episode, t_s)
        image = self._compose(scene.standing)
        if scene.hands:
            image = image.copy()
            for hand in scene.hands:
                self._draw_hand(image, hand)
        frame = cv2.warpAffine(image, self._camera(t_s), (self.size_px, self.size_px),
                               flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        frame = cv2.multiply(frame, (*self._light.at(t_s), 0.0))
        rng = random.Random(self.episode.seed * 1_000_003 + t_ms)
        x, y = rng.randrange(_NOISE_SPARE_PX), rng.randrange(_NOISE_SPARE_PX)
        window = np.s_[y:y + self.size_px, x:x + self.size_px]
        brighter, darker = self._noise
        cv2.add(frame, brighter[window], dst=frame)
        return cv2.subtract(frame, darker[window], dst=frame)

    def _compose(self, state: TableState) -> np.ndarray:
        """uint8 [n, n, 3]: the table with its margin and all that stands on it."""
        if state in self._composed:
            self._composed.move_to_end(state)
            return self._composed[state]
        image = self._table.copy()
        for place, thing in enumerate(state.things):
            if place in state.covered:
                self._draw(image, Cover(), PLACE_XY[place], 0.0)
            elif thing is not None:
                self._draw(image, thing, PLACE_XY[place], 0.0)
        self._composed[state] = image
        if len(self._composed) > _STATES_KEPT:
            self._composed.popitem(last=False)
        return image

    def _draw(self, image: np.ndarray, what: Thing | Cover, xy: tuple[float, float],
              lift: float) -> None:
        sprite = self._sprite(what)
        x = self._margin_px + xy[0] * self.size_px
        y = self._margin_px + xy[1] * self.size_px
        away = (0.010 + 0.030 * lift) * self.size_px
        _darken(image, sprite.shadow, round(x + 0.6 * away), round(y + away))
        _paste(image, sprite, round(x), round(y))

    def _sprite(self, what: Thing | Cover) -> Sprite:
        if isinstance(what, Cover):
            return sprites.cover_sprite(round(2 * COVER_RADIUS * self.size_px / sprites.BODY))
        if what not in self._look_of:
            rng = random.Random(f'{self.episode.seed}:{what.name}')
            scale = rng.choice((0.95, 1.0, 1.03))
            self._look_of[what] = (
                round(2 * THING_RADIUS * scale * self.size_px / sprites.BODY),
                rng.choice((-8, -4, 0, 4, 8)))
        return sprites.thing_sprite(what.colour, what.shape, *self._look_of[what])

    def _draw_hand(self, image: np.ndarray, hand: Hand) -> None:
        if hand.holds is not None:
            self._draw(image, hand.holds, hand.xy, hand.lift)
        sprite = sprites.hand_sprite(self._skin, self._sleeve, self.size_px, hand.is_left,
                                     hand.holds is not None)
        dx, dy = hand.shoulder_xy[0] - hand.xy[0], hand.shoulder_xy[1] - hand.xy[1]
        length = math.hypot(dx, dy)
        cos, sin = dy / length, dx / length
        x = self._margin_px + hand.xy[0] * self.size_px
        y = self._margin_px + hand.xy[1] * self.size_px
        grip_x, grip_y = sprites.hand_grip_px(self.size_px)
        # Turns the sprite, whose arm points to the front, about its grip towards the shoulder.
        turn = np.array([[cos, sin, x - cos * grip_x - sin * grip_y],
                         [-sin, cos, y + sin * grip_x - cos * grip_y]])
        high, wide = sprite.colour.shape[:2]
        corners = turn @ np.array([[0, wide, 0, wide], [0, 0, high, high], [1, 1, 1, 1]])
        n = image.shape[0]
        left, top = (max(0, math.floor(value)) for value in corners.min(axis=1))
        right, bottom = (min(n, math.ceil(value)) for value in corners.max(axis=1))
        if left >= right or top >= bottom:
            return
        turn[:, 2] -= left, top
        size = (right - left, bottom - top)
        window = image[top:bottom, left:right]
        keep = cv2.warpAffine(sprite.keep, turn, size, borderValue=(255, 255, 255))
        colour = cv2.warpAffine(sprite.colour, turn, size)
        cv2.multiply(window, keep, dst=window, scale=1 / 255)
        cv2.add(window, colour, dst=window)

    def _camera(self, t_s: float) -> np.ndarray:
        """float64 [2, 3]: from the drawn table with its margin to the picture."""
        dx, dy, turn, zoom = (walk.at(t_s) for walk in self._walks)
        angle, scale = math.radians(TURN_DEG * turn), 1 + ZOOM * zoom
        cos, sin = scale * math.cos(angle), scale * math.sin(angle)
        middle = (self.size_px - 1) / 2
        drawn = middle + self._margin_px
        return np.array([[cos, sin, middle + SHIFT * self.size_px * dx - (cos + sin) * drawn],
                         [-sin, cos, middle + SHIFT * self.size_px * dy + (sin - cos) * drawn]])


class _Walk:
    """A smooth unsteady value within -1..1 as a function of time."""

    def __init__(self, rng: random.Random) -> None:
        weights = [rng.uniform(0.5, 1.0) for _ in range(4)]
        self._waves = [(weight / sum(weights), rate_hz * rng.uniform(0.8, 1.25) * math.tau,
                        rng.uniform(0, math.tau))
                       for weight, rate_hz in zip(weights, (0.05, 0.13, 0.37, 0.9), strict=True)]

    def at(self, t_s: float) -> float:
        return sum(weight * math.sin(rate * t_s + phase) for weight, rate, phase in self._waves)


class _Light:
    """The light's strength in red, green and blue as a function of time."""

    def __init__(self, seed: int, rng: random.Random) -> None:
        self._seed = seed
        self._level = rng.uniform(0.86, 1.05)
        warm = rng.uniform(-0.045, 0.045)
        self._tint = (1 + warm, 1 + rng.uniform(-0.015, 0.015), 1 - warm)
        self._slow = _Walk(rng)

    def at(self, t_s: float) -> tuple[float, float, float]:
        level = self._level * (1 + _SLOW * self._slow.at(0.3 * t_s)) * self._lamp(t_s)
        return tuple(level * tint for tint in self._tint)

    def _lamp(self, t_s: float) -> float:
        slot = math.floor(t_s / _LAMP_S)
        switch_s, after = _lamp_slot(self._seed, slot)
        before = _lamp_before(self._seed, slot)
        if switch_s is None:
            return before
        u = min(1.0, max(0.0, (t_s - switch_s) / _SWITCH_S))
        return before + (after - before) * u * u * (3 - 2 * u)


@functools.lru_cache(maxsize=1024)
def _lamp_slot(seed: int, slot: int) -> tuple[float | None, float]:
    """(when somebody switches a lamp within that slot of _LAMP_S seconds, light afterwards)."""
    rng = random.Random(f'lamp:{seed}:{slot}')
    if slot < 0 or rng.random() >= _LAMP_SHARE:
        return None, 1.0
    return (slot + rng.uniform(0.05, 0.95)) * _LAMP_S, rng.uniform(0.86, 1.08)


@functools.lru_cache(maxsize=1024)
def _lamp_before(seed: int, slot: int) -> float:
    """The lamp's light when that slot begins."""
    for earlier in range(slot - 1, -1, -1):
        switch_s, after = _lamp_slot(seed, earlier)
        if switch_s is not None:
            return after
    return 1.0


@functools.lru_cache(maxsize=8)
def _noise_tiles(size_px: int, sigma: float) -> tuple[np.ndarray, np.ndarray]:
    """Two uint8 [m, m, 3]: what to add and what to subtract; one of them is 0 in each pixel."""
    side = size_px + _NOISE_SPARE_PX
    noise = np.random.default_rng(size_px).normal(0, sigma, (side, side, 3)).round()
    return np.maximum(noise, 0).astype(np.uint8), np.maximum(-noise, 0).astype(np.uint8)


def _window(image: np.ndarray, part: np.ndarray, x: int, y: int):
    """The image's and the part's slices that lie over each other, the part's middle at (x, y)."""
    n, (high, wide) = image.shape[0], part.shape[:2]
    left, top = x - wide // 2, y - high // 2
    x0, y0, x1, y1 = max(0, left), max(0, top), min(n, left + wide), min(n, top + high)
    if x0 >= x1 or y0 >= y1:
        return None
    return np.s_[y0:y1, x0:x1], np.s_[y0 - top:y1 - top, x0 - left:x1 - left]


def _darken(image: np.ndarray, shadow: np.ndarray, x: int, y: int) -> None:
    windows = _window(image, shadow, x, y)
    if windows:
        part = image[windows[0]]
        cv2.multiply(part, shadow[windows[1]], dst=part, scale=1 / 255)


def _paste(image: np.ndarray, sprite: Sprite, x: int, y: int) -> None:
    windows = _window(image, sprite.colour, x, y)
    if windows:
        part = image[windows[0]]
        cv2.multiply(part, sprite.keep[windows[1]], dst=part, scale=1 / 255)
        cv2.add(part, sprite.colour[windows[1]], dst=part)
