"""kill -9 while a memory is being written, again and again, and what is found when it reopens.

Each round forks a writer that stores segments as quickly as it can, tells the id of each one that
was committed through a pipe, and is killed at a random moment: while it opens, while it writes a
file, between a file and its row, while it removes. Then the memory is opened as after a crash.

What must hold: every segment that was told is there with its note and its block, whatever is there
is whole, the database passes SQLite's own check, and no file lies about that no row knows.
"""

from __future__ import annotations

import os
import random
import select
import signal
import sqlite3
import struct
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import torch
from _report import Report

from tww_ros.errors import StoreError
from tww_ros.memory.store import Store
from tww_ros.memory.store_files import DATABASE
from tww_ros.memory.store_schema import Identity, StoredNote, StoredSegment
from tww_ros.types import NS_PER_S

IDENTITY = Identity('crash', '0', 'continuous', 2, 1, 32, 'bfloat16')
# Writers live for at most so many times what one needs for its first segment, opening included: a
# busy machine is killed in the same places as a quiet one.
LONGEST = 6.0
PATIENCE_S = 60.0
# Blocks of notes live for as many segments.
KEPT_NOTES = 5
_ID = struct.Struct('<q')


@dataclass
class Crashes:
    """What was found, over all kills. Everything but the first three must be 0."""

    kills: int = 0
    acknowledged: int = 0
    committed: int = 0
    missing: int = 0
    incomplete: int = 0
    corrupt_blocks: int = 0
    corrupt_databases: int = 0
    stray_files: int = 0

    @property
    def faults(self) -> int:
        """All that must not be."""
        return (self.missing + self.incomplete + self.corrupt_blocks + self.corrupt_databases
                + self.stray_files)


def measure_crash(report: Report, quick: bool) -> None:
    """25 or 200 kills; targets: nothing missing, nothing corrupt."""
    with tempfile.TemporaryDirectory() as folder:
        found = crash(Path(folder, 'memory'), 25 if quick else 200, progress=sys.stderr.isatty())
    report.add('store_kills', found.kills)
    report.add('store_segments_acknowledged_before_kills', found.acknowledged)
    for name in ('missing', 'incomplete', 'corrupt_blocks', 'corrupt_databases', 'stray_files'):
        report.add(f'store_{name}_after_kills', getattr(found, name))
        report.target(f'store_{name}_after_kills', '==', 0)


def crash(folder: Path, kills: int, seed: int = 0, progress: bool = False) -> Crashes:
    """Kill `kills` writers, one after the other, to the same folder."""
    rng = random.Random(seed)
    started_s = time.monotonic()
    found, told = Crashes(), _killed_writer(folder, PATIENCE_S, most=1)
    longest_s = LONGEST * (time.monotonic() - started_s)
    for _ in range(kills):
        told |= _killed_writer(folder, rng.uniform(0.0, longest_s))
        _look(folder, told, found)
        found.kills += 1
        if progress:
            print(f'\r{found.kills} kills, {len(told)} segments', end='', file=sys.stderr)
    if progress:
        print(file=sys.stderr)
    found.acknowledged = len(told)
    return found


def block_of(number: int) -> dict[str, torch.Tensor]:
    """Tensors that tell which segment they are of."""
    keys = torch.arange(2 * 40 * 32).reshape(2, 1, 40, 32) * (number % 89 + 1) % 251
    return {'keys': keys.to(torch.bfloat16), 'values': (keys + number % 97).to(torch.bfloat16)}


def _killed_writer(folder: Path, after_s: float, most: int = sys.maxsize) -> set[int]:
    """Ids that a writer told before it was killed, so long after it had begun, or as soon as it
    had told `most`."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.close(reading)
        # Whatever goes wrong is told by the pipe's end coming too early.
        try:
            _write(folder, lambda number: os.write(writing, _ID.pack(number)))
        finally:
            os._exit(1)
    os.close(writing)
    try:
        data, end_s = b'', time.monotonic() + after_s
        while (left_s := end_s - time.monotonic()) > 0 and len(data) < most * _ID.size:
            if select.select([reading], [], [], left_s)[0]:
                piece = os.read(reading, 65_536)
                if not piece:
                    raise RuntimeError('the writer ended by itself')
                data += piece
        os.kill(child, signal.SIGKILL)
        while piece := os.read(reading, 65_536):
            data += piece
    finally:
        os.close(reading)
        os.waitpid(child, 0)
    return {number for number, in _ID.iter_unpack(data)}


def _write(folder: Path, tell: Callable[[int], object]) -> None:
    with Store.open(folder, IDENTITY) as store:
        while True:
            number = store.next_id
            start_ns = number * NS_PER_S
            with store.transaction():
                store.add_segment(StoredSegment(number, number, 'front', 0, start_ns,
                                                start_ns + NS_PER_S), bytes(2_000))
                store.add_note(StoredNote(number, f'note {number}'))
                store.add_block(number, 'segment', block_of(number))
                store.add_block(number, 'note', block_of(number + 1))
                store.drop_block(number - KEPT_NOTES, 'note')
            tell(number)


def _look(folder: Path, told: set[int], found: Crashes) -> None:
    """Open the memory as after a crash; count what should not be."""
    if not (folder / DATABASE).exists():
        found.missing += len(told)
        return
    # Before anybody repairs anything.
    with closing(sqlite3.connect(folder / DATABASE)) as rows:
        found.corrupt_databases += rows.execute('PRAGMA integrity_check').fetchone()[0] != 'ok'
    with Store.open(folder, IDENTITY) as store:
        there = {segment.id for segment in store.segments()}
        notes = {note.segment_id for note in store.notes() if note.text == f'note {note.last_id}'}
        blocks = {(block.segment_id, block.name) for block in store.blocks(lost=True)}
        found.committed = len(there)
        found.missing += len(told - there)
        newest = sorted(there)[-KEPT_NOTES:]
        whole = {(number, 'segment') for number in there} | {(number, 'note') for number in newest}
        found.incomplete += len(there ^ notes) + len(blocks ^ whole)
        for number, name in blocks:
            try:
                tensors, _ = store.read_block(number, name)
            except StoreError:
                found.corrupt_blocks += 1
                continue
            wanted = block_of(number + (name == 'note'))
            found.corrupt_blocks += any(not torch.equal(tensors[key], wanted[key])
                                        for key in wanted)
        known = {store.block_path(block) for block in store.blocks(lost=True)}
        lying = {path for path in (folder / 'blocks').rglob('*') if path.is_file()}
        found.stray_files += len(lying - known)
