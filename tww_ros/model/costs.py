"""Costs: how long a step takes for how many tokens, on this machine.

In: a model. Out: a table from rows (tokens of a step) to seconds, measured in a second or so. It
is about the linear layers and what a step costs by itself; attention depends on what is looked
at, and is not in it.

Why measure: the table is no line. A 4-bit kernel may read packed weights for up to 4 rows and
expand all of them for the fifth (bitsandbytes on an Orin), for up to 16 or 64 elsewhere; a large
card takes 200 rows in the time of one; on a CPU each row costs its share.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tww_ros.memory.view import View
from tww_ros.model.run import Span, TokenRun

if TYPE_CHECKING:
    from tww_ros.model.protocol import StepModel

log = logging.getLogger(__name__)

# On both sides of 4, because that is where bitsandbytes changes its kernel.
SIZES = (1, 2, 4, 5, 8, 16, 32, 64, 128, 256, 512)
REPEATS = 3
# A step that takes longer than the first is timed once; than the second, is the largest one.
SLOW_S = 0.1
LONGEST_S = 0.5
TOTAL_S = 3.0


@dataclass(frozen=True)
class StepCosts:
    """Seconds of a step by its rows, at some sizes, smallest first."""

    rows: tuple[int, ...]
    seconds: tuple[float, ...]

    def table(self, most: int) -> np.ndarray:
        """float64 [most + 1]: seconds of a step of 0, 1, … rows.

        Between sizes a straight line, beyond the largest in proportion. A smaller step never takes
        longer than a larger one: where it did, something else went on.
        """
        rows = np.arange(most + 1)
        measured = np.minimum.accumulate(self.seconds[::-1])[::-1]
        seconds = np.interp(rows, self.rows, measured)
        last = self.rows[-1]
        seconds[last + 1:] = measured[-1] * rows[last + 1:] / last
        seconds[0] = 0.0
        return seconds

    def least_rows(self, share: float, most: int) -> int:
        """The fewest rows, of at most `most`, with `share` of the best number of rows a second."""
        rates = np.arange(1, most + 1) / self.table(most)[1:]
        return 1 + int(np.argmax(rates >= share * rates.max()))

    def describe(self) -> str:
        """One line for the log."""
        return ', '.join(f'{rows} rows {1e3 * seconds:.1f} ms'
                         for rows, seconds in zip(self.rows, self.seconds, strict=True))


def measure_costs(model: StepModel) -> StepCosts:
    """Time steps over blocks that are thrown away; on the thread that takes the steps."""
    begun_s = time.perf_counter()
    best_s: dict[int, float] = {}
    for size in SIZES:
        try:
            # The first one of a size chooses kernels and takes memory.
            best_s[size] = _timed(model, size)
        except RuntimeError as error:
            if not best_s:
                raise
            log.warning('a step of %d tokens cannot be taken: %s', size, error)
            break
        if best_s[size] > LONGEST_S or time.perf_counter() - begun_s > TOTAL_S:
            break
    # In rounds, so that what else the machine does for a while does not fall on one size alone.
    for size in REPEATS * list(best_s):
        if best_s[size] < SLOW_S and time.perf_counter() - begun_s < TOTAL_S:
            best_s[size] = min(best_s[size], _timed(model, size))
    return StepCosts(tuple(best_s), tuple(best_s.values()))


def _timed(model: StepModel, rows: int) -> float:
    block = model.new_block(capacity=rows)
    span = Span(block, View((), 0, 0), TokenRun.text((0,) * rows, 0), 'last')
    begun_s = time.perf_counter()
    logits, = model.step([span])
    # Asking for a number waits for the device.
    float(logits[0, 0])
    return time.perf_counter() - begun_s
