"""Two memories made one, and a copy of one that goes on being written.

In: stores and folders. Out: a store that holds both by time, or a folder that holds what was
committed at one moment. It knows nothing of SQL.

Merging: segments of the other get ids of their own, and all orders are numbered anew by epoch and
time. The other's newest epoch becomes part of the newest one here when no camera would have been
in two places at once; its other epochs are put before all of these. So a memory of this morning is
attended to together with that of noon, and a video watched twice is not. KV blocks come along when
both were made by the same model with the same positions; otherwise only what can be read does.
Whoever holds orders or epochs of the store must read them again.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from sqlite3 import Connection
from typing import TYPE_CHECKING

from tww_ros.errors import StoreError
from tww_ros.memory.store_database import connect, store_errors
from tww_ros.memory.store_files import DATABASE, BlockFiles, sync_folder
from tww_ros.memory.store_reading import StoreReader
from tww_ros.memory.store_schema import StoredBlock, StoredSegment

if TYPE_CHECKING:
    from tww_ros.memory.store import Store

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Merged:
    """What came over. ids: old segment id → new. refused: why no KV did; '' = it did."""

    ids: dict[int, int]
    notes: int
    answers: int
    blocks: int
    refused: str = ''


def merge(store: Store, folder: Path) -> Merged:
    """Take in the memory of another folder, all of it or nothing."""
    if os.path.realpath(folder) == os.path.realpath(store.folder):
        raise StoreError(f'expected another memory to merge with, got {folder} itself')
    with store.open(folder, None) as other, store.transaction():
        refused = _refused(store, other)
        if refused:
            log.warning('%s: only notes are taken: %s', folder, refused)
        mine, theirs = store.segments(), other.segments()
        epochs, renumbered = _epochs(mine, theirs, store.epochs(), other.epochs())
        store.renumber({}, renumbered)
        for old, t0_ns in other.epochs().items():
            if epochs[old] not in store.epochs():
                store.add_epoch(epochs[old], t0_ns)
        ids = _add_segments(store, other, theirs, epochs)
        notes = answers = 0
        for note in other.notes():
            run = [ids[old] for old in range(note.segment_id, note.last_id + 1) if old in ids]
            if run:
                store.add_note(replace(note, segment_id=run[0], last_id=run[-1]))
                notes += 1
        for answer in other.answers():
            evidence = tuple((ids[old], score) for old, score in answer.evidence if old in ids)
            store.add_answer(replace(answer, evidence=evidence,
                                     epoch=epochs.get(answer.epoch, 0)))
            answers += 1
        blocks = 0 if refused else _take_blocks(store, other, ids)
        _order_by_time(store, set(ids.values()))
    return Merged(ids, notes, answers, blocks, refused)


def copy(store: Store, folder: Path) -> None:
    """Make `folder` (new, or empty) with what is committed now; after a crash it is not there."""
    folder = Path(folder).expanduser()
    with store_errors(folder):
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise StoreError(f'expected a new or an empty folder to copy to, got {folder}')
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f'.{folder.name}-', dir=folder.parent))
        try:
            with store.keeping_files():
                store.back_up(partial / DATABASE)
                with contextlib.closing(connect(partial / DATABASE, 'mode=rw')) as rows:
                    for block in StoreReader(partial, rows, None).blocks():
                        _take(store, block, BlockFiles(partial), rows)
            # mkdtemp's is for the owner alone.
            partial.chmod(0o777 & ~_umask())
            os.rename(partial, folder)
            sync_folder(folder.parent)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise


def _take(store: Store, block: StoredBlock, target: BlockFiles, rows: Connection) -> None:
    try:
        target.take(target.path(block.id, block.segment_id, block.name), store.block_path(block))
    except FileNotFoundError:
        log.warning('segment %d: KV block %r is left out: %s is missing', block.segment_id,
                    block.name, store.block_path(block))
        rows.execute('DELETE FROM blocks WHERE id = ?', (block.id,))


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _refused(store: Store, other: Store) -> str:
    """Why blocks of `other` are no good here; '' when they are."""
    if other.identity is None or store.identity is None:
        return 'it does not say which model made it'
    return '; '.join(store.identity.differences(other.identity))


def _epochs(mine: list[StoredSegment], theirs: list[StoredSegment], known: Iterable[int],
            others: Iterable[int]) -> tuple[dict[int, int], dict[int, int]]:
    """Their epochs' numbers here, and new numbers for those that are here already."""
    own = sorted({segment.epoch for segment in mine} | set(known))
    foreign = sorted({segment.epoch for segment in theirs} | set(others))
    joins = bool(own and foreign) and _fit(
        [segment for segment in mine if segment.epoch == own[-1]],
        [segment for segment in theirs if segment.epoch == foreign[-1]])
    before = foreign[:-1] if joins else foreign
    renumbered = {epoch: len(before) + number for number, epoch in enumerate(own)}
    epochs = {epoch: number for number, epoch in enumerate(before)}
    if joins:
        epochs[foreign[-1]] = renumbered[own[-1]]
    return epochs, renumbered


def _fit(mine: list[StoredSegment], theirs: list[StoredSegment]) -> bool:
    """Whether no camera has segments of both at the same time."""
    spans = sorted((segment.camera, segment.start_ns, segment.end_ns, owner)
                   for owner, segments in enumerate((mine, theirs)) for segment in segments)
    # Per owner and camera the spans follow each other, so neighbours tell.
    return all(one[0] != two[0] or one[3] == two[3] or two[1] > one[2]
               for one, two in pairwise(spans))


def _add_segments(store: Store, other: Store, theirs: list[StoredSegment],
                  epochs: dict[int, int]) -> dict[int, int]:
    """Old id → new, both rising, so that an episode stays a run of ids."""
    first = store.next_id
    ids = {}
    for number, segment in enumerate(sorted(theirs, key=lambda each: each.id)):
        ids[segment.id] = first + number
        store.add_segment(replace(segment, id=first + number, epoch=epochs[segment.epoch]),
                          other.thumbnail(segment.id))
    return ids


def _take_blocks(store: Store, other: Store, ids: dict[int, int]) -> int:
    count = 0
    for block in other.blocks():
        source = other.block_path(block)
        if block.segment_id not in ids:
            continue
        if not source.is_file():
            log.warning('segment %d: KV block %r is left out: %s is missing', block.segment_id,
                        block.name, source)
            continue
        store.take_block(replace(block, segment_id=ids[block.segment_id]), source)
        count += 1
    return count


def _order_by_time(store: Store, new: set[int]) -> None:
    segments = sorted(store.segments(), key=lambda each: (
        each.epoch, each.start_ns, each.id in new, each.order))
    store.renumber({segment.id: order for order, segment in enumerate(segments)}, {})
