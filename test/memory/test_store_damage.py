"""A memory on disk that is damaged, full, or somebody else's: what is lost, and what is said.

Expected values are those that were put in before.
"""

import contextlib
import logging
import os
import resource
import shutil
import signal
import sqlite3
import subprocess

import pytest
from memory.filled import (
    IDENTITY,
    OTHER,
    block_files,
    put,
    reopened,
    same,
    segment,
)

from tww_ros.errors import StoreError
from tww_ros.memory.store import Store
from tww_ros.memory.store_files import DATABASE, inside
from tww_ros.memory.store_schema import StoredNote

# Whose memory it is

def test_another_model_is_refused_and_notes_stay_readable(store):
    put(store, 0, 'the red cup')
    store.close()
    with pytest.raises(StoreError) as refused:
        Store.open(store.folder, OTHER)
    assert 'weights: c0ffee here, decaf wanted' in str(refused.value)
    assert 'positions: continuous here, decoupled wanted' in str(refused.value)
    assert 'layers' not in str(refused.value) and 'another folder' in str(refused.value)
    with Store.open(store.folder, None) as reader:
        assert [hit.text for hit in reader.search('cup')] == ['the red cup']
        assert same(reader.read_block(0, 'segment')[0], 0) and not reader.writable
        for write in (lambda: put(reader, 1), lambda: reader.clear(1),
                      lambda: reader.drop_block(0, 'segment'), lambda: reader.merge('x')):
            with pytest.raises(StoreError):
                write()
    with Store.open(store.folder, IDENTITY) as again:
        assert len(again) == 1


def test_one_writer_and_many_readers(store):
    put(store, 0)
    with pytest.raises(StoreError, match=f'written to by process {os.getpid()}'):
        Store.open(store.folder, IDENTITY)
    with Store.open(store.folder, None) as one, Store.open(store.folder, None) as two:
        put(store, 1)
        assert len(one) == len(two) == 2


def test_a_killed_writer_does_not_block(tmp_path):
    child = os.fork()
    if not child:
        store = Store.open(tmp_path, IDENTITY)
        put(store, 0)
        os.kill(os.getpid(), signal.SIGKILL)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    with Store.open(tmp_path, None) as reader:
        assert len(reader) == 1
    with Store.open(tmp_path, IDENTITY) as store:
        assert same(store.read_block(0, 'segment')[0], 0)


def test_what_is_no_memory(tmp_path):
    (tmp_path / 'file').write_text('x')
    (tmp_path / 'text').mkdir()
    (tmp_path / 'text' / DATABASE).write_text('not a database, but long enough to look at' * 50)
    (tmp_path / 'other').mkdir()
    with contextlib.closing(sqlite3.connect(tmp_path / 'other' / DATABASE)) as other:
        other.execute('CREATE TABLE mine (x)')
    Store.open(tmp_path / 'newer', IDENTITY).close()
    with contextlib.closing(sqlite3.connect(tmp_path / 'newer' / DATABASE)) as newer:
        newer.execute('PRAGMA user_version = 99')
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'empty' / DATABASE).touch()
    for name, reason in (('file', 'got the file'), ('nowhere', 'no such folder'),
                         ('.', f'it has no {DATABASE}'), ('text', 'expected the database'),
                         ('other', 'one of something else'), ('newer', 'newer tww_ros'),
                         ('empty', 'nothing has been stored')):
        with pytest.raises(StoreError, match=reason):
            Store.open(tmp_path / name, None)
    for name in ('file', 'text', 'other', 'newer'):
        with pytest.raises(StoreError):
            Store.open(tmp_path / name, IDENTITY)
    assert (tmp_path / 'text' / DATABASE).read_text().startswith('not a database')
    Store.open(tmp_path / 'empty', IDENTITY).close()


def test_a_closed_memory_says_so(store):
    store.close()
    store.close()
    for use in (lambda: store.segments(), lambda: put(store, 0)):
        with pytest.raises(StoreError, match='open it again'):
            use()


# Damage

@pytest.mark.parametrize('damage, reason', [
    (lambda path: path.write_bytes(path.read_bytes()[:-1]), 'expected 328 bytes, got 327'),
    (lambda path: path.write_bytes(b''), 'expected 328 bytes, got 0'),
    (lambda path: path.write_bytes(path.read_bytes()[:-1] + b'!'), 'its content was altered'),
    (lambda path: path.unlink(), 'it is missing')])
def test_a_damaged_block_costs_itself(store, caplog, damage, reason):
    for number in range(3):
        put(store, number)
    path = store.block_path(store.blocks()[1])
    size = store.blocks()[1].nbytes
    assert path.stat().st_size == size
    reason = reason.replace('328', str(size)).replace('327', str(size - 1))
    damage(path)
    with pytest.raises(StoreError, match=rf'segment 1: .*{path.name}: {reason}'):
        store.read_block(1, 'segment')
    assert [record for record in caplog.records if 'segment 1' in record.getMessage()
            and path.name in record.getMessage()]
    assert [block.segment_id for block in store.blocks()] == [0, 2]
    path.write_bytes(b'back again')
    with pytest.raises(StoreError, match=reason):
        store.read_block(1, 'segment')
    for number in (0, 2):
        assert same(store.read_block(number, 'segment')[0], number)
    assert [note.text for note in store.notes()] == ['note 0', 'note 1', 'note 2']


def test_opening_names_what_is_missing_or_cut_off(store, caplog):
    for number in range(4):
        put(store, number)
    paths = [store.block_path(block) for block in store.blocks()]
    store.close()
    paths[1].unlink()
    with open(paths[2], 'rb+') as file:
        file.truncate(100)
    with Store.open(store.folder, IDENTITY) as again:
        assert [block.segment_id for block in again.blocks()] == [0, 3]
    lost = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(lost) == 2 and 'segment 1' in lost[0] and 'got 100' in lost[1]


def test_what_a_crash_left_behind_is_removed_and_nothing_else(store):
    put(store, 0)
    kept, = block_files(store)
    for name in ('7-segment-9.safetensors', '0-segment-1.safetensors.partial'):
        (kept.parent / name).write_bytes(b'x')
    foreign = [store.folder / 'blocks' / 'model.safetensors', kept.parent / 'notes.txt']
    for path in foreign:
        path.write_bytes(b'x')
    with reopened(store) as again:
        assert block_files(again) == sorted([kept, *foreign])


def pages_with(path, text):
    data = path.read_bytes()
    return [number for number in range(len(data) // 4096)
            if text in data[4096 * number:4096 * (number + 1)]]


def test_a_damaged_database_is_saved_row_by_row(store, caplog):
    """One page of the notes is overwritten: its rows are lost, all others stay."""
    with store.transaction():
        for number in range(400):
            store.add_segment(segment(number), b'x')
            store.add_note(StoredNote(number, f'{number} was here ' + 'and there ' * 8))
    put(store, 400)
    store.close()
    path = store.folder / DATABASE
    page = pages_with(path, b'200 was here ')[0]
    with open(path, 'rb+') as file:
        file.seek(4096 * page)
        file.write(b'\xaa' * 4096)
    with Store.open(store.folder, None) as reader:
        assert 350 < len(reader.notes()) < 401
    assert path.read_bytes()[4096 * page:4096 * page + 9] == b'\xaa' * 9
    caplog.clear()
    with Store.open(store.folder, IDENTITY) as again:
        texts = {note.segment_id: note.text for note in again.notes()}
        assert 350 < len(texts) < 401 and 200 not in texts and texts[5].startswith('5 was here')
        assert len(again) == 401 and same(again.read_block(400, 'segment')[0], 400)
        assert again.thumbnail(200) == b'x' and again.next_id >= 401
        assert [hit.segment_id for hit in again.search('5', limit=1)] == [5]
        put(again, again.next_id)
    messages = ' '.join(record.getMessage() for record in caplog.records)
    assert 'notes' in messages and 'cannot be read and are lost' in messages
    assert (store.folder / 'memory.damaged').is_file()
    with Store.open(store.folder, IDENTITY) as whole:
        assert len(whole) == 402


def test_lost_segment_rows_take_along_what_is_about_them(store):
    with store.transaction():
        for number in range(300):
            store.add_segment(segment(number, extra={'why': f'segment {number} ' + '.' * 80}))
            store.add_note(StoredNote(number, f'n{number}'))
    store.close()
    path = store.folder / DATABASE
    with open(path, 'rb+') as file:
        file.seek(4096 * pages_with(path, b'segment 150 ')[0])
        file.write(os.urandom(4096))
    with Store.open(store.folder, IDENTITY) as again:
        ids = {each.id for each in again.segments()}
        assert 250 < len(ids) < 300 and 150 not in ids
        assert {note.segment_id for note in again.notes()} == ids


@pytest.mark.parametrize('left', [0.6, 0.9])
def test_a_database_cut_off_gives_what_is_left(store, left):
    with store.transaction():
        for number in range(1_500):
            store.add_segment(segment(number))
            store.add_note(StoredNote(number, f'note {number}'))
    store.close()
    path = store.folder / DATABASE
    os.truncate(path, int(path.stat().st_size * left) // 4096 * 4096)
    with Store.open(store.folder, IDENTITY) as again:
        notes = again.notes()
        assert 100 < len(notes) <= len(again) <= 1_500 > len(notes)
        assert all(note.text == f'note {note.segment_id}' for note in notes)
        put(again, again.next_id)
    with Store.open(store.folder, IDENTITY) as whole:
        assert len(whole.notes()) == len(notes) + 1


def test_a_database_without_its_first_page(store):
    """Without the tables' names nothing can be saved; that is said, and nothing is removed."""
    put(store, 0)
    store.close()
    path = store.folder / DATABASE
    with open(path, 'rb+') as file:
        file.seek(100)
        file.write(bytes(3996))
    for identity in (None, IDENTITY):
        with pytest.raises(StoreError, match='damaged beyond repair'):
            Store.open(store.folder, identity)
    assert len(block_files(store)) == 1


def test_an_altered_row_costs_itself(store, caplog):
    for number in range(3):
        store.add_segment(segment(number))
    store.close()
    with contextlib.closing(sqlite3.connect(store.folder / DATABASE)) as rows:
        rows.execute('UPDATE segments SET extra = \'{"cut\' WHERE id = 1')
        rows.execute('UPDATE segments SET camera = CAST(x\'66ff6f\' AS TEXT) WHERE id = 2')
        rows.commit()
    with Store.open(store.folder, IDENTITY) as again:
        assert [(each.id, each.camera) for each in again.segments()] == [(0, 'front'),
                                                                         (2, 'f\ufffdo')]
    assert 'segment 1 is left out' in caplog.text


# Names

@pytest.mark.parametrize('name', [
    '..', '../x', 'a/../../x', '/etc', '', '  ', '.', './', 'a/..', 'out', 'out/x', 'a\x00b',
    'loop/x', '../memory-other'])
def test_names_that_lead_outside_are_refused(tmp_path, name):
    root = tmp_path / 'memory'
    root.mkdir()
    (tmp_path / 'memory-other').mkdir()
    (root / 'out').symlink_to(tmp_path)
    (root / 'loop').symlink_to(root / 'loop')
    with pytest.raises(StoreError, match='expected the name of a memory inside'):
        inside(root, name)


def test_names_that_stay_inside(tmp_path):
    root = tmp_path / 'link'
    (tmp_path / 'memory' / 'floor').mkdir(parents=True)
    root.symlink_to(tmp_path / 'memory')
    (tmp_path / 'memory' / 'ground').symlink_to(tmp_path / 'memory' / 'floor')
    for name, path in (('kitchen', 'kitchen'), ('a/b', 'a/b'), ('ground/x', 'floor/x'),
                       ('a/../b', 'b'), ('…', '…')):
        assert inside(root, name) == (tmp_path / 'memory').resolve() / path


# A full disk

@pytest.fixture
def small_disk(tmp_path):
    """A file system of 3 MB; skipped where none can be mounted."""
    folder = tmp_path / 'disk'
    folder.mkdir()
    mount = shutil.which('mount')
    made = mount and subprocess.run([mount, '-t', 'tmpfs', '-o', 'size=3m', 'none', folder],
                                    capture_output=True, timeout=20).returncode == 0
    if not made:
        pytest.skip('no small file system can be mounted here')
    yield folder
    subprocess.run(['umount', '-l', folder], timeout=20, check=True)


def test_a_full_disk_stops_writing_and_nothing_else(small_disk):
    with Store.open(small_disk / 'memory', IDENTITY) as store:
        stored = 0
        with pytest.raises(StoreError, match=r'no room is left .* make room'):
            for number in range(1_000):
                put(store, number, tokens=3_000)
                stored += 1
        assert stored > 5
        for _ in range(2):
            with pytest.raises(StoreError, match='no room'):
                put(store, 1_000, tokens=3_000)
        assert len(store) == len(store.notes()) == len(store.blocks()) == stored
        for number in range(stored):
            assert same(store.read_block(number, 'segment')[0], number, 3_000)
        # Room again: it goes on by itself.
        assert store.remove(range(5)) == 5
        put(store, 1_000, tokens=3_000)
    with Store.open(small_disk / 'memory', IDENTITY) as store:
        assert len(store.notes()) == stored - 4


def test_rows_on_a_full_disk(small_disk):
    with Store.open(small_disk / 'memory', IDENTITY) as store:
        stored = 0
        with pytest.raises(StoreError, match=r'no room|refused'):
            for number in range(5_000):
                with store.transaction():
                    store.add_segment(segment(number), os.urandom(3_000))
                    store.add_note(StoredNote(number, 'red cup'))
                stored += 1
        assert stored > 100 and len(store) == len(store.notes()) == stored
        assert len(store.search('cup', limit=9_999)) == stored


def test_a_limit_on_files_is_a_full_disk(tmp_path):
    """In a child, with a limit of the system on the size of files: needs no mount."""
    child = os.fork()
    if not child:
        status = 1
        with contextlib.suppress(BaseException), Store.open(tmp_path, IDENTITY) as store:
            put(store, 0)
            resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, 400_000))
            try:
                put(store, 1, tokens=20_000)
            except StoreError as error:
                if 'no room is left' in str(error) and len(store) == 1 \
                        and same(store.read_block(0, 'segment')[0], 0):
                    put(store, 2)
                    status = 0
        os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    with Store.open(tmp_path, IDENTITY) as store:
        assert [each.id for each in store.segments()] == [0, 2] and len(block_files(store)) == 2
