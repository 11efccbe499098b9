"""What engine tests are made of: frames of one grey, gates that hold single steps, bounded waits.

Nothing here waits without a limit, and nothing measures time: a test holds the engine at a step,
looks at it, and lets it go.
"""

import threading
import time
from contextlib import contextmanager

import numpy as np

from tww_ros import Frame

WAIT_S = 20.0
S = 1_000_000_000
# A frame of 32 × 32 px is one vision token; notes and answers are the only other work. Who looks
# ahead does so when there is time, which is a matter of luck.
SMALL = {'watch.min_pixels': 1_024, 'watch.segment_s': 2.0, 'watch.look_ahead': False}


def frame(seconds, camera='front', size=(32, 32), level=0):
    """A frame of one grey level at `seconds` since the start."""
    return Frame(round(seconds * S), camera, np.full((*size, 3), level, np.uint8))


def clip(start_s, end_s, camera='front', fps=2.0, size=(32, 32)):
    """Frames from start to end (exclusive), at the sampler's own rate unless told otherwise."""
    count = round((end_s - start_s) * fps)
    return [frame(start_s + n / fps, camera, size, n % 256) for n in range(count)]


def until(holds, what):
    """Wait for what nobody announces; fails with `what` after WAIT_S."""
    end_s = time.monotonic() + WAIT_S
    while not holds():
        assert time.monotonic() < end_s, f'waited {WAIT_S} s in vain until {what}'
        time.sleep(0.001)


class Gate:
    """A `before_step` that holds the steps that `which(spans)` picks, until it lets them go."""

    def __init__(self, which=lambda spans: True, closed=False):
        self.passed = 0
        self._which = which
        self._permits = 0
        self._closed = closed
        self._held = 0
        self._changed = threading.Condition()

    def __call__(self, spans):
        with self._changed:
            if self._closed and self._which(spans):
                self._held += 1
                self._changed.notify_all()
                assert self._changed.wait_for(lambda: not self._closed or self._permits, WAIT_S)
                self._held -= 1
                self._permits = 0
            self.passed += 1
            self._changed.notify_all()

    def close(self):
        """Hold from the next step on."""
        with self._changed:
            self._closed = True

    def open(self):
        """Let everything through."""
        with self._changed:
            self._closed = False
            self._changed.notify_all()

    def wait(self):
        """Wait until a step stands at the gate."""
        with self._changed:
            assert self._changed.wait_for(lambda: self._held and not self._permits, WAIT_S)

    def let(self, steps=1):
        """Let that many steps go, one after the other."""
        for _ in range(steps):
            self.wait()
            with self._changed:
                self._permits = 1
                self._changed.notify_all()
                assert self._changed.wait_for(lambda: not self._permits, WAIT_S)


def engine_threads():
    """Threads of engines that are alive."""
    return [thread for thread in threading.enumerate() if thread.name.startswith('tww-')]


def watch(engine, frames):
    """Feed frames, and wait until they are in memory and noted."""
    for one in frames:
        assert engine.feed(one, WAIT_S)
    assert engine.drain(WAIT_S)


@contextmanager
def threads(*targets):
    """Run targets side by side; joined at the end."""
    running = [threading.Thread(target=target, daemon=True) for target in targets]
    for thread in running:
        thread.start()
    yield
    for thread in running:
        thread.join(WAIT_S)
        assert not thread.is_alive(), 'a thread hangs'


def balance(stats):
    """(received, what became of them all): equal, always."""
    return stats.frames_received, (stats.frames_watched + stats.frames_skipped
                                   + stats.frames_dropped + stats.frames_rejected
                                   + stats.frames_waiting)
