"""The database of a memory on disk: opened, recognised, made, and saved when it was damaged.

In: a folder. Out: connections to its SQLite file, to write or only to read, and StoreErrors that
say what to do. It knows nothing of blocks.

WAL lets readers go on while one writes. `synchronous=FULL` keeps what was committed when the power
fails, not only when the process is killed: robots are switched off like that.
"""

from __future__ import annotations

import contextlib
import enum
import logging
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tww_ros import __version__
from tww_ros.errors import StoreError
from tww_ros.memory.store_files import DATABASE, no_room, sync_folder
from tww_ros.memory.store_schema import APPLICATION_ID, SCHEMA, SCHEMA_VERSION, TABLES

log = logging.getLogger(__name__)
# 1 MiB of write-ahead log, so that a cap on the whole folder can be kept.
_LOG_PAGES, _LOG_BYTES = 256, 1 << 20
_BUSY_S = 10.0
_HEADER_BYTES = 100


@contextlib.contextmanager
def store_errors(folder: Path) -> Iterator[None]:
    """What SQLite and the file system report, as StoreErrors."""
    try:
        yield
    except sqlite3.Error as error:
        raise StoreError(_told(error, folder)) from error
    except OSError as error:
        raise StoreError(_full(folder) if no_room(error) else
                         f'{folder}: {error.strerror or error}: check the disk and the '
                         'permissions') from error


def _told(error: sqlite3.Error, folder: Path) -> str:
    text = str(error)
    if 'is full' in text:
        return _full(folder)
    if 'disk I/O' in text:
        return (f'{folder}: the disk refused to read or write ({text}): it may be full or '
                'failing; what was stored before stays readable')
    if 'FOREIGN KEY' in text:
        return f'{folder}: expected a segment of this memory, got one that is not (or no longer)'
    if 'UNIQUE' in text:
        return f'{folder}: expected something new, got what is there already ({text})'
    if 'locked' in text:
        return f'{folder}: another process keeps the database busy; try again'
    if isinstance(error, sqlite3.ProgrammingError) and 'closed' in text:
        return f'{folder}: expected an open memory, got one that was closed; open it again'
    return f'{folder / DATABASE}: {text}'


def _full(folder: Path) -> str:
    return (f'{folder}: no room is left on the disk, so nothing more is stored; make room, lower '
            'the cap or choose another folder. What was stored before stays readable')


def connect(path: Path, query: str) -> sqlite3.Connection:
    """A connection in autocommit mode for any thread; query: 'mode=ro' and the like."""
    connection = sqlite3.connect(f'{path.resolve().as_uri()}?{query}', uri=True, timeout=_BUSY_S,
                                 isolation_level=None, check_same_thread=False)
    _prepare(connection)
    return connection


def in_memory() -> sqlite3.Connection:
    """A new database without a file."""
    connection = sqlite3.connect(':memory:', isolation_level=None, check_same_thread=False)
    _prepare(connection)
    connection.execute('PRAGMA foreign_keys = ON')
    make(connection)
    return connection


def _prepare(connection: sqlite3.Connection) -> None:
    connection.row_factory = sqlite3.Row
    # An altered letter costs that letter.
    connection.text_factory = lambda data: data.decode('utf-8', 'replace')


def open_to_read(folder: Path) -> sqlite3.Connection:
    """Opens a memory that exists; a damaged one is read as far as it can be, in memory."""
    if folder.exists() and not folder.is_dir():
        raise StoreError(f'expected the folder of a memory, got the file {folder}')
    path = folder / DATABASE
    if not path.is_file():
        missing = 'there is no such folder' if not folder.is_dir() else f'it has no {DATABASE}'
        raise StoreError(f'expected the folder of a memory, got {folder}: {missing}')
    with store_errors(folder):
        # On a read-only medium nothing can be shared with a writer, and there is none.
        log_file = folder / f'{DATABASE}-wal'
        settled = not log_file.is_file() or not log_file.stat().st_size
        immutable = settled and not os.access(folder, os.W_OK)
        connection = connect(path, 'immutable=1' if immutable else 'mode=ro')
        try:
            state = _state(connection, path)
            if state is State.WHOLE:
                return connection
            if state is State.EMPTY:
                raise StoreError(f'{folder}: nothing has been stored there yet')
        except BaseException:
            connection.close()
            raise
        connection.close()
        log.warning('%s is damaged; what can be read of it is shown', path)
        saved = in_memory()
        _save(path, saved)
        return saved


def open_to_write(folder: Path) -> sqlite3.Connection:
    """Opens the memory of a folder, or makes one; a damaged one is saved first."""
    path = folder / DATABASE
    connection = connect(path, 'mode=rwc')
    try:
        state = _state(connection, path)
        if state is State.EMPTY:
            connection.execute('PRAGMA auto_vacuum = INCREMENTAL')
            connection.execute('PRAGMA journal_mode = WAL')
            make(connection)
            sync_folder(folder)
        elif state is State.DAMAGED or _index_damaged(connection):
            connection.close()
            _replace(path)
            connection = connect(path, 'mode=rw')
        for setting in ('journal_mode = WAL', 'synchronous = FULL', 'foreign_keys = ON',
                        f'wal_autocheckpoint = {_LOG_PAGES}',
                        f'journal_size_limit = {_LOG_BYTES}'):
            connection.execute(f'PRAGMA {setting}')
    except BaseException:
        connection.close()
        raise
    return connection


def make(connection: sqlite3.Connection) -> None:
    """The empty tables, all or none of them."""
    connection.executescript(
        f'BEGIN; PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {SCHEMA_VERSION};'
        f'{SCHEMA}; INSERT INTO meta VALUES (\'version\', \'{__version__}\'); COMMIT')


class State(enum.Enum):
    """Of a database: nothing in it, all in order, pages altered or missing."""

    EMPTY = enum.auto()
    WHOLE = enum.auto()
    DAMAGED = enum.auto()


def _state(connection: sqlite3.Connection, path: Path) -> State:
    """StoreError for a database that is no memory's, or a newer one's."""
    try:
        kind = connection.execute('PRAGMA application_id').fetchone()[0]
        version = connection.execute('PRAGMA user_version').fetchone()[0]
        tables = connection.execute('SELECT count(*) FROM sqlite_master').fetchone()[0]
    except sqlite3.OperationalError:
        raise
    except sqlite3.DatabaseError as error:
        header = _header(path)
        if (header.startswith(b'SQLite format 3\0')
                and int.from_bytes(header[68:72], 'big') == APPLICATION_ID):
            return State.DAMAGED
        raise StoreError(f'{path}: expected the database of a memory, got something else '
                         f'({error}); choose another folder') from error
    if not kind and not tables:
        return State.EMPTY
    if kind != APPLICATION_ID:
        raise StoreError(f'{path}: expected the database of a memory, got one of something else; '
                         'choose another folder')
    if version > SCHEMA_VERSION:
        raise StoreError(f'{path}: expected schema {SCHEMA_VERSION}, got {version} of a newer '
                         'tww_ros; install that one to use it')
    try:
        sound = connection.execute('PRAGMA quick_check(1)').fetchone()[0] == 'ok'
    except sqlite3.OperationalError:
        raise
    except sqlite3.DatabaseError:
        sound = False
    return State.WHOLE if sound else State.DAMAGED


def _index_damaged(connection: sqlite3.Connection) -> bool:
    try:
        connection.execute('INSERT INTO notes_index (notes_index) VALUES (\'integrity-check\')')
    except sqlite3.OperationalError:
        raise
    except sqlite3.DatabaseError:
        return True
    return False


def _replace(path: Path) -> None:
    """Save what can be read into a new file, which takes the place of the damaged one."""
    log.warning('%s is damaged; what can be read of it is saved', path)
    fresh_path, kept = path.with_suffix('.saved'), path.with_suffix('.damaged')
    for old in (fresh_path, kept):
        old.unlink(missing_ok=True)
    with contextlib.closing(connect(fresh_path, 'mode=rwc')) as fresh:
        fresh.execute('PRAGMA auto_vacuum = INCREMENTAL')
        make(fresh)
        _save(path, fresh)
    os.link(path, kept)
    for suffix in ('-wal', '-shm'):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    os.replace(fresh_path, path)
    sync_folder(path.parent)


def _save(path: Path, fresh: sqlite3.Connection) -> None:
    """Copy every row that can be read, and log which segments lost something."""
    with tempfile.TemporaryDirectory() as at:
        copy = Path(at, path.name)
        for suffix in ('', '-wal'):
            with contextlib.suppress(FileNotFoundError):
                shutil.copyfile(f'{path}{suffix}', f'{copy}{suffix}')
        # SQLite does not open a database that is shorter than it says.
        header = _header(copy)
        size = int.from_bytes(header[16:18], 'big') * int.from_bytes(header[28:32], 'big')
        os.truncate(copy, max(size, copy.stat().st_size))
        with contextlib.closing(connect(copy, 'mode=rw')) as damaged:
            try:
                # Looks at the tables' names only.
                damaged.execute('EXPLAIN SELECT * FROM segments')
            except sqlite3.DatabaseError as error:
                raise StoreError(f'{path} is damaged beyond repair ({error}): nothing of it can '
                                 'be read; move the folder away, or choose another') from error
            _copy_rows(damaged, fresh, path)


def _header(path: Path) -> bytes:
    with open(path, 'rb') as file:
        return file.read(_HEADER_BYTES)


def _copy_rows(damaged: sqlite3.Connection, fresh: sqlite3.Connection, path: Path) -> None:
    fresh.execute('PRAGMA foreign_keys = OFF')
    fresh.execute('BEGIN')
    with contextlib.suppress(sqlite3.DatabaseError):
        fresh.executemany('INSERT OR REPLACE INTO meta VALUES (?, ?)',
                          [tuple(row) for row in damaged.execute('SELECT key, value FROM meta')])
    most = max((_most(damaged, table) for table in TABLES), default=0)
    for table in TABLES:
        rows: list[sqlite3.Row] = []
        lost: list[tuple[int, int]] = []
        _collect(damaged, table, 0, most, rows, lost)
        if rows:
            marks = ', '.join('?' * len(rows[0]))
            fresh.executemany(f'INSERT OR IGNORE INTO {table} VALUES ({marks})',
                              [tuple(row) for row in rows])
        for first, last in lost:
            log.warning('%s: %s %d to %d cannot be read and are lost', path, table, first, last)
    for table, column in (('thumbnails', 'id'), ('notes', 'last_id'), ('blocks', 'segment_id')):
        gone = fresh.execute(f'DELETE FROM {table} WHERE {column} NOT IN '
                             f'(SELECT id FROM segments) RETURNING {column}').fetchall()
        if gone:
            log.warning('%s: %s of lost segments go with them: %s', path, table,
                        ', '.join(sorted({str(row[0]) for row in gone})))
    # No id is used twice, whatever was lost.
    fresh.execute('DELETE FROM sqlite_sequence')
    fresh.executemany('INSERT INTO sqlite_sequence VALUES (?, ?)',
                      [(table, most) for table in ('segments', 'notes', 'answers', 'blocks')])
    fresh.execute('COMMIT')
    fresh.execute('PRAGMA foreign_keys = ON')


def _most(connection: sqlite3.Connection, table: str) -> int:
    """The highest id that was ever given, as far as it can be told."""
    for query in (f'SELECT max(seq) FROM sqlite_sequence WHERE name = \'{table}\'',
                  f'SELECT max(id) FROM {table}'):
        with contextlib.suppress(sqlite3.DatabaseError):
            found = connection.execute(query).fetchone()[0]
            if found is not None:
                return found
    return 0


def _collect(connection: sqlite3.Connection, table: str, first: int, last: int,
             rows: list[sqlite3.Row], lost: list[tuple[int, int]]) -> None:
    """Rows with ids from `first` to `last`; around what cannot be read, by halves."""
    try:
        rows += connection.execute(f'SELECT * FROM {table} WHERE id BETWEEN ? AND ?',
                                   (first, last)).fetchall()
    except sqlite3.DatabaseError:
        if first < last:
            middle = (first + last) // 2
            _collect(connection, table, first, middle, rows, lost)
            _collect(connection, table, middle + 1, last, rows, lost)
        elif lost and lost[-1][1] == first - 1:
            lost[-1] = (lost[-1][0], first)
        else:
            lost.append((first, first))
