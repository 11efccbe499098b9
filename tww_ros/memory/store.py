"""Store: a memory that survives its process: segments, notes, answers, KV blocks in one folder.

    memory.sqlite3   rows and the text index (WAL)      blocks/   KV as safetensors      lock

In: records (`store_schema`) and tensors, in transactions. Out: the same after a restart, notes by
their words, KV blocks one by one when they are asked for. Nothing is ever changed in place and
nothing is pickled. It knows nothing of models, engines or budgets other than its own cap.

    with store.transaction():                    # all of it is kept, or nothing
        store.add_segment(segment, thumbnail)
        store.add_block(segment.id, 'segment', {'keys': …, 'values': …}, {'start': 0, 'end': 90})
        store.add_note(StoredNote(segment.id, 'red cup front left'))

One writer to a folder, any number of readers. Within a process any thread may call anything: those
that write wait for each other, those that read do not wait for them and see what was committed.

A block that is missing, cut off or altered is found when it is read (or at the next opening, by
its size), logged, and from then on listed as lost; everything else goes on. `Store.in_memory()`
has no folder and takes no blocks: the text index of an engine that keeps nothing.
"""

from __future__ import annotations

import contextlib
import json
import logging
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tww_ros.errors import StoreError
from tww_ros.memory import store_database as database
from tww_ros.memory import store_files as files
from tww_ros.memory.store_database import store_errors
from tww_ros.memory.store_files import BlockFiles, WriterLock
from tww_ros.memory.store_reading import StoreReader
from tww_ros.memory.store_schema import (
    Identity,
    StoredAnswer,
    StoredBlock,
    StoredNote,
    StoredSegment,
)

if TYPE_CHECKING:
    import torch

    from tww_ros.memory.store_merge import Merged

log = logging.getLogger(__name__)
# The share of rows that go at once when only rows are left to go.
_ROWS_SHARE = 64
# Begin, keep, undo.
_WHOLE = 'BEGIN IMMEDIATE', 'COMMIT', ('ROLLBACK',)
_PART = 'SAVEPOINT part', 'RELEASE part', ('ROLLBACK TO part', 'RELEASE part')


class Store(StoreReader):
    """The memory of one folder; made by `open` and `in_memory`, and a context manager."""

    def __init__(self, folder: Path, write: sqlite3.Connection | None, read: sqlite3.Connection,
                 lock: WriterLock | None = None, cap_bytes: int = 0,
                 on_cap: Callable[[int, str], None] | None = None) -> None:
        super().__init__(folder, read, None if read is write else BlockFiles(folder))
        self.cap_bytes = cap_bytes
        self._on_cap = on_cap or (lambda segment_id, name: None)
        self._write, self._lock = write, lock
        self._writing = self._reading if read is write else threading.RLock()
        # Of the transaction under way: its thread, files it made, files to go when it is kept.
        self._owner: int | None = None
        self._made: list[Path] = []
        self._going: list[Path] = []
        self._copies = 0

    @classmethod
    def open(cls, folder: Path, identity: Identity | None, cap_bytes: int = 0,
             on_cap: Callable[[int, str], None] | None = None) -> Store:
        """Open the memory of a folder, or make one; identity None = only to read.

        cap_bytes: most bytes on disk (0 = no limit); beyond it the oldest goes first: KV of
        segments, then KV of notes, then rows. on_cap: is told what went, by the thread that wrote:
        (segment id, name of its block), or (segment id, '') when nothing of it is left.
        Raises StoreError when it belongs to another model, when another process writes to it, and
        when it cannot be read or written.
        """
        folder = Path(folder).expanduser()
        if identity is None:
            return cls(folder, None, database.open_to_read(folder))
        with contextlib.ExitStack() as undo, store_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            lock = WriterLock(folder)
            undo.callback(lock.release)
            write = database.open_to_write(folder)
            undo.callback(write.close)
            read = database.connect(folder / files.DATABASE, 'mode=ro')
            undo.callback(read.close)
            store = cls(folder, write, read, lock, cap_bytes, on_cap)
            store._meet(identity)
            store._recover()
            store._keep_cap()
            undo.pop_all()
            return store

    @classmethod
    def in_memory(cls) -> Store:
        """Rows and text index without a folder; blocks are refused."""
        connection = database.in_memory()
        return cls(Path(':memory:'), connection, connection)

    def close(self) -> None:
        """Let others write; what was committed is kept. Twice does no harm."""
        with self._writing, self._reading:
            self._read.close()
            if self._write is not None:
                self._write.close()
            if self._lock is not None:
                self._lock.release()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def writable(self) -> bool:
        """Whether it was opened with an identity, or is in memory."""
        return self._write is not None

    # Writing

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """What is added within is kept when this ends, all of it, or not at all.

        Nested, it is a part that can fail by itself and is kept with the whole.
        """
        with self._writing:
            with self._transaction():
                yield
            if self._owner is None:
                try:
                    self._keep_cap()
                except StoreError as error:
                    # What was added is kept: that is no failure of the caller's.
                    log.warning('%s is over its cap of %d bytes: %s', self.folder,
                                self.cap_bytes, error)

    def add_epoch(self, epoch: int, t0_ns: int) -> None:
        """Tell the first stamp of an epoch."""
        self._insert('epochs', {'id': epoch, 't0_ns': t0_ns})

    def add_segment(self, segment: StoredSegment, thumbnail: bytes | None = None) -> None:
        """Add a segment whose id is new (`next_id`); thumbnail: a small JPEG."""
        with self.transaction():
            self._insert('segments', segment.row())
            if thumbnail is not None:
                self._insert('thumbnails', {'id': segment.id, 'jpeg': thumbnail})

    def add_note(self, note: StoredNote) -> int:
        """Add a note or an episode to segments that are there; returns its id."""
        return self._insert('notes', note.row())

    def add_answer(self, answer: StoredAnswer) -> int:
        """Add a question with its answer; returns its id."""
        return self._insert('answers', answer.row())

    def add_block(self, segment_id: int, name: str, tensors: Mapping[str, torch.Tensor],
                  metadata: Mapping[str, Any] | None = None) -> None:
        """Add tensors of a segment: any shapes and dtypes, on any device.

        metadata: what is to be known without reading them; of JSON's types.
        """
        data = files.encode(tensors, metadata or {})
        block = StoredBlock(-1, segment_id, name, len(data), files.checksum(data), metadata or {})
        self._place(block, lambda path: self._files.write(path, data))

    def take_block(self, block: StoredBlock, source: Path) -> None:
        """Add a block of another memory, of the segment that `block` says, with its file."""
        self._place(block, lambda path: self._files.take(path, source))

    def drop_block(self, segment_id: int, name: str) -> bool:
        """Remove a block, lost or not; False when there is none."""
        with self.transaction():
            return bool(self._drop('segment_id = ? AND name = ?', (segment_id, name)))

    def remove(self, segment_ids: Iterable[int]) -> int:
        """Remove segments with all that is about them; returns how many there were."""
        with self.transaction():
            return sum(len(self._remove('id = ?', (segment_id,))) for segment_id in segment_ids)

    def clear(self, before_ns: int) -> int:
        """Remove what ended before a stamp, in all epochs; returns the number of segments.

        Answers of which nothing newer was seen go too.
        """
        with self.transaction():
            count = len(self._remove('end_ns < ?', (before_ns,)))
            self._execute('DELETE FROM answers WHERE as_of_ns < ?', (before_ns,))
        return count

    def renumber(self, orders: Mapping[int, int], epochs: Mapping[int, int]) -> None:
        """Give segments (by id) new orders, and every epoch another number."""
        with self.transaction():
            for segment_id, order in orders.items():
                self._execute('UPDATE segments SET place = ? WHERE id = ?', (order, segment_id))
            for table, column in (('epochs', 'id'), ('segments', 'epoch'), ('answers', 'epoch')):
                # Below zero first: two may change places.
                for old, new in epochs.items():
                    self._execute(f'UPDATE {table} SET {column} = ? WHERE {column} = ?',
                                  (-1 - new, old))
                self._execute(f'UPDATE {table} SET {column} = -1 - {column} WHERE {column} < 0')

    def merge(self, folder: Path) -> Merged:
        """Take in another folder's memory, by time; see `store_merge.merge`."""
        from tww_ros.memory.store_merge import merge
        return merge(self, folder)

    def copy_to(self, folder: Path) -> None:
        """Make a folder with what is committed now, while writing goes on.

        KV files are shared with it where the file system can (they never change), else copied.
        """
        from tww_ros.memory.store_merge import copy
        copy(self, folder)

    @contextlib.contextmanager
    def keeping_files(self) -> Iterator[None]:
        """Files of blocks that are removed meanwhile stay until this ends."""
        with self._writing:
            self._copies += 1
        try:
            yield
        finally:
            with self._writing:
                self._copies -= 1
                self._let_go()

    def back_up(self, path: Path) -> None:
        """Write the rows that are committed now to a new database."""
        with store_errors(path.parent), contextlib.closing(sqlite3.connect(path)) as target:
            with self._reading:
                self._read.backup(target)

    # Inside

    def _meet(self, identity: Identity) -> None:
        """Take an identity, or refuse one that is not this memory's."""
        mine = self.identity
        if mine is None:
            with self._transaction():
                self._execute('INSERT INTO meta VALUES (\'identity\', ?)', (identity.to_json(),))
        elif mine != identity:
            raise StoreError(
                f'{self.folder} is the memory of another model or of other positions '
                f'({"; ".join(mine.differences(identity))}): its keys mean nothing to this one. '
                'Choose another folder, or load what made it; its notes stay readable with '
                '`tww memory list`')

    def _recover(self) -> None:
        """Remove files of what was never committed; tell which blocks have lost theirs."""
        faults = self._files.sweep(self.blocks(lost=True))
        with self._transaction():
            for block in self.blocks() if faults else ():
                if block.id in faults:
                    self._lose(block, faults[block.id])

    def _lose(self, block: StoredBlock, reason: str) -> None:
        if self._write is not None:
            with self._transaction():
                if not self._execute('UPDATE blocks SET lost = ? WHERE id = ?',
                                     (reason, block.id)).rowcount:
                    # Dropped between being looked up and being read.
                    return
        super()._lose(block, reason)

    def _place(self, block: StoredBlock, make: Callable[[Path], None]) -> None:
        if self._files is None:
            raise StoreError('a memory without a folder takes no KV blocks; open a folder')
        with self.transaction():
            block_id = self._insert('blocks', {
                'segment_id': block.segment_id, 'name': files.check_name(block.name),
                'nbytes': block.nbytes, 'sha256': block.sha256,
                'metadata': json.dumps(dict(block.metadata)), 'lost': ''})
            path = self._files.path(block_id, block.segment_id, block.name)
            self._made.append(path)
            with store_errors(self.folder):
                make(path)

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        if self._write is None:
            raise StoreError(f'{self.folder} was opened only to read; open it with an identity')
        with self._writing:
            outermost = self._owner is None
            begin, keep, undo = _WHOLE if outermost else _PART
            made, going = len(self._made), len(self._going)
            self._execute(begin)
            self._owner = threading.get_ident()
            try:
                yield
                self._execute(keep)
            except BaseException:
                with contextlib.suppress(sqlite3.Error):
                    for statement in undo:
                        self._write.execute(statement)
                files.remove(self._made[made:])
                del self._made[made:], self._going[going:]
                raise
            finally:
                if outermost:
                    self._owner = None
            if outermost:
                self._made.clear()
                self._let_go()

    def _let_go(self) -> None:
        """Remove the files of what was removed, once no copy needs them."""
        if not self._copies and self._owner is None:
            files.remove(self._going)
            self._going.clear()

    def _execute(self, sql: str, values: Any = ()) -> sqlite3.Cursor:
        if self._owner is not None and not self._write.in_transaction:
            # A full disk undoes it all; what follows must not be kept by itself.
            raise StoreError(f'{self.folder}: this transaction was given up after an error')
        with store_errors(self.folder):
            return self._write.execute(sql, values)

    def _insert(self, table: str, row: Mapping[str, Any]) -> int:
        names, marks = ', '.join(row), ', '.join(f':{name}' for name in row)
        with self.transaction():
            return self._execute(f'INSERT INTO {table} ({names}) VALUES ({marks})', row).lastrowid

    def _rows(self, sql: str, values: Any = ()) -> list[sqlite3.Row]:
        if self._owner == threading.get_ident():
            # Of its own transaction a thread sees what it wrote.
            return self._execute(sql, values).fetchall()
        return super()._rows(sql, values)

    def _drop(self, where: str, values: Any = ()) -> int:
        """Remove blocks; how many there were."""
        rows = self._execute(f'DELETE FROM blocks WHERE {where} RETURNING id, segment_id, name',
                             values).fetchall()
        self._going += [self._files.path(*row) for row in rows]
        return len(rows)

    def _remove(self, where: str, values: Any) -> list[int]:
        """Remove segments and, by the tables' rules, all that is about them; their ids."""
        self._drop(f'segment_id IN (SELECT id FROM segments WHERE {where})', values)
        return [row[0] for row in self._execute(
            f'DELETE FROM segments WHERE {where} RETURNING id', values).fetchall()]

    def _keep_cap(self) -> None:
        """Remove the oldest until the folder is within its cap; the newest segment stays."""
        if not self.cap_bytes or self.nbytes <= self.cap_bytes:
            return
        self._shrink()
        over = self.nbytes - self.cap_bytes
        if over > 0:
            self._drop_oldest(over)
        while self.nbytes > self.cap_bytes:
            with self._transaction():
                gone = self._remove(
                    'id IN (SELECT id FROM segments WHERE place < (SELECT max(place) FROM '
                    'segments) ORDER BY place LIMIT ?)', (1 + len(self) // _ROWS_SHARE,))
                where = ('as_of_ns < (SELECT min(start_ns) FROM segments)' if gone else
                         'id IN (SELECT id FROM answers ORDER BY id LIMIT '
                         f'1 + (SELECT count(*) FROM answers) / {_ROWS_SHARE})')
                answers = self._execute(f'DELETE FROM answers WHERE {where}').rowcount
            self._shrink()
            for segment_id in gone:
                self._on_cap(segment_id, '')
            if not gone and not answers:
                break

    def _drop_oldest(self, over: int) -> None:
        """Remove blocks of at least `over` bytes, if there are as many but for the newest."""
        rows = self._rows(
            'SELECT blocks.id, segment_id, name, nbytes FROM blocks '
            'JOIN segments ON segments.id = segment_id '
            'WHERE place < (SELECT max(place) FROM segments) '
            'ORDER BY name <> \'segment\', place')
        gone = []
        with self._transaction():
            for block_id, segment_id, name, nbytes in rows:
                if over <= 0:
                    break
                self._drop('id = ?', (block_id,))
                gone.append((segment_id, name))
                over -= nbytes
        for segment_id, name in gone:
            self._on_cap(segment_id, name)

    def _shrink(self) -> None:
        """Give back the log and free pages."""
        self._execute('PRAGMA incremental_vacuum').fetchall()
        self._execute('PRAGMA wal_checkpoint(TRUNCATE)').fetchall()
