"""A camera for benchmarks: pictures again and again, at a rate or as fast as they are taken.

In: an engine, pictures, a rate. Out: frames with growing stamps, pushed from a thread while a
`with` block lasts. It knows nothing of models and of ROS.

The tabletop's pictures are a second apart and are shown at any rate: how quick the world is makes
no difference to how quick a machine is.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Sequence

import numpy as np

from tww_ros import Engine, Frame
from tww_ros.types import NS_PER_S
from tww_ros.world.render import Renderer
from tww_ros.world.table import TEST_SEEDS, simulate

PICTURES = 240
WAIT_S = 600.0


def tabletop(size_px: int, count: int = PICTURES) -> list[np.ndarray]:
    """Pictures of one test world, uint8 [size_px, size_px, 3] each."""
    renderer = Renderer(simulate(TEST_SEEDS[9_000], float(count)), size_px)
    return [renderer.frame(float(number)) for number in range(count)]


class Film:
    """Pictures for ever, each later than the one before. One user at a time."""

    def __init__(self, pictures: Sequence[np.ndarray], camera: str = 'front') -> None:
        self._pictures = pictures
        self._camera = camera
        self._number = 0
        self._stamp_ns = 0

    def next(self, step_s: float) -> Frame:
        """The next frame, `step_s` later than the last one."""
        self._stamp_ns += round(step_s * NS_PER_S)
        self._number += 1
        picture = self._pictures[self._number % len(self._pictures)]
        return Frame(self._stamp_ns, self._camera, picture)


class Camera:
    """Pushes frames at `fps` from a thread; math.inf: feeds them as fast as the engine takes them,
    with stamps that are `step_s` apart."""

    def __init__(self, engine: Engine, film: Film, fps: float, step_s: float = 0.0) -> None:
        self._engine = engine
        self._film = film
        self._fps = fps
        self._step_s = step_s or 1 / fps
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._feed if fps == math.inf else self._push)

    def __enter__(self) -> Camera:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _push(self) -> None:
        due_s = time.monotonic()
        while not self._stop.wait(max(0.0, due_s - time.monotonic())):
            self._engine.push(self._film.next(self._step_s))
            due_s += 1 / self._fps

    def _feed(self) -> None:
        while not self._stop.is_set():
            self._engine.feed(self._film.next(self._step_s), WAIT_S)


def fill(engine: Engine, film: Film, segments: int, segment_s: float) -> None:
    """Really watch until there are so many segments, of one temporal patch each, all noted."""
    for number in range(2 * max(0, segments - len(engine.memory))):
        engine.feed(film.next(0.75 * segment_s), WAIT_S)
        # As many as may wait for their notes: none is to be skipped.
        if number % 16 == 15:
            engine.drain(WAIT_S)
    engine.drain(WAIT_S)
