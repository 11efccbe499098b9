"""Says a thing once and then at most every so many seconds, with how often it was left unsaid.

rclpy's own throttle works per line of code, so one bad camera would silence the complaints about
another. This one works per text, whatever the numbers in it: sizes and stamps differ from image to
image, the fault does not. Memory is bounded.
"""

from __future__ import annotations

import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable

TEXTS_KEPT = 64
# Not the digits in a name such as /camera1.
NUMBERS = re.compile(r'\b\d+\b')


class Throttle:
    """admit(text) gives the text to log, or nothing when it was said too short a while ago.

    Thread-safe.
    """

    def __init__(self, period_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._period_s = period_s
        self._clock = clock
        self._lock = threading.Lock()
        self._said: OrderedDict[str, list[float]] = OrderedDict()

    def admit(self, text: str) -> str:
        """The text, with a count of what was left out since, or an empty string."""
        now_s = self._clock()
        kind = NUMBERS.sub('#', text)
        with self._lock:
            entry = self._said.get(kind)
            if entry is not None and now_s - entry[0] < self._period_s:
                entry[1] += 1
                return ''
            repeated = int(entry[1]) if entry is not None else 0
            self._said[kind] = [now_s, 0]
            self._said.move_to_end(kind)
            if len(self._said) > TEXTS_KEPT:
                self._said.popitem(last=False)
        return f'{text} (and {repeated} more times)' if repeated else text
