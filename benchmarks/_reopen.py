"""A day's memory reopened: how long until the first answer, against a running engine's.

In: the embedded model. A memory of thousands of segments is filled in a folder; the same question
is asked of the running engine and, after it was closed, as the first one of new ones. Loading the
model is not counted; opening the folder until the engine is ready, with what a question looks at
brought back, is reported by itself.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from _long import PROBES, WAIT_S, first_token_s, needle_world, watch
from _report import Report, median

from tww_ros import Engine, EngineConfig
from tww_ros.evaluation.runner import OFFLINE
from tww_ros.model.protocol import StepModel
from tww_ros.world.table import TEST_SEEDS

SEGMENTS = 10_000
REOPENINGS = 7


def measure_reopening(report: Report, model: StepModel, settings: dict, quick: bool) -> None:
    """First answers before and after a restart."""
    segments = 500 if quick else SEGMENTS
    frames = 2 * segments
    with tempfile.TemporaryDirectory() as folder:
        config = EngineConfig.from_flat({**model.settings, **OFFLINE, **settings,
                                         'memory.folder': str(Path(folder) / 'day')})
        with Engine(model, config) as engine:
            for frame in watch(needle_world(TEST_SEEDS[8_000], float(frames)), frames):
                engine.feed(frame, WAIT_S)
            engine.drain(WAIT_S)
            asked = [first_token_s(engine, probe) for probe in range(PROBES)]
            running, settled = asked[0], median(asked)
            count = len(engine.memory)
            written = engine.memory.tier_bytes['disk']
        opened_s, reopened = [], []
        for _ in range(REOPENINGS):
            started_s = time.perf_counter()
            with Engine(model, config) as engine:
                engine.drain(WAIT_S)
                opened_s.append(time.perf_counter() - started_s)
                # The first one alone is what somebody waits for.
                reopened.append(first_token_s(engine, 0))
    report.add('reopened_segments', count)
    report.add('reopened_folder_bytes', written)
    report.add('reopening_s', median(opened_s))
    report.add('first_token_running_ms', settled * 1e3)
    report.add('first_token_running_first_ms', running * 1e3)
    report.add('first_token_reopened_ms', median(reopened) * 1e3)
    report.add('first_token_reopened_to_running', median(reopened) / settled)
    report.target('first_token_reopened_to_running', '<=', 2.0)
