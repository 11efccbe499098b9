"""Reading a memory on disk: what is in it, found by id, time or words; KV block by block.

In: a connection and the folder of blocks. Out: the records of `store_schema`; tensors when they
are asked for, never before. `Store` is this and can write.
"""

from __future__ import annotations

import contextlib
import logging
import math
import sqlite3
import threading
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from tww_ros.errors import StoreError
from tww_ros.memory import store_files as files
from tww_ros.memory.store_database import store_errors
from tww_ros.memory.store_files import BlockFiles
from tww_ros.memory.store_schema import (
    Hit,
    Identity,
    StoredAnswer,
    StoredBlock,
    StoredNote,
    StoredSegment,
    terms,
)

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)
T = TypeVar('T')


class StoreReader:
    """What can be asked of a memory; any thread may."""

    def __init__(self, folder: Path, connection: sqlite3.Connection,
                 block_files: BlockFiles | None) -> None:
        self.folder = folder
        self._read = connection
        self._reading = threading.RLock()
        self._files = block_files

    @property
    def identity(self) -> Identity | None:
        """Of the model that made it; None when it was made without one."""
        rows = self._rows('SELECT value FROM meta WHERE key = \'identity\'')
        return Identity.from_json(rows[0][0]) if rows else None

    @property
    def next_id(self) -> int:
        """The first segment id that was never used."""
        rows = self._rows('SELECT seq FROM sqlite_sequence WHERE name = \'segments\'')
        return rows[0][0] + 1 if rows else 0

    @property
    def next_order(self) -> int:
        """The order behind all segments."""
        return 1 + self._rows('SELECT coalesce(max(place), -1) FROM segments')[0][0]

    @property
    def nbytes(self) -> int:
        """Bytes on disk: database, its log, blocks."""
        if self._files is None:
            return self._rows('SELECT page_count * page_size FROM pragma_page_count, '
                              'pragma_page_size')[0][0]
        total = self._rows('SELECT coalesce(sum(nbytes), 0) FROM blocks')[0][0]
        for suffix in ('', '-wal', '-shm'):
            with contextlib.suppress(FileNotFoundError):
                total += (self.folder / f'{files.DATABASE}{suffix}').stat().st_size
        return total

    def __len__(self) -> int:
        return self._rows('SELECT count(*) FROM segments')[0][0]

    def epochs(self) -> dict[int, int]:
        """Epoch → its first stamp in ns."""
        return dict(map(tuple, self._rows('SELECT id, t0_ns FROM epochs ORDER BY id')))

    def segments(self, *, epoch: int | None = None, cameras: Collection[str] = (),
                 window: tuple[int, int] | None = None) -> list[StoredSegment]:
        """Segments in their order; window: those with a moment in it, in ns."""
        where, values = _where(epoch, cameras, window)
        rows = self._rows(f'SELECT * FROM segments WHERE {where} ORDER BY place, id', values)
        return _records(StoredSegment.of, rows, 'segment')

    def segment(self, segment_id: int) -> StoredSegment:
        """One segment; StoreError when there is none of that id."""
        rows = self._rows('SELECT * FROM segments WHERE id = ?', (segment_id,))
        found = _records(StoredSegment.of, rows, 'segment')
        if not found:
            raise StoreError(f'{self.folder}: there is no segment {segment_id}; list them first')
        return found[0]

    def notes(self, segment_id: int | None = None) -> list[StoredNote]:
        """Notes and episodes (about one segment, if given), by the newest segment of each."""
        where = '' if segment_id is None else 'WHERE ? BETWEEN notes.segment_id AND last_id'
        rows = self._rows('SELECT notes.* FROM notes JOIN segments ON segments.id = last_id '
                          f'{where} ORDER BY place, notes.id',
                          () if segment_id is None else (segment_id,))
        return _records(StoredNote.of, rows, 'note')

    def answers(self, session: str | None = None) -> list[StoredAnswer]:
        """Questions with their answers (of one session, if given), in the order they came."""
        rows = self._rows('SELECT * FROM answers WHERE :session IS NULL OR session = :session '
                          'ORDER BY id', {'session': session})
        return _records(StoredAnswer.of, rows, 'answer')

    def blocks(self, segment_id: int | None = None, *, lost: bool = False) -> list[StoredBlock]:
        """What is known of KV blocks; those that are lost only when asked for."""
        rows = self._rows('SELECT blocks.* FROM blocks JOIN segments ON segments.id = segment_id '
                          'WHERE (:id IS NULL OR segment_id = :id) AND (:lost OR lost = \'\') '
                          'ORDER BY place, blocks.id', {'id': segment_id, 'lost': lost})
        return _records(StoredBlock.of, rows, 'block')

    def thumbnail(self, segment_id: int) -> bytes | None:
        """The JPEG of a segment, if it has one."""
        rows = self._rows('SELECT jpeg FROM thumbnails WHERE id = ?', (segment_id,))
        return rows[0][0] if rows else None

    def thumbnail_ids(self) -> list[int]:
        """Segments that have one."""
        return [row[0] for row in self._rows('SELECT id FROM thumbnails ORDER BY id')]

    def read_block(self, segment_id: int, name: str) -> tuple[dict[str, torch.Tensor],
                                                              Mapping[str, Any]]:
        """Tensors on the CPU, and the metadata.

        Raises StoreError when there is none, and when its file is not what was written; then it is
        listed as lost and not tried again.
        """
        rows = self._rows('SELECT * FROM blocks WHERE segment_id = ? AND name = ?',
                          (segment_id, name))
        found = _records(StoredBlock.of, rows, 'block')
        if not found:
            raise StoreError(f'{self.folder}: segment {segment_id} has no KV block {name!r}')
        block, = found
        path, reason = self.block_path(block), block.lost
        if not reason:
            try:
                with store_errors(self.folder):
                    data = self._files.read(path, block.nbytes, block.sha256)
                return files.decode(data), block.metadata
            except ValueError as error:
                reason = str(error)
            self._lose(block, reason)
        raise StoreError(f'segment {segment_id}: KV block {name!r} is lost: {path}: {reason}; its '
                         'note and all other segments are not touched')

    def block_path(self, block: StoredBlock) -> Path:
        """Where its file lies."""
        return self._files.path(block.id, block.segment_id, block.name)

    def search(self, text: str, *, limit: int = 10, epoch: int | None = None,
               cameras: Collection[str] = (), window: tuple[int, int] | None = None,
               until: int | None = None, oldest_first: bool = False,
               kind: str = '') -> list[Hit]:
        """Notes and episodes with any of the words, the best first.

        score: the sum of what the words that occur are worth, a rare one more than a common one
        (inverse document frequency, Robertson and Spärck Jones 1976); two words that follow each
        other in both count once more, as a word of their own: a red cup and a blue ball are not a
        red ball. How often a word occurs in a note and how long a note is do not count, so that
        notes with the same words are equally good, and time decides: the newest first, or
        oldest_first. until: only segments up to this order. kind: 'note' or 'episode' only. An
        episode counts when one of its segments does.
        No word matches everything.
        """
        total = self._rows('SELECT count(*) FROM notes')[0][0]
        found = [(word, self._rows('SELECT count(*) FROM notes_index WHERE notes_index MATCH ?',
                                   (word,))[0][0]) for word in terms(text)]
        worth = {word: math.log(1 + (total - count + 0.5) / (count + 0.5))
                 for word, count in found if count}
        if not worth:
            return []
        where, values = _where(epoch, cameras, window, until)
        direction = 'ASC' if oldest_first else 'DESC'
        each = 'SELECT rowid AS note, ? AS worth FROM notes_index WHERE notes_index MATCH ?'
        rows = self._rows(
            f"""SELECT notes.segment_id, round(sum(worth), 9) AS score, last_id, kind, notes.text
                FROM ({' UNION ALL '.join([each] * len(worth))})
                JOIN notes ON notes.id = note
                WHERE (? = '' OR kind = ?) AND EXISTS (
                    SELECT 1 FROM segments
                    WHERE id BETWEEN notes.segment_id AND notes.last_id AND {where})
                GROUP BY note
                ORDER BY score DESC, (SELECT place FROM segments WHERE id = last_id) {direction},
                    notes.id {direction}
                LIMIT ?""",
            (*(value for word in worth for value in (worth[word], word)), kind, kind, *values,
             limit))
        return [Hit(*row) for row in rows]

    # Inside

    def _rows(self, sql: str, values: Any = ()) -> list[sqlite3.Row]:
        with self._reading, store_errors(self.folder):
            return self._read.execute(sql, values).fetchall()

    def _lose(self, block: StoredBlock, reason: str) -> None:
        log.warning('segment %d: KV block %r is lost: %s: %s', block.segment_id, block.name,
                    self.block_path(block), reason)


def _where(epoch: int | None, cameras: Collection[str], window: tuple[int, int] | None,
           until: int | None = None) -> tuple[str, list[Any]]:
    """Condition on segments, and its values."""
    parts, values = ['1'], []
    if epoch is not None:
        parts.append('epoch = ?')
        values.append(epoch)
    if cameras:
        parts.append(f'camera IN ({", ".join("?" * len(cameras))})')
        values += cameras
    if window is not None:
        parts.append('end_ns >= ? AND start_ns <= ?')
        values += window
    if until is not None:
        parts.append('place <= ?')
        values.append(until)
    return ' AND '.join(parts), values


def _records(make: Callable[[sqlite3.Row], T], rows: Iterable[sqlite3.Row],
             what: str) -> list[T]:
    """The records of rows; one that was altered costs itself."""
    records = []
    for row in rows:
        try:
            records.append(make(row))
        except (TypeError, ValueError, KeyError) as error:
            log.warning('%s %s is left out: its row was altered (%s)', what, row['id'], error)
    return records
