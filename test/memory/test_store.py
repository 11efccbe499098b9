"""A memory on disk gives back what was put into it, whatever happened in between.

Expected values are those that were put in, a worth of words computed by its formula, and the files
as they lie there.
"""

import contextlib
import json
import logging
import math
import os
import resource
import shutil
import signal
import sqlite3
import subprocess
import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from memory.filled import IDENTITY, OTHER, S, block_of, fill_from_table, put, same, segment

from tww_ros.errors import StoreError
from tww_ros.memory.store import Store
from tww_ros.memory.store_files import DATABASE, inside
from tww_ros.memory.store_schema import StoredAnswer, StoredNote
from tww_ros.types import Pose


@pytest.fixture
def store(tmp_path):
    with Store.open(tmp_path / 'memory', IDENTITY) as opened:
        yield opened


def block_files(store):
    return sorted(path for path in (store.folder / 'blocks').rglob('*') if path.is_file())


def reopened(store, **options):
    store.close()
    return Store.open(store.folder, IDENTITY, **options)


# What was put in

def test_everything_comes_back_after_reopening(store):
    first = segment(0, pose=Pose('map', (1.0, -2.5, 0.0), (0.0, 0.0, 0.6, 0.8)),
                    extra={'start': 3, 'end': 2 ** 40, 'mean': [0.5, 1e-30]})
    second = segment(1, camera='Küche 台')
    notes = [StoredNote(0, 'red cup', tokens=3, finish_reason='stop', seconds=0.25),
             StoredNote(0, 'all of it', 'episode', 1)]
    answer = StoredAnswer('Wo?', 'links', 5 * S, 4 * S, 2, 'b', ('links', 'rechts'), (0.75, 0.25),
                          'weil', 'choice', ((1, 0.5), (0, 0.125)), 1_700_000_000 * S, 1.5)
    with store.transaction():
        store.add_epoch(0, 7)
        store.add_segment(first, b'\xff\xd8jpeg')
        store.add_segment(second)
        for note in notes:
            store.add_note(note)
        store.add_answer(answer)
    with reopened(store) as again:
        assert again.segments() == [first, second] and again.segment(1) == second
        assert [(n.segment_id, n.last_id, n.text, n.kind, n.seconds) for n in again.notes()] == [
            (0, 0, 'red cup', 'note', 0.25), (0, 1, 'all of it', 'episode', 0.0)]
        found, = again.answers('b')
        assert found == StoredAnswer(**{**answer.__dict__, 'id': found.id})
        assert again.answers('other') == [] and again.epochs() == {0: 7}
        assert again.thumbnail(0) == b'\xff\xd8jpeg' and again.thumbnail(1) is None
        assert again.identity == IDENTITY and again.writable
        assert (again.next_id, again.next_order, len(again)) == (2, 2, 2)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16, torch.float32, torch.int8,
                                   torch.uint8, torch.int64, torch.bool])
def test_blocks_of_any_layout_and_dtype(store, dtype):
    whole = (torch.arange(2 * 3 * 40).reshape(2, 3, 40) % 100).to(dtype)
    tensors = {'strided': whole[:, :, :7], 'shared': whole, 'turned': whole.transpose(0, 2),
               'empty': whole[:, :0], 'one': whole[0, 0, 5]}
    wanted = {name: tensor.clone() for name, tensor in tensors.items()}
    store.add_segment(segment(0))
    store.add_block(0, 'segment', tensors, {'start': 4, 'bits': [4, 2], 'name': 'ä'})
    whole.zero_()
    with reopened(store) as again:
        read, metadata = again.read_block(0, 'segment')
        assert metadata == {'start': 4, 'bits': [4, 2], 'name': 'ä'}
        assert read.keys() == wanted.keys()
        for name, tensor in wanted.items():
            assert read[name].dtype == dtype and torch.equal(read[name], tensor)


def test_block_files_are_safetensors_and_nothing_else(store):
    """8 bytes of length, a JSON header, then the tensors: nothing that runs when it is read."""
    put(store, 0)
    path, = block_files(store)
    data = path.read_bytes()
    size = int.from_bytes(data[:8], 'little')
    header = json.loads(data[8:8 + size])
    assert header['keys']['dtype'] == 'BF16' and header['keys']['shape'] == [2, 1, 6, 8]
    assert json.loads(header['__metadata__']['tww']) == {'start': 0}
    assert store.blocks()[0].nbytes == len(data)
    assert path.relative_to(store.folder).parts[:2] == ('blocks', '00000')


def test_opening_reads_no_block(store):
    """Files of the right size with other contents: opening does not notice, reading does."""
    for number in range(50):
        put(store, number)
    for path in block_files(store):
        path.write_bytes(bytes(path.stat().st_size))
    with reopened(store) as again:
        assert len(again.blocks()) == len(again.segments()) == 50
        for number in range(50):
            with pytest.raises(StoreError, match=f'segment {number}: .*altered'):
                again.read_block(number, 'segment')
        assert not again.blocks() and len(again.blocks(lost=True)) == 50


def test_ten_thousand_segments(store):
    with store.transaction():
        for number in range(10_000):
            store.add_segment(segment(number))
            store.add_note(StoredNote(number, f'note {number}'))
    with reopened(store) as again:
        assert [each.id for each in again.segments()] == list(range(10_000))
        assert [hit.segment_id for hit in again.search('note 7341')][:1] == [7341]
        window = (2999 * 3 * S, 3001 * 3 * S)
        assert [each.id for each in again.segments(window=window)] == [2999, 3000, 3001]


def test_ids_are_never_used_twice(store):
    for number in range(3):
        put(store, number)
    with pytest.raises(StoreError, match='expected something new'):
        store.add_segment(segment(1))
    assert store.clear(100 * S) == 3 and len(store) == 0 and not block_files(store)
    with reopened(store) as again:
        assert again.next_id == 3


def test_clear_remove_and_drop(store):
    for number in range(6):
        put(store, number, thumbnail=b'x')
    store.add_note(StoredNote(1, 'old', 'episode', 2))
    store.add_note(StoredNote(2, 'new', 'episode', 4))
    for second in (5, 12):
        store.add_answer(StoredAnswer('?', '!', second * S, second * S))
    # Segment 3 lasts from 9 to 11 s.
    assert store.clear(11 * S) == 3
    assert [each.id for each in store.segments()] == [3, 4, 5] and store.thumbnail(2) is None
    assert [note.text for note in store.notes()] == ['note 3', 'note 4', 'new', 'note 5']
    assert [answer.as_of_ns for answer in store.answers()] == [12 * S]
    assert not store.search('old') and [hit[0] for hit in store.search('new')] == [2]
    assert store.remove([4, 77]) == 1 and len(block_files(store)) == 2
    assert store.drop_block(3, 'segment') and not store.drop_block(3, 'segment')
    assert len(block_files(store)) == 1
    with pytest.raises(StoreError, match='segment 3 has no KV block'):
        store.read_block(3, 'segment')


def test_no_segment_no_note(store):
    with pytest.raises(StoreError, match='expected a segment of this memory'):
        store.add_note(StoredNote(4, 'about nothing'))
    with pytest.raises(StoreError, match='there is no segment 4'):
        store.segment(4)
    with pytest.raises(StoreError, match='letters, digits'):
        put(store, 0)
        store.add_block(0, '../../up', block_of(0))
    assert not (store.folder.parent / 'up').exists()


# Transactions and threads

def test_a_failed_transaction_leaves_nothing(store):
    put(store, 0)
    with pytest.raises(ZeroDivisionError), store.transaction():
        put(store, 1)
        store.drop_block(0, 'segment')
        raise ZeroDivisionError
    assert [each.id for each in store.segments()] == [0] and len(block_files(store)) == 1
    assert same(store.read_block(0, 'segment')[0], 0)


def test_a_failed_part_leaves_the_rest(store):
    with store.transaction():
        put(store, 0)
        with contextlib.suppress(StoreError):
            put(store, 0)
        with contextlib.suppress(ZeroDivisionError), store.transaction():
            store.drop_block(0, 'segment')
            raise ZeroDivisionError
    assert len(store.notes()) == 1 and same(store.read_block(0, 'segment')[0], 0)
    assert len(block_files(store)) == 1


def test_readers_see_what_was_committed_and_do_not_wait(store):
    put(store, 0)
    seen = []
    with store.transaction():
        put(store, 1)
        reader = threading.Thread(target=lambda: seen.extend((len(store), store.search('note'))))
        reader.start()
        reader.join(10)
        assert not reader.is_alive() and len(store) == 2
    assert seen[0] == 1 and [hit.segment_id for hit in seen[1]] == [0]


def test_threads_write_read_and_copy_at_once(store, tmp_path):
    errors, done = [], threading.Event()

    def guarded(work):
        def run():
            try:
                work()
            except Exception as error:
                errors.append(error)
        return threading.Thread(target=run)

    def read():
        while not done.is_set():
            for block in store.blocks()[-5:]:
                try:
                    assert same(store.read_block(block.segment_id, 'segment')[0], block.segment_id)
                except StoreError as error:
                    assert block.segment_id < 20, error
            assert len(store.search('note')) <= 10

    def write():
        for number in range(60):
            put(store, number)
            if number % 3 == 0 and number < 60:
                store.drop_block(number // 3, 'segment')

    def copy():
        for number in range(3):
            store.copy_to(tmp_path / f'copy{number}')

    threads = [guarded(work) for work in (read, read, write, copy)]
    for thread in threads:
        thread.start()
    for thread in threads[2:]:
        thread.join(60)
    done.set()
    for thread in threads:
        thread.join(60)
    assert not errors and len(store.notes()) == 60
    for number in range(3):
        with Store.open(tmp_path / f'copy{number}', IDENTITY) as copied:
            assert len(copied.notes()) == len(copied) and not any(
                block.lost for block in copied.blocks(lost=True))
            for block in copied.blocks():
                assert same(copied.read_block(block.segment_id, 'segment')[0], block.segment_id)


def test_copies_are_whole_and_apart(store, tmp_path):
    put(store, 0)
    put(store, 1)
    store.block_path(store.blocks()[1]).unlink()
    store.copy_to(tmp_path / 'copy')
    store.clear(100 * S)
    with Store.open(tmp_path / 'copy', IDENTITY) as copied:
        assert same(copied.read_block(0, 'segment')[0], 0)
        assert [block.segment_id for block in copied.blocks(lost=True)] == [0]
        put(copied, copied.next_id)
    assert len(store) == 0
    with pytest.raises(StoreError, match='expected a new or an empty folder'):
        store.copy_to(tmp_path / 'copy')
    assert not list(tmp_path.glob('.copy*'))


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


# Search

NOTES = ['red ball front left', 'blue cup back right', 'red cup centre', 'red red red ball',
         'a green star', 'blue blue cup cup']


def worth(notes, query):
    """Sum of inverse document frequencies of the words that a note has; no word twice."""
    documents = [set(note.split()) for note in notes]
    scores = []
    for document in documents:
        score = 0.0
        for word in set(query.split()) & document:
            having = sum(word in other for other in documents)
            score += math.log(1 + (len(documents) - having + 0.5) / (having + 0.5))
        scores.append(score)
    return scores


@pytest.mark.parametrize('query', ['red', 'red cup', 'cup left red', 'blue ball red'])
def test_search_ranks_by_the_worth_of_words(query):
    store = Store.in_memory()
    for number, text in enumerate(NOTES):
        store.add_segment(segment(number))
        store.add_note(StoredNote(number, text))
    wanted = {number: score for number, score in enumerate(worth(NOTES, query)) if score}
    hits = store.search(query, limit=99)
    assert {hit.segment_id: hit.score for hit in hits} == pytest.approx(wanted)
    order = sorted(wanted, key=lambda number: (-round(wanted[number], 9), -number))
    assert [hit.segment_id for hit in hits] == order
    assert store.search(query, limit=1) == hits[:1]


def test_question_words_do_not_count_and_forms_of_words_do(store):
    for number, text in enumerate(['the cup was moved', 'where it is', 'nothing new']):
        put(store, number, text)
    assert [hit.segment_id for hit in store.search('Where did the cups move?')] == [0]
    assert [hit.segment_id for hit in store.search('where?')] == [1]
    assert store.search('?!') == store.search('') == store.search('zebra') == []


def test_equally_good_notes_by_age(store):
    for number, order in ((0, 2), (1, 0), (2, 1)):
        put(store, number, 'red cup', order=order)
    assert [hit.segment_id for hit in store.search('cup')] == [0, 2, 1]
    assert [hit.segment_id for hit in store.search('cup', oldest_first=True)] == [1, 2, 0]
    assert [hit.segment_id for hit in store.search('cup', until=1)] == [2, 1]


def test_search_within_epoch_cameras_and_window(store):
    for number, camera, epoch in ((0, 'a', 0), (1, 'b', 0), (2, 'a', 1), (3, 'b', 1)):
        put(store, number, 'cup', camera=camera, epoch=epoch)
    store.add_note(StoredNote(1, 'cup', 'episode', 2))

    def found(**where):
        return sorted((hit.segment_id, hit.last_id) for hit in store.search('cup', **where))

    assert found() == [(0, 0), (1, 1), (1, 2), (2, 2), (3, 3)]
    assert found(epoch=0) == [(0, 0), (1, 1), (1, 2)]
    assert found(cameras=['a']) == [(0, 0), (1, 2), (2, 2)]
    assert found(epoch=1, cameras=('b',)) == [(3, 3)]
    # Segments 1 and 2 last from 3 to 5 s and from 6 to 8 s.
    assert found(window=(5 * S, 6 * S)) == [(1, 1), (1, 2), (2, 2)]
    assert found(window=(round(8.5 * S), 9 * S)) == [(3, 3)]


TABLE = Store.in_memory()
fill_from_table(TABLE, segments=20, size_px=32, questions=False)


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=40) | st.sampled_from(
    ['"', '"red" NEAR ball', 'text: red', 'red*', '^red', '-red', 'red AND', '(', 'a OR b OR',
     'NOT', '\x00red\x00', '\ud800red', '{text}: x', 'red + ball', '_', '٣', 'ª', '\u0301']))
def test_no_text_breaks_the_search(text):
    assert all(hit.score > 0 and hit.text for hit in TABLE.search(text))
    assert TABLE.search(f'{text} put')[0].score > 0


def test_a_page_as_a_question():
    assert TABLE.search(' '.join(f'word{number}' for number in range(10_000)) + ' put') == []
    assert TABLE.search('put ' * 10_000) == TABLE.search('put')


def test_half_characters_are_kept_as_question_marks(store):
    store.add_segment(segment(0))
    store.add_note(StoredNote(0, 'a\ud800b'))
    assert store.notes()[0].text == 'a?b'


def test_in_memory_takes_everything_but_blocks(tmp_path):
    store = Store.in_memory()
    store.add_segment(segment(0))
    store.add_note(StoredNote(0, 'red cup'))
    with pytest.raises(StoreError, match='takes no KV blocks'):
        store.add_block(0, 'segment', block_of(0))
    assert store.remove([0]) == 1 and store.search('cup') == [] and store.nbytes > 0
    store.add_segment(segment(1))
    store.copy_to(tmp_path / 'copy')
    with Store.open(tmp_path / 'copy', IDENTITY) as kept:
        put(kept, kept.next_id)
        assert [each.id for each in kept.segments()] == [1, 2]


# The cap

def on_disk(store):
    return sum(path.stat().st_size for path in store.folder.rglob('*') if path.is_file())


def test_the_cap_drops_the_oldest_kv_first(tmp_path):
    one = 2 * 2 * 1 * 2_000 * 8 * 2
    cap, told = 3_000_000, []
    with Store.open(tmp_path, IDENTITY, cap, lambda *gone: told.append(gone)) as store:
        most = 0
        for number in range(40):
            put(store, number, tokens=2_000)
            store.add_block(number, 'note', block_of(number, 10))
            most = max(most, on_disk(store))
            assert store.nbytes <= cap
        assert one * 40 > 1.5 * cap and most <= cap + one + 20_000
        kept = [block.segment_id for block in store.blocks() if block.name == 'segment']
        assert kept == list(range(kept[0], 40)) and len(kept) > 10
        assert told == [(number, 'segment') for number in range(kept[0])]
        assert len([block for block in store.blocks() if block.name == 'note']) == 40
        assert len(store) == len(store.notes()) == 40
        assert same(store.read_block(39, 'segment')[0], 39, 2_000)
    with Store.open(tmp_path, IDENTITY, 2_000_000) as store:
        assert store.nbytes <= 2_000_000 and store.blocks()[-1].segment_id == 39


def test_the_cap_drops_the_oldest_rows_last(tmp_path):
    cap, told = 600_000, []
    with Store.open(tmp_path, IDENTITY, cap, lambda *gone: told.append(gone)) as store:
        for number in range(300):
            put(store, number, thumbnail=bytes(5_000))
            if number % 3 == 0:
                store.add_answer(StoredAnswer('?' * 1_000, '!', 3 * number * S, 3 * number * S))
            assert on_disk(store) <= cap + 20_000
        ids = [each.id for each in store.segments()]
        assert ids == list(range(ids[0], 300)) and 20 < len(ids) < 120
        assert {note.segment_id for note in store.notes()} == set(ids)
        assert [number for number, name in told if not name] == list(range(ids[0]))
        assert [answer.as_of_ns for answer in store.answers()] == [
            3 * number * S for number in range(0, 300, 3) if number >= ids[0]]


def test_a_cap_below_one_segment_keeps_the_newest(tmp_path):
    with Store.open(tmp_path, IDENTITY, 10_000) as store:
        for number in range(4):
            put(store, number)
        assert [each.id for each in store.segments()] == [3]
        assert same(store.read_block(3, 'segment')[0], 3)


# Merging

def test_merge_by_time(tmp_path, store):
    for number, start_s in enumerate((100, 110, 120)):
        put(store, number, f'noon {number}', start_s=start_s)
    with Store.open(tmp_path / 'morning', IDENTITY) as morning:
        for number, (start_s, camera) in enumerate(((10, 'front'), (20, 'front'), (112, 'rear'))):
            put(morning, number, f'morning {number}', start_s=start_s, camera=camera,
                thumbnail=bytes([number]))
        morning.add_note(StoredNote(0, 'all', 'episode', 2))
        morning.add_answer(StoredAnswer('?', '!', 30 * S, 30 * S, evidence=((1, 0.5), (99, 0.1))))
    merged = store.merge(tmp_path / 'morning')
    assert (merged.ids, merged.notes, merged.answers, merged.blocks) == ({0: 3, 1: 4, 2: 5}, 4, 1,
                                                                         3)
    assert [(each.id, each.order, each.epoch) for each in store.segments()] == [
        (3, 0, 0), (4, 1, 0), (0, 2, 0), (1, 3, 0), (5, 4, 0), (2, 5, 0)]
    for new, old in ((3, 0), (5, 2), (1, 1)):
        assert same(store.read_block(new, 'segment')[0], old)
    assert store.thumbnail(4) == b'\x01' and store.answers()[0].evidence == ((4, 0.5),)
    assert [(hit.segment_id, hit.last_id) for hit in store.search('all')] == [(3, 5)]
    # The other goes on by itself.
    shutil.rmtree(tmp_path / 'morning')
    with reopened(store) as again:
        assert same(again.read_block(3, 'segment')[0], 0)


def test_merging_what_happened_at_the_same_time_keeps_epochs_apart(tmp_path, store):
    with Store.open(tmp_path / 'again', IDENTITY) as again:
        for number, epoch in ((0, 0), (1, 1)):
            again.add_epoch(epoch, epoch * S)
            put(again, number, epoch=epoch)
    store.add_epoch(0, 50 * S)
    put(store, 0, start_s=4)
    store.merge(tmp_path / 'again')
    assert [(each.id, each.epoch) for each in store.segments()] == [(1, 0), (2, 1), (0, 2)]
    assert store.epochs() == {0: 0, 1: S, 2: 50 * S}
    # Once more, without the overlap: the newest epochs become one.
    with Store.open(tmp_path / 'third', IDENTITY) as third:
        put(third, 0, start_s=1000)
    store.merge(tmp_path / 'third')
    assert [(each.id, each.epoch) for each in store.segments()][-2:] == [(0, 2), (3, 2)]


def test_merging_another_models_memory_takes_notes_only(tmp_path, store, caplog):
    with Store.open(tmp_path / 'other', OTHER) as other:
        put(other, 0, 'red cup')
    merged = store.merge(tmp_path / 'other')
    assert merged.blocks == 0 and 'weights: c0ffee here, decaf wanted' in merged.refused
    assert 'only notes are taken' in caplog.text
    assert store.search('cup')[0].segment_id == 0 and not store.blocks()
    with pytest.raises(StoreError, match='itself'):
        store.merge(store.folder)
    with pytest.raises(StoreError, match='no such folder'):
        store.merge(tmp_path / 'nowhere')
    assert len(store) == 1


def test_a_merge_that_fails_leaves_nothing(tmp_path, store):
    put(store, 0)
    with Store.open(tmp_path / 'other', IDENTITY) as other:
        for number in range(3):
            put(other, number, start_s=50 + 3 * number)
        os.chmod(tmp_path / 'other', 0o700)
    before = block_files(store)
    with pytest.raises(ZeroDivisionError), store.transaction():
        store.merge(tmp_path / 'other')
        raise ZeroDivisionError
    assert len(store) == 1 and block_files(store) == before


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
