"""A memory on disk gives back what was put into it, and stays within its cap.

Expected values are those that were put in, and the files as they lie there.
"""

import contextlib
import json
import os
import shutil
import threading

import pytest
import torch
from memory.filled import (
    IDENTITY,
    OTHER,
    S,
    block_files,
    block_of,
    put,
    reopened,
    same,
    segment,
)

from tww_ros.errors import StoreError
from tww_ros.memory.store import Store
from tww_ros.memory.store_schema import StoredAnswer, StoredNote
from tww_ros.types import Pose

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
