"""kill -9 of an engine that watches, notes and writes; what is found when its folder reopens.

Each round starts a process with an engine whose memory has a folder, lets it watch frames as
quickly as it can, and kills it at a random moment. The process tells after each `drain()` how many
segments it has that have their note (one that was cut off before its note was written gets it when
an engine starts again). All of these must be there, each with its note and a KV block that can be
read.
"""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from _report import Report

from tww_ros.errors import StoreError
from tww_ros.memory.store import Store

PROGRAM = """
import sys
import numpy as np
from tww_ros import Engine, EngineConfig, Frame
from tww_ros.model.scripted import ScriptedModel
config = EngineConfig.from_flat({'memory.folder': sys.argv[1], 'watch.segment_s': 1.0,
                                 'watch.min_pixels': 1024})
image = np.zeros((64, 64, 3), np.uint8)
with Engine(ScriptedModel(note='something was seen'), config) as engine:
    number = 1 + max((i.end_ns for i in engine.memory.segments()), default=0) // 10 ** 9
    while True:
        for frame in range(4):
            engine.feed(Frame(number * 10 ** 9 + frame * 250_000_000, 'front', image))
        number += 1
        engine.drain(60)
        print(sum(bool(info.note) for info in engine.memory.segments()), flush=True)
"""
LONGEST_S = 1.0


def measure_killed_engine(report: Report, quick: bool) -> None:
    """Kill, reopen, count."""
    rng, missing, damaged, told = random.Random(0), 0, 0, 0
    kills = 5 if quick else 200
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / 'memory'
        for _ in range(kills):
            told = killed_at(folder, rng.uniform(0.0, LONGEST_S)) or told
            with Store.open(folder, None) as store:
                noted = {note.last_id for note in store.notes()}
                segments = store.segments()
                missing += max(0, told - sum(each.id in noted for each in segments))
                for each in segments[-50:]:
                    try:
                        store.read_block(each.id, 'segment')
                    except StoreError:
                        damaged += each.id in noted
    report.add('engine_kills', kills)
    report.add('engine_segments_told', told)
    report.add('engine_segments_missing', missing)
    report.add('engine_blocks_damaged', damaged)
    for name in ('engine_segments_missing', 'engine_blocks_damaged'):
        report.target(name, '==', 0)


def killed_at(folder: Path, after_s: float) -> int:
    """Noted segments that an engine had told of when it was killed, `after_s` after its first."""
    with subprocess.Popen([sys.executable, '-c', PROGRAM, str(folder)], stdout=subprocess.PIPE,
                          text=True) as process:
        told = int(process.stdout.readline() or 0)
        try:
            process.wait(after_s)
        except subprocess.TimeoutExpired:
            process.kill()
        if process.wait() != -signal.SIGKILL:
            raise RuntimeError(f'the engine ended by itself, with {process.returncode}')
        rest = process.stdout.read().splitlines()
    # A line that was cut off by the kill tells nothing.
    return max([told, *(int(line) for line in rest[:-1])])
